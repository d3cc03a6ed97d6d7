// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// TestCheckHelpers: all that is missing is named, with the kernel that has it; a probe that fails is not taken for an answer.
func TestCheckHelpers(t *testing.T) {
	broken := errors.New("no memory")
	for name, tt := range map[string]struct {
		missing []asm.BuiltinFunc
		err     error
		want    string // empty: no error
		is      error
	}{
		"Nothing": {},
		"One": {[]asm.BuiltinFunc{asm.FnLoop}, ebpf.ErrNotSupported,
			"Linux 5.10.1 has no bpf_loop (since 5.17); conenat needs Linux 6.1 or later", ErrNotSupported},
		"Several": {[]asm.BuiltinFunc{asm.FnLoop, asm.FnTimerInit, asm.FnKtimeGetCoarseNs}, ebpf.ErrNotSupported,
			"Linux 5.10.1 has no bpf_loop (since 5.17), bpf_timer_init (since 5.15), bpf_ktime_get_coarse_ns (since 5.11); conenat needs", ErrNotSupported},
		"Broken": {[]asm.BuiltinFunc{asm.FnTimerInit}, broken, "probe the kernel for bpf_timer_init: no memory", broken},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkHelpers("5.10.1", func(helper asm.BuiltinFunc) error {
				if slices.Contains(tt.missing, helper) {
					return tt.err
				}
				return nil
			})
			if !errors.Is(err, tt.is) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v\nwant %q", err, tt.want)
			}
		})
	}
}
