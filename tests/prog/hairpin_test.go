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

// TestHairpin: within one network, from the sender's external endpoint (RFC 4787 REQ-9a), whatever the
// filtering: both are inside.
func TestHairpin(t *testing.T) { family.Each(t, testHairpin) }

func testHairpin(t *testing.T, fam family.Family) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithFiltering(b))
			r.Inside(UDP(rig.C1+":1001", rig.Peer1+":1", "x"))
			r.Hairpin("p2", UDP(rig.C2+":2001", rig.External+":1001", "hello"), UDP(rig.External+":2001", rig.C1+":1001", "hello"))
			r.Hairpin("p1", UDP(rig.C1+":1001", rig.External+":2001", "hi"), UDP(rig.External+":1001", rig.C2+":2001", "hi"))
			r.Hairpin("p2", UDP(rig.C2+":2001", rig.External+":1001", "more"), UDP(rig.External+":2001", rig.C1+":1001", "more"))
			r.WantBindings("udp br0 "+rig.C1+":1001 "+rig.External+":1001 2", "udp br0 "+rig.C2+":2001 "+rig.External+":2001 1")
			r.WantSessions(
				"udp "+rig.C1+":1001 "+rig.External+":1001 "+rig.External+":2001 active",
				"udp "+rig.C1+":1001 "+rig.External+":1001 "+rig.Peer1+":1 active",
				"udp "+rig.C2+":2001 "+rig.External+":2001 "+rig.External+":1001 active")
		})
	}
}

// TestHairpinExpiry: the pair ends together, and each side keeps it.
func TestHairpinExpiry(t *testing.T) { family.Each(t, testHairpinExpiry) }

func testHairpinExpiry(t *testing.T, fam family.Family) {
	for _, b := range []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent} {
		t.Run(b.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithFiltering(b))
			r.Inside(UDP(rig.C1+":1001", rig.Peer1+":1", "x"))
			r.From("p2", UDP(rig.C2+":2001", rig.External+":1001", "x"))
			r.Wait(200 * time.Second)
			r.Inside(UDP(rig.C1+":1001", rig.External+":2001", "x"))
			r.Wait(299 * time.Second)
			r.WantBindings("udp br0 "+rig.C1+":1001 "+rig.External+":1001 1", "udp br0 "+rig.C2+":2001 "+rig.External+":2001 1")
			r.Forget()
			r.Wait(2 * time.Second)
			r.WantBindings()
			r.WantSessions()
			left := []string{}
			for _, e := range r.Events() {
				left = append(left, string(e.Type))
			}
			if len(left) != 4 {
				t.Errorf("events at the end: %v, want two sessions closed and two bindings expired", left)
			}
		})
	}
}

// TestHairpinToItself: a container that sends to its own external endpoint gets its packet back.
func TestHairpinToItself(t *testing.T) { family.Each(t, testHairpinToItself) }

func testHairpinToItself(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":1001", rig.Peer1+":1", "x"))
	r.Forget()
	r.Hairpin("p1", UDP(rig.C1+":1001", rig.External+":1001", "echo"), UDP(rig.External+":1001", rig.C1+":1001", "echo"))
	r.Hairpin("p1", UDP(rig.C1+":1001", rig.External+":1001", "more"), UDP(rig.External+":1001", rig.C1+":1001", "more"))
	r.WantEvents("session.created udp br0 " + rig.C1 + ":1001 " + rig.External + ":1001 " + rig.External + ":1001 active hairpin")
	r.WantBindings("udp br0 " + rig.C1 + ":1001 " + rig.External + ":1001 2")
	r.Wait(301 * time.Second)
	r.WantBindings()

	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	r.Hairpin("p1", TCP(rig.C1+":80", rig.External+":80", "S", ""), TCP(rig.External+":80", rig.C1+":80", "S", ""))
	r.Wait(established + time.Second) // its SYN came from both sides
	r.WantBindings("tcp br0 " + rig.C1 + ":80 " + rig.External + ":80 0 static")
}

// TestHairpinFromAnotherPort: of the same container.
func TestHairpinFromAnotherPort(t *testing.T) { family.Each(t, testHairpinFromAnotherPort) }

func testHairpinFromAnotherPort(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":1001", rig.Peer1+":1", "x"))
	r.Hairpin("p1", UDP(rig.C1+":1002", rig.External+":1001", "x"), UDP(rig.External+":1002", rig.C1+":1001", "x"))
	r.Hairpin("p1", UDP(rig.C1+":1001", rig.External+":1002", "x"), UDP(rig.External+":1001", rig.C1+":1002", "x"))
	r.Consistent()
}

// TestHairpinTCP: RFC 5382 REQ-8, both sides' state.
func TestHairpinTCP(t *testing.T) { family.Each(t, testHairpinTCP) }

