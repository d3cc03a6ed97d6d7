// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// Uplink is one of the host's ways to the peers.
type Uplink struct {
	Name    string     // interface in the host
	Host    netip.Addr // the host's address, in a /24
	Gateway netip.Addr // the router's address in it
	Router  *NS

	figure *Figure3
	far    string // interface in the router
	mtu    int
	make   func(near, far End, mtu int) error
	unmake func(near, far End) error
	main   bool // has the main table's default route
}

// UplinkConfig says what AddUplink makes. Tun and VLANOnBond exclude each other.
type UplinkConfig struct {
	Name       string // interface in the host; "BOND.ID" with VLANOnBond
	OwnRouter  bool   // reaches the peers by a router of its own, not by Figure3.Router
	Tun        bool   // TUN devices on both ends: no Ethernet header
	VLANOnBond bool   // VLAN ID on BOND of two veth pairs; see BondVLANLink
	MTU        int    // in bytes; 0: 1500
}

// Uplink is the first one, eth0, by which the main table's default route leads.
func (f *Figure3) Uplink() *Uplink {
	return &Uplink{Name: "eth0", Host: HostAddr, Gateway: RouterAddr, Router: f.Router,
		figure: f, far: "wan", mtu: f.uplinkMTU, make: f.Link, unmake: unlink, main: true}
}

// AddUplink gives the host another uplink, with the address 198.18.N.1/24 and its gateway 198.18.N.254, N counting
// from 1. The peers' answers to its addresses come back by it. No route of the host's leads to it yet: see NS.IP.
func (f *Figure3) AddUplink(cfg UplinkConfig) (*Uplink, error) {
	n := byte(len(f.uplinks) + 1)
	u := &Uplink{Name: cfg.Name, Host: netip.AddrFrom4([4]byte{198, 18, n, 1}), Gateway: netip.AddrFrom4([4]byte{198, 18, n, 254}),
		Router: f.Router, figure: f, far: fmt.Sprintf("wan%d", n), mtu: cfg.MTU, make: f.Link, unmake: unlink}
	switch {
	case cfg.Tun:
		u.make = f.TunLink
	case cfg.VLANOnBond:
		u.make, u.unmake, u.far = f.BondVLANLink, unlinkBondVLAN, fmt.Sprintf("wan%d.%s", n, afterDot(cfg.Name))
	}
	if cfg.OwnRouter {
		if err := f.ownRouter(u, n); err != nil {
			return nil, fmt.Errorf("add a router for uplink %s: %w", u.Name, err)
		}
	}
	if err := u.Restore(); err != nil {
		return nil, err
	}
	f.uplinks = append(f.uplinks, u)
	return u, nil
}

func afterDot(name string) string {
	_, id, _ := strings.Cut(name, ".")
	return id
}

// ownRouter puts a second router into the peers' network, and tells the peers what is behind it.
func (f *Figure3) ownRouter(u *Uplink, n byte) (err error) {
	if u.Router, err = f.NewNS(fmt.Sprintf("router%d", n+1)); err != nil {
		return err
	}
	addr := netip.AddrFrom4([4]byte{203, 0, 113, 254 - n})
	err = f.Link(
		End{NS: u.Router, Name: "lan", Addr: addr.String() + "/24"},
		End{NS: f.Router, Name: fmt.Sprintf("lanr%d", n), Master: "lan"}, 0)
	if err != nil {
		return err
	}
	subnet := netip.PrefixFrom(u.Host, 24).Masked().String()
	return errors.Join(
		u.Router.Forward(),
		f.Peer1.AddRoute(subnet, addr.String()),
		f.Peer2.AddRoute(subnet, addr.String()),
	)
}

// Delete removes the interface, as a driver that is unloaded does; its addresses and routes go with it, and so does
// the router's end.
func (u *Uplink) Delete() error { return u.unmake(u.ends()) }

func (u *Uplink) ends() (near, far End) {
	return End{NS: u.figure.Host, Name: u.Name, Addr: u.Host.String() + "/24"},
		End{NS: u.Router, Name: u.far, Addr: u.Gateway.String() + "/24"}
}

