// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
	"github.com/conenat/conenat/tests/topo"
)

func TestRFC6888(t *testing.T) {
	conform(t, rfc6888, conformance{
		"REQ-2":   pairs,
		"REQ-3":   pools,
		"REQ-4":   portLimit,
		"REQ-5":   stateLimit,
		"REQ-6":   excludedDestinations,
		"REQ-8":   portsAreHeld,
		"REQ-9":   portControl,
		"REQ-11A": refusalDrops,
		"REQ-11B": refusalSaysHostUnreachable,
		"REQ-11C": refusalIsNotified,
		"REQ-11D": refusalEvictsNothing,
		"REQ-12":  destinationsAreNotLogged,
		"REQ-13":  portsAreUsedUp,
		"REQ-14":  portBlocks,
		"REQ-15":  portsAreRandom,
	})
}

// pools: of addresses that are not contiguous, each is used.
func pools(l *line) {
	used := l.spread(func(r *rig.Rig, host string) []netip.Addr {
		r.Inside(UDP(at(host, 20000), at(l.peer1, 53), "x"))
		return []netip.Addr{netip.MustParseAddrPort(r.ExternalOf("udp", at(host, 20000))).Addr()}
	})
	hosts := map[netip.Addr]int{}
	for _, list := range used {
		hosts[list[0]]++
	}
	for _, a := range l.pool {
		if hosts[l.family.Addr(netip.MustParseAddr(a))] == 0 {
			l.lacks(fmt.Sprintf("no host of %d is at %s", len(used), a))
		}
	}
}

func excludedDestinations(l *line) {
	peer := netip.MustParseAddr(l.peer1)
	r := l.rig(rig.WithNetworks(func(n *dataplane.Network) { n.Exclude = []netip.Prefix{netip.PrefixFrom(peer, peer.BitLen())} }))
	for _, p := range []protocol{udp, tcp} {
		s := p.first(at(l.c1, 20000), at(l.peer1, 53))
		r.Inside(s).Passed("destination")
		r.Egress("br0", s).Passed("destination")
		out(r, p.first(at(l.c1, 20000), at(l.peer2, 53)), p.first(at(l.external, 20000), at(l.peer2, 53)))
	}
}

// portControl: a MAP request (RFC 6887, section 11.1) to the gateway, of a container.
func portControl(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 1}, "")
	request := make([]byte, 60)
	request[0], request[1], request[7], request[36] = 2, 1, 120, 17 // version 2, MAP, 120 s, UDP
	copy(request[8:24], netip.AddrFrom16(l.family.Addr(netip.MustParseAddr(l.c1)).As16()).AsSlice())
	container := lab.wire(lab.Containers[0])
	container.send(UDP(at(l.c1, 20000), at(topo.GatewayAddr.String(), 5351), string(request)).In(l.family).IP())
	if len(container.sees(1, isICMP(3, 3))) == 1 {
		l.lacks("nobody listens at the gateway's port 5351")
	}
}

// fullHouse is a rig whose ports of a protocol are all somebody's, and that somebody.
func (p protocol) fullHouse(l *line, options ...rig.Option) (r *rig.Rig, holder, external string) {
	r = l.rig(append(options, rig.WithPorts(40000, 40000))...)
	holder, external = at(l.c2, 40000), at(l.external, 40000)
	r.Inside(p.first(holder, at(l.peer1, 53)))
	return r, holder, external
}

func refusalDrops(l *line) {
	for _, p := range []protocol{udp, tcp} {
		l.part(p.name, func(l *line) {
			r, _, _ := p.fullHouse(l)
			if res := r.Inside(p.first(at(l.c1, 40000), at(l.peer1, 53))); res.Reason != "dropped_port_exhausted" {
				l.Errorf("%s, want it dropped", res.Reason)
			}
			if got := r.Bindings(); len(got) != 1 {
				l.Errorf("bindings %q", got)
			}
		})
	}
}

func refusalIsNotified(l *line) {
	r, _, _ := udp.fullHouse(l)
	r.Forget()
	r.Inside(UDP(at(l.c1, 40000), at(l.peer1, 53), "x"))
	r.WantEvents("port.exhausted udp br0 " + at(l.c1, 40000) + " *")
}

func refusalEvictsNothing(l *line) {
	for _, p := range []protocol{udp, tcp} {
		l.part(p.name, func(l *line) {
			r, holder, external := p.fullHouse(l)
			before := r.Sessions()
			for host := range 100 {
				r.Inside(p.first(at(l.host(host), 40000), at(l.peer1, 53)))
			}
			r.WantSessions(before...)
			r.In(p.answer(at(l.peer1, 53), external), p.answer(at(l.peer1, 53), holder))
			out(r, p.first(holder, at(l.peer2, 53)), p.first(external, at(l.peer2, 53)))
		})
	}
}

// destinationsAreNotLogged: not by the daemon at its default level, whatever passes.
func destinationsAreNotLogged(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 1}, "")
	lab.opened(20000)
	if log := lab.Log(); strings.Contains(log, l.family.Addr(topo.Peer1Addr).String()) {
		l.Errorf("the log names peer 1:\n%s", log)
	}
}

// portsAreUsedUp: to the last one, whatever the hosts' own ports are.
func portsAreUsedUp(l *line) {
	for _, p := range []protocol{udp, tcp} {
		l.part(p.name, func(l *line) {
			r := l.rig(rig.WithPorts(40000, 40199))
			used := map[int]bool{}
			for host := range 200 {
				used[r.Opened(p.name, at(l.host(host), 5000+2*host))] = true // one parity alone
			}
			if len(used) != 200 {
				l.Errorf("200 hosts have %d ports", len(used))
			}
			r.Consistent()
		})
	}
}

// portsAreHeld: anybody may still send to what was an endpoint-independent filter's; where the NAT knows better (TCP's states,
// address-dependent filtering), a port is free at once.
func portsAreHeld(l *line) {
	l.part("held", func(l *line) {
		r, _, external := udp.fullHouse(l, rig.WithFiltering(dataplane.EndpointIndependent))
		r.Wait(301 * time.Second)
		r.WantBindings()
		for _, d := range []time.Duration{0, 60 * time.Second, 58 * time.Second} {
			r.Wait(d)
			if res := r.Inside(UDP(at(l.c1, 40000), at(l.peer1, 53), "x")); res.Verdict == rig.Redirect {
				l.Fatalf("%v later the port %s is another host's", d, external)
			}
		}
		r.Wait(4 * time.Second)
		out(r, UDP(at(l.c1, 40000), at(l.peer1, 53), "x"), UDP(external, at(l.peer1, 53), "x"))
	})
	for name, c := range map[string]struct {
		of        protocol
		filtering dataplane.Behavior
	}{"TCP": {tcp, dataplane.EndpointIndependent}, "address-dependent": {udp, dataplane.AddressDependent}} {
		l.part(name, func(l *line) {
			r, _, external := c.of.fullHouse(l, rig.WithFiltering(c.filtering))
			r.Wait(301 * time.Second)
			r.WantBindings()
			out(r, c.of.first(at(l.c1, 40000), at(l.peer1, 53)), c.of.first(external, at(l.peer1, 53)))
		})
	}
}
