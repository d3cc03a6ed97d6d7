// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
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

// lacks: IPv6 has no timestamps and no source quench.
func lacks(fam family.Family, what string) bool {
	return fam == family.V6 && (strings.EqualFold(what, "timestamp") || what == "SourceQuench")
}

// Flows from c1 that an error may speak of: as its sender and as the outside knows the first packet.
var erringFlows = []struct {
	name                  string
	opening, sent, inside Spec // first packet; a packet on the wire outside; the same as c1 knows it
	embed                 int  // 0: all of it
}{
	{"UDP", UDP(rig.C1+":2000", rig.Peer1+":53", "question"), UDP(rig.External+":2000", rig.Peer1+":53", "question"), UDP(rig.C1+":2000", rig.Peer1+":53", "question"), 0},
	{"UDP8", UDP(rig.C1+":2000", rig.Peer1+":53", "question"), UDP(rig.External+":2000", rig.Peer1+":53", "question"), UDP(rig.C1+":2000", rig.Peer1+":53", "question"), 28},
	{"TCP", TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""), TCP(rig.External+":2000", rig.Peer1+":80", "PA", "data"), TCP(rig.C1+":2000", rig.Peer1+":80", "PA", "data"), 0},
	{"TCP8", TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""), TCP(rig.External+":2000", rig.Peer1+":80", "PA", "data"), TCP(rig.C1+":2000", rig.Peer1+":80", "PA", "data"), 28},
	{"TCP18", TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""), TCP(rig.External+":2000", rig.Peer1+":80", "PA", "data"), TCP(rig.C1+":2000", rig.Peer1+":80", "PA", "data"), 38},
	{"Echo", Ping(rig.C1+":2000", rig.Peer1), Ping(rig.External+":2000", rig.Peer1), Ping(rig.C1+":2000", rig.Peer1), 0},
	{"Echo8", Ping(rig.C1+":2000", rig.Peer1), Ping(rig.External+":2000", rig.Peer1), Ping(rig.C1+":2000", rig.Peer1), 28},
	{"Timestamp", Timestamp(rig.C1+":2000", rig.Peer1), Timestamp(rig.External+":2000", rig.Peer1), Timestamp(rig.C1+":2000", rig.Peer1), 0},
}

// TestErrorsFromOutside: addresses, ports and every checksum of the embedded packet are those that its
// sender knows (RFC 5508 REQ-4), whoever speaks (RFC 4787 REQ-12a).
func TestErrorsFromOutside(t *testing.T) { family.Each(t, testErrorsFromOutside) }

func testErrorsFromOutside(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, f := range erringFlows {
		if lacks(fam, f.name) {
			continue
		}
		r.Subtest(f.name, func() {
			r.Inside(f.opening)
			for _, k := range errorKinds {
				if lacks(fam, k.name) {
					continue
				}
				for _, from := range []string{rig.Peer1, router} {
					r.Outside(ICMPError(from, rig.External, k.kind, k.code, f.sent, f.embed)).
						Translated("translated_icmp_error", ICMPError(from, rig.C1, k.kind, k.code, f.inside, f.embed).Hop())
				}
			}
			r.Consistent()
		})
	}
}

// TestErrorsOfTakenPort: where the external port is not the internal one.
func TestErrorsOfTakenPort(t *testing.T) { family.Each(t, testErrorsOfTakenPort) }

func testErrorsOfTakenPort(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, f := range erringFlows {
		if lacks(fam, f.name) {
			continue
		}
		r.Inside(f.opening)
	}
	for _, proto := range []string{"udp", "tcp", "icmp"} {
		r.Subtest(proto, func() {
			r.Opened(proto, rig.C2+":2000")
			ext := r.ExternalOf(proto, rig.C2+":2000")
			sent, inside := UDP(ext, rig.Peer1+":3478", "x"), UDP(rig.C2+":2000", rig.Peer1+":3478", "x")
			switch proto {
			case "tcp":
				sent, inside = TCP(ext, rig.Peer1+":3478", "PA", "x"), TCP(rig.C2+":2000", rig.Peer1+":3478", "PA", "x")
			case "icmp":
				sent, inside = Ping(ext, rig.Peer1), Ping(rig.C2+":2000", rig.Peer1)
			}
			for _, embed := range []int{0, 28} {
				r.Outside(ICMPError(router, rig.External, 3, 4, sent, embed)).
					Translated("translated_icmp_error", ICMPError(router, rig.C2, 3, 4, inside, embed).Hop())
			}
		})
	}
}

// TestErrorsFromInside: about what came in; the outer source becomes the external address (RFC 5508 REQ-5),
// a router's behind the container too.
func TestErrorsFromInside(t *testing.T) { family.Each(t, testErrorsFromInside) }

