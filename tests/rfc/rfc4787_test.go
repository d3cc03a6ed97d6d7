// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

func TestRFC4787(t *testing.T) {
	conform(t, rfc4787, conformance{
		"REQ-1":   udp.mapsIndependently,
		"REQ-2":   pairs,
		"REQ-3":   udp.neverOverloads,
		"REQ-3a":  udp.keepsPortClass,
		"REQ-4":   keepsParity,
		"REQ-5":   func(l *line) { udpLivesAtLeast(l, 2*time.Minute) },
		"REQ-5b":  udpTimerIsConfigurable,
		"REQ-5c":  func(l *line) { udpLivesAtLeast(l, 5*time.Minute) },
		"REQ-6":   outboundRefreshes,
		"REQ-6a":  inboundRefreshes,
		"REQ-7":   externalNodeWithInternalAddress,
		"REQ-8":   udp.filters,
		"REQ-9":   udp.hairpins,
		"REQ-9a":  udp.hairpins,
		"REQ-10":  udp.payloadStays,
		"REQ-11":  neverChanges,
		"REQ-12":  udp.icmpEndsNothing,
		"REQ-12a": errorsFromAnybody,
		"REQ-12b": unreachableReaches,
		"REQ-13":  tooBigIsTold,
		"REQ-13a": ipv4Only(tooBigIsFragmented), // IPv6 has no fragmentation on the way
		"REQ-14":  fragmentsPass,
		"REQ-14a": fragmentFlood,
	})
}

// oneAddress: whatever a host sends, it leaves from one address.
// pairs: a host has one external address of the pool, whatever its port, the protocol and the remote.
func pairs(l *line) {
	used := l.spread(func(r *rig.Rig, host string) (list []netip.Addr) {
		for port := range 5 {
			for _, remote := range []string{l.peer1, l.peer2} {
				r.Inside(UDP(at(host, 20000+port), at(remote, 53), "x"))
				r.Inside(TCP(at(host, 20000+port), at(remote, 80), "S", ""))
				r.Inside(Ping(at(host, 20000+port), remote))
			}
			for _, protocol := range []string{"udp", "tcp", "icmp"} {
				list = append(list, netip.MustParseAddrPort(r.ExternalOf(protocol, at(host, 20000+port))).Addr())
			}
		}
		return list
	})
	for host, list := range used {
		if len(slices.Compact(slices.Clone(list))) != 1 {
			l.lacks(fmt.Sprintf("host %s is at %s", host, list))
		}
	}
}

// spread gives the outside a pool, and 20 hosts bindings there; it says which external addresses each has.
func (l *line) spread(bind func(r *rig.Rig, host string) []netip.Addr) map[string][]netip.Addr {
	r := l.rig()
	o := dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"]}
	for _, a := range l.pool {
		o.Addresses = append(o.Addresses, r.Address(a))
	}
	r.Must("put the pool", func() error { return r.DP.PutOutside(o) })
	used := map[string][]netip.Addr{}
	for n := range 20 {
		used[l.host(n)] = bind(r, l.host(n))
	}
	return used
}

func keepsParity(l *line) {
	r := l.rig()
	for _, port := range []int{20000, 20001, 500, 501} {
		for host := range 20 {
			if got := r.Opened("udp", at(l.host(host), port)); got%2 != port%2 {
				l.Errorf("port %d of host %d became %d", port, host, got)
			}
		}
	}
}

// udpLivesAtLeast: with the defaults, to the second.
func udpLivesAtLeast(l *line, least time.Duration) {
	r := l.rig()
	remote := at(l.peer1, 53)
	r.Inside(UDP(at(l.c1, 20000), remote, "x"))
	r.Wait(least)
	r.In(UDP(remote, at(l.external, 20000), "answer"), UDP(remote, at(l.c1, 20000), "answer"))
}

func udpTimerIsConfigurable(l *line) {
	for _, timeout := range []time.Duration{2 * time.Minute, time.Hour} {
		l.part(timeout.String(), func(l *line) {
			r := l.rig(rig.WithSettings(func(s *dataplane.Settings) { s.UDPTimeout = timeout }))
			r.Inside(UDP(at(l.c1, 20000), at(l.peer1, 53), "x"))
			r.LivesFor(timeout)
		})
	}
}

