// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
)

func TestUplinks(t *testing.T) { both(t, testUplinks) }

func testUplinks(t *testing.T, fam family.Family) {
	for _, cfg := range []UplinkConfig{
		{Name: "eth1"},
		{Name: "eth1", OwnRouter: true, MTU: 1300},
		{Name: "tun0", Tun: true},
		{Name: "tun0", Tun: true, OwnRouter: true, MTU: 1300},
		{Name: "bond0.100", VLANOnBond: true, OwnRouter: true},
	} {
		t.Run(fmt.Sprintf("%+v", cfg), func(t *testing.T) {
			if cfg.VLANOnBond {
				require.Kernel(t, require.Bonding, require.VLAN)
			}
			f := Figure3ForTest(t, Figure3Config{IPv6: fam == family.V6})
			u, err := f.AddUplink(cfg)
			must(t, err)
			must(t, f.Host.IPIn(t.Context(), fam, fmt.Sprintf("rule add from %s lookup 100\nroute add default via %s table 100\n", u.Host, u.Gateway)))
			f.echo(t, fam.Addr(u.Host))
			f.echo(t, fam.Addr(HostAddr))
			before, err := f.Host.IfIndex(u.Name)
			must(t, err)
			must(t, u.Delete())
			must(t, u.Restore())
			must(t, f.Host.IPIn(t.Context(), fam, fmt.Sprintf("route add default via %s table 100\n", u.Gateway)))
			if after, err := f.Host.IfIndex(u.Name); err != nil || after == before {
				t.Errorf("index %d after %d: %v", after, before, err)
			}
			f.echo(t, fam.Addr(u.Host))
			must(t, u.SetMTU(1400))
			f.echo(t, fam.Addr(u.Host))
		})
	}
}

func TestFirstUplinkMadeAnew(t *testing.T) {
	f := Figure3ForTest(t, Figure3Config{UplinkMTU: 1400})
	u := f.Uplink()
	must(t, u.Delete())
	must(t, u.Restore())
	f.echo(t, HostAddr)
	if link, err := f.Host.link(u.Name); err != nil || link.Attrs().MTU != 1400 {
		t.Errorf("MTU of %v: %v", link, err)
	}
}

// echo sends a datagram to a peer from one of the host's addresses, and hears it come back.
func (f *Figure3) echo(t *testing.T, from netip.Addr) {
	t.Helper()
	server, err := f.Peer1.ListenUDP(netip.AddrPort{})
	must(t, err)
	defer server.Close()
	client, err := f.Host.DialUDP(netip.AddrPortFrom(from, 0), netip.AddrPortFrom(family.Of(from).Addr(Peer1Addr), port(server)))
	must(t, err)
	defer client.Close()
	_, err = client.Write(make([]byte, 1000))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(patience.For(2*time.Second))))
	packet := make([]byte, 2000)
	n, source, err := server.ReadFromUDPAddrPort(packet)
	must(t, err)
	if source.Addr().Unmap() != from {
		t.Errorf("peer saw %v, want %v", source, from)
	}
	_, err = server.WriteToUDPAddrPort(packet[:n], source)
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(patience.For(2*time.Second))))
	if n, err := client.Read(packet); err != nil || n != 1000 {
		t.Errorf("answer of %d bytes: %v", n, err)
	}
}

func port(s interface{ LocalAddr() net.Addr }) uint16 {
	return s.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
