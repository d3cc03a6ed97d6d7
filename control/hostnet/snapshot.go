// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/dataplane"
)

// Snapshot is the host's network at one moment.
//
// Default is every interface, each once and no loopback, that holds a unicast default route in a routing table
// that an `ip rule` leads to: the main table's first, then the other tables' by the priority of the first rule
// that leads to them (a rule's selectors, "from", "fwmark" or "iif", are not looked at: some packet may match).
// Within a table only the lowest metric counts, and nexthops that the kernel calls dead do not. Left out are
// rules that suppress default routes (suppress_prefixlength), those to l3mdev tables (VRFs), and a pair of /1
// routes.
type Snapshot struct {
	Links       []Link // by index
	Default     []int  // indices of the interfaces that hold an IPv4 default route
	Default6    []int  // the same of IPv6, of the routes that router advertisements have made too
	IPForward   bool   // net.ipv4.ip_forward
	Shared      []Shared
	IPv6Forward bool // net.ipv6.conf.all.forwarding; false without IPv6
}

// Link is one interface.
type Link struct {
	Index     int
	Name      string
	Kind      string // "bridge", "veth", "device", …: the kernel's IFLA_INFO_KIND
	Master    int    // index of the bridge or bond that it is a port of; 0: none
	MAC       net.HardwareAddr
	MTU       int
	Loopback  bool
	Up        bool // administratively (IFF_UP); says nothing of the carrier
	PeerNetns bool // a veth whose other end is in another network namespace
	PeerNSID  int  // this namespace's number for the one that the other end or lower device is in (IFLA_LINK_NETNSID); -1: none
	Layer3    bool // packets carry no Ethernet header (wg, tun, ppp)

	// StrictSource: packets whose source the host's IPv4 routing finds elsewhere are dropped, and ARP is not answered
	// (rp_filter). Looked at where prefixes are Shared alone.
	StrictSource bool

	// Addresses of global scope with their prefix lengths: those of IPv4, the primary one first, then those of IPv6 that
	// may be used, the best one for a NAT first: one that is not deprecated, no unique local one (RFC 4193), none of those
	// that change by themselves: temporary ones (RFC 8981), and those with a lifetime. The first two are rules 3 and 6 of
	// RFC 6724 section 5; rule 7 prefers a temporary address, which would end every binding with it once a day.
	Addresses []netip.Prefix

	// Tentative are addresses of IPv6 that duplicate address detection has not passed (yet): none of them may be used, but
	// their networks are the link's. On a bridge without ports it does not begin.
	Tentative []netip.Prefix
}

// Link finds an interface by its name.
func (s Snapshot) Link(name string) (Link, bool) {
	return s.find(func(l Link) bool { return l.Name == name })
}

// LinkAt finds an interface by its index.
func (s Snapshot) LinkAt(index int) (Link, bool) {
	return s.find(func(l Link) bool { return l.Index == index })
}

func (s Snapshot) find(match func(Link) bool) (Link, bool) {
	i := slices.IndexFunc(s.Links, match)
	if i < 0 {
		return Link{}, false
	}
	return s.Links[i], true
}

// Ports are the links whose master is the interface with this index.
func (s Snapshot) Ports(master int) (ports []Link) {
	for _, l := range s.Links {
		if master != 0 && l.Master == master {
			ports = append(ports, l)
		}
	}
	return ports
}

// Family are the link's addresses of one family: netip.Addr.Is4 or Is6.
func (l Link) Family(is func(netip.Addr) bool) (out []netip.Prefix) {
	for _, a := range l.Addresses {
		if is(a.Addr()) {
			out = append(out, a)
		}
	}
	return out
}

// Prefixes are the networks of the link's addresses, each once, those of IPv4 first.
func (l Link) Prefixes() (out []netip.Prefix) {
	for _, a := range slices.Concat(l.Addresses, l.Tentative) {
		if p := a.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// Has says whether addr is one of the link's addresses.
func (l Link) Has(addr netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == addr })
}

// Socket is the local endpoint of a socket of the host that the packet path does not find when it looks for a
// free port: a connected TCP or UDP one, or a TCP one that is bound and does not listen. (It does find TCP
// sockets that listen and UDP ones that are not connected.)
type Socket struct {
	Protocol dataplane.Protocol
	Local    netip.AddrPort
}

// Wildcard says that the socket is bound to the port on all of the host's addresses of one family: Local.Addr() is
// 0.0.0.0 or ::.
func (s Socket) Wildcard() bool { return s.Local.Addr().IsUnspecified() }

// On says whether the socket has its port on an address of the host: who keeps bindings off the host's sockets
// reserves it there.
func (s Socket) On(a netip.Addr) bool {
	return s.Local.Addr() == a || (s.Wildcard() && s.Local.Addr().Is4() == a.Is4())
}
