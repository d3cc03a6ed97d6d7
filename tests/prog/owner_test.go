// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/rig"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
)

// TestOwnerSpoofed: another port's container sends from an address that is not its own: on no session, and on one that
// lives; the owner is not disturbed.
func TestOwnerSpoofed(t *testing.T) {
	r := rig.New(t)
	r.Owner(rig.C1, "p1", nil)
	s, out := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.From("p2", s).Dropped("spoofed")
	r.WantBindings()
	r.Out(s, out)
	r.From("p2", s).Dropped("spoofed")
	r.WantTarget(UDP(rig.Peer1+":53", rig.External+":2000", "x"), "TARGET_PORT")
	r.From("p2", UDP(rig.C1+":2000", rig.Peer2+":53", "x")).Dropped("spoofed")
	r.Forward("br0", dataplane.UDP, rig.External+":80", rig.C2+":80")
	r.From("p2", UDP(rig.C1+":9", rig.External+":80", "x")).Dropped("spoofed") // by hairpin
	r.TakePath(true)
	r.From("p2", s).Dropped("spoofed")
	r.From("p1", s).Passed("stack")
	r.From("br0", s).Passed("stack") // nobody knows the port there
}

// TestOwnerSpoofedFragments: another port's container puts nothing into its neighbour's datagrams, and does not lead them astray, whatever
// first or later fragment it forges.
func TestOwnerSpoofedFragments(t *testing.T) {
	r := rig.New(t)
	r.Owner(rig.C1, "p1", nil)
	s := rig.FromContainer(UDP(rig.C1+":2000", rig.Peer1+":53", long))
	f := rig.Identified(s).Fragments(320)
	expiring := rig.Identified(s.With(func(s *Spec) { s.TTL = 1 })).Fragments(320)
	from := func(dev string, frame []byte, want string) {
		t.Helper()
		if got := r.Send(r.DP.Objects().NatInside, dev, frame, nil).Reason; got != want {
			t.Errorf("from %s: %s, want %s", dev, got, want)
		}
	}
	from("p2", f[1], "dropped_spoofed")
	from("p1", f[0], "translated_outbound")
	for _, later := range f[1:] {
		from("p2", f[0], "dropped_spoofed")
		from("p2", expiring[0], "passed_ttl") // as a whole packet: nothing is translated
		from("p2", later, "dropped_spoofed")
		from("p1", later, "translated_outbound")
	}
	r.TakePath(true)
	defer r.TakePath(false)
	from("p1", f[0], "passed_stack")
	from("p2", f[1], "dropped_spoofed")
	from("p1", f[1], "passed_stack")
}

// TestOwnerPortGone: the owner's port is gone, and a new container has the address: no daemon has told yet.
func TestOwnerPortGone(t *testing.T) { family.Each(t, testOwnerPortGone) }

func testOwnerPortGone(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Owner(rig.C1, "p2", nil)
	s, out := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Inside(s).Dropped("spoofed")
	r.Must("remove the port", func() error {
		p, err := netlink.LinkByName("p2")
		return errors.Join(err, netlink.LinkDel(p))
	})
	r.Out(s, out)
}

// TestOwnerLeaves: whoever gets the address of a container that is gone inherits neither bindings nor sessions.
func TestOwnerLeaves(t *testing.T) { family.Each(t, testOwnerLeaves) }

func testOwnerLeaves(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Owner(rig.C1, "p1", nil)
	r.Owner(rig.C2, "p2", nil)
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	r.Outside(TCP(rig.Peer1+":9", rig.External+":80", "S", ""))
	r.From("p2", UDP(rig.C2+":2000", rig.Peer1+":53", "x"))
	if err := r.RemoveOwner(rig.C1); err != nil {
		t.Fatal(err)
	}
	ext := r.ExternalOf("udp", rig.C2+":2000")
	r.WantBindings("udp br0 " + rig.C2 + ":2000 " + ext + " 1")
	r.Outside(UDP(rig.Peer1+":53", rig.External+":2000", "y")).Passed("unbound")
	if err := r.RemoveOwner(rig.C1); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	var owners []dataplane.Owner
	r.Must("owners", func() (err error) {
		owners, err = r.DP.Owners()
		return err
	})
	if len(owners) != 1 || owners[0].Address.String() != r.Family.Text(rig.C2) || owners[0].Port != r.Ports["p2"] || owners[0].ID != 7 {
		t.Errorf("owners %+v", owners)
	}
}

// TestOwnerExcluded: an inside host that is left to the host's NAT goes the kernel's way, out and by hairpin, with all
// its fragments and errors, and what masquerade has made of its packets is the host's.
func TestOwnerExcluded(t *testing.T) { family.Each(t, testOwnerExcluded) }

