// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// own is the address that C1 has alone in these tests.
const own = "198.51.100.7"

// newOwn is a rig where C1 has an address of its own, with a filtering.
func newOwn(t *testing.T, fam family.Family, filtering dataplane.Behavior) *rig.Rig {
	r := rig.New(t, rig.In(fam))
	setPool(r, netip.MustParseAddr(rig.External), netip.MustParseAddr(own))
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) {
		o.External, o.OneToOne = addrs(r, own), true
		o.Filtering = &[3]dataplane.Behavior{filtering, filtering, filtering}
	})
	return r
}

// TestOwnBothWays: all ports of a 1:1 address are the container's, as they are, and so are pings; whoever begins.
func TestOwnBothWays(t *testing.T) { family.Each(t, testOwnBothWays) }

func testOwnBothWays(t *testing.T, fam family.Family) {
	r := newOwn(t, fam, dataplane.EndpointIndependent)
	for _, port := range []string{":1", ":80", ":1023", ":5000", ":65535"} {
		r.Out(UDP(rig.C1+port, rig.Peer1+":53", "x"), UDP(own+port, rig.Peer1+":53", "x"))
		r.In(UDP(rig.Peer2+":9", own+port, "x"), UDP(rig.Peer2+":9", rig.C1+port, "x"))
		r.In(TCP(rig.Peer1+":9", own+port, "S", ""), TCP(rig.Peer1+":9", rig.C1+port, "S", ""))
		r.Out(TCP(rig.C1+port, rig.Peer1+":9", "SA", ""), TCP(own+port, rig.Peer1+":9", "SA", ""))
	}
	r.In(Ping(rig.Peer1+":77", own), Ping(rig.Peer1+":77", rig.C1))
	r.Out(Pong(rig.C1, rig.Peer1+":77"), Pong(own, rig.Peer1+":77"))
	r.Out(Ping(rig.C1+":78", rig.Peer1), Ping(own+":78", rig.Peer1))
	r.Consistent()
	r.Wait(3 * time.Hour)
	r.Empty()
}

// TestOwnFiltered: with another filtering than the endpoint-independent one, what the container has not asked for stays out.
func TestOwnFiltered(t *testing.T) { family.Each(t, testOwnFiltered) }

func testOwnFiltered(t *testing.T, fam family.Family) {
	r := newOwn(t, fam, dataplane.AddressDependent)
	r.Outside(UDP(rig.Peer1+":53", own+":2000", "x")).Dropped("filtered")
	r.Outside(Ping(rig.Peer1+":77", own)).Dropped("filtered")
	r.Outside(TCP(rig.Peer1+":9", own+":80", "S", "")).Dropped("filtered")
	r.WantBindings()
	r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(own+":2000", rig.Peer1+":53", "x"))
	r.In(UDP(rig.Peer1+":54", own+":2000", "x"), UDP(rig.Peer1+":54", rig.C1+":2000", "x"))
	r.Outside(UDP(rig.Peer2+":53", own+":2000", "x")).Dropped("filtered")
	r.Outside(UDP(rig.Peer1+":53", own+":2001", "x")).Dropped("filtered")
	r.From("q1", UDP(rig.Other+":5000", own+":2000", "x")).Dropped("isolated")
	r.From("q1", UDP(rig.Other+":5000", own+":2001", "x")).Dropped("isolated")
	r.Hairpin("p2", UDP(rig.C2+":5000", own+":2001", "x"), UDP(rig.External+":5000", rig.C1+":2001", "x"))
}

// TestOwnHairpin: neighbours, and other networks where anybody may come in, reach the container by its address, by ping too.
func TestOwnHairpin(t *testing.T) { family.Each(t, testOwnHairpin) }

func testOwnHairpin(t *testing.T, fam family.Family) {
	r := newOwn(t, fam, dataplane.EndpointIndependent)
	r.Hairpin("p2", UDP(rig.C2+":5000", own+":80", "x"), UDP(rig.External+":5000", rig.C1+":80", "x"))
	r.Hairpin("p1", UDP(rig.C1+":80", rig.External+":5000", "x"), UDP(own+":80", rig.C2+":5000", "x"))
	r.Hairpin("q1", TCP(rig.Other+":5001", own+":443", "S", ""), TCP(rig.External+":5001", rig.C1+":443", "S", ""))
	r.Hairpin("p2", Ping(rig.C2+":77", own), Ping(rig.External+":77", rig.C1))
	r.Hairpin("p1", Pong(rig.C1, rig.External+":77"), Pong(own, rig.C2+":77"))
	r.From("p2", Ping(rig.C2+":77", rig.External)).Passed("local") // the host's
	r.Hairpin("p1", UDP(rig.C1+":99", own+":99", "x"), UDP(own+":99", rig.C1+":99", "x"))
	r.Consistent()
}

