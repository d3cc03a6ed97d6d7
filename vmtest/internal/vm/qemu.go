// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"strings"

	"github.com/conenat/conenat/vmtest/internal/initramfs"
	"github.com/conenat/conenat/vmtest/internal/wire"
)

// Accel is how QEMU runs the guest's instructions.
type Accel string

// KVM, and software emulation. ICount is software emulation whose clock goes by the instructions of one CPU: while that
// is not idle, one nanosecond is one instruction, however busy the host is. Auto is for ChooseAccel.
const (
	Auto   Accel = "auto"
	KVM    Accel = "kvm"
	TCG    Accel = "tcg"
	ICount Accel = "icount"
)

// Machine is what to boot, and how large.
type Machine struct {
	Image, Initramfs string // paths
	Accel            Accel
	CPUs             int
	MemoryMB         int
	Wires            []wire.Spec
	Append           string   // more of the kernel's command line
	QEMU             []string // more arguments
}

const program = "qemu-system-x86_64"

// The descriptors that QEMU inherits, as exec.Cmd numbers them: the console, the guest's ports in their order, and
// from fdEnd on what the wires need.
const (
	fdConsole = 3 + iota
	fdStatus
	fdStdout
	fdStderr
	fdEnd
)

// args returns QEMU's command line. `-cpu max` is the host's CPU under KVM, and all that TCG can do without.
func (m Machine) args() []string {
	accel, cpu := string(m.Accel), "max"
	switch m.Accel {
	case TCG:
		accel = "tcg,thread=multi"
	case ICount:
		accel, cpu = "tcg,thread=single", countedCPU
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", accel, "-cpu", cpu,
		"-smp", fmt.Sprint(m.CPUs), "-m", fmt.Sprintf("%dM", m.MemoryMB),
		"-kernel", m.Image, "-initrd", m.Initramfs, "-append", m.commandLine(),
		"-chardev", port("console", fdConsole), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=" + initramfs.Share,
	}
	for i, name := range []string{"status", "stdout", "stderr"} {
		args = append(args, "-chardev", port(name, fdStatus+i),
			"-device", fmt.Sprintf("virtserialport,nr=%d,chardev=%s,name=%s", i+1, name, name))
	}
	if m.Accel == ICount { // sleep=off would let hours pass while the guest waits for a file of the host's
		args = append(args, "-icount", "shift=0,sleep=on")
	}
	args = append(args, wire.Args(m.Wires, fdEnd)...)
	return append(args, m.QEMU...)
}

// countedCPU is the model under ICount. What max is changes with QEMU; this one QEMU emulates whole, and it has no fast
// strings (ERMS), with which the kernel copies by one instruction for each byte, as TCG counts them.
const countedCPU = "Nehalem-v1"

// port is a chardev that writes to an inherited pipe. "stdio" would read too, and hangs when there is nothing to read.
func port(id string, fd int) string {
	return fmt.Sprintf("file,id=%s,path=/dev/fd/%d,append=on", id, fd)
}

// commandLine makes the kernel restart at once at a panic or an oops, which -no-reboot turns into QEMU's end.
func (m Machine) commandLine() string {
	line := "console=ttyS0 rdinit=/init panic=-1 oops=panic nokaslr mitigations=off "
	if m.Accel == ICount { // the TSC is the count; the kernel would compare it with slower clocks, and give it up
		line += "clocksource=tsc tsc=reliable "
	}
	return strings.TrimSpace(line + m.Append)
}
