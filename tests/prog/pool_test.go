// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// poolIn are external addresses of a family that are not contiguous.
func poolIn(fam family.Family) (list []netip.Addr) {
	for _, text := range []string{rig.External, "198.51.100.7", "198.51.100.70", "198.51.100.71", "198.51.101.9"} {
		list = append(list, fam.Addr(netip.MustParseAddr(text)))
	}
	return list
}

// addrs are addresses of the rig's family.
func addrs(r *rig.Rig, texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, r.Address(text))
	}
	return list
}

// setPool gives the outside its addresses, in the rig's family.
func setPool(r *rig.Rig, places ...netip.Addr) {
	r.T.Helper()
	var list []netip.Addr
	for _, a := range places {
		list = append(list, r.Family.Addr(a))
	}
	r.Must("put the pool", func() error {
		return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"], Addresses: list})
	})
}

// host is the n-th inside host of br0.
func host(n int) string { return fmt.Sprintf("172.17.%d.%d", 1+n/200, 2+n%200) }

// externalOf opens a binding and says which external address it got.
func externalOf(r *rig.Rig, internal string) netip.Addr {
	r.T.Helper()
	if got := r.Inside(UDP(internal, rig.Peer1+":3478", "x")).Reason; got != "translated_outbound" {
		r.T.Fatalf("%s: %s", internal, got)
	}
	return netip.MustParseAddrPort(r.ExternalOf("udp", internal)).Addr()
}

// TestPoolPairs: one host keeps one address (RFC 4787 REQ-2), whatever the protocol and the port; hosts spread over all.
func TestPoolPairs(t *testing.T) { family.Each(t, testPoolPairs) }

func testPoolPairs(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	setPool(r, pool...)
	used := map[netip.Addr]int{}
	for n := range 100 {
		a := externalOf(r, host(n)+":5000")
		used[a]++
		if b := externalOf(r, host(n)+":6000"); b != a {
			t.Errorf("host %s has %s and %s", host(n), a, b)
		}
	}
	for _, a := range pool {
		if used[a] < 8 {
			t.Errorf("%d of 100 hosts are at %s, of %d addresses", used[a], a, len(pool))
		}
	}
	r.Consistent()
}

// TestPoolIsDeterministic: which address a host gets depends on the host and the addresses alone: not on who came before,
// on the order in which they were given, or on what the tables have seen.
func TestPoolIsDeterministic(t *testing.T) { family.Each(t, testPoolIsDeterministic) }

func testPoolIsDeterministic(t *testing.T, fam family.Family) {
	first := map[string]netip.Addr{}
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	setPool(r, pool...)
	for n := range 30 {
		first[host(n)] = externalOf(r, host(n)+":5000")
	}
	r.Wait(time.Hour)
	r.Empty()
	turned := slices.Clone(pool)
	slices.Reverse(turned)
	setPool(r)
	setPool(r, turned...)
	for n := 29; n >= 0; n-- {
		if got := externalOf(r, host(n)+":7"); got != first[host(n)] {
			t.Errorf("host %s is at %s now, was at %s", host(n), got, first[host(n)])
		}
	}
}

// TestPoolGrows: a host whose bindings live stays where it is; one that has none goes where it would have been, and of those
// few move.
func TestPoolGrows(t *testing.T) { family.Each(t, testPoolGrows) }

func testPoolGrows(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	setPool(r, pool[0])
	for n := range 60 {
		if got := externalOf(r, host(n)+":5000"); got != pool[0] {
			t.Fatalf("%s is not in the pool", got)
		}
	}
	setPool(r, pool...)
	for n := range 60 {
		if got := externalOf(r, host(n)+":6000"); got != pool[0] {
			t.Errorf("host %s has a binding at %s, and gets one at %s", host(n), pool[0], got)
		}
	}
	r.Wait(time.Hour)
	r.Empty()
	before := map[string]netip.Addr{}
	for n := range 60 {
		before[host(n)] = externalOf(r, host(n)+":5000")
	}
	r.Wait(time.Hour)
	setPool(r, append(slices.Clone(pool), r.Address("198.51.100.200"))...)
	moved := 0
	for n := range 60 {
		if externalOf(r, host(n)+":5000") != before[host(n)] {
			moved++
		}
	}
	if moved == 0 || moved > 25 { // 10 of 60 on average
		t.Errorf("%d of 60 hosts have moved for one address more than %d", moved, len(pool))
	}
}

