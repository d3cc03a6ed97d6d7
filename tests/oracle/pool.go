// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"net/netip"
)

// insideHost is an address of a network.
type insideHost struct {
	place Place
	addr  netip.Addr
}

// address is the external address of a host's new binding; false: there is none. Pooling is paired (RFC 4787 REQ-2): while a host
// has bindings or sessions it keeps the address that it has. Else it gets the one that weighs most for it, whoever else is there. The NAT's own host has
// the address that it sends from.
func (n *NAT) address(place Place, host netip.Addr) (netip.Addr, bool) {
	if place == Host {
		return host, n.config.isExternal(host)
	}
	key := insideHost{place, host}
	if paired, ok := n.pairs[key]; ok {
		return paired, true
	}
	best := n.heaviest(place, host, func(netip.Addr) bool { return true })
	if best.IsValid() && n.busy(key) {
		n.pairs[key] = best // also where no port is left
	}
	return best, best.IsValid()
}

// heaviest is the external address that weighs most for a host, of those that will do; not valid: none will.
func (n *NAT) heaviest(place Place, host netip.Addr, will func(netip.Addr) bool) (best netip.Addr) {
	seed, heaviest := weight(host, n.config.Networks[place].Number), uint32(0)
	for _, a := range n.config.External {
		if a.BitLen() != host.BitLen() || !will(a) {
			continue
		}
		if w := weight(a, seed); !best.IsValid() || w > heaviest {
			best, heaviest = a, w
		}
	}
	return best
}

// chooseAddress gives a binding without ports the address that its host is paired with, or another one where somebody talks to the
// remote by that already. The host's pair is not made, nor changed.
func (n *NAT) chooseAddress(b *Binding, remote netip.AddrPort) Reason {
	host := b.Internal.Addr()
	free := func(a netip.Addr) bool {
		_, taken := n.lookup(Outside, b.Protocol, flow{remote, netip.AddrPortFrom(a, 0)})
		return !taken
	}
	any := func(netip.Addr) bool { return true }
	at, paired := n.pairs[insideHost{b.Network, host}]
	switch {
	case b.Network == Host:
		at = host
	case !paired || !free(at):
		at = n.heaviest(b.Network, host, free)
	}
	switch {
	case at.IsValid():
		b.External = netip.AddrPortFrom(at, 0)
		return ""
	case n.heaviest(b.Network, host, any).IsValid():
		return DroppedRemoteTaken
	}
	return DroppedNoAddress
}

// pair begins with a host's first binding that counts.
func (n *NAT) pair(b *Binding) {
	key := insideHost{b.Network, b.Internal.Addr()}
	if _, ok := n.pairs[key]; !ok && b.counted && b.Network != Host && b.Protocol != GRE {
		n.pairs[key] = b.External.Addr()
	}
}

// unpair ends the pairs of hosts that have nothing any more.
func (n *NAT) unpair() {
	for key := range n.pairs {
		if !n.busy(key) {
			delete(n.pairs, key)
		}
	}
}

func (n *NAT) busy(key insideHost) bool {
	for _, s := range n.sessions {
		if s.Binding.Network == key.place && s.Binding.Internal.Addr() == key.addr {
			return true
		}
	}
	for _, b := range n.bindings {
		if b.counted && b.Network == key.place && b.Internal.Addr() == key.addr {
			return true
		}
	}
	return false
}

// weight is MurmurHash3's finalizer of an address and a seed, word by word.
func weight(a netip.Addr, seed uint32) uint32 {
	h := seed
	for b := a.AsSlice(); len(b) > 0; b = b[4:] {
		h ^= binary.BigEndian.Uint32(b)
		h = (h ^ h>>16) * 0x85ebca6b
		h = (h ^ h>>13) * 0xc2b2ae35
		h ^= h >> 16
	}
	return h
}
