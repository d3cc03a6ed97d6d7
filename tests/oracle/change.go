// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"maps"
	"net/netip"
	"slices"
)

// What is changed from outside of the packets' way: by the operator, by Docker, by another NAT that hands over.

// Configure changes everything that is not capacity. What the new configuration has no place for ends: bindings of networks
// that are gone, and everything on an external address that is.
func (n *NAT) Configure(c Config) {
	n.end(func(b *Binding) bool {
		_, known := c.Networks[b.Network]
		return !c.isExternal(b.External.Addr()) || !known && b.Network != Host
	})
	n.config = c
	n.claims = slices.DeleteFunc(n.claims, func(held *claim) bool { return !c.isExternal(held.endpoint.Addr()) })
	maps.DeleteFunc(n.held, func(external netip.AddrPort, _ bool) bool { return !c.isExternal(external.Addr()) })
	maps.DeleteFunc(n.pairs, func(_ insideHost, external netip.Addr) bool { return !c.isExternal(external) })
	n.Wait(0)
}

// end ends bindings with their sessions.
func (n *NAT) end(ends func(*Binding) bool) (ended int) {
	n.sessions = slices.DeleteFunc(n.sessions, func(s *Session) bool {
		return ends(s.Binding) || s.Receiver != nil && ends(s.Receiver)
	})
	n.bindings = slices.DeleteFunc(n.bindings, func(b *Binding) bool {
		if !ends(b) {
			return false
		}
		ended++
		n.ended(b)
		return true
	})
	n.Wait(0) // what has lost its last session by that
	return ended
}

// Forward adds a static binding; false: its external endpoint is taken, or the table is full. A dynamic binding of just
// these endpoints becomes the static one. One that is published wins over the host's and others' bindings of that endpoint,
// and what its internal endpoint opens from now on leaves by it.
func (n *NAT) Forward(place Place, p Protocol, external, internal netip.AddrPort, published bool) bool {
	if !n.config.isExternal(external.Addr()) || !n.config.Networks[place].contains(internal.Addr()) {
		return false
	}
	b := n.bindingAt(p, external)
	if b != nil && !b.Static && b.Network == place && b.Internal == internal {
		b.Static, b.published = true, published
		if (b.remote != netip.AddrPort{}) { // it is its host's towards every remote from now on
			b.hidden = n.indexed(place, p, internal, netip.AddrPort{}) != nil
			b.remote = netip.AddrPort{}
		}
		return true
	}
	free := b == nil && n.claimAt(p, external) == nil
	if !free && (!published || b != nil && b.Static) {
		return false
	}
	if free {
		n.unhold(p, external) // also where it gets nothing
	}
	if len(n.bindings) >= n.config.Bindings {
		return false
	}
	if b != nil {
		b.retired = true
	}
	n.claims = slices.DeleteFunc(n.claims, func(c *claim) bool { return c.protocol == p && c.endpoint == external })
	other := n.indexed(place, p, internal, netip.AddrPort{})
	if published && other != nil && !other.Static {
		other.hidden, other = true, nil
	}
	n.bindings = append(n.bindings, &Binding{Protocol: p, Network: place, Internal: internal, External: external, Static: true,
		published: published, hidden: other != nil})
	return true
}

// RemoveForward ends a static binding; false: there is none.
func (n *NAT) RemoveForward(p Protocol, external netip.AddrPort) bool {
	return n.end(func(b *Binding) bool { return b.Static && b.Protocol == p && b.External == external }) > 0
}

// IndexForwards makes static bindings those that their internal endpoints' packets leave by, where no other one is now.
func (n *NAT) IndexForwards() {
	for _, b := range n.bindings {
		if b.Static && b.hidden {
			b.hidden = n.indexed(b.Network, b.Protocol, b.Internal, netip.AddrPort{}) != nil
		}
	}
}

// PutOwner says what is known of an inside host.
func (n *NAT) PutOwner(place Place, addr netip.Addr, o Owner) {
	n.changeOwners(place, func(owners map[netip.Addr]Owner) { owners[addr] = o })
}

// RemoveOwner is a host that is gone: its bindings end.
func (n *NAT) RemoveOwner(place Place, addr netip.Addr) {
	n.changeOwners(place, func(owners map[netip.Addr]Owner) { delete(owners, addr) })
	n.end(func(b *Binding) bool { return b.Network == place && b.Internal.Addr() == addr })
}

func (n *NAT) changeOwners(place Place, change func(map[netip.Addr]Owner)) {
	n.config.Networks = maps.Clone(n.config.Networks)
	network := n.config.Networks[place]
	network.Owners = maps.Clone(network.Owners)
	if network.Owners == nil {
		network.Owners = map[netip.Addr]Owner{}
	}
	change(network.Owners)
	n.config.Networks[place] = network
}

// Import takes over a session of another NAT, with the mapping that it has there; false: its external endpoint is another's,
// or a table is full. What is there already stays as it is. A TCP session is established.
func (n *NAT) Import(place Place, p Protocol, internal, external, remote netip.AddrPort) bool {
	if !n.config.isExternal(external.Addr()) || !n.config.Networks[place].contains(internal.Addr()) {
		return false
	}
	s := &Session{Remote: remote}
	if p == TCP {
		s.inside.seen, s.outside.seen = flags{syn: true, other: true}, flags{syn: true, other: true}
	}
	if _, ok := n.lookup(place, p, flow{internal, remote}); ok {
		return true
	}
	b, fresh := n.bindingAt(p, external), false
	switch {
	case b != nil && (b.Network != place || b.Internal != internal || n.quota(b) != ""):
		return false
	case b == nil:
		if n.claimAt(p, external) != nil {
			return false
		}
		if n.unhold(p, external); len(n.bindings) >= n.config.Bindings {
			return false
		}
		b, fresh = &Binding{counted: true, Protocol: p, Network: place, Internal: internal, External: external, lastOut: n.now,
			remote: n.mappingRemote(place, p, remote)}, true
		b.hidden = n.indexed(place, p, internal, b.remote) != nil
	}
	s.Binding = b
	why := n.add(s, newOnes(b, fresh)...)
	if why == "" && !b.Static {
		b.lastOut = n.now
	}
	return why == "" || why == DroppedConflict // the remote talks to that external endpoint already
}
