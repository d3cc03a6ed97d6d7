// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"testing"
	"time"

	. "github.com/conenat/conenat/tests/packets"
)

const router = "192.0.2.99" // of the outside, and no end of any session

var errorKinds = []struct {
	name       string
	kind, code uint8
}{
	{"NetUnreachable", 3, 0}, {"HostUnreachable", 3, 1}, {"PortUnreachable", 3, 3}, {"FragmentationNeeded", 3, 4},
	{"AdministrativelyProhibited", 3, 13}, {"SourceQuench", 4, 0}, {"TTLExceeded", 11, 0},
	{"ReassemblyTimeExceeded", 11, 1}, {"ParameterProblem", 12, 0},
}

// Flows from c1 that an error may speak of: as its sender and as the outside knows the first packet.
var erringFlows = []struct {
	name                  string
	opening, sent, inside Spec // first packet; a packet on the wire outside; the same as c1 knows it
	embed                 int  // 0: all of it
}{
	{"UDP", UDP(c1+":2000", peer1+":53", "question"), UDP(external+":2000", peer1+":53", "question"), UDP(c1+":2000", peer1+":53", "question"), 0},
	{"UDP8", UDP(c1+":2000", peer1+":53", "question"), UDP(external+":2000", peer1+":53", "question"), UDP(c1+":2000", peer1+":53", "question"), 28},
	{"TCP", TCP(c1+":2000", peer1+":80", "S", ""), TCP(external+":2000", peer1+":80", "PA", "data"), TCP(c1+":2000", peer1+":80", "PA", "data"), 0},
	{"TCP8", TCP(c1+":2000", peer1+":80", "S", ""), TCP(external+":2000", peer1+":80", "PA", "data"), TCP(c1+":2000", peer1+":80", "PA", "data"), 28},
	{"TCP18", TCP(c1+":2000", peer1+":80", "S", ""), TCP(external+":2000", peer1+":80", "PA", "data"), TCP(c1+":2000", peer1+":80", "PA", "data"), 38},
	{"Echo", Ping(c1+":2000", peer1), Ping(external+":2000", peer1), Ping(c1+":2000", peer1), 0},
	{"Echo8", Ping(c1+":2000", peer1), Ping(external+":2000", peer1), Ping(c1+":2000", peer1), 28},
	{"Timestamp", Timestamp(c1+":2000", peer1), Timestamp(external+":2000", peer1), Timestamp(c1+":2000", peer1), 0},
}

// TestErrorsFromOutside: addresses, ports and every checksum of the embedded packet are those that its
// sender knows (RFC 5508 REQ-4), whoever speaks (RFC 4787 REQ-12a).
func TestErrorsFromOutside(t *testing.T) {
	r := newRig(t)
	for _, f := range erringFlows {
		r.subtest(f.name, func() {
			r.inside(f.opening)
			for _, k := range errorKinds {
				for _, from := range []string{peer1, router} {
					r.outside(ICMPError(from, external, k.kind, k.code, f.sent, f.embed)).
						translated("translated_icmp_error", ICMPError(from, c1, k.kind, k.code, f.inside, f.embed).Hop())
				}
			}
			r.consistent()
		})
	}
}

// TestErrorsOfTakenPort: where the external port is not the internal one.
func TestErrorsOfTakenPort(t *testing.T) {
	r := newRig(t)
	for _, f := range erringFlows {
		r.inside(f.opening)
	}
	for _, proto := range []string{"udp", "tcp", "icmp"} {
		r.subtest(proto, func() {
			r.opened(proto, c2+":2000")
			ext := r.externalOf(proto, c2+":2000")
			sent, inside := UDP(ext, peer1+":3478", "x"), UDP(c2+":2000", peer1+":3478", "x")
			switch proto {
			case "tcp":
				sent, inside = TCP(ext, peer1+":3478", "PA", "x"), TCP(c2+":2000", peer1+":3478", "PA", "x")
			case "icmp":
				sent, inside = Ping(ext, peer1), Ping(c2+":2000", peer1)
			}
			for _, embed := range []int{0, 28} {
				r.outside(ICMPError(router, external, 3, 4, sent, embed)).
					translated("translated_icmp_error", ICMPError(router, c2, 3, 4, inside, embed).Hop())
			}
		})
	}
}

