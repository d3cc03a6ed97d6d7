// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/rig"
	"github.com/conenat/conenat/tests/topo"
)

func TestRFC5508(t *testing.T) {
	conform(t, rfc5508, conformance{
		"REQ-1":   queriesPass,
		"REQ-1a":  identifiersMapIndependently,
		"REQ-2":   func(l *line) { pingLives(l, l.rig(), time.Minute) },
		"REQ-2a":  queryTimerIsConfigurable,
		"REQ-3":   badICMPChecksum,
		"REQ-3a":  ipv4Only(badEmbeddedChecksum), // an IPv6 header has no checksum
		"REQ-3b":  embeddedOptions,
		"REQ-3c":  embeddedTransportChecksum,
		"REQ-3d":  extensions,
		"REQ-4":   errorsAboutNothing,
		"REQ-4a":  errorsFromOutside,
		"REQ-4b":  errorsFromOutside,
		"REQ-4c":  errorsFromOutside,
		"REQ-5":   errorsAboutNothingFromInside,
		"REQ-5a":  errorsFromInside,
		"REQ-5b":  errorsFromInside,
		"REQ-5c":  errorsFromInside,
		"REQ-6":   errorsChangeNothing,
		"REQ-7":   errorsHairpinned,
		"REQ-7a":  errorsHairpinned,
		"REQ-8":   refusalIsTold,
		"REQ-9":   refusalMayBeSilent,
		"REQ-10a": messagesThatMustPass,
		"REQ-10b": messagesThatMayPass,
		"REQ-10c": messagesThatShouldNotPass,
		"REQ-10d": ipv4Only(ownErrorsHavePrecedence), // RFC 4443 asks for no traffic class
		"REQ-10e": whenNotToSend,
		"REQ-10f": ownErrorsAreLimited,
		"REQ-11":  otherMessages,
	})
}

// queriesPass: on the rig, and ping in earnest.
func queriesPass(l *line) {
	l.part("messages", func(l *line) {
		r := l.rig()
		out(r, Ping(at(l.c1, 7), l.peer1), Ping(at(l.external, 7), l.peer1))
		r.In(Pong(l.peer1, at(l.external, 7)), Pong(l.peer1, at(l.c1, 7)))
		l.timestamps(r)
	})
	l.part("kernels", func(l *line) {
		lab := l.lab(topo.Figure3Config{Containers: 2}, "")
		for i, ns := range lab.Containers {
			if report, err := probe.PingOnce(lab.probe(ns), l.family.Addr(topo.Peer1Addr), 5); err != nil || report.Received != 5 {
				l.Errorf("container %d: %+v, %v", i+1, report, err)
			}
		}
	})
}

// timestamps is the query that IPv6 has not.
func (l *line) timestamps(r *rig.Rig) {
	l.Helper()
	if l.family == family.V4 {
		out(r, Timestamp(at(l.c1, 8), l.peer1), Timestamp(at(l.external, 8), l.peer1))
		r.In(TimestampReply(l.peer1, at(l.external, 8)), TimestampReply(l.peer1, at(l.c1, 8)))
	}
}

func identifiersMapIndependently(l *line) {
	r := l.rig()
	for _, host := range []string{l.c1, l.c2} { // the second one's identifier is taken
		external := at(l.external, r.Opened("icmp", at(host, 7)))
		for _, remote := range []string{l.peer1, l.peer2, l.router} {
			out(r, Ping(at(host, 7), remote), Ping(external, remote))
			r.In(Pong(remote, external), Pong(remote, at(host, 7)))
		}
	}
}

func pingLives(l *line, r *rig.Rig, least time.Duration) {
	r.Inside(Ping(at(l.c1, 7), l.peer1))
	r.Wait(least)
	r.In(Pong(l.peer1, at(l.external, 7)), Pong(l.peer1, at(l.c1, 7)))
}

func queryTimerIsConfigurable(l *line) {
	r := l.rig(rig.WithSettings(func(s *dataplane.Settings) { s.ICMPTimeout = 10 * time.Minute }))
	r.Inside(Ping(at(l.c1, 7), l.peer1))
	r.LivesFor(10 * time.Minute)
}

