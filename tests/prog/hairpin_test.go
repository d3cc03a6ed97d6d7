// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// hairpin checks a packet that goes from inside to inside.
func (r *rig) hairpin(dev string, in, want Spec) {
	r.t.Helper()
	r.from(dev, in).translated("translated_hairpin", want.Hop())
}

// TestHairpin: within one network, from the sender's external endpoint (RFC 4787 REQ-9a), whatever the
// filtering: both are inside.
func TestHairpin(t *testing.T) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := newRig(t, withFiltering(b))
			r.inside(UDP(c1+":1001", peer1+":1", "x"))
			r.hairpin("p2", UDP(c2+":2001", external+":1001", "hello"), UDP(external+":2001", c1+":1001", "hello"))
			r.hairpin("p1", UDP(c1+":1001", external+":2001", "hi"), UDP(external+":1001", c2+":2001", "hi"))
			r.hairpin("p2", UDP(c2+":2001", external+":1001", "more"), UDP(external+":2001", c1+":1001", "more"))
			r.wantBindings("udp br0 "+c1+":1001 "+external+":1001 2", "udp br0 "+c2+":2001 "+external+":2001 1")
			r.wantSessions(
				"udp "+c1+":1001 "+external+":1001 "+external+":2001 active",
				"udp "+c1+":1001 "+external+":1001 "+peer1+":1 active",
				"udp "+c2+":2001 "+external+":2001 "+external+":1001 active")
		})
	}
}

// TestHairpinExpiry: the pair ends together, and each side keeps it.
func TestHairpinExpiry(t *testing.T) {
	for _, b := range []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent} {
		t.Run(b.String(), func(t *testing.T) {
			r := newRig(t, withFiltering(b))
			r.inside(UDP(c1+":1001", peer1+":1", "x"))
			r.from("p2", UDP(c2+":2001", external+":1001", "x"))
			r.wait(200 * time.Second)
			r.inside(UDP(c1+":1001", external+":2001", "x"))
			r.wait(299 * time.Second)
			r.wantBindings("udp br0 "+c1+":1001 "+external+":1001 1", "udp br0 "+c2+":2001 "+external+":2001 1")
			r.forget()
			r.wait(2 * time.Second)
			r.wantBindings()
			r.wantSessions()
			left := []string{}
			for _, e := range r.events() {
				left = append(left, string(e.Type))
			}
			if len(left) != 4 {
				t.Errorf("events at the end: %v, want two sessions closed and two bindings expired", left)
			}
		})
	}
}

// TestHairpinToItself: a container that sends to its own external endpoint gets its packet back.
func TestHairpinToItself(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":1001", peer1+":1", "x"))
	r.forget()
	r.hairpin("p1", UDP(c1+":1001", external+":1001", "echo"), UDP(external+":1001", c1+":1001", "echo"))
	r.hairpin("p1", UDP(c1+":1001", external+":1001", "more"), UDP(external+":1001", c1+":1001", "more"))
	r.wantEvents("session.created udp br0 " + c1 + ":1001 " + external + ":1001 " + external + ":1001 active hairpin")
	r.wantBindings("udp br0 " + c1 + ":1001 " + external + ":1001 2")
	r.wait(301 * time.Second)
	r.wantBindings()

	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	r.hairpin("p1", TCP(c1+":80", external+":80", "S", ""), TCP(external+":80", c1+":80", "S", ""))
	r.wait(established + time.Second) // its SYN came from both sides
	r.wantBindings("tcp br0 " + c1 + ":80 " + external + ":80 0 static")
}

// TestHairpinFromAnotherPort: of the same container.
func TestHairpinFromAnotherPort(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":1001", peer1+":1", "x"))
	r.hairpin("p1", UDP(c1+":1002", external+":1001", "x"), UDP(external+":1002", c1+":1001", "x"))
	r.hairpin("p1", UDP(c1+":1001", external+":1002", "x"), UDP(external+":1001", c1+":1002", "x"))
	r.consistent()
}