func outboundRefreshes(l *line) {
	for _, filtering := range behaviors {
		l.part(filtering.String(), func(l *line) {
			r := l.rig(rig.WithFiltering(filtering))
			for range 4 {
				r.Inside(UDP(at(l.c1, 20000), at(l.peer1, 53), "x"))
				r.Wait(4 * time.Minute)
			}
			r.LivesFor(time.Minute)
		})
	}
}

func inboundRefreshes(l *line) {
	r := l.rig()
	remote := at(l.peer1, 53)
	r.Inside(UDP(at(l.c1, 20000), remote, "x"))
	for range 4 {
		r.Wait(4 * time.Minute)
		r.In(UDP(remote, at(l.external, 20000), "answer"), UDP(remote, at(l.c1, 20000), "answer"))
	}
	r.LivesFor(5 * time.Minute)
}

// externalNodeWithInternalAddress: a node outside has an address of the inside network, and the host has a route to it; so
// may the host's own external address be one of them. Who calls in with such an address is taken for a spoofer, though.
func externalNodeWithInternalAddress(l *line) {
	conflicting := l.host(99) // and inside nobody has it
	r := l.rig()
	r.Must("route", func() error { return routeBy(r, conflicting+"/32", "198.51.100.254") })
	out(r, UDP(at(l.c1, 20000), at(conflicting, 53), "x"), UDP(at(l.external, 20000), at(conflicting, 53), "x"))
	r.In(UDP(at(conflicting, 53), at(l.external, 20000), "x"), UDP(at(conflicting, 53), at(l.c1, 20000), "x"))

	r.Forward("br0", dataplane.UDP, at(l.external, 5060), at(l.c1, 5060))
	r.Outside(UDP(at(conflicting, 53), at(l.external, 5060), "x")).Dropped("spoofed")

	external := l.host(88)
	r.Must("move", func() error { return moveExternal(r, external) })
	out(r, UDP(at(l.c1, 20000), at(l.peer1, 53), "x"), UDP(at(external, 20000), at(l.peer1, 53), "x"))
	r.In(UDP(at(l.peer1, 53), at(external, 20000), "x"), UDP(at(l.peer1, 53), at(l.c1, 20000), "x"))
}

// neverChanges: what comes unsolicited, ports that are taken or all used, other hosts' bindings, ends and new beginnings: the
// mapping stays one for every remote, and the filter lets in just whom was sent to.
func neverChanges(l *line) {
	r := l.rig(rig.WithPorts(40000, 40003))
	for _, first := range []string{l.c1, l.c2, l.c1} { // who has the port that c1 would keep
		r.Inside(UDP(at(first, 40000), at(l.peer1, 3478), "x"))
		external := at(l.external, r.Opened("udp", at(l.c1, 40000)))
		r.Outside(UDP(at(l.peer2, 9), external, "unsolicited")).Dropped("filtered")
		for host := range 5 { // more than there are ports: the last ones are refused
			r.Inside(UDP(at(l.host(host), 40000), at(l.peer1, 53), "x"))
		}
		for _, remote := range []string{at(l.peer2, 9), at(l.peer1, 10), at(l.peer2, 3478)} {
			out(r, UDP(at(l.c1, 40000), remote, "x"), UDP(external, remote, "x"))
			r.In(UDP(remote, external, "x"), UDP(remote, at(l.c1, 40000), "x"))
		}
		r.Outside(UDP(at(l.router, 9), external, "unsolicited")).Dropped("filtered")
		r.Wait(10 * time.Minute) // all end; the ports are anybody's
		r.WantBindings()
	}
}

func errorsFromAnybody(l *line) {
	r := l.rig()
	opening, sent := UDP(at(l.c1, 2000), at(l.peer1, 53), "question"), UDP(at(l.external, 2000), at(l.peer1, 53), "question")
	r.Inside(opening)
	for _, from := range []string{l.peer1, l.peer2, l.router, "10.1.2.3"} {
		r.Outside(ICMPError(from, l.external, 3, 1, sent, 0)).
			Translated("translated_icmp_error", ICMPError(from, l.c1, 3, 1, opening, 0).Hop())
	}
}

func unreachableReaches(l *line) {
	r := l.rig()
	opening, sent := UDP(at(l.c1, 2000), at(l.peer1, 53), "question"), UDP(at(l.external, 2000), at(l.peer1, 53), "question")
	r.Inside(opening)
	for _, m := range l.unreachable() {
		r.Outside(l.icmpError(l.peer1, l.external, m, sent, 28)).
			Translated("translated_icmp_error", l.icmpError(l.peer1, l.c1, m, opening, 28).Hop())
	}
}