// unlink deletes one end, and waits for the other one to follow.
func unlink(near, far End) error {
	if err := near.NS.DeleteLink(near.Name); err != nil {
		return err
	}
	return Poll(context.Background(), 2*time.Second, "removal of the other end of "+near.Name, func() (bool, error) {
		_, err := far.NS.link(far.Name)
		var notFound netlink.LinkNotFoundError
		return errors.As(err, &notFound), err
	})
}

// Restore makes the interface (anew, after Delete): the name and address are the same, and the default route if it had
// it; the index and the MAC address are not.
func (u *Uplink) Restore() error {
	near, far := u.ends()
	if err := u.make(near, far, u.mtu); err != nil {
		return fmt.Errorf("make uplink %s: %w", u.Name, err)
	}
	if !u.main {
		return nil
	}
	return u.figure.Host.AddRoute("default", u.Gateway.String())
}

// SetMTU sets the MTU of both ends, in bytes.
func (u *Uplink) SetMTU(mtu int) error {
	u.mtu = mtu
	return errors.Join(u.figure.Host.SetMTU(u.Name, mtu), u.Router.SetMTU(u.far, mtu))
}

// BondVLANLink joins two namespaces by a VLAN on bonds of two veth pairs. The ends are called BOND.ID, with one ID.
// MTU 0 is the kernel's. A test requires Bonding and VLAN of the kernel (tests/require).
func (t *Topo) BondVLANLink(a, b End, mtu int) error {
	var id int
	if _, err := fmt.Sscanf(afterDot(a.Name), "%d", &id); err != nil || afterDot(a.Name) != afterDot(b.Name) {
		return fmt.Errorf("ends %s and %s: call both of them BOND.ID, with one VLAN ID", a.Name, b.Name)
	}
	for _, e := range []End{a, b} {
		if err := e.addBond(mtu); err != nil {
			return err
		}
	}
	for i := range 2 {
		nearPort, farPort := a.bondPort(i), b.bondPort(i)
		if err := t.Link(End{NS: a.NS, Name: nearPort}, End{NS: b.NS, Name: farPort}, mtu); err != nil {
			return err
		}
		if err := errors.Join(a.enslaveToBond(nearPort), b.enslaveToBond(farPort)); err != nil {
			return err
		}
	}
	for _, e := range []End{a, b} {
		if err := e.addVLAN(id); err != nil {
			return err
		}
	}
	return nil
}

// unlinkBondVLAN undoes BondVLANLink: a VLAN goes with its bond, but a bond's ports do not.
func unlinkBondVLAN(near, far End) error {
	return errors.Join(
		near.NS.DeleteLink(near.bond()), far.NS.DeleteLink(far.bond()),
		near.NS.DeleteLink(near.bondPort(0)), near.NS.DeleteLink(near.bondPort(1)),
	)
}

func (e End) bond() string { return strings.TrimSuffix(e.Name, "."+afterDot(e.Name)) }

func (e End) bondPort(i int) string { return fmt.Sprintf("%sp%d", e.bond(), i) }

func (e End) addBond(mtu int) error {
	bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: e.bond(), MTU: mtu})
	bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 100
	if err := e.NS.nl.LinkAdd(bond); err != nil {
		return fmt.Errorf("make bond %s in namespace %s: %w", e.bond(), e.NS.Name, err)
	}
	return e.NS.Up(e.bond())
}

// enslaveToBond: a bond takes ports only while they are down.
func (e End) enslaveToBond(port string) error {
	if err := e.NS.Down(port); err != nil {
		return err
	}
	return e.NS.Enslave(port, e.bond())
}

func (e End) addVLAN(id int) error {
	parent, err := e.NS.IfIndex(e.bond())
	if err != nil {
		return err
	}
	vlan := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: e.Name, ParentIndex: parent}, VlanId: id}
	if err := e.NS.nl.LinkAdd(vlan); err != nil {
		return fmt.Errorf("make VLAN %s in namespace %s: %w", e.Name, e.NS.Name, err)
	}
	return e.configure()
}
