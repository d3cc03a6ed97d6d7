// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"net/netip"
	"strings"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
	"github.com/conenat/conenat/tests/topo"
)

// refusing is a network whose router tells its hosts of refusals, or not.
func refusing(how dataplane.Refusal) rig.Option {
	return rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name == "br0" {
			n.Address, n.Refusal = topo.GatewayAddr, how
		}
	})
}

// refusalIs: what a host is told that gets no mapping: because of ports, and of a full table; over each protocol.
func refusalIs(l *line, how dataplane.Refusal, code uint8) {
	for _, p := range []protocol{udp, tcp} {
		s := p.first(at(l.c1, 40000), at(l.peer1, 53))
		told := Told(topo.GatewayAddr.String(), 3, code, 0, s)
		l.part(p.name+" ports", func(l *line) {
			r, _, _ := p.fullHouse(l, refusing(how))
			r.Inside(s).Told("port_exhausted", told)
			r.From("br0", s).Told("port_exhausted", told)
			r.Egress("br0", s).Told("port_exhausted", told)
		})
		l.part(p.name+" table", func(l *line) {
			r := l.rig(refusing(how), rig.WithSmallTables())
			for i := range 4 {
				r.Opened(p.name, at(l.c2, 5000+i))
			}
			r.Inside(s).Told("bindings_full", told)
		})
	}
}

func refusalIsTold(l *line) { refusalIs(l, dataplane.RefuseAdminProhibited, 13) }

// refusalSaysHostUnreachable: on the rig; and a container of a conenat that was told nothing of refusals.
func refusalSaysHostUnreachable(l *line) {
	refusalIs(l, dataplane.RefuseHostUnreachable, 1)
	l.part("by default", func(l *line) {
		lab := l.lab(topo.Figure3Config{Containers: 2}, "ports: 40000-40000\n")
		lab.opened(20000)
		second := lab.wire(lab.Containers[1])
		second.send(UDP(at(l.c2, 20000), at(topo.Peer1Addr.String(), 20000), "no port is left").In(l.family).IP())
		if len(second.sees(1, isICMP(3, 1))) == 0 {
			l.Error("the second container is not told")
		}
	})
}

func refusalMayBeSilent(l *line) {
	r, _, _ := udp.fullHouse(l, refusing(dataplane.RefuseSilently))
	r.Inside(UDP(at(l.c1, 40000), at(l.peer1, 53), "x")).Dropped("port_exhausted")
}

// limited is both networks with limits.
func limited(limits dataplane.Limits) rig.Option {
	return rig.WithNetworks(func(n *dataplane.Network) { n.Limits = limits })
}

// portLimit: a host's ports and identifiers together, and a network's; what lives goes on, other hosts have theirs, and what
// ends can be had again.
func portLimit(l *line) {
	opening := func(host string, i int) Spec {
		switch i % 3 {
		case 0:
			return UDP(at(host, 20000+i), at(l.peer1, 53), "x")
		case 1:
			return TCP(at(host, 20000+i), at(l.peer1, 53), "S", "")
		}
		return Ping(at(host, 20000+i), l.peer1)
	}
	fill := func(r *rig.Rig, host string, n int) {
		for i := range n {
			r.Inside(opening(host, i))
		}
	}
	l.part("host", func(l *line) {
		r := l.rig(limited(dataplane.Limits{HostPorts: 9}))
		fill(r, l.c1, 9)
		for i := 9; i < 12; i++ {
			r.Inside(opening(l.c1, i)).Dropped("host_ports")
		}
		out(r, UDP(at(l.c1, 20000), at(l.peer2, 9), "x"), UDP(at(l.external, 20000), at(l.peer2, 9), "x"))
		out(r, UDP(at(l.c2, 30000), at(l.peer1, 9), "x"), UDP(at(l.external, 30000), at(l.peer1, 9), "x"))
		r.Wait(6 * time.Minute)
		fill(r, l.c1, 9)
		if got := r.Bindings(); len(got) != 9 {
			l.Errorf("bindings %q", got)
		}
	})
	l.part("network", func(l *line) {
		r := l.rig(limited(dataplane.Limits{NetworkPorts: 9}))
		fill(r, l.c1, 9)
		r.Inside(opening(l.c2, 12)).Dropped("network_ports")
		r.From("q1", UDP(at(l.other, 30000), at(l.peer1, 9), "x")).Translated("translated_outbound", UDP(at(l.external, 30000), at(l.peer1, 9), "x").Hop())
	})
}

// stateLimit: sessions of a binding, of a host, and of a network.
func stateLimit(l *line) {
	opening := func(host string, i int) Spec { return UDP(at(host, 20000), at(l.peer1, 1+i), "x") }
	for reason, option := range map[string]rig.Option{
		"quota":            rig.WithSettings(func(s *dataplane.Settings) { s.SessionsPerBinding = 9 }),
		"host_sessions":    limited(dataplane.Limits{HostSessions: 9}),
		"network_sessions": limited(dataplane.Limits{NetworkSessions: 9}),
	} {
		l.part(reason, func(l *line) {
			r := l.rig(option)
			for i := range 9 {
				r.Inside(opening(l.c1, i))
			}
			r.Inside(opening(l.c1, 9)).Dropped(reason)
			out(r, opening(l.c1, 0), UDP(at(l.external, 20000), at(l.peer1, 1), "x"))
			if reason == "network_sessions" {
				r.Inside(opening(l.c2, 0)).Dropped(reason)
				return
			}
			if res := r.Inside(opening(l.c2, 0)); res.Reason != "translated_outbound" {
				l.Errorf("another host: %s", res.Reason)
			}
		})
	}
}

// portBlocks: 64 hosts of 10 ports each, and as many events as hosts say which host has which ports.
func portBlocks(l *line) {
	r := l.rig(rig.WithNetworks(func(n *dataplane.Network) { n.BlockSize = 64 }))
	r.Forget()
	for host := range 64 {
		for i := range 10 {
			r.Inside(UDP(at(l.host(host), 20000+i), at(l.peer1, 53), "x"))
		}
	}
	owner := map[int]netip.Addr{} // by the block's first port
	for _, e := range r.Events() {
		if e.Type == dataplane.BlockAllocated {
			owner[int(e.External.Port())] = e.Internal.Addr()
		}
	}
	if len(owner) != 64 {
		l.Errorf("%d blocks were told, want one for each of 64 hosts", len(owner))
	}
	for _, b := range r.Bindings() {
		f := strings.Fields(b)
		internal, external := Endpoint(f[2]).Addr(), int(Endpoint(f[3]).Port())
		if owner[external/64*64] != internal {
			l.Errorf("binding %q is of no block of its host", b)
		}
	}
}
