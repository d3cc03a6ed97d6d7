// SPDX-License-Identifier: Apache-2.0

package rfc

import (
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
		second.send(UDP(at(l.c2, 20000), at(topo.Peer1Addr.String(), 20000), "no port is left").IP())
		if len(second.sees(1, isICMP(3, 1))) == 0 {
			l.Error("the second container is not told")
		}
	})
}

func refusalMayBeSilent(l *line) {
	r, _, _ := udp.fullHouse(l, refusing(dataplane.RefuseSilently))
	r.Inside(UDP(at(l.c1, 40000), at(l.peer1, 53), "x")).Dropped("port_exhausted")
}

// takesAll: one host opens as much as it wants.
func (l *line) takesAll(s func(i int) Spec) bool {
	r := l.rig()
	for i := range 1000 {
		if r.Inside(s(i)).Verdict != rig.Redirect {
			return false
		}
	}
	return true
}

func portLimit(l *line) {
	if l.takesAll(func(i int) Spec { return UDP(at(l.c1, 20000+i), at(l.peer1, 53), "x") }) {
		l.lacks("a host has as many ports as it asks for")
	}
}

func stateLimit(l *line) {
	if l.takesAll(func(i int) Spec { return UDP(at(l.c1, 20000), at(l.peer1, 1+i), "x") }) {
		l.lacks("a host has as many sessions as its bindings may have")
	}
}

func portBlocks(l *line) {
	r := l.rig()
	r.Forget()
	for host := range 10 {
		r.Inside(UDP(at(l.host(host), 20000), at(l.peer1, 53), "x"))
		r.Inside(UDP(at(l.host(host), 20002), at(l.peer1, 53), "x"))
	}
	if len(r.Events()) >= 20 {
		l.lacks("an event for each binding")
	}
}