func testOwnerExcluded(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) { o.Excluded = true })
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
	r.Inside(s).Passed("excluded")
	r.Forward("br0", dataplane.UDP, rig.External+":80", rig.C2+":80")
	r.Inside(UDP(rig.C1+":2000", rig.External+":80", "x")).Passed("excluded")
	r.Inside(ICMPError(rig.C1, rig.Peer1, 3, 3, UDP(rig.Peer1+":53", rig.C1+":2000", "x"), 0)).Passed("excluded")
	r.Egress("br0", UDP(rig.External+":2000", rig.Peer1+":53", "x").With(routed)).Passed("host")
	r.Outside(UDP(rig.Peer1+":53", rig.External+":2000", "y")).Passed("host")
	r.WantBindings("udp br0 " + rig.C2 + ":80 " + rig.External + ":80 0 static")
	// The identity rule was there first, and keeps masquerade off this flow: it does not leave as it is.
	r.Egress("br0", UDP(rig.C1+":3000", rig.Peer1+":53", "x").With(routed)).
		Translated("translated_stack", UDP(rig.External+":3000", rig.Peer1+":53", "x").With(routed))
}

// TestOwnerFiltering: a container's own filtering, beside its network's.
func TestOwnerFiltering(t *testing.T) { family.Each(t, testOwnerFiltering) }

func testOwnerFiltering(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.AddressAndPortDependent))
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) {
		o.Filtering = &[3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressDependent}
	})
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.From("p2", UDP(rig.C2+":3000", rig.Peer1+":53", "x"))
	r.In(UDP(rig.Peer2+":9", rig.External+":2000", "y"), UDP(rig.Peer2+":9", rig.C1+":2000", "y"))
	r.Outside(UDP(rig.Peer1+":9", rig.External+":3000", "y")).Dropped("filtered")
	r.Consistent()
	r.Wait(299 * time.Second) // what comes in does not refresh an endpoint-independent one (RFC 7857 section 7)
	r.In(UDP(rig.Peer1+":53", rig.External+":2000", "y"), UDP(rig.Peer1+":53", rig.C1+":2000", "y"))
	r.Wait(2 * time.Second)
	if got := r.ExternalOf("udp", rig.C1+":2000"); got != "" {
		t.Errorf("the binding lives on as %s", got)
	}
}

// TestOwnerLearnsPort: a session that was opened from outside goes straight to its container's port once that has
// answered; where nobody vouches for the address, the bridge is asked.
func TestOwnerLearnsPort(t *testing.T) { family.Each(t, testOwnerLearnsPort) }

func testOwnerLearnsPort(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Owner(rig.C1, "p1", nil)
	r.Forward("br0", dataplane.UDP, rig.External+":80", rig.C1+":80")
	r.Forward("br0", dataplane.UDP, rig.External+":81", rig.C2+":80")
	for ext, in := range map[string]string{rig.External + ":80": rig.C1, rig.External + ":81": rig.C2} {
		r.In(UDP(rig.Peer1+":53", ext, "x"), UDP(rig.Peer1+":53", in+":80", "x"))
		r.WantTarget(UDP(rig.Peer1+":53", ext, "x"), "TARGET_DEVICE")
	}
	r.Out(UDP(rig.C1+":80", rig.Peer1+":53", "x"), UDP(rig.External+":80", rig.Peer1+":53", "x"))
	r.From("p2", UDP(rig.C2+":80", rig.Peer1+":53", "x")).Translated("translated_outbound", UDP(rig.External+":81", rig.Peer1+":53", "x").Hop())
	r.WantTarget(UDP(rig.Peer1+":53", rig.External+":80", "x"), "TARGET_PORT")
	r.WantTarget(UDP(rig.Peer1+":53", rig.External+":81", "x"), "TARGET_DEVICE")
	r.In(UDP(rig.Peer1+":53", rig.External+":80", "x"), UDP(rig.Peer1+":53", rig.C1+":80", "x"))
}

// TestIsolatedNetwork: icc=false: a neighbour's dynamic binding is not reached by hairpin, a published port is.
func TestIsolatedNetwork(t *testing.T) { family.Each(t, testIsolatedNetwork) }

func testIsolatedNetwork(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Must("isolate", func() error {
		return r.DP.PutNetwork(dataplane.Network{Name: "br0", Label: "bridge", IfIndex: r.Ports["br0"], Gateway: rig.BridgeMAC, Isolated: true,
			Prefixes: []netip.Prefix{fam.Prefix(netip.MustParsePrefix("172.17.0.0/16"))}, Filtering: [3]dataplane.Behavior{1, 1, 1}})
	})
	r.Inside(UDP(rig.C1+":1001", rig.Peer1+":1", "x"))
	r.From("p2", UDP(rig.C2+":2001", rig.External+":1001", "hello")).Dropped("isolated")
	r.Forward("bridge", dataplane.UDP, rig.External+":80", rig.C1+":80")
	r.Hairpin("p2", UDP(rig.C2+":2001", rig.External+":80", "hello"), UDP(rig.External+":2001", rig.C1+":80", "hello"))
	r.WantBindings("udp bridge "+rig.C1+":1001 "+rig.External+":1001 1", "udp bridge "+rig.C1+":80 "+rig.External+":80 1 static",
		"udp bridge "+rig.C2+":2001 "+rig.External+":2001 1")
}
