// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// floor is the oldest kernel that conenat runs on, helpers are what those before lack, and tcx has the hooks that it prefers.
var (
	floor   = require.Version{Major: 6, Minor: 1}
	tcx     = require.Version{Major: 6, Minor: 6}
	helpers = map[string]require.Version{
		"bpf_loop (since 5.17)":                {Major: 5, Minor: 17},
		"bpf_timer_init (since 5.15)":          {Major: 5, Minor: 15},
		"bpf_ktime_get_coarse_ns (since 5.11)": {Major: 5, Minor: 11},
		"conenat needs Linux 6.1 or later":     floor,
	}
)

// tcxHooks are what a test of TCX alone needs. To ask for an interface's programs is enough to know.
var tcxHooks = require.Feature{
	Name: "TCX", Since: tcx, Config: []string{"CONFIG_NET_XGRESS"},
	Probe: func() error {
		_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
		return err
	},
}

// TestKernelFloor: below the floor conenat refuses, names all that is missing, and leaves nothing behind; from there on
// it runs, by the hooks that the kernel should have. `vmtest test --kernel 5.10 ./tests/e2e -- -run TestKernelFloor` is the test of the refusal.
func TestKernelFloor(t *testing.T) {
	running := require.Running(t)
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	c := harness.Place(t, f.Topo, f.Host, "--inside", "docker0")
	l := &lab{Figure3: f, Conenat: c, t: t}
	if !running.Before(floor) {
		c.Run()
		if got := l.status().Mechanism; (got == "tcx") == running.Before(tcx) {
			t.Errorf("on Linux %v the hooks are of %s; TCX came with %v", running, got, tcx)
		}
		return
	}
	before := bpfMaps(t)
	out, code := runs(t, c, f.Host, c.RunArgs()...)
	if code != 1 {
		t.Errorf("exit code %d on Linux %v, want 1", code, running)
	}
	for says, since := range helpers {
		if strings.Contains(out, says) != running.Before(since) {
			t.Errorf("Linux %v, and %q in what it says is %v:\n%s", running, says, !running.Before(since), out)
		}
	}
	for what, found := range leftovers(l) {
		t.Errorf("left behind: %s: %s", what, found)
	}
	// The kernel frees maps some time after their last descriptor is closed.
	err := topo.Poll(context.Background(), 10*time.Second, "the maps go", func() (bool, error) {
		return len(newMaps(t, before)) == 0, nil
	})
	if err != nil {
		t.Errorf("%v: left behind: maps %v", err, newMaps(t, before))
	}
}

func newMaps(t *testing.T, before []ebpf.MapID) []ebpf.MapID {
	t.Helper()
	return slices.DeleteFunc(bpfMaps(t), func(id ebpf.MapID) bool { return slices.Contains(before, id) })
}

// bpfMaps are all of the machine's.
func bpfMaps(t *testing.T) (ids []ebpf.MapID) {
	t.Helper()
	for id := ebpf.MapID(0); ; ids = append(ids, id) {
		next, err := ebpf.MapGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return ids
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
	}
}
