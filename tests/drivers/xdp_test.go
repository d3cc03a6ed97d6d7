// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// multiBuffer is the kernel whose virtio-net takes frames of several buffers at XDP, and so a large MTU (fab89bafa95b).
var multiBuffer = require.Version{Major: 6, Minor: 3}

// TestXDPGateway: two cards translate in their drivers what goes between them, and it is what tc would have made of it. Where a
// driver has no XDP, that is told, and tc does it.
func TestXDPGateway(t *testing.T) {
	l := newLab(t, labConfig{path: "direct", plain: true, args: []string{"--xdp", "gateway"}})
	t.Run("Traffic", func(t *testing.T) { l.under(t).atXDP(1000, (*lab).traffic) })
	t.Run("Flows", func(t *testing.T) { l.under(t).atXDP(1000, (*lab).flows) })
	t.Run("NoDaemon", func(t *testing.T) {
		sub := l.under(t)
		sub.atXDP(200, func(l *lab) {
			l.Kill()
			l.bulk(l.a, l.b, at(topo.Peer1Addr, 8080), 2*megabyte)
			l.Run()
		})
	})
	t.Run("Adopted", func(t *testing.T) { l.under(t).atXDP(1000, (*lab).traffic) })
	l.went("direct")
}

// TestXDPGatewayJumbo: with frames that are no single buffer's, and go by tc.
func TestXDPGatewayJumbo(t *testing.T) {
	l := newLab(t, labConfig{path: "direct", plain: true, insideMTU: jumbo, outsideMTU: jumbo, args: []string{"--xdp", "gateway"}})
	for _, card := range []*nic{l.port0, l.uplink0} {
		x := l.xdpOf(card)
		if card.virtio() && require.Running(t).Before(multiBuffer) {
			if x.State != "none" || !strings.Contains(x.Reason, "MTU") {
				t.Errorf("%s with MTU %d: %+v; want none, since the MTU is too large", card.name, jumbo, x)
			}
			continue
		}
		l.hasXDP(card, "translate")
	}
	l.nothingLost(func() {
		inside, outside := l.udp(l.a, 0), l.udp(l.b, 0)
		l.send(inside, at(topo.Peer1Addr, outside.Port()), "open")
		mapped := l.receives(outside, "open")
		for _, size := range []int{100, 1400, 3000, 4200, jumbo - headers} {
			text := strings.Repeat("j", size)
			l.send(inside, at(topo.Peer1Addr, outside.Port()), text)
			l.receives(outside, text)
			l.send(outside, mapped, text)
			l.receives(inside, text)
		}
	})
	l.traffic()
}

// TestXDPUnsolicited: a flood is dropped in the driver of the uplink, or where that has no XDP by tc; nothing else is.
func TestXDPUnsolicited(t *testing.T) {
	l := newLab(t, labConfig{path: "direct", args: []string{"--unsolicited", "drop"}})
	native := l.hasXDP(l.uplink0, "drop")
	flood := l.udp(l.b, 0)
	l.eventually("the flood is dropped", func() bool {
		for i := range 100 {
			l.send(flood, at(topo.HostAddr, uint16(40000+i)), "nobody waits for this")
		}
		return l.counters()["dropped_unsolicited"] >= 1000
	})
	all, n := l.counters()["dropped_unsolicited"], l.countersAtXDP()["dropped_unsolicited"]
	if native && n < all || !native && n > 0 { // more may have come between the two
		t.Errorf("%d of %d were dropped at XDP, which is native: %v", n, all, native)
	}
	l.traffic()
	l.went("direct")
}

// TestXDPDetached: what the driver gave up for XDP it has again.
func TestXDPDetached(t *testing.T) {
	l := newLab(t, labConfig{path: "direct", plain: true})
	before := l.cardFeatures()
	l.Stop()
	l.RunWith("--inside", l.port0.name, "--path", "direct", "--xdp", "gateway")
	l.traffic()
	l.Detach()
	if diff := cmp.Diff(before, l.cardFeatures()); diff != "" {
		t.Errorf("features before and after:\n%s", diff)
	}
	for _, card := range []*nic{l.port0, l.uplink0} {
		link, err := l.nsHost.Netlink().LinkByName(card.name)
		if err != nil {
			t.Fatal(err)
		}
		if x := link.Attrs().Xdp; x != nil && x.Attached {
			t.Errorf("%s still has %+v", card.name, x)
		}
	}
}

func (l *lab) cardFeatures() map[string]map[string]bool {
	l.t.Helper()
	out := map[string]map[string]bool{}
	for _, card := range []*nic{l.port0, l.uplink0} {
		on, err := card.features()
		if err != nil {
			l.t.Fatal(err)
		}
		out[card.name] = on
	}
	return out
}

func (l *lab) xdpOf(card *nic) api.XDP {
	l.t.Helper()
	list := l.status().XDP
	i := slices.IndexFunc(list, func(x api.XDP) bool { return x.Interface == card.name })
	if i < 0 {
		l.t.Fatalf("the status says nothing of XDP on %s: %+v", card.name, list)
	}
	return list[i]
}

// hasXDP says whether the card does, for a use; it fails unless that is as its driver is known to be.
func (l *lab) hasXDP(card *nic, use string) bool {
	l.t.Helper()
	x := l.xdpOf(card)
	switch {
	case card.virtio() && (x.State != "native" || x.Use != use):
		l.t.Errorf("XDP on %s, a %s: %+v", card.name, card.model, x)
	case !card.virtio() && (x.State != "none" || !strings.Contains(x.Reason, "has no native XDP")):
		l.t.Errorf("XDP on %s, a %s: %+v; want none, and why", card.name, card.model, x)
	}
	return x.State == "native"
}

// atXDP fails unless do has count packets or more of each way translated at XDP, where both cards have it.
func (l *lab) atXDP(count uint64, do func(*lab)) {
	l.t.Helper()
	both := l.hasXDP(l.port0, "translate")
	both = l.hasXDP(l.uplink0, "translate") && both
	before := l.countersAtXDP()
	do(l)
	after := l.countersAtXDP()
	for _, name := range []string{"translated_outbound", "translated_inbound"} {
		n := after[name] - before[name]
		l.t.Logf("%s at XDP: %d", name, n)
		if both && n < count || !both && n > 0 {
			l.t.Errorf("%s: %d at XDP; both cards have it: %v", name, n, both)
		}
	}
}

func (l *lab) countersAtXDP() map[string]uint64 {
	l.t.Helper()
	out := map[string]uint64{}
	for _, c := range l.status().Counters {
		out[c.Name] = c.XDP
	}
	return out
}

// flows are several at once, for all queues that the cards have.
func (l *lab) flows() {
	l.t.Helper()
	server, err := l.b.ServeTCP(0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer server.Close()
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			conn, err := l.a.DialTCP(0, at(topo.Peer1Addr, server.Port()))
			if err != nil {
				errs[i] = err
				return
			}
			_, up := conn.Upload(megabyte)
			_, down := conn.Download(megabyte)
			errs[i] = errors.Join(up, down, conn.Close())
		})
	}
	l.nothingLost(wg.Wait)
	if err := errors.Join(errs...); err != nil {
		l.t.Error(err)
	}
}
