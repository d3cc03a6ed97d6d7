// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// overlapping gives both networks the addresses of br0, and a router. The kernel's routing knows the first one alone.
var overlapping = rig.WithNetworks(func(n *dataplane.Network) {
	n.Prefixes = []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}
	n.Address = netip.MustParseAddr(gateway)
})

// wantWayBack checks by which bridge port a packet from outside to an external endpoint would be delivered.
func wantWayBack(r *rig.Rig, s Spec, network, port string) {
	r.T.Helper()
	r.Must("look up the session", func() error {
		sessions, err := r.Maps().Sessions.Dump()
		if err != nil {
			return err
		}
		for key, half := range sessions {
			if key.Zone != 0 || key.Dport != swapped(Endpoint(s.Dst).Port()) || key.Sport != swapped(Endpoint(s.Src).Port()) {
				continue
			}
			if zone := map[string]uint16{"br0": 1, "br1": 2}[network]; half.PeerZone != zone || int(half.Ifindex) != r.Ports[port] {
				return fmt.Errorf("to zone %d by interface %d, want %s by %s (%d)", half.PeerZone, half.Ifindex, network, port, r.Ports[port])
			}
			return nil
		}
		return fmt.Errorf("no session of %s with %s", s.Dst, s.Src)
	})
}

func swapped(port uint16) uint16 { return port<<8 | port>>8 }

// TestOverlappingZones: the same host address, source port and destination in two networks at once: both flows work, each
// with its own binding and way back.
func TestOverlappingZones(t *testing.T) { family.Each(t, testOverlappingZones) }

func testOverlappingZones(t *testing.T, fam family.Family) {
	for proto, c := range map[string]struct {
		out func(src string) Spec
		in  func(dst string) Spec
	}{
		"udp":  {func(src string) Spec { return UDP(src, rig.Peer1+":53", "q") }, func(dst string) Spec { return UDP(rig.Peer1+":53", dst, "a") }},
		"tcp":  {func(src string) Spec { return TCP(src, rig.Peer1+":80", "S", "") }, func(dst string) Spec { return TCP(rig.Peer1+":80", dst, "SA", "") }},
		"icmp": {func(src string) Spec { return Ping(src, rig.Peer1) }, func(dst string) Spec { return Pong(rig.Peer1, dst) }},
	} {
		for _, order := range [][]string{{"br0", "br1"}, {"br1", "br0"}} {
			t.Run(proto+"/"+order[0]+"First", func(t *testing.T) {
				r := rig.New(t, rig.In(fam), overlapping)
				external, ports := map[string]string{}, map[string]string{"br0": "p1", "br1": "q1"}
				for _, network := range order {
					if res := r.From(ports[network], c.out(rig.C1+":2000")); res.Reason != "translated_outbound" {
						t.Fatalf("%s: %s", network, res.Reason)
					}
					external[network] = boundIn(r, proto, network)
				}
				if external["br0"] == external["br1"] {
					t.Fatalf("both have %s", external["br0"])
				}
				for _, network := range order {
					answer, want := c.in(external[network]), c.in(rig.C1+":2000")
					r.In(answer, want)
					if proto == "icmp" {
						answer.Src = rig.Peer1 + ":0"
					}
					wantWayBack(r, answer, network, ports[network])
					r.From(ports[network], c.out(rig.C1+":2000")).Translated("translated_outbound", c.out(external[network]).Hop())
				}
				r.WantBindings(slices.Sorted(slices.Values([]string{
					proto + " br0 " + rig.C1 + ":2000 " + external["br0"] + " 1",
					proto + " br1 " + rig.C1 + ":2000 " + external["br1"] + " 1"}))...)
			})
		}
	}
}

// boundIn is the external endpoint of a network's one binding of a protocol.
func boundIn(r *rig.Rig, proto, network string) (external string) {
	r.T.Helper()
	r.Must("bindings", func() error {
		all, err := r.DP.Bindings()
		for _, b := range all {
			if b.Protocol.String() == r.Protocol(proto) && b.Network == network {
				external = b.External.String()
			}
		}
		return err
	})
	return external
}

