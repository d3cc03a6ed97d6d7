// SPDX-License-Identifier: Apache-2.0

package oracle

import "net/netip"

// An ICMP error (RFC 5508 section 4) speaks of a packet that its sender got: what the other end of a session sent, after the NAT. It
// goes to that other end, and speaks there of the packet as that end sent it. It neither refreshes nor ends anything.

func (n *NAT) insideError(place Place, p Packet) Result {
	d, ok := n.session(place, p)
	switch {
	case !ok:
		return Result{Reason: n.insideUnknown(place, p, DroppedICMPNoSession)}
	case n.config.Stack && d.direction != TranslatedHairpin:
		return Result{Reason: PassedStack}
	}
	return n.translateError(d, p)
}

func (n *NAT) outsideError(p Packet) Result {
	d, ok := n.session(Outside, p)
	if !ok {
		return Result{Reason: PassedUnbound} // it may speak of the host's own packets
	}
	return n.translateError(d, p)
}

// stackError is one that the host has routed to the outside.
func (n *NAT) stackError(place Place, p Packet) Result {
	d, ok := n.session(place, p)
	if !ok {
		return Result{Reason: n.unlessExcluded(place, p, DroppedICMPNoSession)}
	}
	if p.damaged() {
		return Result{Reason: DroppedICMPChecksum}
	}
	return Result{Reason: TranslatedICMPError, Packet: d.restore(p), ByHost: true}
}

// session finds the one that an error speaks of.
func (n *NAT) session(place Place, p Packet) (side, bool) {
	d, ok := n.lookup(place, p.About.Protocol, p.About.flow().reversed())
	return d, ok && p.Dst.Addr() == d.in.dst.Addr()
}

// damaged: REQ-3, and 3a of the embedded packet's header, which has a checksum in IPv4 alone.
func (p Packet) damaged() bool { return p.Damaged || p.About.Damaged && p.isIPv4() }

func (p Packet) isIPv4() bool { return p.Src.Addr().Is4() }

// Message is the type and code of an ICMP message.
type Message struct{ Type, Code uint8 }

// Errors are the ICMP errors that a NAT translates: RFC 5508 section 7's and RFC 792's, or RFC 4443's, whose other codes are as good.
func Errors(v6 bool) (all []Message) {
	if v6 {
		for code := range uint8(8) { // RFC 4443 section 3.1, and RFC 6550's
			all = append(all, Message{1, code})
		}
		return append(all, Message{2, 0}, Message{3, 0}, Message{3, 1}, Message{4, 0}, Message{4, 1}, Message{4, 2})
	}
	for code := range uint8(16) {
		all = append(all, Message{3, code})
	}
	return append(all, Message{4, 0}, Message{11, 0}, Message{11, 1}, Message{12, 0})
}

// Others are types of messages that are neither errors nor queries, and that a NAT has nothing to do with: those by which hosts and
// routers of one link talk among others. An unassigned one of IPv6's below 128 would be an error (RFC 4443 section 2.1).
func Others(v6 bool) []uint8 {
	if v6 {
		return []uint8{130, 133, 134, 135, 136, 137, 143, 200} // multicast listeners, neighbour discovery, redirect, private
	}
	return []uint8{5, 9, 10, 17, 40} // redirect, router advertisement and solicitation, address mask, unassigned
}

func (n *NAT) translateError(d side, p Packet) Result {
	if p.damaged() {
		return Result{Reason: DroppedICMPChecksum}
	}
	if d.direction == TranslatedOutbound {
		if why := leavesByTheHost(p); why != "" {
			return Result{Reason: why}
		}
	}
	out := d.restore(p)
	switch {
	case n.entersTheHost(d):
		out.Dst = p.Dst
		return Result{Reason: TranslatedICMPError, Packet: out, Inside: d.out.dst.Addr(), ByHost: true}
	case d.session.Binding.Network == Host:
		return Result{Reason: TranslatedICMPError, Packet: out, ByHost: true}
	case p.TTL <= 1:
		return Result{Reason: DroppedTTL}
	}
	out.TTL--
	return Result{Reason: TranslatedICMPError, Packet: out}
}

// restore gives an error the addresses of the other end, and what it speaks of as that end knows it.
func (d side) restore(p Packet) Packet {
	about := *p.About
	about.Src, about.Dst = d.out.dst, d.out.src
	p.About, p.Dst = &about, netip.AddrPortFrom(d.out.dst.Addr(), 0)
	if d.out.src.Addr() != d.in.src.Addr() { // REQ-5: whoever inside has sent it
		p.Src = netip.AddrPortFrom(d.out.src.Addr(), 0)
	}
	return p
}
