// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/rig"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
)

// TestRouteMoves: within a second the packets of a session follow the route; to an outside with another
// address they cannot, and what opens anew has a binding there.
func TestRouteMoves(t *testing.T) { family.Each(t, testRouteMoves) }

func testRouteMoves(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	s, want := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x").Hop()
	r.Inside(s).Translated("translated_outbound", want)
	r.Must("another gateway", func() error { return r.DefaultBy("eth0", "198.51.100.253") })
	r.Wait(2 * time.Second)
	r.Inside(s).Translated("translated_outbound", want)

	r.Must("second uplink", r.SecondUplink)
	r.Must("its route", func() error { return r.DefaultBy("eth1", "192.0.2.254") })
	r.Wait(2 * time.Second)
	r.Inside(s).Dropped("route_moved")
	fresh := UDP(rig.C1+":2000", rig.Peer2+":53", "x")
	r.Inside(fresh).Translated("translated_outbound", UDP(rig.Second+":2000", rig.Peer2+":53", "x").Hop())
	r.Wait(299 * time.Second)
	r.Inside(s).Translated("translated_outbound", UDP(rig.Second+":2000", rig.Peer1+":53", "x").Hop())

	r.Must("back", func() error { return r.DefaultBy("eth0", "198.51.100.254") })
	r.Wait(2 * time.Second)
	r.Inside(UDP(rig.C1+":2001", rig.Peer1+":53", "x")).Translated("translated_outbound", UDP(rig.External+":2001", rig.Peer1+":53", "x").Hop())
}

// TestNoRoute: the kernel answers.
func TestNoRoute(t *testing.T) {
	r := rig.New(t)
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.Must("no default route", func() error {
		return netlink.RouteDel(&netlink.Route{LinkIndex: r.Ports["eth0"], Gw: net.ParseIP("198.51.100.254")})
	})
	r.Wait(2 * time.Second)
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Passed("local")
	r.Inside(UDP(rig.C1+":2001", rig.Peer1+":53", "x")).Passed("local")
	r.Must("unreachable", func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.ParseIP(rig.Peer1).To4(), Mask: net.CIDRMask(32, 32)}, Type: unix.RTN_UNREACHABLE})
	})
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Passed("no_route")
}
