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
//
// A routed lab has a plain interface in place of the bridge, lan0, with Inside at its other end and no Inside2: a gateway with
// two network cards.
type Lab struct {
	*topo.Topo
	Family                   family.Family
	Host                     *topo.NS
	Inside, Inside2, Outside Port
	Generator, GeneratorEnd  Port
	InsideDevice             string // the host's, with the inside's gateway address
	InsidePort               string // the host's end of Inside
	StateDir, Socket         string // of a conenat that was started

	process *topo.Process // of it
}

// OutsideDevice is the host's.
const OutsideDevice = "eth0"

// NewLab builds the topology in t.
func NewLab(ctx context.Context, t *topo.Topo, fam family.Family) (*Lab, error) {
	f, err := topo.NewFigure3(t, topo.Figure3Config{Containers: 2, IPv6: fam == family.V6})
	if err != nil {
		return nil, err
	}
	l := newLab(f, fam, f.Containers[0], "docker0", "veth-c1")
	l.Inside2.NS = f.Containers[1]
	return l, l.build(ctx, l.quietBridge, func() error { return l.join(&l.Inside2, l.InsideDevice) })
}

// NewRoutedLab builds a routed lab in t.
func NewRoutedLab(ctx context.Context, t *topo.Topo, fam family.Family) (*Lab, error) {
	f, err := topo.NewFigure3(t, topo.Figure3Config{IPv6: fam == family.V6})
	if err != nil {
		return nil, err
	}
	inside, err := t.NewNS("c1")
	if err != nil {
		return nil, err
	}
	l := newLab(f, fam, inside, "lan0", "lan0")
	return l, l.build(ctx, func() error {
		near := topo.End{NS: f.Host, Name: l.InsideDevice, Addr: topo.GatewayAddr.String() + "/16"}
		far := topo.End{NS: inside, Name: l.Inside.Name, Addr: "172.17.0.2/16"}
		if err := l.Link(near, far, 0); err != nil {
			return err
		}
		return errors.Join(inside.AddRoute("default", topo.GatewayAddr.String()), f.Host.Forward())
	})
}

// Lab is the one that a contender is for. What XDP redirects keeps no partial checksum, so that the ends make whole ones where
// it does, and take frames of XDP.
func (c Contender) Lab(ctx context.Context, t *topo.Topo, fam family.Family) (*Lab, error) {
	build := NewLab
	if c.Routed {
		build = NewRoutedLab
	}
	l, err := build(ctx, t, fam)
	if err != nil || !c.XDP {
		return l, err
	}
	for _, end := range []Port{l.Inside, l.Outside} {
		if err := errors.Join(end.NS.TransmitOffload(end.Name, false), end.NS.SetGRO(end.Name, true)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func newLab(f *topo.Figure3, fam family.Family, inside *topo.NS, device, port string) *Lab {
	return &Lab{Topo: f.Topo, Family: fam, Host: f.Host, InsideDevice: device, InsidePort: port,
		Inside:  Port{NS: inside, Name: "eth0", Addr: fam.Addr(netip.MustParseAddr("172.17.0.2"))},
		Inside2: Port{Name: "eth0", Addr: fam.Addr(netip.MustParseAddr("172.17.0.3"))},
		Outside: Port{NS: f.Router, Name: "wan", Addr: fam.Addr(topo.RouterAddr)},
	}
}

// build takes the steps of the topology's own, and those of all.
func (l *Lab) build(ctx context.Context, own ...func() error) error {
	for _, step := range append(own,
		func() error { return l.join(&l.Inside, l.InsideDevice) },
		func() error { return l.join(&l.Outside, OutsideDevice) },
		l.generator,
		func() error { return l.eachEnd(func(s Sink) error { return s.aim(ctx, "") }) },
	) {
		if err := step(); err != nil {
			return fmt.Errorf("build the lab: %w", err)
		}
	}
	return nil
}

// eachEnd does something with the sinks at the lab's ends.
func (l *Lab) eachEnd(do func(Sink) error) error {
	for _, p := range []Port{l.Inside, l.Inside2, l.Outside, l.GeneratorEnd} {
		if p.NS == nil {
			continue
		}
		if err := do(SinkAt(p)); err != nil {
			return err
		}
	}
	return nil
}

// Open takes the sinks away, and gives Outside the way back to the inside's own addresses: from then on sockets at the ends talk
// to each other.
func (l *Lab) Open(ctx context.Context) error {
	if err := l.eachEnd(func(s Sink) error { return s.remove(ctx) }); err != nil {
		return fmt.Errorf("open the lab: %w", err)
	}
	return l.Outside.NS.AddRoute("172.17.0.0/16", topo.HostAddr.String())
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