// TestErrorsFromInside: about what came in; the outer source becomes the external address (RFC 5508 REQ-5),
// a router's behind the container too.
func TestErrorsFromInside(t *testing.T) {
	r := newRig(t)
	for _, f := range []struct{ opening, came, inside Spec }{
		{UDP(c1+":2000", peer1+":53", "x"), UDP(peer1+":53", external+":2000", "answer"), UDP(peer1+":53", c1+":2000", "answer")},
		{TCP(c1+":2000", peer1+":80", "S", ""), TCP(peer1+":80", external+":2000", "PA", "data"), TCP(peer1+":80", c1+":2000", "PA", "data")},
		{Ping(c1+":2000", peer1), Pong(peer1, external+":2000"), Pong(peer1, c1+":2000")},
	} {
		if res := r.inside(f.opening); res.reason != "translated_outbound" {
			t.Fatalf("the first packet: %s", res.reason)
		}
		for _, from := range []string{c1, "172.17.0.77"} {
			for _, embed := range []int{0, 28} {
				r.inside(ICMPError(from, peer1, 3, 3, f.inside, embed)).
					translated("translated_icmp_error", ICMPError(external, peer1, 3, 3, f.came, embed).Hop())
			}
		}
	}
	r.consistent()
}

// TestErrorsHairpinned: RFC 5508 REQ-7.
func TestErrorsHairpinned(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":1001", peer1+":1", "x"))
	r.from("p2", UDP(c2+":2001", external+":1001", "hello"))
	about, known := UDP(external+":2001", c1+":1001", "hello"), UDP(c2+":2001", external+":1001", "hello")
	r.inside(ICMPError(c1, external, 3, 3, about, 0)).
		translated("translated_icmp_error", ICMPError(external, c2, 3, 3, known, 0).Hop())
	about, known = UDP(external+":1001", c2+":2001", "hi"), UDP(c1+":1001", external+":2001", "hi")
	r.from("p2", ICMPError(c2, external, 3, 3, about, 28)).
		translated("translated_icmp_error", ICMPError(external, c1, 3, 3, known, 28).Hop())
	r.inside(UDP(c1+":1001", external+":1001", "self"))
	about, known = UDP(external+":1001", c1+":1001", "self"), UDP(c1+":1001", external+":1001", "self")
	r.inside(ICMPError(c1, external, 3, 3, about, 0)).
		translated("translated_icmp_error", ICMPError(external, c1, 3, 3, known, 0).Hop())
}

// embedded changes the embedded packet of an error, without mending any of its checksums.
func embedded(s Spec, change func([]byte)) Spec {
	s.Payload = append([]byte{}, s.Payload...)
	change(s.Payload)
	return s
}

// TestErrorChecksums: a bad one of the message or of the embedded IPv4 header is dropped (RFC 5508 REQ-3,
// 3a), a bad one of the embedded transport header stays as bad (3c).
func TestErrorChecksums(t *testing.T) {
	r := newRig(t)
	opening, sent := UDP(c1+":2000", peer1+":53", "question"), UDP(external+":2000", peer1+":53", "question")
	r.inside(opening)
	good := ICMPError(router, external, 3, 3, sent, 0)
	for at := 34; at < len(good.Bytes()); at += 3 {
		frame := fromOutside(good).Bytes()
		frame[at] ^= 0x10
		res := r.send(r.dp.Objects().NatOutsideIngress, "eth0", frame, nil)
		if res.reason != "dropped_icmp_checksum" && res.reason != "passed_unbound" {
			t.Errorf("byte %d: %s", at, res.reason)
		}
		res.check(res.verdict, res.reason, frame)
	}
	r.outside(embedded(good, func(b []byte) { b[8]-- })).dropped("icmp_checksum") // TTL of the embedded header
	bad := func(b []byte) { binary.BigEndian.PutUint16(b[26:], binary.BigEndian.Uint16(b[26:])+1) }
	r.outside(embedded(good, bad)).translated("translated_icmp_error",
		embedded(ICMPError(router, c1, 3, 3, opening, 0), bad).Hop())
}

// TestErrorEmbeddedUDPWithoutChecksum: 0 stays 0.
func TestErrorEmbeddedUDPWithoutChecksum(t *testing.T) {
	r := newRig(t)
	opening, sent := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x")
	r.inside(opening)
	zero := func(b []byte) { b[26], b[27] = 0, 0 }
	r.outside(embedded(ICMPError(router, external, 3, 3, sent, 0), zero)).translated("translated_icmp_error",
		embedded(ICMPError(router, c1, 3, 3, opening, 0), zero).Hop())
}

// TestErrorEmbeddedOptions: stepped over (RFC 5508 REQ-3b).
func TestErrorEmbeddedOptions(t *testing.T) {
	r := newRig(t)
	options := func(s *Spec) { s.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} }
	for _, f := range erringFlows {
		r.inside(f.opening)
		embed := 0
		if f.embed > 0 {
			embed = f.embed + 8
		}
		r.outside(ICMPError(router, external, 11, 0, f.sent.With(options), embed)).
			translated("translated_icmp_error", ICMPError(router, c1, 11, 0, f.inside.With(options), embed).Hop())
	}
}

