// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Features are the kernel's, as probed, less those that were switched off.
type Features struct {
	KernelRelease string
	TCX           bool // Linux 6.6: links for traffic control; else clsact
	FIBSkipNeigh  bool // Linux 6.3: route lookups that answer without a neighbour
	Conntrack     bool // Linux 6.0 with nf_conntrack: what netfilter DNATs keeps working
}

// Names for Options.DisableFeatures.
const (
	FeatureTCX          = "tcx"
	FeatureFIBSkipNeigh = "fib-skip-neigh"
	FeatureConntrack    = "conntrack"
	FeatureKernel       = "kernel" // what conenat cannot do without
)

// FeatureNames are what Options.DisableFeatures accepts.
var FeatureNames = []string{FeatureTCX, FeatureFIBSkipNeigh, FeatureConntrack, FeatureKernel}

// kernelFloor is the oldest kernel whose verifier and helpers the tests run on.
const kernelFloor = "6.1"

// required are the helpers without which there is no packet path, with the kernel that brought them.
var required = []struct {
	helper asm.BuiltinFunc
	name   string
	since  string
}{
	{asm.FnLoop, "bpf_loop", "5.17"},
	{asm.FnTimerInit, "bpf_timer_init", "5.15"},
	{asm.FnKtimeGetCoarseNs, "bpf_ktime_get_coarse_ns", "5.11"},
	{asm.FnRedirectNeigh, "bpf_redirect_neigh", "5.10"},
	{asm.FnRedirectPeer, "bpf_redirect_peer", "5.10"},
	{asm.FnRingbufReserve, "bpf_ringbuf_reserve", "5.8"},
}

func probeFeatures(disabled []string) (Features, error) {
	f := Features{KernelRelease: kernelRelease()}
	for _, name := range disabled {
		if !slices.Contains(FeatureNames, name) {
			return f, fmt.Errorf("disable feature %q: unknown; want one of %s", name, strings.Join(FeatureNames, ", "))
		}
	}
	off := func(name string) bool { return slices.Contains(disabled, name) }
	have := func(helper asm.BuiltinFunc) error {
		if off(FeatureKernel) {
			return ebpf.ErrNotSupported
		}
		return features.HaveProgramHelper(ebpf.SchedCLS, helper)
	}
	if err := checkHelpers(f.KernelRelease, have); err != nil {
		return f, err
	}
	version, err := features.LinuxVersionCode()
	if err != nil {
		return f, fmt.Errorf("read the kernel's version: %w", err)
	}
	if version < versionCode(6, 1) {
		return f, fmt.Errorf("%w: Linux %s is too old; conenat needs Linux %s or later", ErrNotSupported, f.KernelRelease, kernelFloor)
	}
	f.TCX = version >= versionCode(6, 6) && !off(FeatureTCX)
	f.FIBSkipNeigh = version >= versionCode(6, 3) && !off(FeatureFIBSkipNeigh)
	f.Conntrack = haveKfunc("bpf_skb_ct_lookup") && !off(FeatureConntrack)
	return f, nil
}

// checkHelpers names all that are missing, not the first one alone: who reads it decides by that whether another kernel will do.
func checkHelpers(release string, have func(asm.BuiltinFunc) error) error {
	var missing []string
	for _, r := range required {
		err := have(r.helper)
		if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("probe the kernel for %s: %w", r.name, err)
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s (since %s)", r.name, r.since))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: Linux %s has no %s; conenat needs Linux %s or later",
			ErrNotSupported, release, strings.Join(missing, ", "), kernelFloor)
	}
	return nil
}

// haveKfunc looks in the BTF of the kernel and of its loaded modules.
func haveKfunc(name string) bool {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	var f *btf.Func
	if kernel.TypeByName(name, &f) == nil {
		return true
	}
	module, err := btf.LoadKernelModuleSpec("nf_conntrack")
	return err == nil && module.TypeByName(name, &f) == nil
}

// versionCode is KERNEL_VERSION(major, minor, 0) of linux/version.h.
func versionCode(major, minor uint32) uint32 { return major<<16 | minor<<8 }

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Capabilities (linux/capability.h) without one of which the kernel refuses to load or attach.
var capabilities = []struct {
	bit  uint
	name string
}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}}

// checkPrivileges looks before anything is touched, so that a refusal leaves nothing behind.
func checkPrivileges() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	has := func(bit uint) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }
	var missing []string
	for _, c := range capabilities {
		admin := c.bit != unix.CAP_NET_ADMIN && has(unix.CAP_SYS_ADMIN)
		if !has(c.bit) && !admin {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: this process lacks %s; root has them", ErrPermission, strings.Join(missing, ", "))
	}
	return nil
}