// TestPoolAddressRemoved: what lives on it ends with its events, and the host gets another one; all else goes on.
func TestPoolAddressRemoved(t *testing.T) { family.Each(t, testPoolAddressRemoved) }

func testPoolAddressRemoved(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	setPool(r, pool...)
	at := map[string]netip.AddrPort{}
	for n := range 20 {
		externalOf(r, host(n)+":5000")
		at[host(n)] = netip.MustParseAddrPort(r.ExternalOf("udp", host(n)+":5000"))
	}
	gone := at[host(0)].Addr()
	r.Events()
	setPool(r, slices.DeleteFunc(slices.Clone(pool), func(a netip.Addr) bool { return a == gone })...)
	events := r.Events()
	want := 0
	for n := range 20 {
		answer := UDP(rig.Peer1+":3478", at[host(n)].String(), "y")
		if at[host(n)].Addr() != gone {
			r.In(answer, UDP(rig.Peer1+":3478", host(n)+":5000", "y"))
			continue
		}
		want++
		r.Outside(answer).Passed("unbound")
		if again := externalOf(r, host(n)+":5000"); again == gone || !slices.Contains(pool, again) {
			t.Errorf("host %s is at %s", host(n), again)
		}
	}
	for _, kind := range []dataplane.EventType{dataplane.BindingExpired, dataplane.SessionClosed} {
		if got := countEvents(events, kind); got != want {
			t.Errorf("%d %s, want %d: %v", got, kind, want, events)
		}
	}
	r.Consistent()
}

func countEvents(list []dataplane.Event, kind dataplane.EventType) (n int) {
	for _, e := range list {
		if e.Type == kind {
			n++
		}
	}
	return n
}

// TestPoolFull: as many addresses as there is room for, and not one more.
func TestPoolFull(t *testing.T) { family.Each(t, testPoolFull) }

func testPoolFull(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	var list []netip.Addr
	for n := range 256 {
		list = append(list, fam.Addr(netip.AddrFrom4([4]byte{198, 18, 0, byte(n)})))
	}
	setPool(r, list...)
	used := map[netip.Addr]bool{}
	for n := range 50 {
		used[externalOf(r, host(n)+":5000")] = true
	}
	if len(used) < 35 {
		t.Errorf("50 hosts are at %d of 256 addresses", len(used))
	}
	if err := r.Do(func() error {
		return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"], Addresses: append(list, pool[0])})
	}); err == nil {
		t.Error("257 addresses")
	}
	setPool(r, pool[0])
	if got := externalOf(r, host(0)+":5000"); got != pool[0] {
		t.Errorf("at %s, the pool has %s alone", got, pool[0])
	}
	r.Consistent()
}

// TestPoolOfSomebody: what a container or a network has named is its alone, and all that it gets.
func TestPoolOfSomebody(t *testing.T) { family.Each(t, testPoolOfSomebody) }

