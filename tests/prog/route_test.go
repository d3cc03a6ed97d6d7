// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// second is the address of a second uplink.
const second = "192.0.2.1"

func (r *rig) secondUplink() error {
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "wire1"}
	return errors.Join(r.add(up, second+"/24"),
		r.dp.PutOutside(dataplane.Outside{Name: "eth1", IfIndex: r.ports["eth1"], Address: netip.MustParseAddr(second)}),
		r.link("eth1", dataplane.OutsideLink, "eth1"))
}

func (r *rig) defaultBy(dev, gateway string) error {
	return netlink.RouteReplace(&netlink.Route{LinkIndex: r.ports[dev], Gw: net.ParseIP(gateway)})
}

// TestRouteMoves: within a second the packets of a session follow the route; to an outside with another
// address they cannot, and what opens anew has a binding there.
func TestRouteMoves(t *testing.T) {
	r := newRig(t)
	s, want := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x").Hop()
	r.inside(s).translated("translated_outbound", want)
	r.must("another gateway", func() error { return r.defaultBy("eth0", "198.51.100.253") })
	r.wait(2 * time.Second)
	r.inside(s).translated("translated_outbound", want)

	r.must("second uplink", r.secondUplink)
	r.must("its route", func() error { return r.defaultBy("eth1", "192.0.2.254") })
	r.wait(2 * time.Second)
	r.inside(s).dropped("route_moved")
	fresh := UDP(c1+":2000", peer2+":53", "x")
	r.inside(fresh).translated("translated_outbound", UDP(second+":2000", peer2+":53", "x").Hop())
	r.wait(299 * time.Second)
	r.inside(s).translated("translated_outbound", UDP(second+":2000", peer1+":53", "x").Hop())

	r.must("back", func() error { return r.defaultBy("eth0", "198.51.100.254") })
	r.wait(2 * time.Second)
	r.inside(UDP(c1+":2001", peer1+":53", "x")).translated("translated_outbound", UDP(external+":2001", peer1+":53", "x").Hop())
}

// TestNoRoute: the kernel answers.
func TestNoRoute(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	r.must("no default route", func() error {
		return netlink.RouteDel(&netlink.Route{LinkIndex: r.ports["eth0"], Gw: net.ParseIP("198.51.100.254")})
	})
	r.wait(2 * time.Second)
	r.inside(UDP(c1+":2000", peer1+":53", "x")).passed("local")
	r.inside(UDP(c1+":2001", peer1+":53", "x")).passed("local")
	r.must("unreachable", func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.ParseIP(peer1).To4(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_UNREACHABLE})
	})
	r.inside(UDP(c1+":2000", peer1+":53", "x")).passed("no_route")
}
