// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"strings"

	"github.com/conenat/conenat/vmtest/internal/initramfs"
)

// Accel is how QEMU runs the guest's instructions.
type Accel string

// KVM, and software emulation. Auto is for ChooseAccel.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

// Machine is what to boot, and how large.
type Machine struct {
	Image, Initramfs string // paths
	Accel            Accel
	CPUs             int
	MemoryMB         int
	Append           string   // more of the kernel's command line
	QEMU             []string // more arguments
}

const program = "qemu-system-x86_64"

// The descriptors that QEMU inherits, as exec.Cmd numbers them: the console, and the guest's ports in their order.
const (
	fdConsole = 3 + iota
	fdStatus
	fdStdout
	fdStderr
	fdEnd
)

// args returns QEMU's command line. `-cpu max` is the host's CPU under KVM, and all that TCG can do without.
func (m Machine) args() []string {
	accel := string(m.Accel)
	if m.Accel == TCG {
		accel = "tcg,thread=multi"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", accel, "-cpu", "max",
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
	return append(args, m.QEMU...)
}

// port is a chardev that writes to an inherited pipe. "stdio" would read too, and hangs when there is nothing to read.
func port(id string, fd int) string {
	return fmt.Sprintf("file,id=%s,path=/dev/fd/%d,append=on", id, fd)
}

// commandLine makes the kernel restart at once at a panic or an oops, which -no-reboot turns into QEMU's end.
func (m Machine) commandLine() string {
	return strings.TrimSpace("console=ttyS0 rdinit=/init panic=-1 oops=panic nokaslr mitigations=off " + m.Append)
}
