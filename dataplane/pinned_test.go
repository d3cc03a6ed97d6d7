// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/topo"
)

// clocks: times are those of the moment of reading, to the nanosecond.
var clocks = cmpopts.IgnoreFields(dataplane.Session{}, "Created", "ExpiresIn")

// TestPinnedReads: what detach reads of a state without a daemon is what the daemon had, by the same names.
func TestPinnedReads(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	session := dataplane.Session{Protocol: dataplane.TCP, Network: "docker0", State: "established",
		Internal: netip.MustParseAddrPort("172.17.0.2:5000"), External: netip.AddrPortFrom(topo.HostAddr, 5000), Remote: netip.AddrPortFrom(topo.Peer1Addr, 80)}
	if err := errors.Join(equip(f, d), d.ImportSession(session)); err != nil {
		t.Fatal(err)
	}
	want, err := d.Sessions()
	if err != nil || len(want) != 1 {
		t.Fatalf("%+v, %v", want, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	checkPinned(t, f, dir, want)
}

// checkPinned compares what is read without a daemon with what that has told.
func checkPinned(t *testing.T, f *topo.Figure3, dir string, want []dataplane.Session) {
	t.Helper()
	must(t, f.Host.Do(func() error {
		p, err := dataplane.OpenPinned(dir)
		if err != nil {
			return err
		}
		got, err := p.Sessions()
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), clocks); diff != "" {
			t.Errorf("sessions (-daemon +pinned):\n%s", diff)
		}
		return errors.Join(err, p.Close())
	}))
}
