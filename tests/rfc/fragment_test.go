// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/rig"
	"github.com/conenat/conenat/tests/topo"
)

const smallMTU = 1300

var tooLong = strings.Repeat("0123456789abcdef", 85) // 1360 bytes

// tooBigIsTold: a container's datagram that is larger than the uplink's MTU.
func tooBigIsTold(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 1, UplinkMTU: smallMTU}, "")
	container := lab.wire(lab.Containers[0])
	// By its first packet, and in a session: to another peer, for Linux 6.12.117 learns an MTU without a socket, too, and then
	// sends nothing that is larger.
	for opened, peer := range map[bool]netip.Addr{false: topo.Peer2Addr, true: topo.Peer1Addr} {
		if opened {
			lab.opened(20000)
		}
		sent := UDP(at(l.c1, 20000), at(peer.String(), 20000), tooLong).With(func(s *Spec) { s.DF = true })
		container.send(sent.In(l.family).IP())
		got := container.sees(1, isICMP(3, 4))
		if len(got) == 0 {
			l.Fatalf("session %v: the sender was not told", opened)
		}
		from, _ := ends(got[0])
		mtu := binary.BigEndian.Uint32(got[0][len(got[0])-len(Embedded(got[0]))-4:]) // IPv4 has 16 bits for it, behind zeros
		if gateway := l.family.Addr(topo.GatewayAddr); mtu != smallMTU || from != gateway {
			l.Errorf("session %v: told an MTU of %d by %s, want %d by %s", opened, mtu, from, smallMTU, gateway)
		}
	}
}

// tooBigIsFragmented: the same without DF.
func tooBigIsFragmented(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 1, UplinkMTU: smallMTU}, "")
	_, peer := lab.opened(20000)
	container, witness := lab.wire(lab.Containers[0]), lab.wire(lab.Peer1)
	for id := range uint16(20) {
		s := UDP(at(l.c1, 20000), at(topo.Peer1Addr.String(), 20000), tooLong)
		container.send(s.With(func(s *Spec) { s.ID = id + 1 }).IP())
		if from := lab.Receives(peer, tooLong); from.String() != at(l.external, 20000) {
			l.Errorf("a fragmented datagram comes from %s", from)
		}
	}
	got := witness.sees(40, isUDP)
	if len(got) != 40 {
		l.Fatalf("20 datagrams came in %d packets, want 40", len(got))
	}
	for i, fragment := range got {
		if (offsetOf(fragment) == 0) != (i%2 == 0) {
			l.Errorf("packet %d is the fragment from byte %d on: not in order", i, offsetOf(fragment))
		}
	}
}

// fragmentsPass: in either order, there, back, and between two containers.
func fragmentsPass(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 2}, "")
	inside, peer := lab.opened(20000)
	second, first, remote := lab.wire(lab.Containers[1]), lab.wire(lab.Containers[0]), lab.wire(lab.Peer1)
	text := strings.Repeat("0123456789abcdef", 40)
	there := at(topo.Peer1Addr.String(), 20000)
	for name, way := range map[string]struct {
		from     *wire
		datagram Spec
		to       probe.Socket
	}{
		"outbound": {first, UDP(at(l.c1, 20000), there, text), peer},
		"inbound":  {remote, UDP(there, at(l.external, 20000), text), inside},
		"hairpin":  {second, UDP(at(l.c2, 20000), at(l.external, 20000), text), inside},
	} {
		for _, order := range []string{"in order", "out of order"} {
			numbered := way.datagram.With(func(s *Spec) { s.ID = uint16(len(name) + len(order)) })
			parts := pieces(numbered.In(l.family), 240)
			if order == "out of order" {
				slices.Reverse(parts)
			}
			for _, part := range parts {
				way.from.send(part)
			}
			if p, err := way.to.Receive(probe.Timeout); err == nil && p.Text == text {
				continue
			}
			l.Errorf("%s: the fragments of a datagram that came %s did not arrive", name, order)
		}
	}
}

// fragmentFlood: many fragments that are never completed, of one host and from outside; then others' fragments in order,
// and packets that are none, pass as before.
func fragmentFlood(l *line) {
	l.part("hooks", floodedHooks)
	if l.family == family.V4 { // what is full is the kernel's: of either family the same
		l.part("kernels", floodedKernels)
	}
}

func floodedHooks(l *line) {
	r := l.rig()
	long := strings.Repeat("x", 960)
	r.Inside(UDP(at(l.c2, 20000), at(l.peer1, 53), "x"))
	flood := func(h rig.Hook, s Spec) {
		for id := range 20000 {
			frames := s.With(func(s *Spec) { s.ID = uint16(id) }).Fragments(320)
			r.Must("flood", func() error {
				_, err := r.Run(h.Program, h.Dev, frames[id%2]) // first ones that nobody follows, and later ones without a first
				return err
			})
		}
	}
	flood(r.Hooks()[0], rig.FromContainer(UDP(at(l.c1, 20001), at(l.peer1, 53), long)))
	flood(r.Hooks()[1], rig.FromOutside(UDP(at(l.peer1, 53), at(l.external, 20000), long)))
	out(r, UDP(at(l.c1, 3000), at(l.peer1, 53), "x"), UDP(at(l.external, 3000), at(l.peer1, 53), "x"))
	r.In(UDP(at(l.peer1, 53), at(l.external, 3000), "x"), UDP(at(l.peer1, 53), at(l.c1, 3000), "x"))
	r.Fragments(r.Hooks()[0], rig.FromContainer(UDP(at(l.c1, 3000), at(l.peer2, 53), long)), UDP(at(l.external, 3000), at(l.peer2, 53), long).Hop(), "translated_outbound")
	r.Fragments(r.Hooks()[1], rig.FromOutside(UDP(at(l.peer2, 53), at(l.external, 3000), long)), UDP(at(l.peer2, 53), at(l.c1, 3000), long).Hop(), "translated_inbound")
}

// floodedKernels: whatever of a kernel's takes fragments out of order is full of them.
func floodedKernels(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 2}, "")
	there, text := at(topo.Peer1Addr.String(), 20000), strings.Repeat("0123456789abcdef", 40)
	inside, peer := lab.opened(20000)
	flooder, outsider, first := lab.wire(lab.Containers[1]), lab.wire(lab.Peer1), lab.wire(lab.Containers[0])
	for id := range uint16(20000) {
		number := func(s *Spec) { s.ID = id + 1 }
		flooder.send(pieces(UDP(at(l.c2, 20001), there, text).With(number), 240)[1])
		outsider.send(pieces(UDP(there, at(l.external, 20000), text).With(number), 240)[1])
	}
	for _, part := range pieces(UDP(at(l.c1, 20000), there, text).With(func(s *Spec) { s.ID = 30000 }), 240) {
		first.send(part)
	}
	lab.Receives(peer, text)
	for _, part := range pieces(UDP(there, at(l.external, 20000), text).With(func(s *Spec) { s.ID = 30000 }), 240) {
		outsider.send(part)
	}
	lab.Receives(inside, text)
	lab.Send(inside, netip.AddrPortFrom(topo.Peer1Addr, 20000), "no fragment")
	lab.Receives(peer, "no fragment")
}
