// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"net/netip"
)

// Kind is what a packet is to a NAT.
type Kind string

// The kinds. TCP's are told apart as RFC 6146 does: RST before SYN before FIN before all else.
const (
	Datagram Kind = "datagram" // UDP
	Syn      Kind = "syn"      // without ACK: it opens
	SynAck   Kind = "syn-ack"
	Fin      Kind = "fin"
	Rst      Kind = "rst"
	Segment  Kind = "segment" // any other of TCP
	Query    Kind = "query"   // ICMP; the identifier is the source's port
	Reply    Kind = "reply"   // the identifier is the destination's port
	Error    Kind = "error"   // ICMP, about another packet; without ports
)

// Packet is what a NAT looks at and changes.
type Packet struct {
	Protocol Protocol
	Kind     Kind
	Src, Dst netip.AddrPort
	TTL      uint8
	About    *Packet // Error: the packet that it embeds, as its receiver got it
}

func (p Packet) String() string {
	s := fmt.Sprintf("%s %s %s -> %s ttl %d", p.Protocol, p.Kind, p.Src, p.Dst, p.TTL)
	if p.About != nil {
		s += fmt.Sprintf(" about [%v]", *p.About)
	}
	return s
}

// flow is a packet's two endpoints as its sender writes them.
type flow struct{ src, dst netip.AddrPort }

func (f flow) reversed() flow { return flow{f.dst, f.src} }

func (p Packet) flow() flow { return flow{p.Src, p.Dst} }

// opens tells whether a packet of no session may open one from inside (RFC 4787, RFC 5508 REQ-1); else the reason.
// A TCP connection may be picked up in its middle: the NAT may have come after it.
func (p Packet) opens() Reason {
	switch p.Kind {
	case Reply:
		return DroppedICMPType
	case Rst:
		return DroppedTCPNoSession
	}
	return ""
}

// Reason is why a packet got its verdict, by the name of conenat's counter; the first word is the verdict.
type Reason string

// The reasons.
const (
	TranslatedOutbound  Reason = "translated_outbound"
	TranslatedInbound   Reason = "translated_inbound"
	TranslatedHairpin   Reason = "translated_hairpin"
	TranslatedICMPError Reason = "translated_icmp_error"
	TranslatedHost      Reason = "translated_host"

	PassedLocal      Reason = "passed_local"
	PassedNotOutside Reason = "passed_not_outside"
	PassedUnbound    Reason = "passed_unbound"
	PassedHost       Reason = "passed_host"
	PassedTTL        Reason = "passed_ttl"

	DroppedSpoofed       Reason = "dropped_spoofed"
	DroppedFiltered      Reason = "dropped_filtered"
	DroppedIsolated      Reason = "dropped_isolated"
	DroppedPortExhausted Reason = "dropped_port_exhausted"
	DroppedBindingsFull  Reason = "dropped_bindings_full"
	DroppedSessionsFull  Reason = "dropped_sessions_full"
	DroppedQuota         Reason = "dropped_quota"
	DroppedTCPNoSession  Reason = "dropped_tcp_no_session"
	DroppedICMPType      Reason = "dropped_icmp_type"
	DroppedICMPNoSession Reason = "dropped_icmp_no_session"
	DroppedTTL           Reason = "dropped_ttl"
	DroppedConflict      Reason = "dropped_conflict"
)