// TestErrorExtension: what follows the embedded packet stays (RFC 4884; RFC 5508 REQ-3d).
func TestErrorExtension(t *testing.T) {
	r := newRig(t)
	extension := func(s *Spec) {
		padded := append(append([]byte{}, s.Payload...), make([]byte, 128-len(s.Payload))...)
		s.Payload = append(padded, 0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0x12, 0x34, 0x51, 1)
	}
	for _, f := range erringFlows {
		if f.embed != 0 {
			continue
		}
		r.inside(f.opening)
		r.outside(ICMPError(router, external, 11, 0, f.sent, 0).With(extension)).
			translated("translated_icmp_error", ICMPError(router, c1, 11, 0, f.inside, 0).With(extension).Hop())
	}
}

// TestErrorsOfNoSession: from outside the host's to judge, from inside dropped (RFC 5508 REQ-4, REQ-5).
func TestErrorsOfNoSession(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	for name, about := range map[string]Spec{
		"OtherPort":   UDP(external+":2001", peer1+":53", "x"),
		"OtherRemote": UDP(external+":2000", peer2+":53", "x"),
		"TCP":         TCP(external+":2000", peer1+":53", "S", ""),
		"Echo":        Ping(external+":2000", peer1),
		"GRE":         Raw(external, peer1, 47, make([]byte, 40)),
		"ESP":         Raw(external, peer1, 50, make([]byte, 40)),
		"EchoOther":   Raw(external, peer1, 1, []byte{17, 0, 0, 0, 0, 0, 0, 0}),
		"Fragment":    UDP(external+":2000", peer1+":53", "01234567").With(func(s *Spec) { s.Offset = 64 }),
	} {
		r.subtest(name, func() {
			r.outside(ICMPError(router, external, 3, 3, about, 0)).passed("unbound")
			about.Src, about.Dst = about.Dst, about.Src
			about.Dst = c1 + ":2000"
			if name == "OtherRemote" {
				r.inside(ICMPError(c1, peer2, 3, 3, about, 0)).dropped("icmp_no_session")
				r.inside(ICMPError(c1, "172.17.0.1", 3, 3, about, 0)).passed("local")
				r.inside(ICMPError(c1, external, 3, 3, about, 0)).passed("local")
			}
		})
	}
	// Of a session, but sent to another one than the embedded packet's sender.
	r.inside(ICMPError(c1, peer2, 3, 3, UDP(peer1+":53", c1+":2000", "x"), 0)).dropped("icmp_no_session")
}

// TestErrorsLeaveTheSession: they neither refresh nor end it (RFC 5508 REQ-6, RFC 5382 REQ-10).
func TestErrorsLeaveTheSession(t *testing.T) {
	r := newRig(t)
	for _, f := range erringFlows {
		r.subtest(f.name, func() {
			r.inside(f.opening)
			lifetime := map[string]time.Duration{"U": 300 * time.Second, "T": partialOpen, "E": time.Minute}[f.name[:1]]
			if f.name == "Timestamp" {
				lifetime = time.Minute
			}
			r.wait(lifetime / 2)
			r.outside(ICMPError(peer1, external, 3, 3, f.sent, f.embed)).
				translated("translated_icmp_error", ICMPError(peer1, c1, 3, 3, f.inside, f.embed).Hop())
			r.livesFor(lifetime - lifetime/2)
		})
	}
}

// TestErrorsFromInsideByTheStack: with IP options, and at egress.
func TestErrorsFromInsideByTheStack(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	about, known := UDP(peer1+":53", c1+":2000", "x"), UDP(peer1+":53", external+":2000", "x")
	options := func(s *Spec) { s.Options = []byte{7, 3, 4, 0} }
	r.inside(ICMPError(c1, peer1, 3, 3, about, 0).With(options)).passed("stack")
	r.egress("br0", ICMPError(c1, peer1, 3, 3, about, 0).With(options)).
		check(next, "translated_icmp_error", fromStack(ICMPError(external, peer1, 3, 3, known, 0).With(options)))
	r.inside(ICMPError(c1, peer1, 3, 3, about, 0).With(func(s *Spec) { s.TTL = 1 })).passed("ttl")
	r.outside(ICMPError(peer1, external, 3, 3, known, 0).With(func(s *Spec) { s.Payload, s.TTL = UDP(external+":2000", peer1+":53", "x").IP(), 1 })).dropped("ttl")
}

// fromStack is a frame as it meets the egress hook.
func fromStack(s Spec) []byte {
	s.DstMAC, s.SrcMAC = routerMAC, uplinkMAC
	return s.Bytes()
}