// flow is one that errors speak of: c1 has opened it.
type flow struct {
	name                string
	opening             Spec
	sent, sentKnown     Spec // a packet of c1's outside, and as c1 knows it
	answer, answerKnown Spec // one to c1 outside, and as c1 has got it
}

func (l *line) flows() []flow {
	in, ext, web := at(l.c1, 2000), at(l.external, 2000), at(l.peer1, 80)
	return []flow{
		{"UDP", UDP(in, web, "question"), UDP(ext, web, "question"), UDP(in, web, "question"), UDP(web, ext, "answer"), UDP(web, in, "answer")},
		{"TCP", TCP(in, web, "S", ""), TCP(ext, web, "PA", "data"), TCP(in, web, "PA", "data"), TCP(web, ext, "PA", "data"), TCP(web, in, "PA", "data")},
		{"Echo", Ping(in, l.peer1), Ping(ext, l.peer1), Ping(in, l.peer1), Pong(l.peer1, ext), Pong(l.peer1, in)},
	}
}

// open is a rig with every flow open.
func (l *line) open() (*rig.Rig, []flow) {
	l.Helper()
	r, flows := l.rig(), l.flows()
	for _, f := range flows {
		r.Inside(f.opening)
	}
	return r, flows
}

// corrupted changes the frame of a packet, mending nothing.
func corrupted(r *rig.Rig, s Spec, change func(frame []byte)) {
	r.T.Helper()
	frame := r.Frame(rig.FromOutside(s))
	change(frame)
	r.Send(r.DP.Objects().NatOutsideIngress, "eth0", frame, nil).Check(rig.Shot, "dropped_icmp_checksum", frame)
}

const embeddedAt = rig.L4 + 8 // of the packet that an ICMP error speaks of, in the frame, in IPv4

func badICMPChecksum(l *line) {
	r, flows := l.open()
	icmp := map[family.Family]int{family.V4: rig.L4, family.V6: rig.L3 + 40}[l.family]
	for _, f := range flows {
		corrupted(r, ICMPError(l.router, l.external, 3, 1, f.sent, 0), func(frame []byte) { frame[icmp+2]++ })
		corrupted(r, ICMPError(l.router, l.external, 3, 1, f.sent, 0), func(frame []byte) { frame[len(frame)-1] ^= 1 })
	}
}

func badEmbeddedChecksum(l *line) {
	r, flows := l.open()
	for _, f := range flows {
		corrupted(r, ICMPError(l.router, l.external, 3, 1, f.sent, 0), func(frame []byte) {
			frame[embeddedAt+8]--                   // its TTL
			frame[rig.L4+2], frame[rig.L4+3] = 0, 0 // and the message is sound again
			binary.BigEndian.PutUint16(frame[rig.L4+2:], Checksum(frame[rig.L4:]))
		})
	}
}

// option is something between a packet's IP header and its transport's.
type option struct {
	length int
	before func(Spec) Spec
}

// options are extension headers in IPv6.
func (l *line) options() (out []option) {
	if l.family == family.V4 {
		route := func(s *Spec) { s.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} }
		return []option{{8, func(s Spec) Spec { return s.With(route) }}}
	}
	hop, destination, routing, fragment := HopByHop(), DestinationOptions(1), Routing(0, "2001:db8::77"), FragmentHeader(7, 0, false)
	for _, headers := range [][]Extension{{hop}, {destination}, {routing}, {fragment}, {hop, destination, routing, fragment}} {
		o := option{before: func(s Spec) Spec { return s.In(l.family).Behind(headers...) }}
		for _, h := range headers {
			o.length += len(h.Bytes)
		}
		out = append(out, o)
	}
	return out
}

func embeddedOptions(l *line) {
	r, flows := l.open()
	for _, o := range l.options() {
		for _, f := range flows {
			sent, known := o.before(f.sent), o.before(f.sentKnown)
			r.Outside(ICMPError(l.router, l.external, 11, 0, sent, o.length+28)).
				Translated("translated_icmp_error", ICMPError(l.router, l.c1, 11, 0, known, o.length+28).Hop())
		}
	}
}