// TestHairpinTCP: RFC 5382 REQ-8, both sides' state.
func TestHairpinTCP(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.TCP, external+":80", c1+":8080")
	r.hairpin("p2", TCP(c2+":2001", external+":80", "S", ""), TCP(external+":2001", c1+":8080", "S", ""))
	r.hairpin("p1", TCP(c1+":8080", external+":2001", "SA", ""), TCP(external+":80", c2+":2001", "SA", ""))
	r.hairpin("p2", TCP(c2+":2001", external+":80", "A", ""), TCP(external+":2001", c1+":8080", "A", ""))
	r.wantSessions("tcp "+c1+":8080 "+external+":80 "+external+":2001 established",
		"tcp "+c2+":2001 "+external+":2001 "+external+":80 established")
	r.from("p2", TCP(c2+":2002", external+":80", "R", "")).dropped("tcp_no_session")
	r.hairpin("p2", TCP(c2+":2001", external+":80", "FA", ""), TCP(external+":2001", c1+":8080", "FA", ""))
	r.hairpin("p1", TCP(c1+":8080", external+":2001", "FA", ""), TCP(external+":80", c2+":2001", "FA", ""))
	r.wait(closing - time.Second)
	r.wantBindings("tcp br0 "+c1+":8080 "+external+":80 1 static", "tcp br0 "+c2+":2001 "+external+":2001 1")
	r.wait(2 * time.Second)
	r.wantBindings("tcp br0 " + c1 + ":8080 " + external + ":80 0 static")
}

// TestHairpinBetweenNetworks: a static binding is reached, a dynamic one is not: networks stay isolated.
func TestHairpinBetweenNetworks(t *testing.T) {
	r := newRig(t, withFiltering(dataplane.EndpointIndependent))
	r.forward("br0", dataplane.UDP, external+":5060", c1+":5061")
	r.hairpin("q1", UDP(other+":7000", external+":5060", "call"), UDP(external+":7000", c1+":5061", "call"))
	r.hairpin("p1", UDP(c1+":5061", external+":7000", "answer"), UDP(external+":5060", other+":7000", "answer"))
	r.wantBindings("udp br0 "+c1+":5061 "+external+":5060 1 static", "udp br1 "+other+":7000 "+external+":7000 1")
	r.from("p1", UDP(c1+":5062", external+":7000", "x")).dropped("isolated")

	r.inside(UDP(c1+":20000", peer1+":1", "x"))
	r.from("q1", UDP(other+":7001", external+":20000", "x")).dropped("isolated")
	r.inside(TCP(c1+":20000", peer1+":1", "S", ""))
	r.from("q1", TCP(other+":7001", external+":20000", "S", "")).dropped("isolated")
	r.from("q1", UDP("172.17.0.9:7001", external+":5060", "x")).dropped("spoofed")
	r.consistent()
}

// TestHairpinToUnbound: what no binding holds is the host's.
func TestHairpinToUnbound(t *testing.T) {
	r := newRig(t)
	for _, s := range []Spec{UDP(c1+":1", external+":53", "x"), TCP(c1+":1", external+":22", "S", ""), Ping(c1+":1", external)} {
		r.inside(s).passed("local")
	}
	r.egress("", UDP(external+":6000", peer1+":1", "x")).passed("host")
	r.inside(UDP(c1+":1", external+":6000", "x")).passed("local")
	r.inside(UDP(c1+":1001", external+":1001", "x")).passed("local")
	r.wantBindings()
}

// TestHairpinFailures: what cannot come about leaves nothing behind.
func TestHairpinFailures(t *testing.T) {
	r := newRig(t, withPorts(40000, 40000))
	r.inside(UDP(c1+":11001", peer1+":1", "x"))
	ext := r.externalOf("udp", c1+":11001")
	r.from("p2", UDP(c2+":12001", ext, "x")).dropped("port_exhausted")
	r.from("p2", UDP("172.18.0.9:12001", ext, "x")).dropped("spoofed")
	r.from("p2", UDP(c2+":12001", ext, "x").With(func(s *Spec) { s.TTL = 1 })).dropped("ttl")
	r.wantBindings("udp br0 " + c1 + ":11001 " + ext + " 1")
	r.hairpin("p1", UDP(c1+":11001", ext, "x"), UDP(ext, c1+":11001", "x"))
	r.inside(UDP(c1+":11001", ext, "x").With(func(s *Spec) { s.TTL = 1 })).dropped("ttl")
	r.consistent()
}
