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

// The protocols; ICMP's are queries, whose port is the identifier.
const (
	UDP  Protocol = "udp"
	TCP  Protocol = "tcp"
	ICMP Protocol = "icmp"
)

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
}

// Config is all that the NAT's behaviour depends on.
type Config struct {
	Networks map[Place]Network
	External netip.Addr   // the one external address
	Local    []netip.Addr // the host's other addresses

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

// filtering is that of a binding's network; the host's own bindings have the default.
func (c Config) filtering(place Place, p Protocol) Behavior {
	if place == Host {
		return AddressDependent
	}
	return c.Networks[place].Filtering[p]
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
