// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestEndpointIndependentMapping: one external endpoint for every remote (RFC 4787 REQ-1).
func TestEndpointIndependentMapping(t *testing.T) { family.Each(t, testEndpointIndependentMapping) }

func testEndpointIndependentMapping(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, remote := range []string{rig.Peer1 + ":3478", rig.Peer1 + ":3479", rig.Peer2 + ":40000"} {
		r.Inside(UDP(rig.C1+":20000", remote, "hello")).Translated("translated_outbound", UDP(rig.External+":20000", remote, "hello").Hop())
		r.Outside(UDP(remote, rig.External+":20000", "hi")).Translated("translated_inbound", UDP(remote, rig.C1+":20000", "hi").Hop())
	}
	r.WantBindings("udp br0 " + rig.C1 + ":20000 " + rig.External + ":20000 3")
}

// TestFigure3: a packet that came too early leaves nothing that changes the mapping.
func TestFigure3(t *testing.T) { family.Each(t, testFigure3) }

func testFigure3(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":20000", rig.Peer1+":3478", "stun")).Translated("translated_outbound", UDP(rig.External+":20000", rig.Peer1+":3478", "stun").Hop())
	r.Outside(UDP(rig.Peer2+":40000", rig.External+":20000", "early")).Dropped("filtered")
	r.Inside(UDP(rig.C1+":20000", rig.Peer2+":40000", "check")).Translated("translated_outbound", UDP(rig.External+":20000", rig.Peer2+":40000", "check").Hop())
	r.Outside(UDP(rig.Peer2+":40000", rig.External+":20000", "late")).Translated("translated_inbound", UDP(rig.Peer2+":40000", rig.C1+":20000", "late").Hop())
}

// TestProtocols: every protocol there and back.
func TestProtocols(t *testing.T) { family.Each(t, testProtocols) }

func testProtocols(t *testing.T, fam family.Family) {
	for name, c := range map[string]struct{ out, outWant, in, inWant Spec }{
		"udp": {UDP(rig.C1+":5000", rig.Peer1+":53", "q"), UDP(rig.External+":5000", rig.Peer1+":53", "q"),
			UDP(rig.Peer1+":53", rig.External+":5000", "a"), UDP(rig.Peer1+":53", rig.C1+":5000", "a")},
		"tcp": {TCP(rig.C1+":5000", rig.Peer1+":80", "S", ""), TCP(rig.External+":5000", rig.Peer1+":80", "S", ""),
			TCP(rig.Peer1+":80", rig.External+":5000", "SA", ""), TCP(rig.Peer1+":80", rig.C1+":5000", "SA", "")},
		"echo": {Ping(rig.C1+":77", rig.Peer1), Ping(rig.External+":77", rig.Peer1), Pong(rig.Peer1, rig.External+":77"), Pong(rig.Peer1, rig.C1+":77")},
		"timestamp": {Timestamp(rig.C1+":78", rig.Peer1), Timestamp(rig.External+":78", rig.Peer1),
			TimestampReply(rig.Peer1, rig.External+":78"), TimestampReply(rig.Peer1, rig.C1+":78")},
	} {
		if lacks(fam, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Inside(c.out).Translated("translated_outbound", c.outWant.Hop())
			r.Outside(c.in).Translated("translated_inbound", c.inWant.Hop())
			r.Consistent()
		})
	}
}

// TestExpiry: a binding lives as long as its last session, to the second; its port is free then.
func TestExpiry(t *testing.T) { family.Each(t, testExpiry) }

func testExpiry(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	out := UDP(rig.C1+":20000", rig.Peer1+":3478", "x")
	r.Inside(out)
	r.Wait(299 * time.Second)
	r.WantBindings("udp br0 " + rig.C1 + ":20000 " + rig.External + ":20000 1")
	r.Inside(out)
	r.Wait(299 * time.Second)
	r.WantBindings("udp br0 " + rig.C1 + ":20000 " + rig.External + ":20000 1")
	r.Wait(2 * time.Second)
	r.WantBindings()
	r.Outside(UDP(rig.Peer1+":3478", rig.External+":20000", "x")).Passed("unbound")
}

func TestStaticBinding(t *testing.T) { family.Each(t, testStaticBinding) }

func testStaticBinding(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.TCP, rig.External+":8080", rig.C1+":80")
	r.Outside(TCP(rig.Peer1+":1234", rig.External+":8080", "S", "")).Translated("translated_inbound", TCP(rig.Peer1+":1234", rig.C1+":80", "S", "").Hop())
	r.Inside(TCP(rig.C1+":80", rig.Peer1+":1234", "SA", "")).Translated("translated_outbound", TCP(rig.External+":8080", rig.Peer1+":1234", "SA", "").Hop())
	r.WantBindings("tcp br0 " + rig.C1 + ":80 " + rig.External + ":8080 1 static")
	r.WantSessions("tcp " + rig.C1 + ":80 " + rig.External + ":8080 " + rig.Peer1 + ":1234 established")
}