// TestOwnAndHost: the container wins over what merely listens on the host, as static bindings do; what the host itself sends
// from the address goes on, and the port is the host's as long.
func TestOwnAndHost(t *testing.T) { family.Each(t, testOwnAndHost) }

func testOwnAndHost(t *testing.T, fam family.Family) {
	r := newOwn(t, fam, dataplane.EndpointIndependent)
	r.HostListens("0.0.0.0:8080")
	for range 2 { // by no binding, and by the one that has come about
		r.In(TCP(rig.Peer1+":9", own+":8080", "S", ""), TCP(rig.Peer1+":9", rig.C1+":8080", "S", ""))
		r.In(UDP(rig.Peer2+":9", own+":8080", "x"), UDP(rig.Peer2+":9", rig.C1+":8080", "x"))
	}
	r.In(TCP(rig.Peer2+":9", own+":8080", "S", ""), TCP(rig.Peer2+":9", rig.C1+":8080", "S", ""))
	r.Egress("", UDP(own+":6000", rig.Peer1+":53", "x")).Passed("host")
	r.Outside(UDP(rig.Peer1+":53", own+":6000", "x")).Passed("host")
	r.Inside(UDP(rig.C1+":6000", rig.Peer1+":53", "x")).Dropped("port_exhausted")
	r.Outside(Pong(rig.Peer1, own+":5")).Passed("unbound") // the host may have asked
	r.Outside(TCP(rig.Peer1+":9", own+":9999", "A", "x")).Dropped("tcp_no_session")
	r.Wait(time.Hour)
	r.Out(UDP(rig.C1+":6000", rig.Peer1+":53", "x"), UDP(own+":6000", rig.Peer1+":53", "x"))
}

// TestOwnOfAnyMapping: a port of an address that is the container's is one binding, whatever the network's mapping is.
func TestOwnOfAnyMapping(t *testing.T) { family.Each(t, testOwnOfAnyMapping) }

func testOwnOfAnyMapping(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMapping(dataplane.AddressAndPortDependent))
	setPool(r, netip.MustParseAddr(rig.External), netip.MustParseAddr(own))
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) { o.External, o.OneToOne = addrs(r, own), true })
	for _, to := range []string{rig.Peer1 + ":1", rig.Peer1 + ":2", rig.Peer2 + ":1"} {
		r.Out(UDP(rig.C1+":5000", to, "x"), UDP(own+":5000", to, "x"))
	}
	r.WantBindings("udp br0 " + rig.C1 + ":5000 " + own + ":5000 3")
}

// TestOwnChangesHands: whoever was at the address leaves it when one container gets all of it, and nobody else can name it;
// without its container it is in the pool again.
func TestOwnChangesHands(t *testing.T) { family.Each(t, testOwnChangesHands) }

func testOwnChangesHands(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	setPool(r, netip.MustParseAddr(own))
	r.Out(UDP(rig.C2+":5000", rig.Peer1+":1", "x"), UDP(own+":5000", rig.Peer1+":1", "x"))
	externalOf(r, rig.C1+":5000")
	setPool(r, netip.MustParseAddr(rig.External), netip.MustParseAddr(own))
	mine := func(o *dataplane.Owner) { o.External, o.OneToOne = addrs(r, own), true }
	r.Owner(rig.C1, "p1", mine)
	r.WantBindings()
	r.Out(UDP(rig.C1+":5000", rig.Peer1+":1", "x"), UDP(own+":5000", rig.Peer1+":1", "x"))
	r.Out(UDP(rig.C2+":5000", rig.Peer1+":1", "x"), UDP(rig.External+":5000", rig.Peer1+":1", "x"))
	other := dataplane.Owner{Network: "br0", Address: r.Address(rig.C2), ID: 8, External: addrs(r, own), OneToOne: true}
	if err := r.Do(func() error { return r.DP.PutOwner(other) }); !errors.Is(err, dataplane.ErrAddressTaken) {
		t.Errorf("another container is to have all of the address, too: %v", err)
	}
	other.OneToOne = false
	r.Must("name the address", func() error { return r.DP.PutOwner(other) })
	r.Inside(UDP(rig.C2+":5000", rig.Peer1+":1", "x")).Dropped("no_address")
	must(t, r.RemoveOwner(rig.C2))
	if err := r.Do(func() error {
		return r.DP.PutOwner(dataplane.Owner{Network: "br0", Address: r.Address(rig.C2), ID: 8, External: poolIn(fam)[1:3], OneToOne: true})
	}); err == nil {
		t.Error("1:1 with two addresses")
	}
	must(t, r.RemoveOwner(rig.C1))
	r.Outside(UDP(rig.Peer1+":1", own+":5000", "x")).Passed("unbound")
	setPool(r, netip.MustParseAddr(own))
	r.Out(UDP(rig.C2+":5000", rig.Peer1+":1", "x"), UDP(own+":5000", rig.Peer1+":1", "x"))
	r.Consistent()
}