func testPoolOfSomebody(t *testing.T, fam family.Family) {
	pool := poolIn(fam)
	r := rig.New(t, rig.In(fam), rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name == "br1" {
			n.External = pool[3:4]
		}
	}))
	setPool(r, pool...)
	named := pool[1:3]
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) { o.External = named })
	got := externalOf(r, rig.C1+":5000")
	if !slices.Contains(named, got) || externalOf(r, rig.C1+":6000") != got {
		t.Errorf("%s is at %s, and not at one of %s", rig.C1, got, named)
	}
	r.From("q1", UDP(rig.Other+":5000", rig.Peer1+":53", "x")).
		Translated("translated_outbound", UDP(netip.AddrPortFrom(pool[3], 5000).String(), rig.Peer1+":53", "x").Hop())
	for n := range 40 {
		if a := externalOf(r, host(n)+":5000"); a != pool[0] && a != pool[4] {
			t.Errorf("host %s is at %s, which somebody has for himself", host(n), a)
		}
	}
	setPool(r, pool[0], pool[4]) // the route leads to an outside without them
	r.Events()
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":53", "x")).Dropped("no_address")
	if n := countEvents(r.Events(), dataplane.AddressMissing); n != 1 {
		t.Errorf("%d events address.missing", n)
	}
	r.From("q1", UDP(rig.Other+":5000", rig.Peer1+":53", "x")).Dropped("no_address")
	must(t, r.RemoveOwner(rig.C1))
	setPool(r, pool...)
	r.Consistent()
}

// TestPoolChangesHands: who is given addresses of his own leaves the others at once; who goes on at one that is somebody's by
// now does so while his bindings live.
func TestPoolChangesHands(t *testing.T) { family.Each(t, testPoolChangesHands) }

func testPoolChangesHands(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	setPool(r, pool[:2]...)
	at := map[string]netip.Addr{}
	for _, c := range []string{rig.C1, rig.C2, host(1), host(2), host(3), host(4), host(5)} {
		at[c] = externalOf(r, c+":5000")
	}
	before := r.ExternalOf("udp", rig.C1+":5000")
	to := pool[0]
	if at[rig.C1] == to {
		to = pool[1]
	}
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) { o.External = []netip.Addr{to} })
	r.Outside(UDP(rig.Peer1+":3478", before, "y")).Passed("unbound")
	if got := externalOf(r, rig.C1+":6000"); got != to {
		t.Errorf("%s is at %s, not at %s", rig.C1, got, to)
	}
	shared := 0
	for c, a := range at {
		if c == rig.C1 {
			continue
		}
		r.In(UDP(rig.Peer1+":3478", r.ExternalOf("udp", c+":5000"), "y"), UDP(rig.Peer1+":3478", c+":5000", "y"))
		if got := externalOf(r, c+":7000"); got == to {
			t.Errorf("%s gets %s, which is of %s", c, got, rig.C1)
		}
		if a == to {
			shared++
		}
	}
	if shared == 0 {
		t.Error("nobody was at the address: this shows nothing")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPoolOfEachOutside: the route decides the outside, and a host keeps one address at each of them.
func TestPoolOfEachOutside(t *testing.T) { family.Each(t, testPoolOfEachOutside) }

func testPoolOfEachOutside(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pool := poolIn(fam)
	setPool(r, pool[:1]...)
	r.Must("second uplink", r.SecondUplink)
	byRoute := func(dev, gateway string) {
		t.Helper()
		r.Must("change the default route", func() error { return r.DefaultBy(dev, gateway) })
	}
	hosts := []string{rig.C1, rig.C2, host(1), host(2), host(3)}
	for _, h := range hosts {
		if got := externalOf(r, h+":5000"); got != pool[0] {
			t.Errorf("%s is at %s by the first uplink", h, got)
		}
	}
	byRoute("eth1", "192.0.2.254")
	r.Wait(2 * time.Second) // a route is asked for once more a second
	for _, h := range hosts {
		if got := externalOf(r, h+":6000"); got != r.Address(rig.Second) {
			t.Errorf("%s is at %s by the second uplink", h, got)
		}
	}
	setPool(r, pool...)
	byRoute("eth0", "198.51.100.254")
	for _, h := range hosts {
		if got := externalOf(r, h+":7000"); got != pool[0] {
			t.Errorf("%s is at %s by the first uplink, where it has a binding at %s", h, got, pool[0])
		}
	}
	r.Consistent()
}
