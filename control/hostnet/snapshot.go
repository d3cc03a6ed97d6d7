// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/dataplane"
)

// Snapshot is the host's network at one moment.
type Snapshot struct {
	Links     []Link // by index
	Default   []int  // interface indices of the IPv4 default route with the lowest metric, in its order
	IPForward bool   // net.ipv4.ip_forward
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
	PeerNetns bool           // a veth whose other end is in another network namespace
	Layer3    bool           // packets carry no Ethernet header (wg, tun, ppp)
	Addresses []netip.Prefix // IPv4 addresses of global scope with their prefix lengths, the primary one first
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

// Prefixes are the networks of the link's addresses, each once.
func (l Link) Prefixes() (out []netip.Prefix) {
	for _, a := range l.Addresses {
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

// Socket is the local endpoint of a connected TCP or UDP socket. (The packet path itself sees those that
// listen, and UDP ones that are not connected, when it looks for a free port.)
type Socket struct {
	Protocol dataplane.Protocol
	Local    netip.AddrPort
}
