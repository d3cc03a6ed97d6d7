// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// Remotes towards which no packet went, as a binding towards peer1:3478 sees them.
var strangers = []struct {
	name, remote string
	admitted     map[dataplane.Behavior]bool
}{
	{"SameEndpoint", peer1 + ":3478", map[dataplane.Behavior]bool{
		dataplane.EndpointIndependent: true, dataplane.AddressDependent: true, dataplane.AddressAndPortDependent: true}},
	{"SameAddressOtherPort", peer1 + ":9", map[dataplane.Behavior]bool{
		dataplane.EndpointIndependent: true, dataplane.AddressDependent: true}},
	{"OtherAddress", peer2 + ":3478", map[dataplane.Behavior]bool{dataplane.EndpointIndependent: true}},
}

var behaviors = []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressAndPortDependent}

// TestFiltering: who may send to a binding (RFC 4787 section 5, RFC 5382 REQ-3), and nobody is answered.
func TestFiltering(t *testing.T) {
	for _, b := range behaviors {
		for _, s := range strangers {
			t.Run(b.String()+"/"+s.name, func(t *testing.T) {
				r := newRig(t, withFiltering(b))
				r.inside(UDP(c1+":20000", peer1+":3478", "out"))
				r.inside(TCP(c1+":20000", peer1+":3478", "S", ""))
				udp, tcp := UDP(s.remote, external+":20000", "in"), TCP(s.remote, external+":20000", "S", "")
				if !s.admitted[b] {
					r.outside(udp).dropped("filtered")
					r.outside(tcp).dropped("filtered")
					r.wantBindings("tcp br0 "+c1+":20000 "+external+":20000 1", "udp br0 "+c1+":20000 "+external+":20000 1")
					return
				}
				r.in(udp, UDP(s.remote, c1+":20000", "in"))
				r.in(tcp, TCP(s.remote, c1+":20000", "S", ""))
				r.consistent()
			})
		}
	}
}

// TestFilteringPerProtocol: RFC 7857 section 5.
func TestFilteringPerProtocol(t *testing.T) {
	r := newRig(t)
	r.put("br0", bridgeMAC, "172.17.0.0/16", [3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressAndPortDependent, dataplane.AddressDependent})
	r.inside(UDP(c1+":20000", peer1+":3478", "out"))
	r.inside(TCP(c1+":20000", peer1+":3478", "S", ""))
	r.in(UDP(peer2+":5", external+":20000", "in"), UDP(peer2+":5", c1+":20000", "in"))
	r.outside(TCP(peer1+":5", external+":20000", "S", "")).dropped("filtered")
}

// TestStaticBindingAdmitsAll: whatever the filtering.
func TestStaticBindingAdmitsAll(t *testing.T) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := newRig(t, withFiltering(b))
			r.forward("br0", dataplane.UDP, external+":5060", c1+":5061")
			r.forward("br0", dataplane.TCP, external+":80", c1+":8080")
			for _, remote := range []string{peer1 + ":1", peer1 + ":2", peer2 + ":1"} {
				r.in(UDP(remote, external+":5060", "in"), UDP(remote, c1+":5061", "in"))
				r.out(UDP(c1+":5061", remote, "back"), UDP(external+":5060", remote, "back"))
				r.in(TCP(remote, external+":80", "S", ""), TCP(remote, c1+":8080", "S", ""))
			}
			r.wantBindings("tcp br0 "+c1+":8080 "+external+":80 3 static", "udp br0 "+c1+":5061 "+external+":5060 3 static")
		})
	}
}

