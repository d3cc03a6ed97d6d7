// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/topo"
)

// fragmentsState is what there is of the namespace that puts fragments in order.
type fragmentsState struct {
	Mounts []string // with the namespaces' inodes
	Links  []string // to them
	Used   bool     // by the packet path
}

func stateOfFragments(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane) (s fragmentsState) {
	t.Helper()
	var host unix.Stat_t
	if err := unix.Stat(f.Host.Path, &host); err != nil {
		t.Fatal(err)
	}
	paths, _ := filepath.Glob(fmt.Sprintf("/run/conenat/fragments-%d-*", host.Ino))
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		s.Mounts = append(s.Mounts, fmt.Sprintf("%s: %d", path, st.Ino))
	}
	out, err := f.Host.Run(context.Background(), "", "ip", "-o", "link", "show", "up", "type", "veth")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if index, name, _ := strings.Cut(line, ": "); strings.HasPrefix(name, "cnfrag") {
			s.Links = append(s.Links, index)
		}
	}
	var cfg bpf.Config
	if d != nil {
		if err := d.Objects().Config.Lookup(uint32(0), &cfg); err != nil {
			t.Fatal(err)
		}
	}
	s.Used = len(s.Links) == 1 && s.Links[0] == fmt.Sprint(cfg.ReorderIfindex)
	return s
}

// ensured is the state after EnsureReordering.
func ensured(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane, mtu int) fragmentsState {
	t.Helper()
	if err := f.Host.Do(func() error { return d.EnsureReordering(mtu) }); err != nil {
		t.Fatal(err)
	}
	s := stateOfFragments(t, f, d)
	if len(s.Mounts) != 1 || len(s.Links) != 1 || !s.Used {
		t.Fatalf("%+v: want one namespace, and one interface that is used", s)
	}
	return s
}

// TestEnsureReordering: one namespace, whatever it is that an earlier daemon, or somebody else, has left of it; detach takes it away.
func TestEnsureReordering(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	if err := equip(f, d); err != nil {
		t.Fatal(err)
	}
	first := ensured(t, f, d, 1500)
	same := func(what string, got fragmentsState) {
		t.Helper()
		if diff := cmp.Diff(first, got); diff != "" {
			t.Errorf("%s (-before +after):\n%s", what, diff)
		}
	}
	same("again", ensured(t, f, d, 1500))
	same("for another MTU", ensured(t, f, d, 1400))
	checkRoutes(t, f, first)
	d.Close()
	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	same("adopted", ensured(t, f, d, 1400))
	checkRoutes(t, f, first)

	path, _, _ := strings.Cut(first.Mounts[0], ":")
	for what, spoil := range map[string]func() error{
		"the interface": func() error { return f.Host.IP(t.Context(), "link del "+linkName(t, f)) },
		"the mount":     func() error { return unix.Unmount(path, unix.MNT_DETACH) },
		"both": func() error {
			return errors.Join(f.Host.IP(t.Context(), "link del "+linkName(t, f)), unix.Unmount(path, unix.MNT_DETACH), os.Remove(path))
		},
	} {
		if err := spoil(); err != nil {
			t.Fatalf("take away %s: %v", what, err)
		}
		d.Close()
		d = mustOpen(t, f, dataplane.Options{StateDir: dir})
		ensured(t, f, d, 1400)
	}
	d.Close()
	checkRemove(t, f, dir)
	if s := stateOfFragments(t, f, nil); len(s.Mounts)+len(s.Links) > 0 {
		t.Errorf("left behind: %+v", s)
	}
}

func linkName(t *testing.T, f *topo.Figure3) string {
	t.Helper()
	out, err := f.Host.Run(context.Background(), "", "ip", "-o", "link", "show", "type", "veth")
	if err != nil {
		t.Fatal(err)
	}
	_, name, _ := strings.Cut(out, "cnfrag")
	name, _, _ = strings.Cut("cnfrag"+name, "@")
	return name
}

// checkRoutes: a namespace that was configured more than once has one of each, and the last MTU.
func checkRoutes(t *testing.T, f *topo.Figure3, s fragmentsState) {
	t.Helper()
	path, _, _ := strings.Cut(s.Mounts[0], ":")
	ns, err := f.OpenNS("fragments", path)
	if err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"rule show":          "from all fwmark 0x1 lookup 1",
		"route show table 1": "mtu lock 1400",
	} {
		out, err := ns.Run(context.Background(), "", "ip", strings.Fields(command)...)
		if err != nil || strings.Count(out, want) != 1 {
			t.Errorf("ip %s: %v, want %q once:\n%s", command, err, want, out)
		}
	}
}

// TestReorderingFails: where there is no place for the mount, nothing is left, and the packet path is told so.
func TestReorderingFails(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	s := ensured(t, f, d, 1500)
	path, _, _ := strings.Cut(s.Mounts[0], ":")
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path), os.MkdirAll(filepath.Join(path, "in the way"), 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(path) })
	d.Close()
	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	if err := f.Host.Do(func() error { return d.EnsureReordering(1500) }); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
	if s := stateOfFragments(t, f, d); len(s.Links) > 0 || s.Used {
		t.Errorf("left behind: %+v", s)
	}
}
