// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// Port is an interface at the lab's edge, where packets are sent from and end.
type Port struct {
	NS      *topo.NS
	Name    string
	Addr    netip.Addr
	MAC     net.HardwareAddr
	Gateway net.HardwareAddr // the host's, to which its packets go
}

// Lab is
//
//	Inside, Inside2 ── docker0 ─ host ─ eth0 ── Outside          Generator ── GeneratorEnd
//	172.17.0.2, .3          198.51.100.1       router, for 203.0.113.0/24
//
// in IPv4, or the same places' addresses in IPv6 (package family).
//
// No packet but those of the measurement is on the way: neighbours are permanent, the bridge hands nothing to
// br_netfilter, and what arrives at a port is dropped, so that no stack behind it answers. The generator's pair
// leads nowhere: what it takes to send into it is what sending takes.
type Lab struct {
	*topo.Topo
	Family                   family.Family
	Host                     *topo.NS
	Inside, Inside2, Outside Port
	Generator, GeneratorEnd  Port
}

// NewLab builds the topology in t.
func NewLab(ctx context.Context, t *topo.Topo, fam family.Family) (*Lab, error) {
	f, err := topo.NewFigure3(t, topo.Figure3Config{Containers: 2, IPv6: fam == family.V6})
	if err != nil {
		return nil, err
	}
	l := &Lab{Topo: t, Family: fam, Host: f.Host,
		Inside:  Port{NS: f.Containers[0], Name: "eth0", Addr: fam.Addr(netip.MustParseAddr("172.17.0.2"))},
		Inside2: Port{NS: f.Containers[1], Name: "eth0", Addr: fam.Addr(netip.MustParseAddr("172.17.0.3"))},
		Outside: Port{NS: f.Router, Name: "wan", Addr: fam.Addr(topo.RouterAddr)},
	}
	err = errors.Join(
		l.quietBridge(),
		l.join(&l.Inside, "docker0"),
		l.join(&l.Inside2, "docker0"),
		l.join(&l.Outside, "eth0"),
		l.generator(),
	)
	for _, p := range []Port{l.Inside, l.Inside2, l.Outside, l.GeneratorEnd} {
		if err == nil {
			err = SinkAt(p).aim(ctx, "")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("build the lab: %w", err)
	}
	return l, nil
}

func (l *Lab) generator() (err error) {
	l.Generator.Name, l.GeneratorEnd.Name = "eth0", "eth0"
	if l.Generator.NS, err = l.NewNS("gen"); err != nil {
		return err
	}
	if l.GeneratorEnd.NS, err = l.NewNS("genend"); err != nil {
		return err
	}
	if err := l.Link(topo.End{NS: l.Generator.NS, Name: "eth0"}, topo.End{NS: l.GeneratorEnd.NS, Name: "eth0"}, 0); err != nil {
		return err
	}
	if l.Generator.MAC, err = hardwareAddr(l.Generator.NS, "eth0"); err != nil {
		return err
	}
	l.Generator.Gateway, err = hardwareAddr(l.GeneratorEnd.NS, "eth0")
	return err
}

func hardwareAddr(ns *topo.NS, name string) (net.HardwareAddr, error) {
	link, err := ns.Netlink().LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s in %s: %w", name, ns.Name, err)
	}
	return link.Attrs().HardwareAddr, nil
}

// quietBridge: with br_netfilter loaded, each frame on a bridge would pass netfilter twice. Docker's bridges do not
// need it, and which kernel has it loaded is chance.
func (l *Lab) quietBridge() error {
	err := l.Host.Sysctl("net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// join makes a port and the host's interface known to each other.
func (l *Lab) join(p *Port, gateway string) (err error) {
	if p.MAC, err = hardwareAddr(p.NS, p.Name); err != nil {
		return err
	}
	if p.Gateway, err = hardwareAddr(l.Host, gateway); err != nil {
		return err
	}
	index, err := l.Host.IfIndex(gateway)
	if err != nil {
		return err
	}
	return l.Host.Netlink().NeighSet(&netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, IP: p.Addr.AsSlice(), HardwareAddr: p.MAC,
	})
}

// External is the address that contenders translate to.
func (l *Lab) External() netip.Addr { return l.Family.Addr(topo.HostAddr) }

// Source is the address that a packet from inside has outside.
func (l *Lab) Source(c Contender, inside netip.Addr) netip.Addr {
	if c.Translates {
		return l.External()
	}
	return inside
}

// IfIndex is the port's.
func (p Port) IfIndex() (int, error) { return p.NS.IfIndex(p.Name) }
