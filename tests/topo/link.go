// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
)

// End is one end of a veth pair.
type End struct {
	NS     *NS
	Name   string
	Addr   string // with prefix length; empty for none
	Master string // bridge in NS; empty for none
}

// Link joins two namespaces by a veth pair and sets both ends up. MTU 0 is the kernel's (1500).
func (t *Topo) Link(a, b End, mtu int) error {
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: a.Name, MTU: mtu},
		PeerName:      b.Name,
		PeerMTU:       uint32(mtu),
		PeerNamespace: netlink.NsFd(int(b.NS.fd)),
	}
	if err := a.NS.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth pair %s in %s, %s in %s: %w", a.Name, a.NS.Name, b.Name, b.NS.Name, err)
	}
	if err := a.configure(); err != nil {
		return err
	}
	return b.configure()
}

func (e End) configure() error {
	if e.Master != "" {
		if err := e.NS.Enslave(e.Name, e.Master); err != nil {
			return err
		}
	}
	if e.Addr != "" {
		if err := e.NS.AddAddr(e.Name, e.Addr); err != nil {
			return err
		}
	}
	return e.NS.Up(e.Name)
}

// Netlink is a handle inside the namespace, for what has no method here.
func (ns *NS) Netlink() *netlink.Handle { return ns.nl }

// link looks an interface up by name.
func (ns *NS) link(name string) (netlink.Link, error) {
	link, err := ns.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s in namespace %s: %w", name, ns.Name, err)
	}
	return link, nil
}

// onLink looks name up and wraps the error of do.
func (ns *NS) onLink(name, what string, do func(netlink.Link) error) error {
	link, err := ns.link(name)
	if err != nil {
		return err
	}
	if err := do(link); err != nil {
		return fmt.Errorf("%s %s in namespace %s: %w", what, name, ns.Name, err)
	}
	return nil
}

// IfIndex is an interface's index.
func (ns *NS) IfIndex(name string) (int, error) {
	link, err := ns.link(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// AddBridge makes a bridge that is up, with an address if addr is not empty.
func (ns *NS) AddBridge(name, addr string) error {
	if err := ns.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
		return fmt.Errorf("make bridge %s in namespace %s: %w", name, ns.Name, err)
	}
	return End{NS: ns, Name: name, Addr: addr}.configure()
}

// Up sets an interface up.
func (ns *NS) Up(name string) error { return ns.onLink(name, "set up", ns.nl.LinkSetUp) }

// Down sets an interface down.
func (ns *NS) Down(name string) error { return ns.onLink(name, "set down", ns.nl.LinkSetDown) }

// DeleteLink removes an interface.
func (ns *NS) DeleteLink(name string) error { return ns.onLink(name, "delete", ns.nl.LinkDel) }

// SetMTU sets an interface's MTU in bytes.
func (ns *NS) SetMTU(name string, mtu int) error {
	return ns.onLink(name, fmt.Sprintf("set MTU %d on", mtu), func(l netlink.Link) error { return ns.nl.LinkSetMTU(l, mtu) })
}

// Enslave makes an interface a port of a bridge.
func (ns *NS) Enslave(name, bridge string) error {
	master, err := ns.link(bridge)
	if err != nil {
		return err
	}
	return ns.onLink(name, "make a port of "+bridge+":", func(l netlink.Link) error { return ns.nl.LinkSetMaster(l, master) })
}

// inEach does something with IPv4 addresses in a text, and where the namespace has IPv6 with what they are in it, too.
func (ns *NS) inEach(text string, do func(text string) error) error {
	err := do(text)
	if twin := family.V6.Text(text); err == nil && ns.ipv6 && twin != text {
		err = do(twin)
	}
	return err
}

// AddAddr adds an address with prefix length; where the namespace has IPv6, what tests/family says that an IPv4 address is in
// it, too.
func (ns *NS) AddAddr(name, addr string) error {
	return ns.inEach(addr, func(addr string) error {
		parsed, err := netlink.ParseAddr(addr)
		if err != nil {
			return fmt.Errorf("address for %s: %w", name, err)
		}
		if family.Of(netip.MustParsePrefix(addr).Addr()) == family.V6 {
			parsed.Flags = unix.IFA_F_NODAD
		}
		return ns.onLink(name, "add address "+addr+" to", func(l netlink.Link) error { return ns.nl.AddrAdd(l, parsed) })
	})
}

// DeleteAddr removes an address with prefix length, and what AddAddr has added with it.
func (ns *NS) DeleteAddr(name, addr string) error {
	return ns.inEach(addr, func(addr string) error {
		parsed, err := netlink.ParseAddr(addr)
		if err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
		return ns.onLink(name, "remove address "+addr+" from", func(l netlink.Link) error { return ns.nl.AddrDel(l, parsed) })
	})
}

// AddRoute adds a route by a gateway, in both families as AddAddr does; dst "default" is everything.
func (ns *NS) AddRoute(dst, via string) error {
	return ns.inEach(dst+" "+via, func(both string) error {
		dst, via, _ := strings.Cut(both, " ")
		return ns.addRoute(dst, via)
	})
}

func (ns *NS) addRoute(dst, via string) error {
	gw, err := netip.ParseAddr(via)
	if err != nil {
		return fmt.Errorf("gateway of route %s: %w", dst, err)
	}
	route := &netlink.Route{Gw: net.IP(gw.AsSlice())}
	if dst != "default" {
		if route.Dst, err = netlink.ParseIPNet(dst); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	if err := ns.nl.RouteAdd(route); err != nil {
		return fmt.Errorf("add route %s via %s in namespace %s: %w", dst, via, ns.Name, err)
	}
	return nil
}

// IP runs ip(8) in the namespace, each line of commands one command: "rule add from 172.18.0.0/16 lookup 100".
func (ns *NS) IP(ctx context.Context, commands string) error {
	_, err := ns.Run(ctx, commands, "ip", "-batch", "-")
	return err
}

// IPIn is IP for rules and routes of a family, whose addresses the commands are given.
func (ns *NS) IPIn(ctx context.Context, f family.Family, commands string) error {
	_, err := ns.Run(ctx, f.Text(commands), "ip", f.Network("-"), "-batch", "-")
	return err
}
