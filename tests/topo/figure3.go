// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// The addresses of Figure 3.
var (
	HostAddr      = netip.MustParseAddr("198.51.100.1")
	RouterAddr    = netip.MustParseAddr("198.51.100.254")
	Peer1Addr     = netip.MustParseAddr("203.0.113.1")
	Peer2Addr     = netip.MustParseAddr("203.0.113.2")
	SymmetricAddr = netip.MustParseAddr("203.0.113.3") // external address of peer 3's NAT
	Peer3Addr     = netip.MustParseAddr("10.99.0.2")
	GatewayAddr   = netip.MustParseAddr("172.17.0.1")
)

// Figure3Config says what NewFigure3 builds. The zero value is the host without containers, for a dockerd
// that makes its own; the host does not forward then, for dockerd sets FORWARD's policy to DROP only where it
// is the one that switches forwarding on.
type Figure3Config struct {
	Containers     int  // on docker0 in 172.17.0.0/16, from 172.17.0.2 up; 0: no docker0 either
	Net2Containers int  // on net2 in 172.18.0.0/16, from 172.18.0.2 up; 0: no net2
	UplinkMTU      int  // of host and router, in bytes; 0: 1500
	SymmetricPeer  bool // Peer3, behind a symmetric NAT
	IPv6           bool // each address and route has its twin in IPv6 (tests/family), beside IPv4
}

// Figure3 is
//
//	c1, c2 ── docker0 ─ host ─ eth0 ──── router ──┬── peer1  203.0.113.1
//	172.17.0.2, .3       198.51.100.1    .254     ├── peer2  203.0.113.2
//	n1, n2 ── net2 ─┘                             └── 203.0.113.3 symmetric NAT ── peer3 10.99.0.2
//	172.18.0.2, .3
type Figure3 struct {
	*Topo
	Host, Router, Peer1, Peer2 *NS
	SymmetricNAT, Peer3        *NS   // nil without SymmetricPeer
	Containers, Net2           []*NS // eth0 in each

	uplinkMTU int
	uplinks   []*Uplink // that AddUplink made
}

// NewFigure3 builds Figure 3 in t. Neither the router nor the host translates anything yet.
func NewFigure3(t *Topo, cfg Figure3Config) (*Figure3, error) {
	if cfg.IPv6 {
		t.EnableIPv6()
	}
	f := &Figure3{Topo: t, uplinkMTU: cfg.UplinkMTU}
	steps := []func() error{
		f.namespaces,
		func() error { return f.Uplink().Restore() },
		func() error { return f.peer(f.Peer1, Peer1Addr) },
		func() error { return f.peer(f.Peer2, Peer2Addr) },
		func() (err error) {
			f.Containers, err = f.bridge("docker0", "c", "172.17.0", cfg.Containers)
			return err
		},
		func() (err error) {
			f.Net2, err = f.bridge("net2", "n", "172.18.0", cfg.Net2Containers)
			return err
		},
	}
	if cfg.SymmetricPeer {
		steps = append(steps, f.symmetricPeer)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("build figure 3: %w", err)
		}
	}
	return f, nil
}

// Figure3ForTest is ForTest and NewFigure3.
func Figure3ForTest(t TB, cfg Figure3Config) *Figure3 {
	t.Helper()
	f, err := NewFigure3(ForTest(t), cfg)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return f
}

func (f *Figure3) namespaces() error {
	for name, ns := range map[string]**NS{"host": &f.Host, "router": &f.Router, "peer1": &f.Peer1, "peer2": &f.Peer2} {
		var err error
		if *ns, err = f.NewNS(name); err != nil {
			return err
		}
	}
	return errors.Join(
		f.Router.Forward(),
		f.Router.AddBridge("lan", "203.0.113.254/24"),
	)
}

// peer puts a namespace into the peers' network, routed by the router.
func (f *Figure3) peer(ns *NS, addr netip.Addr) error {
	last := addr.As4()[3]
	err := f.Link(
		End{NS: ns, Name: "eth0", Addr: addr.String() + "/24"},
		End{NS: f.Router, Name: fmt.Sprintf("lan%d", last), Master: "lan"}, 0)
	if err != nil {
		return err
	}
	return ns.AddRoute("default", "203.0.113.254")
}

// bridge makes an inside network of count containers as Docker does.
func (f *Figure3) bridge(name, prefix, net24 string, count int) ([]*NS, error) {
	if count == 0 {
		return nil, nil
	}
	gateway := net24 + ".1"
	err := errors.Join(f.Host.AddBridge(name, gateway+"/16"), f.Host.Forward())
	if err != nil {
		return nil, err
	}
	var containers []*NS
	for i := 1; i <= count; i++ {
		ns, err := f.AddContainer(fmt.Sprintf("%s%d", prefix, i), name, fmt.Sprintf("%s.%d", net24, i+1), gateway)
		if err != nil {
			return nil, err
		}
		containers = append(containers, ns)
	}
	return containers, nil
}

// AddContainer makes a namespace with eth0 on a bridge of the host, whose end is called veth-NAME, and a
// default route; addr is in a /16.
func (f *Figure3) AddContainer(name, bridge, addr, gateway string) (*NS, error) {
	ns, err := f.NewNS(name)
	if err != nil {
		return nil, err
	}
	err = f.Link(
		End{NS: f.Host, Name: "veth-" + name, Master: bridge},
		End{NS: ns, Name: "eth0", Addr: addr + "/16"}, 0)
	if err != nil {
		return nil, err
	}
	return ns, ns.AddRoute("default", gateway)
}

// A symmetric NAT as home routers are: another external port for every destination, and what was not asked
// for is dropped, so that no conntrack entry stays of it; but for neighbour discovery, which IPv4 has none of.
const symmetricRules = `
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "wan" masquerade fully-random
	}
}
table ip filter {
	chain forward {
		type filter hook forward priority filter; policy drop
		iifname "lan" accept
		ct state established,related accept
	}
	chain input {
		type filter hook input priority filter; policy drop
		ct state established,related accept
		iifname "lan" accept
		meta l4proto ipv6-icmp accept
	}
}
`

func (f *Figure3) symmetricPeer() (err error) {
	if f.SymmetricNAT, err = f.NewNS("symnat"); err != nil {
		return err
	}
	if f.Peer3, err = f.NewNS("peer3"); err != nil {
		return err
	}
	err = f.Link(
		End{NS: f.SymmetricNAT, Name: "wan", Addr: SymmetricAddr.String() + "/24"},
		End{NS: f.Router, Name: "lan3", Master: "lan"}, 0)
	if err != nil {
		return err
	}
	err = f.Link(
		End{NS: f.SymmetricNAT, Name: "lan", Addr: "10.99.0.1/24"},
		End{NS: f.Peer3, Name: "eth0", Addr: Peer3Addr.String() + "/24"}, 0)
	if err != nil {
		return err
	}
	for _, fam := range f.SymmetricNAT.Families() {
		if _, err := f.SymmetricNAT.Run(context.Background(), fam.Rules(symmetricRules), "nft", "-f", "-"); err != nil {
			return err
		}
	}
	return errors.Join(
		f.SymmetricNAT.Forward(),
		f.SymmetricNAT.AddRoute("default", "203.0.113.254"),
		f.Peer3.AddRoute("default", "10.99.0.1"),
	)
}
