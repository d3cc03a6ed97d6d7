// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
)

// Each kind of change that a next hop depends on is heard of.
func TestWatchHopsHears(t *testing.T) {
	const link = `link set lo up
link add eth0 type veth peer name x0
link set eth0 addrgenmode none up
link set x0 addrgenmode none up
addr add 192.0.2.1/24 dev eth0
addr add 2001:db8::1/64 dev eth0 nodad
`
	for name, tt := range map[string]struct{ before, change string }{
		"Route":            {link, "route add 198.51.100.0/24 via 192.0.2.2"},
		"RouteOfIPv6":      {link, "route add 2001:db8:1::/64 via 2001:db8::2"},
		"RouteReplaced":    {link + "route add default via 192.0.2.2\n", "route replace default via 192.0.2.3"},
		"Rule":             {"", "rule add from 172.18.0.0/16 lookup 100"},
		"Nexthop":          {link + "nexthop add id 1 via 192.0.2.2 dev eth0\n", "nexthop replace id 1 via 192.0.2.3 dev eth0"},
		"LinkDown":         {link, "link set x0 down"},
		"NeighbourMoved":   {link + "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev eth0\n", "neigh replace 192.0.2.2 lladdr 02:00:00:00:00:03 dev eth0"},
		"NeighbourDeleted": {link + "neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev eth0\n", "neigh del 2001:db8::2 dev eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			ip(t, tt.before)
			raw := subscribed(t, listenHops)
			run(t, "ip "+tt.change)
			select {
			case <-raw:
			case <-time.After(patience.For(5 * time.Second)):
				t.Error("no change heard")
			}
		})
	}
}

// TestNeighbours: one that moves, or goes, counts. Most messages say that one is where it was: were they to count, the packets of a
// busy host would have their routes looked up all the time.
func TestNeighbours(t *testing.T) {
	at := func(state int, mac ...byte) netlink.Neigh {
		return netlink.Neigh{LinkIndex: 2, Family: unix.AF_INET, IP: net.IPv4(192, 0, 2, 2), State: state, HardwareAddr: mac}
	}
	elsewhere := at(unix.NUD_REACHABLE, 2, 0, 0, 0, 0, 9)
	elsewhere.LinkIndex = 3
	forwarding := netlink.Neigh{LinkIndex: 2, Family: unix.AF_BRIDGE, State: unix.NUD_REACHABLE, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
	known := neighbours{}
	for i, step := range []struct {
		is    netlink.Neigh
		moved bool
	}{
		{at(unix.NUD_INCOMPLETE), false},
		{at(unix.NUD_REACHABLE, 2, 0, 0, 0, 0, 2), false}, // nothing was sent there before
		{at(unix.NUD_STALE, 2, 0, 0, 0, 0, 2), false},
		{at(unix.NUD_DELAY, 2, 0, 0, 0, 0, 2), false},
		{at(unix.NUD_PROBE, 2, 0, 0, 0, 0, 2), false},
		{elsewhere, false},
		{forwarding, false},
		{at(unix.NUD_REACHABLE, 2, 0, 0, 0, 0, 3), true},
		{at(unix.NUD_FAILED), true},
		{at(unix.NUD_FAILED), false},
		{at(unix.NUD_PERMANENT, 2, 0, 0, 0, 0, 3), false},
		{at(unix.NUD_NONE, 2, 0, 0, 0, 0, 3), true}, // deleted
	} {
		if got := known.put(step.is); got != step.moved {
			t.Errorf("step %d, %+v: moved %v, want %v", i, step.is, got, step.moved)
		}
	}
	if len(known) != 1 {
		t.Errorf("known: %v", known)
	}
	route := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}}
	if !known.moved(route) {
		t.Error("a route has not counted")
	}
}
