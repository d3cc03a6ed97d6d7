// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

var small = dataplane.Capacity{Sessions: 256, Bindings: 128}

// lab is Figure 3's host with a state directory.
func lab(t *testing.T) (*topo.Figure3, string) {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	dir, err := f.BPFFS()
	if err != nil {
		t.Fatal(err)
	}
	return f, filepath.Join(dir, "conenat")
}

// open opens a dataplane in the host's namespace; close is part of the test's end.
func open(t *testing.T, f *topo.Figure3, opts dataplane.Options) (d *dataplane.Dataplane, err error) {
	t.Helper()
	opts.Capacity = small
	err = f.Host.Do(func() error {
		d, err = dataplane.Open(opts)
		return err
	})
	if err == nil {
		t.Cleanup(func() { d.Close() })
	}
	return d, err
}

func mustOpen(t *testing.T, f *topo.Figure3, opts dataplane.Options) *dataplane.Dataplane {
	t.Helper()
	d, err := open(t, f, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// equip puts a network, an outside and all hooks.
func equip(f *topo.Figure3, d *dataplane.Dataplane) error {
	return f.Host.Do(func() error {
		bridge, err := net.InterfaceByName("docker0")
		if err != nil {
			return err
		}
		up, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			d.PutNetwork(dataplane.Network{Name: "docker0", IfIndex: bridge.Index, Gateway: bridge.HardwareAddr,
				Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}}),
			d.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: up.Index, Addresses: []netip.Addr{topo.HostAddr}}),
			d.Attach(dataplane.Link{IfIndex: bridge.Index, Name: "docker0", Kind: dataplane.InsideDevice, Owner: "docker0"}),
			d.Attach(dataplane.Link{IfIndex: up.Index, Name: "eth0", Kind: dataplane.OutsideLink, Owner: "eth0"}))
	})
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		there string // in the state directory
		opts  dataplane.Options
		want  error
		says  string
	}{
		"MissingKernelFeature": {opts: dataplane.Options{DisableFeatures: []string{dataplane.FeatureKernel}},
			want: dataplane.ErrNotSupported, says: "bpf_loop"},
		"OtherABI": {there: "abi-999", want: dataplane.ErrABI, says: "abi-999"},
	} {
		t.Run(name, func(t *testing.T) {
			f, dir := lab(t)
			if c.there != "" {
				if err := os.MkdirAll(filepath.Join(dir, c.there), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			c.opts.StateDir = dir
			leaves(t, dir, func() error { _, err := open(t, f, c.opts); return err }, c.want, c.says)
		})
	}
}

// leaves checks that something is refused, with what the error says, and that the state directory stays as it is.
func leaves(t *testing.T, dir string, do func() error, want error, says string) {
	t.Helper()
	before := tree(t, dir)
	if err := do(); !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("error %v, want %v that says %q", err, want, says)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("state directory changed (-before +after):\n%s", diff)
	}
}

// TestOneDaemon: state has one daemon, and is of one network namespace. What it has attached, detach takes away.
func TestOneDaemon(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	if err := equip(f, d); err != nil {
		t.Fatal(err)
	}
	again := func() error { _, err := dataplane.Open(dataplane.Options{StateDir: dir}); return err }
	remove := func() error { _, err := dataplane.Remove(dir); return err }
	leaves(t, dir, again, dataplane.ErrInUse, "--state-dir")
	leaves(t, dir, remove, dataplane.ErrInUse, dir)
	d.Close()
	elsewhere := func(what func() error) func() error { return func() error { return f.Router.Do(what) } }
	leaves(t, dir, elsewhere(again), dataplane.ErrOtherNamespace, "--state-dir")
	leaves(t, dir, elsewhere(remove), dataplane.ErrOtherNamespace, "nsenter")
	checkRemove(t, f, dir)
}

// tree lists what is in a directory, at any depth.
func tree(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return names
}

