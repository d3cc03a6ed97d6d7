// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// equip6 gives the network and the outside addresses of IPv6, too.
func equip6(f *topo.Figure3, d *dataplane.Dataplane) error {
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
				Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00:17::/64")}}),
			d.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: up.Index, Addresses: []netip.Addr{topo.HostAddr, family.V6.Addr(topo.HostAddr)}}))
	})
}

// session6 is one that another NAT has had.
var session6 = dataplane.Session{Protocol: dataplane.TCP, Network: "docker0", State: "established",
	Internal: netip.MustParseAddrPort("[fd00:17::2]:5000"), External: family.V6.At(topo.HostAddr, 5000), Remote: family.V6.At(topo.Peer1Addr, 80)}

func pinnedOf6(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, name := range tree(t, dir) {
		if strings.Contains(name, "ipv6") {
			names = append(names, name)
		}
	}
	return names
}

// TestIPv6Adopted: IPv6 is loaded when it is asked for, and not before; what a daemon had of it the next one finds, with its programs
// in the place of the old ones; detach reads it, and takes it away.
func TestIPv6Adopted(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	forward := addForward(t, d)
	if names := pinnedOf6(t, dir); len(names) != 0 {
		t.Errorf("nothing is of IPv6, and %v are pinned", names)
	}
	must(t, equip6(f, d))
	must(t, d.ImportSession(session6))
	want := sessionsOf(t, d)
	if names := pinnedOf6(t, dir); len(names) < 10 {
		t.Errorf("pinned of IPv6: %v", names)
	}
	before := called6(t, d)
	must(t, d.Close())

	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip6(f, d))
	if diff := cmp.Diff(want, sessionsOf(t, d), cmpopts.EquateComparable(netip.AddrPort{}), clocks); diff != "" {
		t.Errorf("sessions (-before +after):\n%s", diff)
	}
	for slot, id := range called6(t, d) {
		if slices.Contains(before, id) {
			t.Errorf("slot %d still calls program %d", slot, id)
		}
	}
	bindings, err := d.Bindings()
	must(t, err)
	if len(bindings) != 2 || bindings[0].External != forward.External || bindings[1].External != session6.External {
		t.Errorf("bindings %+v", bindings)
	}
	must(t, d.Close())

	checkPinned(t, f, dir, want)
	checkRemove(t, f, dir)
}

func sessionsOf(t *testing.T, d *dataplane.Dataplane) []dataplane.Session {
	t.Helper()
	all, err := d.Sessions()
	if err != nil || len(all) != 1 {
		t.Fatalf("sessions %+v, %v", all, err)
	}
	return all
}

// called6 are the programs of IPv6 that IPv4's call.
func called6(t *testing.T, d *dataplane.Dataplane) (ids []uint32) {
	t.Helper()
	programs := d.Objects().Programs6
	for slot := range programs.MaxEntries() {
		var id uint32
		if err := programs.Lookup(slot, &id); err != nil {
			t.Errorf("slot %d calls nothing: %v", slot, err)
		}
		ids = append(ids, id)
	}
	return ids
}

// TestIPv6HalfLoaded: a daemon that was killed while it loaded IPv6, before its maps had their name or after, leaves nothing that the
// next one or detach stumbles over.
func TestIPv6HalfLoaded(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, errors.Join(equip(f, d), d.Close()))
	pins, err := filepath.Glob(filepath.Join(dir, "abi-*"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins %v, %v", pins, err)
	}
	unfinished := filepath.Join(pins[0], "ipv6_unfinished")
	must(t, pinMap(unfinished, "sessions6"))
	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, errors.Join(equip(f, d), equip6(f, d), d.ImportSession(session6)))
	if _, err := os.Stat(unfinished); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished directory: %v", err)
	}
	// The maps were there, and the programs in no slot yet.
	programs := d.Objects().Programs6
	for slot := range programs.MaxEntries() {
		must(t, programs.Delete(slot))
	}
	must(t, d.Close())
	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	if ids := called6(t, d); slices.Contains(ids, 0) {
		t.Errorf("programs %v", ids)
	}
	sessionsOf(t, d)
	must(t, d.Close())
	must(t, pinMap(unfinished, "sessions6"))
	checkRemove(t, f, dir)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
