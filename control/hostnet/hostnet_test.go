// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/require"
)

var compareIP = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func TestConvert(t *testing.T) {
	attrs := func(index int, name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Index, a.Name, a.EncapType, a.NetNsID, a.MTU = index, name, "ether", -1, 1500
		return a
	}
	inContainer := attrs(4, "veth0")
	inContainer.MasterIndex, inContainer.NetNsID, inContainer.Flags = 3, 7, net.FlagUp
	tunnel := attrs(2, "wg0")
	tunnel.EncapType = "none"
	got := convert([]netlink.Link{
		&netlink.Veth{LinkAttrs: inContainer},
		&netlink.Veth{LinkAttrs: attrs(5, "veth1")},
		&netlink.Bridge{LinkAttrs: attrs(3, "br0")},
		&netlink.Wireguard{LinkAttrs: tunnel},
	}, []netlink.Addr{
		address(3, "172.17.0.1/16", unix.RT_SCOPE_UNIVERSE),
		address(3, "172.17.0.2/16", unix.RT_SCOPE_UNIVERSE),
		address(3, "169.254.1.1/16", unix.RT_SCOPE_LINK),
	})
	want := []Link{
		{Index: 2, Name: "wg0", Kind: "wireguard", MTU: 1500, PeerNSID: -1, Layer3: true},
		{Index: 3, Name: "br0", Kind: "bridge", MTU: 1500, PeerNSID: -1, Addresses: []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16"), netip.MustParsePrefix("172.17.0.2/16")}},
		{Index: 4, Name: "veth0", Kind: "veth", Master: 3, MTU: 1500, Up: true, PeerNetns: true, PeerNSID: 7},
		{Index: 5, Name: "veth1", Kind: "veth", MTU: 1500, PeerNSID: -1},
	}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
	if p := got[1].Prefixes(); len(p) != 1 || p[0] != netip.MustParsePrefix("172.17.0.0/16") {
		t.Errorf("prefixes %v", p)
	}
}

func address(index int, cidr string, scope netlink.Scope) netlink.Addr {
	ip, n, _ := net.ParseCIDR(cidr)
	return netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: n.Mask}, LinkIndex: index, Scope: int(scope)}
}

// inNamespace runs the test on a thread in a new network namespace, which ends with the thread.
func inNamespace(t *testing.T) {
	t.Helper()
	require.Root(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// ip runs ip(8), each line a command, in the namespace of the test's thread.
func ip(t *testing.T, commands string) {
	t.Helper()
	batch(t, commands)
}

// ip6 is ip for IPv6's own commands.
func ip6(t *testing.T, commands string) {
	t.Helper()
	batch(t, commands, "-6")
}

func batch(t *testing.T, commands string, options ...string) {
	t.Helper()
	cmd := exec.Command("ip", append(options, "-batch", "-")...)
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

func TestSnapshotOfANamespace(t *testing.T) {
	inNamespace(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	must(netlink.LinkAdd(bridge))
	must(netlink.AddrAdd(bridge, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(172, 17, 0, 1), Mask: net.CIDRMask(16, 32)}}))
	must(netlink.LinkSetUp(bridge))
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0", MasterIndex: bridge.Index}, PeerName: "veth1"}))
	must(netlink.RouteAdd(&netlink.Route{LinkIndex: bridge.Index, Gw: net.IPv4(172, 17, 0, 9)}))
	listener, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 5353})
	must(err)
	defer listener.Close()
	connected, err := net.DialUDP("udp", &net.UDPAddr{Port: 5354}, &net.UDPAddr{IP: net.IPv4(172, 17, 0, 9), Port: 53})
	must(err)
	defer connected.Close()

	h := New()
	s, err := h.Snapshot()
	must(err)
	br, ok := s.Link("br0")
	if !ok || br.Kind != "bridge" || !br.Has(netip.MustParseAddr("172.17.0.1")) || len(br.MAC) != 6 {
		t.Errorf("bridge: %+v", br)
	}
	if ports := s.Ports(br.Index); len(ports) != 1 || ports[0].Name != "veth0" || ports[0].PeerNetns {
		t.Errorf("ports: %+v", ports)
	}
	if !slices.Equal(s.Default, []int{br.Index}) {
		t.Errorf("default route by %v, want %d", s.Default, br.Index)
	}
	if lo, _ := s.Link("lo"); !lo.Loopback || lo.Layer3 {
		t.Errorf("lo: %+v", lo)
	}
	sockets, err := h.Sockets()
	must(err)
	if diff := cmp.Diff([]Socket{{dataplane.UDP, netip.MustParseAddrPort("172.17.0.1:5354")}}, sockets, compareIP); diff != "" {
		t.Error(diff)
	}
}
