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

	remote  netip.AddrPort // what mapping depends on: nothing, an address, or an endpoint
	lastOut time.Duration  // UDP: of its last packet out
}

func (b *Binding) setPort(port uint16) { b.External = netip.AddrPortFrom(b.External.Addr(), port) }

// claim is an external endpoint that the host itself uses.
type claim struct {
	protocol Protocol
	endpoint netip.AddrPort
	last     time.Duration
	closing  bool // TCP: the host has sent FIN or RST
}

func (n *NAT) bindingAt(p Protocol, external netip.AddrPort) *Binding {
	return find(n.bindings, func(b *Binding) bool { return b.Protocol == p && b.External == external })
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
	switch n.config.Networks[place].Mapping[p] {
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	case AddressAndPortDependent:
		return remote
	}
	return netip.AddrPort{}
}

// obtain gives the binding of an internal endpoint for what it sends to remote: the one that it has, or a new one, which
// is not among n.bindings yet. A static binding is its internal endpoint's unless a dynamic one was there first.
func (n *NAT) obtain(place Place, p Protocol, internal, remote netip.AddrPort) (b *Binding, fresh bool, c *Choice, why Reason) {
	depends := n.mappingRemote(place, p, remote)
	b = find(n.bindings, func(b *Binding) bool {
		return b.Protocol == p && b.Network == place && b.Internal == internal && b.remote == depends && !n.hidden[b]
	})
	if b != nil {
		return b, false, nil, n.quota(b)
	}
	if len(n.bindings) >= n.config.Bindings {
		return nil, false, nil, DroppedBindingsFull
	}
	b = &Binding{Protocol: p, Network: place, Internal: internal, remote: depends, lastOut: n.now,
		External: netip.AddrPortFrom(n.config.External, 0)}
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

// Forward adds a static binding; false: its external endpoint is taken, or the table is full. A dynamic binding of just
// these endpoints becomes the static one.
func (n *NAT) Forward(place Place, p Protocol, external, internal netip.AddrPort) bool {
	if b := n.bindingAt(p, external); b != nil && !b.Static && b.Network == place && b.Internal == internal {
		b.Static = true
		return true
	}
	if len(n.bindings) >= n.config.Bindings || n.bindingAt(p, external) != nil || n.claimAt(p, external) != nil {
		return false
	}
	b := &Binding{Protocol: p, Network: place, Internal: internal, External: external, Static: true}
	other := find(n.bindings, func(b *Binding) bool {
		return b.Protocol == p && b.Network == place && b.Internal == internal && b.remote == netip.AddrPort{} && !n.hidden[b]
	})
	n.hidden[b] = other != nil
	if p == UDP {
		delete(n.held, external)
	}
	n.bindings = append(n.bindings, b)
	return true
}
