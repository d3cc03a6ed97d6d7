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

// Remotes towards which no packet went, as a binding towards peer1:3478 sees them.
var strangers = []struct {
	name, remote string
	admitted     map[dataplane.Behavior]bool
}{
	{"SameEndpoint", rig.Peer1 + ":3478", map[dataplane.Behavior]bool{
		dataplane.EndpointIndependent: true, dataplane.AddressDependent: true, dataplane.AddressAndPortDependent: true}},
	{"SameAddressOtherPort", rig.Peer1 + ":9", map[dataplane.Behavior]bool{
		dataplane.EndpointIndependent: true, dataplane.AddressDependent: true}},
	{"OtherAddress", rig.Peer2 + ":3478", map[dataplane.Behavior]bool{dataplane.EndpointIndependent: true}},
}

var behaviors = []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressAndPortDependent}

// TestFiltering: who may send to a binding (RFC 4787 section 5, RFC 5382 REQ-3), and nobody is answered.
func TestFiltering(t *testing.T) { family.Each(t, testFiltering) }

func testFiltering(t *testing.T, fam family.Family) {
	for _, b := range behaviors {
		for _, s := range strangers {
			t.Run(b.String()+"/"+s.name, func(t *testing.T) {
				r := rig.New(t, rig.In(fam), rig.WithFiltering(b))
				r.Inside(UDP(rig.C1+":20000", rig.Peer1+":3478", "out"))
				r.Inside(TCP(rig.C1+":20000", rig.Peer1+":3478", "S", ""))
				udp, tcp := UDP(s.remote, rig.External+":20000", "in"), TCP(s.remote, rig.External+":20000", "S", "")
				if !s.admitted[b] {
					r.Outside(udp).Dropped("filtered")
					r.Outside(tcp).Dropped("filtered")
					r.WantBindings("tcp br0 "+rig.C1+":20000 "+rig.External+":20000 1", "udp br0 "+rig.C1+":20000 "+rig.External+":20000 1")
					return
				}
				r.In(udp, UDP(s.remote, rig.C1+":20000", "in"))
				r.In(tcp, TCP(s.remote, rig.C1+":20000", "S", ""))
				r.Consistent()
			})
		}
	}
}

// TestFilteringPerProtocol: RFC 7857 section 5.
func TestFilteringPerProtocol(t *testing.T) { family.Each(t, testFilteringPerProtocol) }

func testFilteringPerProtocol(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Put("br0", rig.BridgeMAC, "172.17.0.0/16", [3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressAndPortDependent, dataplane.AddressDependent})
	r.Inside(UDP(rig.C1+":20000", rig.Peer1+":3478", "out"))
	r.Inside(TCP(rig.C1+":20000", rig.Peer1+":3478", "S", ""))
	r.In(UDP(rig.Peer2+":5", rig.External+":20000", "in"), UDP(rig.Peer2+":5", rig.C1+":20000", "in"))
	r.Outside(TCP(rig.Peer1+":5", rig.External+":20000", "S", "")).Dropped("filtered")
}

// TestStaticBindingAdmitsAll: whatever the filtering.
func TestStaticBindingAdmitsAll(t *testing.T) { family.Each(t, testStaticBindingAdmitsAll) }

func testStaticBindingAdmitsAll(t *testing.T, fam family.Family) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithFiltering(b))
			r.Forward("br0", dataplane.UDP, rig.External+":5060", rig.C1+":5061")
			r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":8080")
			for _, remote := range []string{rig.Peer1 + ":1", rig.Peer1 + ":2", rig.Peer2 + ":1"} {
				r.In(UDP(remote, rig.External+":5060", "in"), UDP(remote, rig.C1+":5061", "in"))
				r.Out(UDP(rig.C1+":5061", remote, "back"), UDP(rig.External+":5060", remote, "back"))
				r.In(TCP(remote, rig.External+":80", "S", ""), TCP(remote, rig.C1+":8080", "S", ""))
			}
			r.WantBindings("tcp br0 "+rig.C1+":8080 "+rig.External+":80 3 static", "udp br0 "+rig.C1+":5061 "+rig.External+":5060 3 static")
		})
	}
}

// TestPermissionEnds: an address may send as long as a session with it lives, and no longer.
func TestPermissionEnds(t *testing.T) { family.Each(t, testPermissionEnds) }

func testPermissionEnds(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	early, late, stranger := UDP(rig.C1+":20000", rig.Peer1+":1", "x"), UDP(rig.C1+":20000", rig.Peer1+":2", "x"), UDP(rig.Peer1+":9", rig.External+":20000", "x")
	keep := UDP(rig.C1+":20000", rig.Peer2+":1", "x")
	r.Inside(early)
	r.Wait(100 * time.Second)
	r.Inside(late)
	r.Inside(keep)
	r.Wait(201 * time.Second) // the first session is over
	r.WantSessions("udp "+rig.C1+":20000 "+rig.External+":20000 "+rig.Peer1+":2 active", "udp "+rig.C1+":20000 "+rig.External+":20000 "+rig.Peer2+":1 active")
	r.Inside(keep)
	r.Wait(98 * time.Second)
	r.Outside(stranger).Translated("translated_inbound", UDP(rig.Peer1+":9", rig.C1+":20000", "x").Hop())
	r.Inside(keep)
	r.Wait(202 * time.Second) // the second one too; the stranger's own lives
	r.Outside(UDP(rig.Peer1+":10", rig.External+":20000", "x")).Translated("translated_inbound", UDP(rig.Peer1+":10", rig.C1+":20000", "x").Hop())
	r.Inside(keep)
	r.Wait(299 * time.Second)
	r.Inside(keep)
	r.Wait(2 * time.Second)
	r.Outside(UDP(rig.Peer1+":11", rig.External+":20000", "x")).Dropped("filtered")
	r.WantBindings("udp br0 " + rig.C1 + ":20000 " + rig.External + ":20000 1")
}

