// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

func TestWant(t *testing.T) {
	for want, w := range map[string]Want{
		"ip protocol udp ip saddr 198.51.100.1 ip daddr 203.0.113.1": {Protocol: "udp",
			Src: netip.AddrPortFrom(topo.HostAddr, 0), Dst: netip.MustParseAddrPort("203.0.113.1:0")},
		"ip protocol tcp ip saddr 198.51.100.1 ip daddr 203.0.113.1 tcp sport 20000 tcp dport 80": {Protocol: "tcp",
			Src: netip.AddrPortFrom(topo.HostAddr, 20000), Dst: netip.MustParseAddrPort("203.0.113.1:80")},
		"ip6 nexthdr tcp ip6 saddr 2001:db8:100::1 ip6 daddr 2001:db8:113::1 tcp dport 80": {Protocol: "tcp",
			Src: netip.MustParseAddrPort("[2001:db8:100::1]:0"), Dst: netip.MustParseAddrPort("[2001:db8:113::1]:80")},
	} {
		if got := w.match(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestSinkCounts: what is as wanted, and nothing else, and from 0 again after the next Aim.
func TestSinkCounts(t *testing.T) {
	lab, err := NewLab(t.Context(), topo.ForTest(t), family.V4)
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort("192.0.2.1:5000")
	if err := lab.Host.AddAddr("lo", "192.0.2.1/32"); err != nil {
		t.Fatal(err)
	}
	sender, err := lab.Host.ListenUDP(local) // a connected one would report a refusal in place of the next packet
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	sink := SinkInHost(lab)
	for dst, want := range map[string]uint64{"192.0.2.1:9": 3, "192.0.2.1:10": 0, "192.0.2.2:9": 0} {
		if err := sink.Aim(t.Context(), Want{Protocol: "udp", Src: local, Dst: netip.MustParseAddrPort(dst)}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := sender.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort("192.0.2.1:9")); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := sink.Count(); n != want || err != nil {
			t.Errorf("%d packets to %s, want %d: %v", n, dst, want, err)
		}
	}
}

// TestCompared: a name says which topology it is of, so that ratios are of the same one.
func TestCompared(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Compared("", Scale{}) {
		if seen[c.Name] {
			t.Errorf("there are two %s", c.Name)
		}
		seen[c.Name] = true
		if strings.HasPrefix(c.Name, Gateway) != c.Routed {
			t.Errorf("%s: routed %v", c.Name, c.Routed)
		}
		if c.Translates && !c.Proxy && c.End == nil {
			t.Errorf("nothing ends the sessions of %s", c.Name)
		}
	}
	for contender, want := range map[string]string{Direct: NFTables, Gateway + Direct: Gateway + NFTables, Generator: "", GeneratorXDP: ""} {
		if got := Peer(contender, NFTables); got != want {
			t.Errorf("%s is compared with %q, want %q", contender, got, want)
		}
	}
}

// TestLabs: both topologies are built in both families, and take a contender.
func TestLabs(t *testing.T) {
	for name, build := range map[string]func(context.Context, *topo.Topo, family.Family) (*Lab, error){"Bridge": NewLab, "Routed": NewRoutedLab} {
		t.Run(name, func(t *testing.T) {
			family.Each(t, func(t *testing.T, fam family.Family) {
				lab, err := build(t.Context(), topo.ForTest(t), fam)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(masquerade(t.Context(), lab), lab.Open(t.Context())); err != nil {
					t.Fatal(err)
				}
				if seen := seenOutside(t, lab); seen != lab.External() {
					t.Errorf("seen from outside as %v, want %v", seen, lab.External())
				}
			})
		})
	}
}

// seenOutside is the address of a connection from inside.
func seenOutside(t *testing.T, lab *Lab) netip.Addr {
	t.Helper()
	server := netip.AddrPortFrom(lab.Outside.Addr, 80)
	listener, err := lab.Outside.NS.ListenTCP(server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := lab.Inside.NS.DialTCP(netip.AddrPort{}, server)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
}