func testHairpinTCP(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":8080")
	r.Hairpin("p2", TCP(rig.C2+":2001", rig.External+":80", "S", ""), TCP(rig.External+":2001", rig.C1+":8080", "S", ""))
	r.Hairpin("p1", TCP(rig.C1+":8080", rig.External+":2001", "SA", ""), TCP(rig.External+":80", rig.C2+":2001", "SA", ""))
	r.Hairpin("p2", TCP(rig.C2+":2001", rig.External+":80", "A", ""), TCP(rig.External+":2001", rig.C1+":8080", "A", ""))
	r.WantSessions("tcp "+rig.C1+":8080 "+rig.External+":80 "+rig.External+":2001 established",
		"tcp "+rig.C2+":2001 "+rig.External+":2001 "+rig.External+":80 established")
	r.From("p2", TCP(rig.C2+":2002", rig.External+":80", "R", "")).Dropped("tcp_no_session")
	r.Hairpin("p2", TCP(rig.C2+":2001", rig.External+":80", "FA", ""), TCP(rig.External+":2001", rig.C1+":8080", "FA", ""))
	r.Hairpin("p1", TCP(rig.C1+":8080", rig.External+":2001", "FA", ""), TCP(rig.External+":80", rig.C2+":2001", "FA", ""))
	r.Wait(closing - time.Second)
	r.WantBindings("tcp br0 "+rig.C1+":8080 "+rig.External+":80 1 static", "tcp br0 "+rig.C2+":2001 "+rig.External+":2001 1")
	r.Wait(2 * time.Second)
	r.WantBindings("tcp br0 " + rig.C1 + ":8080 " + rig.External + ":80 0 static")
}

// TestHairpinBetweenNetworks: a static binding is reached, a dynamic one is not: networks stay isolated.
func TestHairpinBetweenNetworks(t *testing.T) { family.Each(t, testHairpinBetweenNetworks) }

func testHairpinBetweenNetworks(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Forward("br0", dataplane.UDP, rig.External+":5060", rig.C1+":5061")
	r.Hairpin("q1", UDP(rig.Other+":7000", rig.External+":5060", "call"), UDP(rig.External+":7000", rig.C1+":5061", "call"))
	r.Hairpin("p1", UDP(rig.C1+":5061", rig.External+":7000", "answer"), UDP(rig.External+":5060", rig.Other+":7000", "answer"))
	r.WantBindings("udp br0 "+rig.C1+":5061 "+rig.External+":5060 1 static", "udp br1 "+rig.Other+":7000 "+rig.External+":7000 1")
	r.From("p1", UDP(rig.C1+":5062", rig.External+":7000", "x")).Dropped("isolated")

	r.Inside(UDP(rig.C1+":20000", rig.Peer1+":1", "x"))
	r.From("q1", UDP(rig.Other+":7001", rig.External+":20000", "x")).Dropped("isolated")
	r.Inside(TCP(rig.C1+":20000", rig.Peer1+":1", "S", ""))
	r.From("q1", TCP(rig.Other+":7001", rig.External+":20000", "S", "")).Dropped("isolated")
	r.From("q1", UDP("172.17.0.9:7001", rig.External+":5060", "x")).Dropped("spoofed")
	r.Consistent()
}

// TestHairpinToUnbound: what no binding holds is the host's.
func TestHairpinToUnbound(t *testing.T) { family.Each(t, testHairpinToUnbound) }

func testHairpinToUnbound(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, s := range []Spec{UDP(rig.C1+":1", rig.External+":53", "x"), TCP(rig.C1+":1", rig.External+":22", "S", ""), Ping(rig.C1+":1", rig.External)} {
		r.Inside(s).Passed("local")
	}
	r.Egress("", UDP(rig.External+":6000", rig.Peer1+":1", "x")).Passed("host")
	r.Inside(UDP(rig.C1+":1", rig.External+":6000", "x")).Passed("local")
	r.Inside(UDP(rig.C1+":1001", rig.External+":1001", "x")).Passed("local")
	r.WantBindings()
}

// TestHairpinFailures: what cannot come about leaves nothing behind.
func TestHairpinFailures(t *testing.T) { family.Each(t, testHairpinFailures) }

func testHairpinFailures(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithPorts(40000, 40000))
	r.Inside(UDP(rig.C1+":11001", rig.Peer1+":1", "x"))
	ext := r.ExternalOf("udp", rig.C1+":11001")
	r.From("p2", UDP(rig.C2+":12001", ext, "x")).Dropped("port_exhausted")
	r.From("p2", UDP("172.18.0.9:12001", ext, "x")).Dropped("spoofed")
	r.From("p2", UDP(rig.C2+":12001", ext, "x").With(func(s *Spec) { s.TTL = 1 })).Dropped("ttl")
	r.WantBindings("udp br0 " + rig.C1 + ":11001 " + ext + " 1")
	r.Hairpin("p1", UDP(rig.C1+":11001", ext, "x"), UDP(ext, rig.C1+":11001", "x"))
	r.Inside(UDP(rig.C1+":11001", ext, "x").With(func(s *Spec) { s.TTL = 1 })).Dropped("ttl")
	r.Consistent()
}
