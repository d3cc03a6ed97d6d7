// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// TestEndpointIndependentMapping: one external endpoint for every remote (RFC 4787 REQ-1).
func TestEndpointIndependentMapping(t *testing.T) {
	r := newRig(t)
	for _, remote := range []string{peer1 + ":3478", peer1 + ":3479", peer2 + ":40000"} {
		r.inside(UDP(c1+":20000", remote, "hello")).translated("translated_outbound", UDP(external+":20000", remote, "hello").Hop())
		r.outside(UDP(remote, external+":20000", "hi")).translated("translated_inbound", UDP(remote, c1+":20000", "hi").Hop())
	}
	r.wantBindings("udp br0 " + c1 + ":20000 " + external + ":20000 3")
}

// TestFigure3: a packet that came too early leaves nothing that changes the mapping.
func TestFigure3(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":20000", peer1+":3478", "stun")).translated("translated_outbound", UDP(external+":20000", peer1+":3478", "stun").Hop())
	r.outside(UDP(peer2+":40000", external+":20000", "early")).dropped("filtered")
	r.inside(UDP(c1+":20000", peer2+":40000", "check")).translated("translated_outbound", UDP(external+":20000", peer2+":40000", "check").Hop())
	r.outside(UDP(peer2+":40000", external+":20000", "late")).translated("translated_inbound", UDP(peer2+":40000", c1+":20000", "late").Hop())
}

// TestProtocols: every protocol there and back.
func TestProtocols(t *testing.T) {
	for name, c := range map[string]struct{ out, outWant, in, inWant Spec }{
		"udp": {UDP(c1+":5000", peer1+":53", "q"), UDP(external+":5000", peer1+":53", "q"),
			UDP(peer1+":53", external+":5000", "a"), UDP(peer1+":53", c1+":5000", "a")},
		"tcp": {TCP(c1+":5000", peer1+":80", "S", ""), TCP(external+":5000", peer1+":80", "S", ""),
			TCP(peer1+":80", external+":5000", "SA", ""), TCP(peer1+":80", c1+":5000", "SA", "")},
		"echo": {Ping(c1+":77", peer1), Ping(external+":77", peer1), Pong(peer1, external+":77"), Pong(peer1, c1+":77")},
		"timestamp": {Timestamp(c1+":78", peer1), Timestamp(external+":78", peer1),
			TimestampReply(peer1, external+":78"), TimestampReply(peer1, c1+":78")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.inside(c.out).translated("translated_outbound", c.outWant.Hop())
			r.outside(c.in).translated("translated_inbound", c.inWant.Hop())
			r.consistent()
		})
	}
}

// TestExpiry: a binding lives as long as its last session, to the second; its port is free then.
func TestExpiry(t *testing.T) {
	r := newRig(t)
	out := UDP(c1+":20000", peer1+":3478", "x")
	r.inside(out)
	r.wait(299 * time.Second)
	r.wantBindings("udp br0 " + c1 + ":20000 " + external + ":20000 1")
	r.inside(out)
	r.wait(299 * time.Second)
	r.wantBindings("udp br0 " + c1 + ":20000 " + external + ":20000 1")
	r.wait(2 * time.Second)
	r.wantBindings()
	r.outside(UDP(peer1+":3478", external+":20000", "x")).passed("unbound")
}

func TestStaticBinding(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.TCP, external+":8080", c1+":80")
	r.outside(TCP(peer1+":1234", external+":8080", "S", "")).translated("translated_inbound", TCP(peer1+":1234", c1+":80", "S", "").Hop())
	r.inside(TCP(c1+":80", peer1+":1234", "SA", "")).translated("translated_outbound", TCP(external+":8080", peer1+":1234", "SA", "").Hop())
	r.wantBindings("tcp br0 " + c1 + ":80 " + external + ":8080 1 static")
	r.wantSessions("tcp " + c1 + ":80 " + external + ":8080 " + peer1 + ":1234 established")
}