// embeddedTransportChecksum: one that is wrong stays as wrong as it was.
func embeddedTransportChecksum(l *line) {
	r, _ := l.open()
	f := l.flows()[0]
	wrong := func(s *Spec) {
		s.Payload = append([]byte{}, s.Payload...)
		s.Payload[len(f.sent.In(l.family).IP())-len(f.sent.Payload)-2]++ // UDP's, not by so much that it wraps
	}
	r.Outside(ICMPError(l.router, l.external, 3, 1, f.sent, 0).In(l.family).With(wrong)).
		Translated("translated_icmp_error", ICMPError(l.router, l.c1, 3, 1, f.sentKnown, 0).In(l.family).With(wrong).Hop())
}

func extensions(l *line) {
	r, flows := l.open()
	extended := func(s *Spec) {
		padded := append(append([]byte{}, s.Payload...), make([]byte, 128-len(s.Payload))...)
		s.Payload = append(padded, 0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0x12, 0x34, 0x51, 1) // an MPLS label stack
	}
	for _, f := range flows {
		r.Outside(ICMPError(l.router, l.external, 11, 0, f.sent, 0).In(l.family).With(extended)).
			Translated("translated_icmp_error", ICMPError(l.router, l.c1, 11, 0, f.sentKnown, 0).In(l.family).With(extended).Hop())
	}
}

func errorsAboutNothing(l *line) {
	r, _ := l.open()
	for name, about := range map[string]Spec{
		"another port": UDP(at(l.external, 2001), at(l.peer1, 80), "x"), "another remote": UDP(at(l.external, 2000), at(l.peer2, 80), "x"),
		"another identifier": Ping(at(l.external, 2001), l.peer1), "another protocol": Raw(l.external, l.peer1, 47, make([]byte, 8)),
	} {
		r.Subtest(name, func() { r.Outside(ICMPError(l.router, l.external, 3, 1, about, 0)).Passed("unbound") })
	}
}

func errorsAboutNothingFromInside(l *line) {
	r, _ := l.open()
	r.Inside(ICMPError(l.c1, l.peer1, 3, 3, UDP(at(l.peer1, 80), at(l.c1, 2001), "x"), 0)).Dropped("icmp_no_session")
	r.Inside(ICMPError(l.c1, l.peer2, 3, 3, UDP(at(l.peer2, 80), at(l.c1, 2000), "x"), 0)).Dropped("icmp_no_session")
	r.Inside(ICMPError(l.c1, l.peer2, 3, 3, UDP(at(l.peer1, 80), at(l.c1, 2000), "x"), 0)).Dropped("icmp_no_session") // to a third party
}

// errorsFromOutside: every type and code, by a router, with all of the packet embedded or with the least of it.
func errorsFromOutside(l *line) {
	r, flows := l.open()
	for _, f := range flows {
		for _, e := range l.errorTypes() {
			for _, embed := range []int{0, 28} {
				r.Outside(l.icmpError(l.router, l.external, e, f.sent, embed)).
					Translated("translated_icmp_error", l.icmpError(l.router, l.c1, e, f.sentKnown, embed).Hop())
			}
		}
	}
}

// errorsFromInside: by the host itself, and by a router behind which it is.
func errorsFromInside(l *line) {
	r, flows := l.open()
	for _, f := range flows {
		for _, e := range l.errorTypes() {
			for _, from := range []string{l.c1, l.host(77)} {
				r.Inside(l.icmpError(from, l.peer1, e, f.answerKnown, 28)).
					Translated("translated_icmp_error", l.icmpError(l.external, l.peer1, e, f.answer, 28).Hop())
			}
		}
	}
}

func errorsChangeNothing(l *line) {
	r := l.rig()
	f := l.flows()[2]
	out(r, f.opening, f.sent)
	r.Wait(40 * time.Second)
	for _, e := range l.errorTypes() {
		r.Outside(l.icmpError(l.peer1, l.external, e, f.sent, 28)).
			Translated("translated_icmp_error", l.icmpError(l.peer1, l.c1, e, f.sentKnown, 28).Hop())
		r.Inside(l.icmpError(l.c1, l.peer1, e, f.answerKnown, 28)).
			Translated("translated_icmp_error", l.icmpError(l.external, l.peer1, e, f.answer, 28).Hop())
	}
	r.LivesFor(20 * time.Second)
}