func testErrorsFromInside(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, f := range []struct{ opening, came, inside Spec }{
		{UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.Peer1+":53", rig.External+":2000", "answer"), UDP(rig.Peer1+":53", rig.C1+":2000", "answer")},
		{TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""), TCP(rig.Peer1+":80", rig.External+":2000", "PA", "data"), TCP(rig.Peer1+":80", rig.C1+":2000", "PA", "data")},
		{Ping(rig.C1+":2000", rig.Peer1), Pong(rig.Peer1, rig.External+":2000"), Pong(rig.Peer1, rig.C1+":2000")},
	} {
		if res := r.Inside(f.opening); res.Reason != "translated_outbound" {
			t.Fatalf("the first packet: %s", res.Reason)
		}
		for _, from := range []string{rig.C1, "172.17.0.77"} {
			for _, embed := range []int{0, 28} {
				r.Inside(ICMPError(from, rig.Peer1, 3, 3, f.inside, embed)).
					Translated("translated_icmp_error", ICMPError(rig.External, rig.Peer1, 3, 3, f.came, embed).Hop())
			}
		}
	}
	r.Consistent()
}

// TestErrorsHairpinned: RFC 5508 REQ-7.
func TestErrorsHairpinned(t *testing.T) { family.Each(t, testErrorsHairpinned) }

func testErrorsHairpinned(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":1001", rig.Peer1+":1", "x"))
	r.From("p2", UDP(rig.C2+":2001", rig.External+":1001", "hello"))
	about, known := UDP(rig.External+":2001", rig.C1+":1001", "hello"), UDP(rig.C2+":2001", rig.External+":1001", "hello")
	r.Inside(ICMPError(rig.C1, rig.External, 3, 3, about, 0)).
		Translated("translated_icmp_error", ICMPError(rig.External, rig.C2, 3, 3, known, 0).Hop())
	about, known = UDP(rig.External+":1001", rig.C2+":2001", "hi"), UDP(rig.C1+":1001", rig.External+":2001", "hi")
	r.From("p2", ICMPError(rig.C2, rig.External, 3, 3, about, 28)).
		Translated("translated_icmp_error", ICMPError(rig.External, rig.C1, 3, 3, known, 28).Hop())
	r.Inside(UDP(rig.C1+":1001", rig.External+":1001", "self"))
	about, known = UDP(rig.External+":1001", rig.C1+":1001", "self"), UDP(rig.C1+":1001", rig.External+":1001", "self")
	r.Inside(ICMPError(rig.C1, rig.External, 3, 3, about, 0)).
		Translated("translated_icmp_error", ICMPError(rig.External, rig.C1, 3, 3, known, 0).Hop())
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
	r := rig.New(t)
	opening, sent := UDP(rig.C1+":2000", rig.Peer1+":53", "question"), UDP(rig.External+":2000", rig.Peer1+":53", "question")
	r.Inside(opening)
	good := ICMPError(router, rig.External, 3, 3, sent, 0)
	for at := 34; at < len(good.Bytes()); at += 3 {
		frame := rig.FromOutside(good).Bytes()
		frame[at] ^= 0x10
		res := r.Send(r.DP.Objects().NatOutsideIngress, "eth0", frame, nil)
		if res.Reason != "dropped_icmp_checksum" && res.Reason != "passed_unbound" {
			t.Errorf("byte %d: %s", at, res.Reason)
		}
		res.Check(res.Verdict, res.Reason, frame)
	}
	r.Outside(embedded(good, func(b []byte) { b[8]-- })).Dropped("icmp_checksum") // TTL of the embedded header
	bad := func(b []byte) { binary.BigEndian.PutUint16(b[26:], binary.BigEndian.Uint16(b[26:])+1) }
	r.Outside(embedded(good, bad)).Translated("translated_icmp_error",
		embedded(ICMPError(router, rig.C1, 3, 3, opening, 0), bad).Hop())
}

// TestErrorEmbeddedUDPWithoutChecksum: 0 stays 0.
func TestErrorEmbeddedUDPWithoutChecksum(t *testing.T) {
	r := rig.New(t)
	opening, sent := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Inside(opening)
	zero := func(b []byte) { b[26], b[27] = 0, 0 }
	r.Outside(embedded(ICMPError(router, rig.External, 3, 3, sent, 0), zero)).Translated("translated_icmp_error",
		embedded(ICMPError(router, rig.C1, 3, 3, opening, 0), zero).Hop())
}

// TestErrorEmbeddedOptions: stepped over (RFC 5508 REQ-3b).
func TestErrorEmbeddedOptions(t *testing.T) {
	r := rig.New(t)
	options := func(s *Spec) { s.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} }
	for _, f := range erringFlows {
		r.Inside(f.opening)
		embed := 0
		if f.embed > 0 {
			embed = f.embed + 8
		}
		r.Outside(ICMPError(router, rig.External, 11, 0, f.sent.With(options), embed)).
			Translated("translated_icmp_error", ICMPError(router, rig.C1, 11, 0, f.inside.With(options), embed).Hop())
	}
}

// TestErrorExtension: what follows the embedded packet stays (RFC 4884; RFC 5508 REQ-3d).
func TestErrorExtension(t *testing.T) { family.Each(t, testErrorExtension) }