// TestPermissionEnds: an address may send as long as a session with it lives, and no longer.
func TestPermissionEnds(t *testing.T) {
	r := newRig(t)
	early, late, stranger := UDP(c1+":20000", peer1+":1", "x"), UDP(c1+":20000", peer1+":2", "x"), UDP(peer1+":9", external+":20000", "x")
	keep := UDP(c1+":20000", peer2+":1", "x")
	r.inside(early)
	r.wait(100 * time.Second)
	r.inside(late)
	r.inside(keep)
	r.wait(201 * time.Second) // the first session is over
	r.wantSessions("udp "+c1+":20000 "+external+":20000 "+peer1+":2 active", "udp "+c1+":20000 "+external+":20000 "+peer2+":1 active")
	r.inside(keep)
	r.wait(98 * time.Second)
	r.outside(stranger).translated("translated_inbound", UDP(peer1+":9", c1+":20000", "x").Hop())
	r.inside(keep)
	r.wait(202 * time.Second) // the second one too; the stranger's own lives
	r.outside(UDP(peer1+":10", external+":20000", "x")).translated("translated_inbound", UDP(peer1+":10", c1+":20000", "x").Hop())
	r.inside(keep)
	r.wait(299 * time.Second)
	r.inside(keep)
	r.wait(2 * time.Second)
	r.outside(UDP(peer1+":11", external+":20000", "x")).dropped("filtered")
	r.wantBindings("udp br0 " + c1 + ":20000 " + external + ":20000 1")
}

// TestInboundRefresh: RFC 4787 REQ-6a; not under endpoint-independent filtering (RFC 7857 section 7).
func TestInboundRefresh(t *testing.T) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := newRig(t, withFiltering(b))
			r.inside(UDP(c1+":20000", peer1+":1", "x"))
			r.wait(200 * time.Second)
			r.outside(UDP(peer1+":1", external+":20000", "x"))
			if b == dataplane.EndpointIndependent {
				r.livesFor(100 * time.Second)
				return
			}
			r.livesFor(300 * time.Second)
		})
	}
}

// TestFilteredEvent: sampled, one a tick, with the count of those that it stands for.
func TestFilteredEvent(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":20000", peer1+":1", "x"))
	r.forget()
	for range 5 {
		r.outside(UDP(peer2+":7", external+":20000", "x")).dropped("filtered")
	}
	r.wantEvents("inbound.filtered udp br0 " + c1 + ":20000 " + external + ":20000 " + peer2 + ":7 x1")
	r.wait(time.Second)
	r.outside(UDP(peer2+":8", external+":20000", "x")).dropped("filtered")
	var n uint64
	for _, e := range r.events() {
		n += e.Count
	}
	if n == 0 || n > 5 { // as many as this CPU has seen
		t.Errorf("the second event stands for %d packets, want 1 to 5", n)
	}
}

// TestPings: a reply comes from who was asked; requests from outside are the host's.
func TestPings(t *testing.T) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := newRig(t, withFiltering(b))
			r.out(Ping(c1+":77", peer1), Ping(external+":77", peer1))
			r.in(Pong(peer1, external+":77"), Pong(peer1, c1+":77"))
			r.outside(Pong(peer2, external+":77")).dropped("filtered")
			r.outside(Pong(peer1, external+":78")).passed("unbound")
			r.outside(Ping(peer1+":77", external)).passed("unbound")
			r.outside(Timestamp(peer1+":77", external)).passed("unbound")
			r.inside(Pong(c1, peer1+":9")).dropped("icmp_type")
			r.out(Ping(c1+":77", peer2), Ping(external+":77", peer2))
			r.wantBindings("icmp br0 " + c1 + ":77 " + external + ":77 2")
			r.livesFor(time.Minute)
		})
	}
}

// TestUnsolicitedSYN: silence, also when an outbound SYN for it follows (RFC 5382 REQ-4).
func TestUnsolicitedSYN(t *testing.T) {
	r := newRig(t)
	r.inside(TCP(c1+":20000", peer1+":80", "S", ""))
	syn := TCP(peer2+":443", external+":20000", "S", "")
	r.outside(syn).dropped("filtered")
	r.out(TCP(c1+":20000", peer2+":443", "S", ""), TCP(external+":20000", peer2+":443", "S", ""))
	r.in(syn, TCP(peer2+":443", c1+":20000", "S", ""))
	r.outside(TCP(peer1+":443", external+":20001", "S", "")).passed("unbound")
}