// errorsHairpinned: c1 says of what c2 has sent it that its port is closed.
func errorsHairpinned(l *line) {
	r := l.rig()
	r.Inside(UDP(at(l.c1, 1001), at(l.peer1, 1), "x"))
	r.From("p2", UDP(at(l.c2, 2001), at(l.external, 1001), "hello"))
	got, sent := UDP(at(l.external, 2001), at(l.c1, 1001), "hello"), UDP(at(l.c2, 2001), at(l.external, 1001), "hello")
	for _, embed := range []int{0, 28} {
		r.Inside(ICMPError(l.c1, l.external, 3, 3, got, embed)).
			Translated("translated_icmp_error", ICMPError(l.external, l.c2, 3, 3, sent, embed).Hop())
	}
}

// messagesThatMustPass: through the NAT (REQ-1, REQ-4, REQ-5), and of its own.
func messagesThatMustPass(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 1, UplinkMTU: smallMTU}, "")
	container := lab.wire(lab.Containers[0])
	datagram := UDP(at(l.c1, 20000), at(topo.Peer1Addr.String(), 20000), tooLong)
	gateway, host := l.family.Addr(topo.GatewayAddr), l.family.Addr(topo.HostAddr)
	for name, c := range map[string]struct {
		packet     Spec
		kind, code uint8
	}{
		"Time Exceeded":        {datagram.With(func(s *Spec) { s.TTL, s.Payload = 1, []byte("x") }), 11, 0},
		"Fragmentation Needed": {datagram.With(func(s *Spec) { s.DF = true }), 3, 4}, // Packet Too Big
	} {
		sent := c.packet.In(l.family).IP()
		container.send(sent)
		got := container.sees(1, isICMP(c.kind, c.code))
		if len(got) == 0 {
			l.Errorf("%s: the sender hears nothing", name)
			continue
		}
		if from, _ := ends(got[0]); from != gateway {
			l.Errorf("%s comes from %s", name, from)
		}
		about := Embedded(got[0])
		src, dst := ends(about)
		if wantSrc, wantDst := ends(sent); src != wantSrc || dst != wantDst {
			l.Errorf("%s speaks of % x, want what the container has sent", name, about)
		}
	}
	timeExceededOutside(l, lab)
	if report, err := probe.PingOnce(lab.probe(lab.Containers[0]), gateway, 1); err != nil || report.Received != 1 {
		l.Errorf("ping to the NAT from inside: %+v, %v", report, err)
	}
	if report, err := probe.PingOnce(lab.probe(lab.Peer1), host, 1); err != nil || report.Received != 1 {
		l.Errorf("ping to the NAT from outside: %+v, %v", report, err)
	}
}

// timeExceededOutside: for who sends to a container, the NAT is the last router but one.
func timeExceededOutside(l *line, lab *lab) {
	lab.opened(20001)
	peer := lab.wire(lab.Peer1)
	s := UDP(at(topo.Peer1Addr.String(), 20001), at(l.external, 20001), "x")
	peer.send(s.With(func(s *Spec) { s.TTL = 2 }).In(l.family).IP()) // 1 behind the router
	got := peer.sees(1, isICMP(11, 0))
	if len(got) == 0 {
		l.Fatal("no Time Exceeded to the outside")
	}
	if from, _ := ends(got[0]); from != l.family.Addr(topo.HostAddr) {
		l.Errorf("Time Exceeded to the outside comes from %s, want %s", from, l.family.Addr(topo.HostAddr))
	}
}

func messagesThatMayPass(l *line) {
	r := l.rig()
	f := l.flows()[0]
	out(r, f.opening, f.sent)
	l.timestamps(r)
	r.Outside(ICMPError(l.router, l.external, 12, 0, f.sent, 28)).
		Translated("translated_icmp_error", ICMPError(l.router, l.c1, 12, 0, f.sentKnown, 28).Hop())
}