func testErrorExtension(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	extension := func(s *Spec) {
		padded := append(append([]byte{}, s.Payload...), make([]byte, 128-len(s.Payload))...)
		s.Payload = append(padded, 0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0x12, 0x34, 0x51, 1)
	}
	for _, f := range erringFlows {
		if lacks(fam, f.name) {
			continue
		}
		if f.embed != 0 {
			continue
		}
		r.Inside(f.opening)
		r.Outside(ICMPError(router, rig.External, 11, 0, f.sent, 0).In(fam).With(extension)).
			Translated("translated_icmp_error", ICMPError(router, rig.C1, 11, 0, f.inside, 0).In(fam).With(extension).Hop())
	}
}

// TestErrorsOfNoSession: from outside the host's to judge, from inside dropped (RFC 5508 REQ-4, REQ-5).
func TestErrorsOfNoSession(t *testing.T) { family.Each(t, testErrorsOfNoSession) }

func testErrorsOfNoSession(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	for name, about := range map[string]Spec{
		"OtherPort":   UDP(rig.External+":2001", rig.Peer1+":53", "x"),
		"OtherRemote": UDP(rig.External+":2000", rig.Peer2+":53", "x"),
		"TCP":         TCP(rig.External+":2000", rig.Peer1+":53", "S", ""),
		"Echo":        Ping(rig.External+":2000", rig.Peer1),
		"GRE":         Raw(rig.External, rig.Peer1, 47, make([]byte, 40)),
		"ESP":         Raw(rig.External, rig.Peer1, 50, make([]byte, 40)),
		"EchoOther":   Raw(rig.External, rig.Peer1, 1, []byte{17, 0, 0, 0, 0, 0, 0, 0}),
		"Fragment":    UDP(rig.External+":2000", rig.Peer1+":53", "01234567").With(func(s *Spec) { s.Offset = 64 }),
	} {
		r.Subtest(name, func() {
			r.Outside(ICMPError(router, rig.External, 3, 3, about, 0)).Passed("unbound")
			about.Src, about.Dst = about.Dst, about.Src
			about.Dst = rig.C1 + ":2000"
			if name == "OtherRemote" {
				r.Inside(ICMPError(rig.C1, rig.Peer2, 3, 3, about, 0)).Dropped("icmp_no_session")
				r.Inside(ICMPError(rig.C1, "172.17.0.1", 3, 3, about, 0)).Passed("local")
				r.Inside(ICMPError(rig.C1, rig.External, 3, 3, about, 0)).Passed("local")
			}
		})
	}
	// Of a session, but sent to another one than the embedded packet's sender.
	r.Inside(ICMPError(rig.C1, rig.Peer2, 3, 3, UDP(rig.Peer1+":53", rig.C1+":2000", "x"), 0)).Dropped("icmp_no_session")
}

// TestErrorsLeaveTheSession: they neither refresh nor end it (RFC 5508 REQ-6, RFC 5382 REQ-10).
func TestErrorsLeaveTheSession(t *testing.T) { family.Each(t, testErrorsLeaveTheSession) }

func testErrorsLeaveTheSession(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, f := range erringFlows {
		if lacks(fam, f.name) {
			continue
		}
		r.Subtest(f.name, func() {
			r.Inside(f.opening)
			lifetime := map[string]time.Duration{"U": 300 * time.Second, "T": partialOpen, "E": time.Minute}[f.name[:1]]
			if f.name == "Timestamp" {
				lifetime = time.Minute
			}
			r.Wait(lifetime / 2)
			r.Outside(ICMPError(rig.Peer1, rig.External, 3, 3, f.sent, f.embed)).
				Translated("translated_icmp_error", ICMPError(rig.Peer1, rig.C1, 3, 3, f.inside, f.embed).Hop())
			r.LivesFor(lifetime - lifetime/2)
		})
	}
}

// TestErrorsFromInsideByTheStack: with IP options, and at egress.
func TestErrorsFromInsideByTheStack(t *testing.T) {
	r := rig.New(t)
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	about, known := UDP(rig.Peer1+":53", rig.C1+":2000", "x"), UDP(rig.Peer1+":53", rig.External+":2000", "x")
	options := func(s *Spec) { s.Options = []byte{7, 3, 4, 0} }
	r.Inside(ICMPError(rig.C1, rig.Peer1, 3, 3, about, 0).With(options)).Passed("stack")
	r.Egress("br0", ICMPError(rig.C1, rig.Peer1, 3, 3, about, 0).With(options)).
		Check(rig.Next, "translated_icmp_error", fromStack(ICMPError(rig.External, rig.Peer1, 3, 3, known, 0).With(options)))
	r.Inside(ICMPError(rig.C1, rig.Peer1, 3, 3, about, 0).With(func(s *Spec) { s.TTL = 1 })).Passed("ttl")
	r.Outside(ICMPError(rig.Peer1, rig.External, 3, 3, known, 0).With(func(s *Spec) { s.Payload, s.TTL = UDP(rig.External+":2000", rig.Peer1+":53", "x").IP(), 1 })).Dropped("ttl")
}

// fromStack is a frame as it meets the egress hook.
func fromStack(s Spec) []byte {
	s.DstMAC, s.SrcMAC = rig.RouterMAC, rig.UplinkMAC
	return s.Bytes()
}