// TestInboundRefresh: RFC 4787 REQ-6a; not under endpoint-independent filtering (RFC 7857 section 7).
func TestInboundRefresh(t *testing.T) { family.Each(t, testInboundRefresh) }

func testInboundRefresh(t *testing.T, fam family.Family) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithFiltering(b))
			r.Inside(UDP(rig.C1+":20000", rig.Peer1+":1", "x"))
			r.Wait(200 * time.Second)
			r.Outside(UDP(rig.Peer1+":1", rig.External+":20000", "x"))
			if b == dataplane.EndpointIndependent {
				r.LivesFor(100 * time.Second)
				return
			}
			r.LivesFor(300 * time.Second)
		})
	}
}

// TestFilteredEvent: sampled, one a tick, with the count of those that it stands for.
func TestFilteredEvent(t *testing.T) { family.Each(t, testFilteredEvent) }

func testFilteredEvent(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":20000", rig.Peer1+":1", "x"))
	r.Forget()
	for range 5 {
		r.Outside(UDP(rig.Peer2+":7", rig.External+":20000", "x")).Dropped("filtered")
	}
	r.WantEvents("inbound.filtered udp br0 " + rig.C1 + ":20000 " + rig.External + ":20000 " + rig.Peer2 + ":7 x1")
	r.Wait(time.Second)
	r.Outside(UDP(rig.Peer2+":8", rig.External+":20000", "x")).Dropped("filtered")
	var n uint64
	for _, e := range r.Events() {
		n += e.Count
	}
	if n == 0 || n > 5 { // as many as this CPU has seen
		t.Errorf("the second event stands for %d packets, want 1 to 5", n)
	}
}

// TestPings: a reply comes from who was asked; requests from outside are the host's.
func TestPings(t *testing.T) { family.Each(t, testPings) }

func testPings(t *testing.T, fam family.Family) {
	for _, b := range behaviors {
		t.Run(b.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithFiltering(b))
			r.Out(Ping(rig.C1+":77", rig.Peer1), Ping(rig.External+":77", rig.Peer1))
			r.In(Pong(rig.Peer1, rig.External+":77"), Pong(rig.Peer1, rig.C1+":77"))
			r.Outside(Pong(rig.Peer2, rig.External+":77")).Dropped("filtered")
			r.Outside(Pong(rig.Peer1, rig.External+":78")).Passed("unbound")
			r.Outside(Ping(rig.Peer1+":77", rig.External)).Passed("unbound")
			if fam == family.V4 {
				r.Outside(Timestamp(rig.Peer1+":77", rig.External)).Passed("unbound")
			}
			r.Inside(Pong(rig.C1, rig.Peer1+":9")).Dropped("icmp_type")
			r.Out(Ping(rig.C1+":77", rig.Peer2), Ping(rig.External+":77", rig.Peer2))
			r.WantBindings("icmp br0 " + rig.C1 + ":77 " + rig.External + ":77 2")
			r.LivesFor(time.Minute)
		})
	}
}

// TestUnsolicitedSYN: silence, also when an outbound SYN for it follows (RFC 5382 REQ-4).
func TestUnsolicitedSYN(t *testing.T) { family.Each(t, testUnsolicitedSYN) }

func testUnsolicitedSYN(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(TCP(rig.C1+":20000", rig.Peer1+":80", "S", ""))
	syn := TCP(rig.Peer2+":443", rig.External+":20000", "S", "")
	r.Outside(syn).Dropped("filtered")
	r.Out(TCP(rig.C1+":20000", rig.Peer2+":443", "S", ""), TCP(rig.External+":20000", rig.Peer2+":443", "S", ""))
	r.In(syn, TCP(rig.Peer2+":443", rig.C1+":20000", "S", ""))
	r.Outside(TCP(rig.Peer1+":443", rig.External+":20001", "S", "")).Passed("unbound")
}

// TestInboundSessionIsAsOldAsTheLastPacketOut: also where that one has opened a session of its own.
func TestInboundSessionIsAsOldAsTheLastPacketOut(t *testing.T) {
	family.Each(t, testInboundSessionIsAsOldAsTheLastPacketOut)
}

func testInboundSessionIsAsOldAsTheLastPacketOut(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":1", "x"))
	r.Wait(239 * time.Second)
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":2", "x"))
	r.Wait(200 * time.Second)
	r.In(UDP(rig.Peer2+":3", rig.External+":2000", "x"), UDP(rig.Peer2+":3", rig.C1+":2000", "x"))
	r.Wait(99 * time.Second)
	r.WantBindings("udp br0 " + rig.C1 + ":2000 " + rig.External + ":2000 2")
	r.Wait(2 * time.Second)
	r.WantBindings()
}
