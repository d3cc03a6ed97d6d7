// SPDX-License-Identifier: Apache-2.0

package oracle

import "net/netip"

// An ICMP error (RFC 5508 section 4) speaks of a packet that its sender got: what the other end of a session sent, after the NAT. It
// goes to that other end, and speaks there of the packet as that end sent it. It neither refreshes nor ends anything.

func (n *NAT) insideError(place Place, p Packet) Result {
	d, ok := n.lookup(place, p.About.Protocol, p.About.flow().reversed())
	if ok && p.Dst.Addr() == d.in.dst.Addr() {
		return n.translateError(d, p)
	}
	switch {
	case neverRouted(p.Dst.Addr()) || p.Dst.Addr() == n.config.External:
		return Result{Reason: PassedLocal}
	case n.routed(p.Dst.Addr()) != "":
		return Result{Reason: n.routed(p.Dst.Addr())}
	}
	return Result{Reason: DroppedICMPNoSession}
}

func (n *NAT) outsideError(p Packet) Result {
	d, ok := n.lookup(Outside, p.About.Protocol, p.About.flow().reversed())
	if !ok || p.Dst.Addr() != d.in.dst.Addr() {
		return Result{Reason: PassedUnbound} // it may speak of the host's own packets
	}
	return n.translateError(d, p)
}

func (n *NAT) translateError(d side, p Packet) Result {
	if p.TTL <= 1 {
		if d.direction == TranslatedOutbound {
			return Result{Reason: PassedTTL}
		}
		return Result{Reason: DroppedTTL}
	}
	about := *p.About
	about.Src, about.Dst = d.out.dst, d.out.src
	out := Packet{Protocol: p.Protocol, Kind: Error, Src: p.Src, TTL: p.TTL - 1, About: &about,
		Dst: netip.AddrPortFrom(d.out.dst.Addr(), 0)}
	if d.out.src.Addr() != d.in.src.Addr() { // REQ-5: whoever inside has sent it
		out.Src = netip.AddrPortFrom(d.out.src.Addr(), 0)
	}
	return Result{Reason: TranslatedICMPError, Packet: out}
}