// TestOverlappingZonesAreTold: what the kernel would tell the sender, by its routing maybe somebody else, the NAT says
// itself, from the gateway; once it is alone, the kernel does again.
func TestOverlappingZonesAreTold(t *testing.T) { family.Each(t, testOverlappingZonesAreTold) }

func testOverlappingZonesAreTold(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), overlapping, rig.WithMTU(1400))
	r.Must("make a destination unreachable", func() error {
		_, dst, err := net.ParseCIDR(fam.Text("203.0.113.128/25"))
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Type: 7}) // RTN_UNREACHABLE
	})
	big := string(bytes.Repeat([]byte("x"), 1401-ipHeader(fam)-8))
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
	for _, dev := range []string{"p1", "q1"} {
		for range 2 { // of no session, and of one
			r.From(dev, s.With(lastHop)).Told("ttl", Told(gateway, 11, 0, 0, s.With(lastHop)))
			tooBig := UDP(rig.C1+":2000", rig.Peer1+":53", big).With(dontCut)
			r.From(dev, tooBig).Told("too_big", Told(gateway, 3, 4, 1400, tooBig))
			r.From(dev, s)
		}
		nowhere := UDP(rig.C1+":2000", "203.0.113.200:53", "x")
		r.From(dev, nowhere).Told("no_route", Told(gateway, 3, 0, 0, nowhere))
	}
	for _, dev := range []string{"q1", "br1"} {
		r.Must("detach", func() error { return r.DP.Detach(r.Ports[dev]) })
	}
	r.Must("remove network", func() error { return r.DP.RemoveNetwork("br1") })
	r.WantBindings("udp br0 " + rig.C1 + ":2000 " + rig.External + ":2000 1")
	r.Inside(s.With(lastHop)).Passed("ttl")
}

// TestOverlappingZonesHairpin: a static binding leads from one network to a host of the other that has the sender's
// address; a dynamic one does not.
func TestOverlappingZonesHairpin(t *testing.T) { family.Each(t, testOverlappingZonesHairpin) }

func testOverlappingZonesHairpin(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), overlapping)
	for network, external := range map[string]string{"br0": rig.External + ":8000", "br1": rig.External + ":8001"} {
		r.Forward(network, dataplane.UDP, external, rig.C1+":80")
	}
	for dev, to := range map[string]string{"p1": ":8001", "q1": ":8000"} {
		r.Hairpin(dev, UDP(rig.C1+":80", rig.External+to, "x"), UDP(rig.External+map[string]string{":8001": ":8000", ":8000": ":8001"}[to], rig.C1+":80", "x"))
	}
	r.From("q1", UDP(rig.C1+":4000", rig.Peer1+":1", "x"))
	dynamic := ""
	for _, b := range r.Bindings() {
		if !bytes.Contains([]byte(b), []byte("static")) {
			dynamic = r.ExternalOf("udp", rig.C1+":4000")
		}
	}
	r.Inside(UDP(rig.C1+":5000", dynamic, "x")).Dropped("isolated")
}

// TestOverlappingZonesForward: which network an address is of has to be said.
func TestOverlappingZonesForward(t *testing.T) { family.Each(t, testOverlappingZonesForward) }

func testOverlappingZonesForward(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), overlapping)
	r.Refused(nil, dataplane.TCP, "", rig.External+":80", rig.C1+":80")
	r.Forward("br1", dataplane.TCP, rig.External+":80", rig.C1+":80")
	r.Forward("br0", dataplane.TCP, rig.External+":81", rig.C1+":80")
	for external, network := range map[string]string{":80": "br1", ":81": "br0"} {
		s := TCP(rig.Peer1+":1", rig.External+external, "S", "")
		r.In(s, TCP(rig.Peer1+":1", rig.C1+":80", "S", ""))
		wantWayBack(r, s, network, network)
	}
}