// TestOpenWithoutPrivilege runs on a thread that gave its capabilities up.
func TestOpenWithoutPrivilege(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		_, err := dataplane.Open(dataplane.Options{StateDir: filepath.Join(dir, "state")})
		done <- err
	}()
	err := <-done
	if !errors.Is(err, dataplane.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("error %v, want %v that names CAP_NET_ADMIN", err, dataplane.ErrPermission)
	}
	if names := tree(t, dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

// TestAdopt: what one daemon made the next one finds, by either mechanism and across a change of it. It is one life of
// state with many daemons: each of them has the programs verified, which takes long in a virtual machine.
func TestAdopt(t *testing.T) {
	f, dir := lab(t)
	var want *dataplane.Binding
	for _, daemon := range []struct {
		name    string
		without []string
		hooks   string
	}{
		{"First", []string{dataplane.FeatureTCX}, "clsact"},
		{"NoFeatures", dataplane.FeatureNames[:3], "clsact"},
		{"AllFeatures", nil, "tcx"},
		{"FewFeatures", dataplane.FeatureNames[1:3], "tcx"},
		{"ToClsact", []string{dataplane.FeatureTCX}, "clsact"},
	} {
		t.Run(daemon.name, func(t *testing.T) {
			d := mustOpen(t, f, dataplane.Options{StateDir: dir, DisableFeatures: daemon.without})
			if d.Adopted() != (want != nil) || d.Capacity() != small {
				t.Errorf("adopted %v with capacity %v", d.Adopted(), d.Capacity())
			}
			if err := equip(f, d); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = addForward(t, d)
			}
			checkForward(t, d, *want)
			checkNothing(t, f, d)
			checkMechanism(t, f, d, daemon.hooks)
		})
		if t.Failed() {
			return
		}
	}
	checkRemove(t, f, dir)
}

func addForward(t *testing.T, d *dataplane.Dataplane) *dataplane.Binding {
	t.Helper()
	b, err := d.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: netip.MustParseAddrPort("198.51.100.1:8080"),
		Internal: netip.MustParseAddrPort("172.17.0.2:80")})
	if err != nil {
		t.Fatal(err)
	}
	return &b
}

func checkForward(t *testing.T, d *dataplane.Dataplane, want dataplane.Binding) {
	t.Helper()
	got, err := d.Bindings()
	if err != nil || len(got) != 1 {
		t.Fatalf("bindings %v, %v", got, err)
	}
	got[0].Created = want.Created // the maps have whole seconds
	if diff := cmp.Diff(want, got[0], cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("binding (-want +got):\n%s", diff)
	}
}

// tcx is the kernel that has links for traffic control.
var tcx = require.Version{Major: 6, Minor: 6}

func checkMechanism(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane, want string) {
	t.Helper()
	if require.Running(t).Before(tcx) {
		want = "clsact"
	}
	var links []dataplane.Link
	err := f.Host.Do(func() (err error) {
		links, err = d.Links()
		return err
	})
	if err != nil || len(links) != 2 {
		t.Fatalf("links %v, %v", links, err)
	}
	for _, l := range links {
		if l.Mechanism != want {
			t.Errorf("%s is attached by %q, want %q", l.Name, l.Mechanism, want)
		}
	}
	out, err := f.Host.Run(context.Background(), "", "tc", "qdisc", "show")
	if err != nil {
		t.Fatal(err)
	}
	if has := strings.Contains(out, "clsact"); has != (want == "clsact") {
		t.Errorf("clsact qdisc is there: %v; hooks are attached by %s", has, want)
	}
}

