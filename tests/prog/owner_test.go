// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// owner says whose an address of br0 is.
func (r *rig) owner(address, port string, change func(*dataplane.Owner)) {
	r.t.Helper()
	o := dataplane.Owner{Network: "br0", Address: netip.MustParseAddr(address), ID: 7, Port: r.ports[port]}
	if change != nil {
		change(&o)
	}
	r.must("put owner", func() error { return r.dp.PutOwner(o) })
}

func (r *rig) removeOwner(address string) error {
	return r.do(func() error { return r.dp.RemoveOwner("br0", netip.MustParseAddr(address)) })
}

// TestOwnerSpoofed: another port's container sends from an address that is not its own: on no session, and on one that
// lives; the owner is not disturbed.
func TestOwnerSpoofed(t *testing.T) {
	r := newRig(t)
	r.owner(c1, "p1", nil)
	s, out := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x")
	r.from("p2", s).dropped("spoofed")
	r.wantBindings()
	r.out(s, out)
	r.from("p2", s).dropped("spoofed")
	r.wantTarget(UDP(peer1+":53", external+":2000", "x"), "TARGET_PORT")
	r.from("p2", UDP(c1+":2000", peer2+":53", "x")).dropped("spoofed")
	r.forward("br0", dataplane.UDP, external+":80", c2+":80")
	r.from("p2", UDP(c1+":9", external+":80", "x")).dropped("spoofed") // by hairpin
	r.takePath(true)
	r.from("p2", s).dropped("spoofed")
	r.from("p1", s).passed("stack")
	r.from("br0", s).passed("stack") // nobody knows the port there
}

// TestOwnerPortGone: the owner's port is gone, and a new container has the address: no daemon has told yet.
func TestOwnerPortGone(t *testing.T) {
	r := newRig(t)
	r.owner(c1, "p2", nil)
	s, out := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x")
	r.inside(s).dropped("spoofed")
	r.must("remove the port", func() error {
		p, err := netlink.LinkByName("p2")
		return errors.Join(err, netlink.LinkDel(p))
	})
	r.out(s, out)
}

// TestOwnerLeaves: whoever gets the address of a container that is gone inherits neither bindings nor sessions.
func TestOwnerLeaves(t *testing.T) {
	r := newRig(t)
	r.owner(c1, "p1", nil)
	r.owner(c2, "p2", nil)
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	r.outside(TCP(peer1+":9", external+":80", "S", ""))
	r.from("p2", UDP(c2+":2000", peer1+":53", "x"))
	if err := r.removeOwner(c1); err != nil {
		t.Fatal(err)
	}
	ext := r.externalOf("udp", c2+":2000")
	r.wantBindings("udp br0 " + c2 + ":2000 " + ext + " 1")
	r.outside(UDP(peer1+":53", external+":2000", "y")).passed("unbound")
	if err := r.removeOwner(c1); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	var owners []dataplane.Owner
	r.must("owners", func() (err error) {
		owners, err = r.dp.Owners()
		return err
	})
	if len(owners) != 1 || owners[0].Address.String() != c2 || owners[0].Port != r.ports["p2"] || owners[0].ID != 7 {
		t.Errorf("owners %+v", owners)
	}
}

// TestOwnerExcluded: an inside host that is left to the host's NAT goes the kernel's way, out and by hairpin, with all
// its fragments and errors, and what masquerade has made of its packets is the host's.
func TestOwnerExcluded(t *testing.T) {
	r := newRig(t)
	r.owner(c1, "p1", func(o *dataplane.Owner) { o.Excluded = true })
	s := UDP(c1+":2000", peer1+":53", "x")
	r.inside(s).passed("excluded")
	r.forward("br0", dataplane.UDP, external+":80", c2+":80")
	r.inside(UDP(c1+":2000", external+":80", "x")).passed("excluded")
	r.inside(ICMPError(c1, peer1, 3, 3, UDP(peer1+":53", c1+":2000", "x"), 0)).passed("excluded")
	r.egress("br0", UDP(external+":2000", peer1+":53", "x").With(routed)).passed("host")
	r.outside(UDP(peer1+":53", external+":2000", "y")).passed("host")
	r.wantBindings("udp br0 " + c2 + ":80 " + external + ":80 0 static")
	// The identity rule was there first, and keeps masquerade off this flow: it does not leave as it is.
	r.egress("br0", UDP(c1+":3000", peer1+":53", "x").With(routed)).
		translated("translated_stack", UDP(external+":3000", peer1+":53", "x").With(routed))
}

