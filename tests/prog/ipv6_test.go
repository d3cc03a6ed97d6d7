// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// both is one NAT of both families: four has IPv4's packets and lines, six IPv6's.
type both struct{ four, six *rig.Rig }

func newBoth(t *testing.T, limits dataplane.Limits, options ...rig.Option) both {
	t.Helper()
	six := rig.New(t, append(options, rig.In(family.V6))...)
	four := *six
	four.Family = family.V4
	six.Must("give the host IPv4", func() error {
		gateway := netip.MustParseAddr("198.51.100.254").AsSlice()
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), address(six, "br0", "172.17.0.1/16"), address(six, "eth0", rig.External+"/24"),
			netlink.RouteAdd(&netlink.Route{LinkIndex: six.Ports["eth0"], Gw: gateway}))
	})
	four4, six6 := netip.MustParsePrefix("172.17.0.0/16"), family.V6.Prefix(netip.MustParsePrefix("172.17.0.0/16"))
	putNetwork(six, "br0", limits, four4, six6)
	setBothPools(six)
	return both{&four, six}
}

func address(r *rig.Rig, dev, prefix string) error {
	link, err := netlink.LinkByIndex(r.Ports[dev])
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, a)
}

func putNetwork(r *rig.Rig, name string, limits dataplane.Limits, prefixes ...netip.Prefix) {
	r.T.Helper()
	gateway := map[string][]byte{"br0": rig.BridgeMAC, "br1": rig.Bridge2}[name]
	r.Must("put network", func() error {
		return r.DP.PutNetwork(dataplane.Network{Name: name, IfIndex: r.Ports[name], Gateway: gateway, Prefixes: prefixes, Limits: limits})
	})
}

func setBothPools(r *rig.Rig) {
	r.T.Helper()
	external := netip.MustParseAddr(rig.External)
	r.Must("put outside", func() error {
		return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"], Addresses: []netip.Addr{external, family.V6.Addr(external)}})
	})
}

// TestBothFamilies: one host's packets of both go out and come in at once, by the same port; events have their addresses, and one
// sweep ends all.
func TestBothFamilies(t *testing.T) {
	b := newBoth(t, dataplane.Limits{})
	for _, r := range []*rig.Rig{b.four, b.six} {
		r.Forget()
		r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x"))
		r.In(UDP(rig.Peer1+":53", rig.External+":2000", "y"), UDP(rig.Peer1+":53", rig.C1+":2000", "y"))
		r.WantEvents("binding.created udp br0 "+rig.C1+":2000 "+rig.External+":2000", "session.created udp br0 "+rig.C1+":2000 "+rig.External+":2000 "+rig.Peer1+":53 active")
	}
	if got := b.six.Bindings(); len(got) != 2 {
		t.Errorf("bindings %q", got)
	}
	b.six.Consistent()
	b.six.Wait(301 * time.Second)
	b.six.Empty()
}

// TestLimitsOfBothFamilies: a network's are of both together, a host's of each address.
func TestLimitsOfBothFamilies(t *testing.T) {
	b := newBoth(t, dataplane.Limits{NetworkPorts: 3})
	b.four.Opened("udp", rig.C1+":5000")
	b.six.Opened("udp", rig.C1+":5000")
	b.six.Opened("tcp", rig.C1+":5000")
	for _, r := range []*rig.Rig{b.four, b.six} {
		r.Inside(UDP(rig.C1+":5001", rig.Peer1+":53", "x")).Dropped("network_ports")
	}
	b.six.Consistent()
	putNetwork(b.six, "br0", dataplane.Limits{HostPorts: 2}, netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00:17::/64"))
	b.four.Opened("udp", rig.C1+":5001")
	b.four.Inside(UDP(rig.C1+":5002", rig.Peer1+":53", "x")).Dropped("host_ports")
	b.six.Inside(UDP(rig.C1+":5002", rig.Peer1+":53", "x")).Dropped("host_ports")
	b.six.Wait(7441 * time.Second)
	b.six.Empty()
}

// TestFullTableOfOneFamily: the other one's has room.
func TestFullTableOfOneFamily(t *testing.T) {
	b := newBoth(t, dataplane.Limits{}, rig.WithSmallTables())
	for _, port := range []string{":5000", ":5001", ":5002", ":5003"} {
		b.six.Opened("udp", rig.C1+port)
	}
	b.six.Inside(UDP(rig.C1+":5004", rig.Peer1+":53", "x")).Dropped("bindings_full")
	b.four.Opened("udp", rig.C1+":5004")
	b.six.Consistent()
}

// TestNetworkOfIPv4Alone: beside one of both, its IPv6 is nobody's here, by any hook.
func TestNetworkOfIPv4Alone(t *testing.T) {
	r := rig.New(t, rig.In(family.V6))
	putNetwork(r, "br1", dataplane.Limits{}, netip.MustParsePrefix("172.18.0.0/16"))
	for _, s := range []Spec{UDP(rig.Other+":2000", rig.Peer1+":53", "x"), TCP(rig.Other+":2000", rig.Peer1+":80", "S", ""), Ping(rig.Other+":7", rig.Peer1)} {
		r.From("q1", s).Passed("excluded")
		r.From("br1", s).Passed("excluded")
	}
	r.WantBindings()
	r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x"))
}

// TestExtensionsWithoutEnd: more than are stepped over are malformed, and so is one that is not whole; neither is changed.
func TestExtensionsWithoutEnd(t *testing.T) {
	r := rig.New(t, rig.In(family.V6))
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x").In(family.V6)
	headers := make([]Extension, 6)
	for i := range headers {
		headers[i] = DestinationOptions(0)
	}
	r.Out(s.Behind(headers...), UDP(rig.External+":2000", rig.Peer1+":53", "x").In(family.V6).Behind(headers...))
	r.Inside(s.Behind(headers...).Behind(DestinationOptions(0))).Dropped("malformed")
	long := DestinationOptions(0)
	long.Bytes[1] = 200 // 8-byte units, of which nothing is there
	r.Inside(s.Behind(long)).Dropped("malformed")
	r.Inside(s.Behind(FragmentHeader(1, 0, false), FragmentHeader(2, 0, false))).Dropped("malformed")
}