// messagesThatShouldNotPass: Information Request and Reply; and where a NAT could ask to be spared, full tables, it does not
// send a Source Quench.
func messagesThatShouldNotPass(l *line) {
	r := l.rig(rig.WithSmallTables())
	for _, kind := range []byte{15, 16} {
		r.Inside(l.informing(l.c1, l.peer1, kind)).Dropped("icmp_type")
		r.Outside(l.informing(l.peer1, l.external, kind)).Passed("unbound")
	}
	for i := range 8 {
		res := r.Inside(UDP(at(l.c1, 5000+i), at(l.peer1, 53), "x"))
		if i >= 4 && res.Verdict == rig.Redirect {
			l.Errorf("host %d: %s, want it refused and no more", i, res.Reason)
		}
	}
}

const precedence = 0xe0 // of the TOS octet

// ownErrorsHavePrecedence: 6, internetwork control, or 7.
func ownErrorsHavePrecedence(l *line) {
	r, _, _ := udp.fullHouse(l, refusing(dataplane.RefuseHostUnreachable))
	out := r.Inside(UDP(at(l.c1, 40000), at(l.peer1, 53), "x")).Frame()
	in := r.Outside(UDP(at(l.peer1, 53), at(l.external, 40000), "x").With(lastHop)).Frame()
	for _, frame := range [][]byte{out, in} {
		if frame[rig.L3+9] != 1 || frame[rig.L3+1]&precedence < 6<<5 {
			l.Errorf("not an ICMP message of that precedence:\n%s", Dump(frame))
		}
	}
}

func lastHop(s *Spec) { s.TTL = 1 }

// whenNotToSend: about an ICMP error, and about a later fragment, whose first one was told of.
func whenNotToSend(l *line) {
	r, flows := l.open()
	f := flows[0]
	r.Outside(ICMPError(l.peer1, l.external, 3, 3, f.sent, 28).With(lastHop)).Dropped("ttl")
	s := rig.FromOutside(f.answer.With(func(s *Spec) { s.Payload, s.ID = make([]byte, 960), 7 })).In(l.family)
	whole, expiring := s.Fragments(320), s.With(lastHop).Fragments(320)
	o := r.DP.Objects()
	r.Send(o.NatOutsideIngress, "eth0", whole[0], nil)
	r.Send(o.NatOutsideIngress, "eth0", expiring[1], nil).Dropped("ttl")
	r.Outside(f.answer.With(lastHop)).Told("ttl", Told(l.external, 11, 0, 0, f.answer.With(lastHop)))
}

// ownErrorsAreLimited: of many packets in a moment few are answered; a second later some are again.
func ownErrorsAreLimited(l *line) {
	r, _, _ := udp.fullHouse(l, refusing(dataplane.RefuseHostUnreachable))
	for range 2 {
		told := 0
		for i := range 200 {
			if r.Inside(UDP(at(l.c1, 1024+i), at(l.peer1, 53), "x")).Verdict == rig.Redirect {
				told++
			}
		}
		if told == 0 || told > 50 {
			l.Errorf("%d of 200 packets of one moment were answered", told)
		}
		r.Wait(time.Second)
	}
}

// informing is an ICMP message with an identifier, of a type by the number of the line's family.
func (l *line) informing(src, dst string, kind byte) Spec {
	if l.family == family.V6 {
		return ICMPv6(src, dst, kind, 0, 7<<16|1, nil)
	}
	m := []byte{kind, 0, 0, 0, 0, 7, 0, 1}
	binary.BigEndian.PutUint16(m[2:], Checksum(m))
	return Raw(src, dst, 1, m)
}

func otherMessages(l *line) {
	r := l.rig()
	kinds := []byte{5, 9, 10, 17, 18, 30, 40, 42, 255}
	if l.family == family.V6 {
		kinds = []byte{0, 5, 100, 127, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 143, 160, 255}
	}
	for _, kind := range kinds {
		r.Inside(l.informing(l.c1, l.peer1, kind)).Dropped("icmp_type")
		r.Outside(l.informing(l.peer1, l.external, kind)).Passed("unbound")
	}
}