// TestOwnerFiltering: a container's own filtering, beside its network's.
func TestOwnerFiltering(t *testing.T) {
	r := newRig(t, withFiltering(dataplane.AddressAndPortDependent))
	r.owner(c1, "p1", func(o *dataplane.Owner) {
		o.Filtering = &[3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressDependent}
	})
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	r.from("p2", UDP(c2+":3000", peer1+":53", "x"))
	r.in(UDP(peer2+":9", external+":2000", "y"), UDP(peer2+":9", c1+":2000", "y"))
	r.outside(UDP(peer1+":9", external+":3000", "y")).dropped("filtered")
	r.consistent()
	r.wait(299 * time.Second) // what comes in does not refresh an endpoint-independent one (RFC 7857 section 7)
	r.in(UDP(peer1+":53", external+":2000", "y"), UDP(peer1+":53", c1+":2000", "y"))
	r.wait(2 * time.Second)
	if got := r.externalOf("udp", c1+":2000"); got != "" {
		t.Errorf("the binding lives on as %s", got)
	}
}

// TestOwnerLearnsPort: a session that was opened from outside goes straight to its container's port once that has
// answered; where nobody vouches for the address, the bridge is asked.
func TestOwnerLearnsPort(t *testing.T) {
	r := newRig(t)
	r.owner(c1, "p1", nil)
	r.forward("br0", dataplane.UDP, external+":80", c1+":80")
	r.forward("br0", dataplane.UDP, external+":81", c2+":80")
	for ext, in := range map[string]string{external + ":80": c1, external + ":81": c2} {
		r.in(UDP(peer1+":53", ext, "x"), UDP(peer1+":53", in+":80", "x"))
		r.wantTarget(UDP(peer1+":53", ext, "x"), "TARGET_DEVICE")
	}
	r.out(UDP(c1+":80", peer1+":53", "x"), UDP(external+":80", peer1+":53", "x"))
	r.from("p2", UDP(c2+":80", peer1+":53", "x")).translated("translated_outbound", UDP(external+":81", peer1+":53", "x").Hop())
	r.wantTarget(UDP(peer1+":53", external+":80", "x"), "TARGET_PORT")
	r.wantTarget(UDP(peer1+":53", external+":81", "x"), "TARGET_DEVICE")
	r.in(UDP(peer1+":53", external+":80", "x"), UDP(peer1+":53", c1+":80", "x"))
}

// TestIsolatedNetwork: icc=false: a neighbour's dynamic binding is not reached by hairpin, a published port is.
func TestIsolatedNetwork(t *testing.T) {
	r := newRig(t)
	r.must("isolate", func() error {
		return r.dp.PutNetwork(dataplane.Network{Name: "br0", Label: "bridge", IfIndex: r.ports["br0"], Gateway: bridgeMAC, Isolated: true,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}, Filtering: [3]dataplane.Behavior{1, 1, 1}})
	})
	r.inside(UDP(c1+":1001", peer1+":1", "x"))
	r.from("p2", UDP(c2+":2001", external+":1001", "hello")).dropped("isolated")
	r.forward("bridge", dataplane.UDP, external+":80", c1+":80")
	r.hairpin("p2", UDP(c2+":2001", external+":80", "hello"), UDP(external+":2001", c1+":80", "hello"))
	r.wantBindings("udp bridge "+c1+":1001 "+external+":1001 1", "udp bridge "+c1+":80 "+external+":80 1 static",
		"udp bridge "+c2+":2001 "+external+":2001 1")
}
