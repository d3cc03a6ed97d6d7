// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"strings"
	"testing"

	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

func TestIPv6(t *testing.T) {
	conform(t, ipv6, conformance{
		"NAT66":             ipv6Only(oneExternalEndpoint),
		"NPTv6":             ipv6Only(nptv6),
		"too-big":           ipv6Only(packetTooBig),
		"extension-headers": ipv6Only(extensionHeaders),
		"fragment-header":   ipv6Only(fragmentHeader),
		"discovery":         ipv6Only(discoveryGoesOn),
		"no-checksum":       ipv6Only(withoutChecksum),
	})
}

// ipv6Only is a test that is about what IPv4 has not.
func ipv6Only(test func(*line)) func(*line) {
	return func(l *line) {
		if l.notHere = l.family != family.V6; !l.notHere {
			test(l)
		}
	}
}

func oneExternalEndpoint(l *line) {
	r := l.rig()
	for _, p := range []protocol{udp, tcp} {
		for _, remote := range []string{at(l.peer1, 443), at(l.peer1, 80), at(l.peer2, 443)} {
			out(r, p.first(at(l.c1, 20000), remote), p.first(at(l.external, 20000), remote))
			r.In(p.answer(remote, at(l.external, 20000)), p.answer(remote, at(l.c1, 20000)))
		}
	}
	for _, remote := range []string{l.peer1, l.peer2} {
		out(r, Ping(at(l.c1, 7), remote), Ping(at(l.external, 7), remote))
		r.In(Pong(remote, at(l.external, 7)), Pong(remote, at(l.c1, 7)))
	}
}

// packetTooBig: of a router on the way, and the NAT's own.
func packetTooBig(l *line) {
	r := l.rig(rig.WithMTU(1400))
	opening, sent := UDP(at(l.c1, 2000), at(l.peer1, 53), "question"), UDP(at(l.external, 2000), at(l.peer1, 53), "question")
	out(r, opening, sent)
	tooBig := message{2, 0}
	r.Outside(l.icmpError(l.router, l.external, tooBig, sent, 0)).
		Translated("translated_icmp_error", l.icmpError(l.router, l.c1, tooBig, opening, 0).Hop())
	large := UDP(at(l.c1, 2000), at(l.peer1, 53), strings.Repeat("x", 1400-40-8+1))
	r.Inside(large).Passed("too_big") // the kernel tells
	fits := strings.Repeat("x", 1400-40-8)
	out(r, UDP(at(l.c1, 2000), at(l.peer1, 53), fits), UDP(at(l.external, 2000), at(l.peer1, 53), fits))
}

// extensionHeaders: each of them, in every protocol, and both ways; the transport's checksum does not cover them. What every router
// is to look at goes out by the kernel, as IPv4's options do.
func extensionHeaders(l *line) {
	r, flows := l.open()
	for _, f := range flows {
		r.Inside(f.sentKnown.Behind(HopByHop())).Passed("stack")
		routed := f.sentKnown.Behind(HopByHop()).Hop()
		r.Egress("br0", routed).Translated("translated_stack", f.sent.Behind(HopByHop()).Hop())
	}
	for _, headers := range [][]Extension{
		{DestinationOptions(0)}, {DestinationOptions(30)}, {Routing(0, "2001:db8::77")}, {FragmentHeader(7, 0, false)},
		{DestinationOptions(1), Routing(0, "2001:db8::77"), FragmentHeader(7, 0, false), DestinationOptions(3)},
	} {
		for _, f := range flows {
			out(r, f.sentKnown.Behind(headers...), f.sent.Behind(headers...))
			r.In(f.answer.Behind(headers...), f.answerKnown.Behind(headers...))
		}
	}
}

func fragmentHeader(l *line) {
	r, _ := l.open()
	text := strings.Repeat("0123456789abcdef", 60)
	in, ext, web := at(l.c1, 2000), at(l.external, 2000), at(l.peer1, 80)
	for _, p := range []protocol{udp, tcp} {
		hooks := r.Hooks()
		r.Fragments(hooks[0], rig.FromContainer(p.payload(in, web, text)), p.payload(ext, web, text).Hop(), "translated_outbound")
		r.Fragments(hooks[1], rig.FromOutside(p.payload(web, ext, text)), p.payload(web, in, text).Hop(), "translated_inbound")
	}
}

// discoveryGoesOn: of hosts on either side, at every hook. Nobody forwards it.
func discoveryGoesOn(l *line) {
	r, _ := l.open()
	inside, gateway, outside := r.Address(l.c1).String(), r.Address("172.17.0.1").String(), r.Address(l.external).String()
	for _, s := range []Spec{
		NeighborSolicitation(inside, "", gateway, rig.C1MAC), NeighborAdvertisement(inside, gateway, inside, rig.C1MAC),
		NeighborSolicitation("fe80::2", "", gateway, rig.C1MAC), NeighborAdvertisement("fe80::2", "fe80::1", "fe80::2", rig.C1MAC),
		RouterSolicitation("fe80::2", rig.C1MAC), RouterAdvertisement("fe80::1", rig.BridgeMAC),
		NeighborSolicitation("2001:db8:100::fe", "", outside, rig.RouterMAC),
		NeighborAdvertisement("2001:db8:100::fe", outside, "2001:db8:100::fe", rig.RouterMAC),
		NeighborSolicitation("::", "", inside, rig.C1MAC), // whether it has the address already
	} {
		for _, h := range r.Hooks() {
			frame := r.Frame(s)
			if h.Name == "EgressForwarded" {
				continue
			}
			if res := r.Send(h.Program, h.Dev, frame, h.Change); res.Verdict != rig.Next || string(res.Frame()) != string(frame) {
				l.Errorf("%s: %s\n%s", h.Name, res.Reason, Dump(frame))
			}
		}
	}
}

// withoutChecksum: zero stays zero, both ways.
func withoutChecksum(l *line) {
	r, _ := l.open()
	in, ext, web := at(l.c1, 2000), at(l.external, 2000), at(l.peer1, 80)
	bare := func(s Spec) []byte {
		frame := r.Frame(s)
		frame[rig.L3+40+6], frame[rig.L3+40+7] = 0, 0
		return frame
	}
	for i, h := range r.Hooks()[:2] {
		sent, want := rig.FromContainer(UDP(in, web, "x")), UDP(ext, web, "x").Hop()
		if i == 1 {
			sent, want = rig.FromOutside(UDP(web, ext, "x")), UDP(web, in, "x").Hop()
		}
		want.DstMAC, want.SrcMAC = sent.DstMAC, sent.SrcMAC
		reason := []string{"translated_outbound", "translated_inbound"}[i]
		r.Send(h.Program, h.Dev, bare(sent), h.Change).Check(rig.Redirect, reason, bare(want))
	}
}
