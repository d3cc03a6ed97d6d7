// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"time"
)

// Fragments (RFC 4787 REQ-14): the first one of a datagram has the ports; those that come after it go its way.

// datagram is what all fragments of one have in common (RFC 791 section 2.3): in IPv6 not the protocol (RFC 8200 section 4.5).
type datagram struct {
	place    Place
	protocol Protocol
	src, dst netip.Addr
	id       uint16
}

// first is what became of a first fragment.
type first struct {
	protocol Protocol
	flow     flow
	at       time.Duration
	why      Reason
}

// fragmentTime is how long the later ones may take: the kernel's own.
const fragmentTime = 30 * time.Second

func (p Packet) datagram(place Place) datagram {
	d := datagram{place, p.Protocol, p.Src.Addr(), p.Dst.Addr(), p.ID}
	if d.src.Is6() {
		d.protocol = ""
	}
	return d
}

func (n *NAT) remember(place Place, p Packet, why Reason) {
	if p.Piece == First && p.Protocol != GRE {
		n.firsts[p.datagram(place)] = first{p.Protocol, p.flow(), n.now, why}
	}
}

// laterFragment goes the way of its datagram's first one; without it nobody can say whose it is.
func (n *NAT) laterFragment(place Place, p Packet, unknown Reason) Result {
	f, ok := n.firsts[p.datagram(place)]
	switch {
	case !ok || n.now-f.at > fragmentTime:
		return Result{Reason: unknown}
	case f.why.Dropped():
		return Result{Reason: DroppedFragment}
	case !f.why.Translated():
		return Result{Reason: PassedStack}
	}
	d, ok := n.lookup(place, f.protocol, f.flow)
	if !ok {
		return Result{Reason: DroppedFragment}
	}
	return n.rewrite(d, p)
}
