// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"slices"
	"time"
)

// Binding is the mapping of an internal to an external endpoint.
type Binding struct {
	Protocol Protocol
	Network  Place
	Internal netip.AddrPort
	External netip.AddrPort
	Static   bool

	counted   bool           // it began as a dynamic one: its host\'s limit counts it
	published bool           // static, and Docker's
	retired   bool           // a static one has its external endpoint; its sessions go on
	hidden    bool           // its internal endpoint had another one when it came, or got one that came first: what opens there leaves by that
	remote    netip.AddrPort // what mapping depends on: nothing, an address, or an endpoint
	lastOut   time.Duration  // UDP: of its last packet out
}

// claim is an external endpoint that the host itself uses.
type claim struct {
	protocol Protocol
	endpoint netip.AddrPort
	last     time.Duration
	closing  bool // TCP: the host has sent FIN or RST
}

func (n *NAT) bindingAt(p Protocol, external netip.AddrPort) *Binding {
	return find(n.bindings, func(b *Binding) bool { return b.Protocol == p && b.External == external && !b.retired })
}

func (n *NAT) claimAt(p Protocol, endpoint netip.AddrPort) *claim {
	return find(n.claims, func(c *claim) bool { return c.protocol == p && c.endpoint == endpoint })
}

func find[T any](all []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i]
	}
	return nil
}

// mappingRemote is the part of the remote endpoint that a mapping of the network depends on (RFC 4787 section 4.1).
func (n *NAT) mappingRemote(place Place, p Protocol, remote netip.AddrPort) netip.AddrPort {
	mapping := n.config.Networks[place].Mapping[p]
	if p == GRE { // nothing else tells whose an answer is
		mapping = AddressDependent
	}
	switch mapping {
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	case AddressAndPortDependent:
		return remote
	}
	return netip.AddrPort{}
}

// indexed is the binding that what an internal endpoint opens towards a remote leaves by, if mapping depends on just that.
func (n *NAT) indexed(place Place, p Protocol, internal, depends netip.AddrPort) *Binding {
	return find(n.bindings, func(b *Binding) bool {
		return b.Protocol == p && b.Network == place && b.Internal == internal && b.remote == depends && !b.hidden && !b.retired
	})
}

// bindingOf is the same for the mapping that the network has now. A static binding is its host's towards every remote.
func (n *NAT) bindingOf(place Place, p Protocol, internal, remote netip.AddrPort) *Binding {
	depends := n.mappingRemote(place, p, remote)
	if b := n.indexed(place, p, internal, netip.AddrPort{}); b != nil && (b.Static || depends == netip.AddrPort{}) {
		return b
	}
	return n.indexed(place, p, internal, depends)
}

// obtain gives the binding of an internal endpoint for what it sends to remote: the one that it has, or a new one, which
// is not among n.bindings yet. A static binding is its internal endpoint's unless a dynamic one was there first.
func (n *NAT) obtain(place Place, p Protocol, internal, remote netip.AddrPort) (b *Binding, fresh bool, c *Choice, why Reason) {
	if b = n.bindingOf(place, p, internal, remote); b != nil {
		return b, false, nil, n.quota(b)
	}
	if len(n.bindings) >= n.config.Bindings {
		return nil, false, nil, DroppedBindingsFull
	}
	if why := n.limitPorts(place, internal.Addr()); why != "" {
		return nil, false, nil, why
	}
	b = &Binding{counted: true, Protocol: p, Network: place, Internal: internal, remote: n.mappingRemote(place, p, remote), lastOut: n.now}
	if why := n.limitSessions(b); why != "" {
		return nil, false, nil, why
	}
	if p == GRE {
		return b, true, nil, n.chooseAddress(b, remote)
	}
	external, ok := n.address(place, internal.Addr())
	if !ok {
		return nil, false, nil, DroppedNoAddress
	}
	b.External = netip.AddrPortFrom(external, 0)
	c, why = n.choosePort(b)
	return b, true, c, why
}

// quota bounds the sessions of a binding, so that spoofed remotes cannot fill the table.
func (n *NAT) quota(b *Binding) Reason {
	if n.SessionsOf(b) >= n.config.SessionsPerBinding {
		return DroppedQuota
	}
	return ""
}

// limitPorts is why a host gets no port more; the network's limit comes first.
func (n *NAT) limitPorts(place Place, host netip.Addr) Reason {
	var all, own int
	for _, b := range n.bindings {
		if b.counted && b.Network == place {
			all++
			if b.Internal.Addr() == host {
				own++
			}
		}
	}
	network := n.config.Networks[place]
	switch {
	case network.All.Ports > 0 && all >= network.All.Ports:
		return DroppedNetworkPorts
	case network.Host.Ports > 0 && own >= network.Host.Ports:
		return DroppedHostPorts
	}
	return ""
}

// limitSessions is the same for sessions, which are those of the host whose binding opened them.
func (n *NAT) limitSessions(of *Binding) Reason {
	var all, own int
	for _, s := range n.sessions {
		if s.Binding.Network == of.Network {
			all++
			if s.Binding.Internal.Addr() == of.Internal.Addr() {
				own++
			}
		}
	}
	network := n.config.Networks[of.Network]
	switch {
	case network.All.Sessions > 0 && all >= network.All.Sessions:
		return DroppedNetworkSessions
	case network.Host.Sessions > 0 && own >= network.Host.Sessions:
		return DroppedHostSessions
	}
	return ""
}

// Towards is what of the remote the mapping depends on; zero: nothing.
func (b *Binding) Towards() netip.AddrPort { return b.remote }
