// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"slices"
	"time"
)

// Behavior is a mapping or filtering behaviour (RFC 4787 sections 4.1 and 5).
type Behavior uint8

// The behaviours.
const (
	EndpointIndependent Behavior = iota
	AddressDependent
	AddressAndPortDependent
)

// Protocol is what the NAT tells apart.
type Protocol string

// The protocols; ICMP's are queries, whose port is the identifier. GRE stands for all that have no ports: those of its endpoints are 0.
const (
	UDP  Protocol = "udp"
	TCP  Protocol = "tcp"
	ICMP Protocol = "icmp"
	GRE  Protocol = "gre"
)

// settings are of which protocol a network's behaviours hold for one.
func (p Protocol) settings() Protocol {
	if p == GRE {
		return UDP
	}
	return p
}

// Place is where a packet comes from: an inside network's name, Outside, or Host.
type Place string

// The places that are no network.
const (
	Outside Place = ""
	Host    Place = "host"
)

// Network is an inside network.
type Network struct {
	Prefixes  []netip.Prefix
	Mapping   map[Protocol]Behavior // absent: endpoint-independent
	Filtering map[Protocol]Behavior // absent: endpoint-independent
	Isolated  bool                  // its hosts do not reach each other, by hairpin neither
	Owners    map[netip.Addr]Owner  // inside hosts that somebody vouches for
	Host      Limit                 // what one host may have
	All       Limit                 // what all of them together may
	Number    uint32                // tells its hosts from those of another network with the same addresses, when external addresses are chosen
	Exclude   []netip.Prefix        // destinations that are not translated
}

// Limit is how many external ports and sessions (RFC 6888 REQ-4 and 5); 0: any number.
type Limit struct{ Ports, Sessions int }

// Owner is what is known of an inside host.
type Owner struct {
	Port      string                // of the bridge, that its packets come by; empty: not known
	Excluded  bool                  // left to the host's own NAT
	Filtering map[Protocol]Behavior // nil: the network's
}

// Config is all that the NAT's behaviour depends on.
type Config struct {
	Networks  map[Place]Network
	External  []netip.Addr   // the external addresses; there may be none now
	Local     []netip.Addr   // the host's addresses
	Elsewhere []netip.Prefix // routes that do not lead outside, beside the networks'
	Stack     bool           // between the inside and the outside the host routes and filters (path stack)
	Drop      bool           // what comes to a port of the range that nobody has (unsolicited: drop)

	PortLow, PortHigh  uint16 // for internal ports from 1024 up
	SessionsPerBinding int
	Sessions, Bindings int // capacity; sessions include the endpoints that the host holds

	UDPTimeout            time.Duration
	TCPEstablishedTimeout time.Duration
	TCPPartialOpenTimeout time.Duration
	TCPClosingTimeout     time.Duration
	ICMPTimeout           time.Duration
}

func (n Network) contains(addr netip.Addr) bool {
	return slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (c Config) isExternal(addr netip.Addr) bool { return slices.Contains(c.External, addr) }

// excludes says whether a network's packets to an address are nobody's to translate (RFC 6888 REQ-6).
func (c Config) excludes(place Place, dst netip.Addr) bool {
	return slices.ContainsFunc(c.Networks[place].Exclude, func(p netip.Prefix) bool { return p.Contains(dst) })
}

// overlaps says whether another network has addresses of this one's: the host, which knows no networks, might answer there.
func (c Config) overlaps(place Place) bool {
	for name, n := range c.Networks {
		for _, p := range n.Prefixes {
			if name != place && slices.ContainsFunc(c.Networks[place].Prefixes, p.Overlaps) {
				return true
			}
		}
	}
	return false
}

// answered is why a packet of a network's goes to the host for its answer, or gets it from the NAT.
func (c Config) answered(place Place, why Reason) Reason {
	if why == PassedTTL && c.overlaps(place) {
		return DroppedTTL
	}
	return why
}

// filtering is that of a binding's host, or of its network; the NAT's own host has the default.
func (c Config) filtering(b *Binding) Behavior {
	if b.Network == Host {
		return AddressDependent
	}
	n := c.Networks[b.Network]
	if own := n.Owners[b.Internal.Addr()].Filtering; own != nil {
		return own[b.Protocol.settings()]
	}
	return n.Filtering[b.Protocol.settings()]
}

// admits is whose packets may open sessions from inside: a network's own hosts', not by another one's port.
func (c Config) admits(place Place, p Packet) Reason {
	if !c.Networks[place].contains(p.Src.Addr()) || c.steals(place, p) {
		return DroppedSpoofed
	}
	if c.Networks[place].Owners[p.Src.Addr()].Excluded {
		return PassedExcluded
	}
	return ""
}

// steals: the address is known to be at another port.
func (c Config) steals(place Place, p Packet) bool {
	owner := c.Networks[place].Owners[p.Src.Addr()]
	return owner.Port != "" && p.Port != "" && owner.Port != p.Port
}

// networkOf is the inside network that routing finds an address in.
func (c Config) networkOf(addr netip.Addr) (Place, bool) {
	for name, n := range c.Networks {
		if n.contains(addr) {
			return name, true
		}
	}
	return Outside, false
}

// neverRouted addresses stay on the link, whoever sends to them: multicast, broadcast, loopback, "this network".
func neverRouted(addr netip.Addr) bool {
	if addr.Is4() {
		first := addr.As4()[0]
		return first == 0 || first == 127 || first >= 224
	}
	return addr.IsMulticast() || addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast()
}
