// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/conenat/conenat/vmtest/internal/initramfs"
)

// A KVM that is real reaches userspace in about a second. One that is emulated fails at once, or not for minutes.
const probeTime = 10 * time.Second

// ChooseAccel returns KVM where that boots the machine to userspace in a few seconds, else TCG. The answer is kept in
// the cache directory until the host boots again.
func (m Machine) ChooseAccel(ctx context.Context, cache string, progress func(string, ...any)) (Accel, error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	kvm.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	file, key := filepath.Join(cache, "accel"), strings.TrimSpace(string(boot))
	kept, _ := os.ReadFile(file)
	for _, accel := range []Accel{KVM, TCG} {
		if string(kept) == key+" "+string(accel)+"\n" {
			return accel, nil
		}
	}
	progress("trying KVM for up to %v", probeTime)
	accel, err := m.probe(ctx)
	if err != nil {
		return "", err
	}
	return accel, os.WriteFile(file, []byte(key+" "+string(accel)+"\n"), 0o644)
}

func (m Machine) probe(ctx context.Context) (Accel, error) {
	m.Accel, m.Wires = KVM, nil
	m.Append = strings.TrimSpace(m.Append + " " + initramfs.ProbeOption)
	result, err := m.Run(ctx, Options{
		BootTimeout: probeTime, Console: io.Discard, ConsoleLimit: 1 << 20,
		Stdout: io.Discard, Stderr: io.Discard, Progress: func(string, ...any) {},
	})
	if err != nil || result.Userspace {
		return KVM, err
	}
	return TCG, nil
}