func checkRemove(t *testing.T, f *topo.Figure3, dir string) {
	t.Helper()
	var report dataplane.RemoveReport
	err := f.Host.Do(func() (err error) {
		report, err = dataplane.Remove(dir)
		return err
	})
	if err != nil || report.Links != 2 || report.Pins == 0 {
		t.Errorf("remove: %+v, %v", report, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	out, err := f.Host.Run(context.Background(), "", "tc", "qdisc", "show")
	if err != nil || strings.Contains(out, "clsact") {
		t.Errorf("qdiscs after remove: %s, %v", out, err)
	}
	if err := f.Host.Do(func() error { _, err := dataplane.Remove(dir); return err }); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("remove again: %v, want %v", err, dataplane.ErrNotFound)
	}
}

// TestWhatIsThereAlready: a daemon that was killed while it made its maps leaves nothing that the next one, or detach,
// stumbles over. What it has put half-way can be put again. What others have pinned stays, and so does their bpffs.
func TestWhatIsThereAlready(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	dir, err := f.BPFFS()
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "unfinished")
	if err := errors.Join(os.Chmod(dir, 0o700), os.Mkdir(filepath.Join(dir, "other"), 0o700)); err != nil {
		t.Fatal(err)
	}
	others := tree(t, dir)
	if err := pinMap(half, "links"); err != nil {
		t.Fatal(err)
	}
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished directory: %v", err)
	}
	checkPutOutsideAgain(t, d)
	d.Close()
	if err := pinMap(half, "links"); err != nil {
		t.Fatal(err)
	}
	if err := f.Host.Do(func() error { _, err := dataplane.Remove(dir); return err }); err != nil {
		t.Errorf("remove: %v", err)
	}
	if diff := cmp.Diff(others, tree(t, dir)); diff != "" {
		t.Errorf("what is not conenat's (-before +after):\n%s", diff)
	}
}

// TestRemoveNothing: of a daemon that was killed before it pinned anything the directory goes, too. What could not be taken away is
// no nothing.
func TestRemoveNothing(t *testing.T) {
	f, dir := lab(t)
	remove := func() error {
		return f.Host.Do(func() error { _, err := dataplane.Remove(dir); return err })
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := remove(); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("remove an empty directory: %v, want %v", err, dataplane.ErrNotFound)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	var host unix.Stat_t
	if err := unix.Stat(f.Host.Path, &host); err != nil {
		t.Fatal(err)
	}
	place := fmt.Sprintf("/run/conenat/fragments-%d-%.4x", host.Ino, sha256.Sum256([]byte(dir)))
	if err := os.MkdirAll(filepath.Join(place, "not ours"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(place) })
	if err := remove(); err == nil || errors.Is(err, dataplane.ErrNotFound) || !strings.Contains(err.Error(), place) {
		t.Errorf("remove with %s in the way: %v", place, err)
	}
}

// pinMap pins one map in a new directory, as the first of those that a daemon makes.
func pinMap(dir, name string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: bpf.Links})
	if err != nil {
		return err
	}
	return errors.Join(m.Pin(filepath.Join(dir, name)), m.Close())
}

func checkPutOutsideAgain(t *testing.T, d *dataplane.Dataplane) {
	t.Helper()
	o := dataplane.Outside{Name: "eth0", IfIndex: 2, Addresses: []netip.Addr{topo.HostAddr}}
	if err := d.PutOutside(o); err != nil {
		t.Fatal(err)
	}
	var none bpf.Realm
	if err := d.Objects().Realms4.Put(uint32(0), none); err != nil { // the state between the two writes
		t.Fatal(err)
	}
	if err := d.PutOutside(o); err != nil {
		t.Errorf("put again: %v", err)
	}
}

// TestForeignStateDir: a directory that others may write to is refused.
func TestForeignStateDir(t *testing.T) {
	f, dir := lab(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, f, dataplane.Options{StateDir: dir}); !errors.Is(err, dataplane.ErrPermission) || !strings.Contains(err.Error(), dir) {
		t.Errorf("open: %v, want %v", err, dataplane.ErrPermission)
	}
}

// checkNothing: an interface that went in the meantime is not found, and leaves nothing.
func checkNothing(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane) {
	t.Helper()
	nothing := dataplane.Link{IfIndex: 12345, Name: "veth-gone", Kind: dataplane.InsidePort, Owner: "docker0"}
	if err := f.Host.Do(func() error { return gone(d.Attach(nothing)) }); err != nil {
		t.Error(err)
	}
	links, err := d.Links()
	if err != nil || len(links) != 2 {
		t.Errorf("links %+v, %v", links, err)
	}
}

// gone is nil for an error that says "not found".
func gone(err error) error {
	if errors.Is(err, dataplane.ErrNotFound) {
		return nil
	}
	return fmt.Errorf("want it not to be found: %w", err)
}
