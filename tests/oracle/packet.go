// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"net/netip"
	"strings"
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
	Other    Kind = "other"   // ICMP, neither of these; without ports
)

// Piece is what part of a datagram a packet is.
type Piece uint8

// The pieces.
const (
	Whole Piece = iota
	First       // fragment
	Later       // fragment, without ports
)

// Packet is what a NAT looks at and changes.
type Packet struct {
	Protocol Protocol
	Kind     Kind
	Src, Dst netip.AddrPort
	TTL      uint8   // or hop limit
	About    *Packet // Error: the packet that it embeds, as its receiver got it
	Port     string  // of the bridge, that it comes by; empty: none, or not known
	Piece    Piece
	ID       uint16 // of a fragment's datagram (IPv6's 32 bits say no more)
	Options  bool   // in the IPv4 header (IPv6 has extension headers, which say nothing here): such packets leave by the host's own way
	Damaged  bool   // Error: its checksum is wrong; embedded in one: that of its IPv4 header, which IPv6's has none of
	Type     uint8  // Error, Other: the message
	Code     uint8
}

func (p Packet) String() string {
	s := fmt.Sprintf("%s %s %s -> %s ttl %d", p.Protocol, p.Kind, p.Src, p.Dst, p.TTL)
	for _, more := range []struct {
		is   bool
		text string
	}{
		{p.Port != "", " by " + p.Port}, {p.Piece == First, fmt.Sprintf(" first fragment of %d", p.ID)},
		{p.Piece == Later, fmt.Sprintf(" later fragment of %d", p.ID)}, {p.Options, " with options"}, {p.Damaged, " damaged"},
		{p.Kind == Error || p.Kind == Other, fmt.Sprintf(" type %d code %d", p.Type, p.Code)},
	} {
		if more.is {
			s += more.text
		}
	}
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

// Translated says whether the packet was changed.
func (r Reason) Translated() bool { return strings.HasPrefix(string(r), "translated_") }

// Dropped says whether it ended here.
func (r Reason) Dropped() bool { return strings.HasPrefix(string(r), "dropped_") }

// The reasons.
const (
	TranslatedOutbound  Reason = "translated_outbound"
	TranslatedInbound   Reason = "translated_inbound"
	TranslatedHairpin   Reason = "translated_hairpin"
	TranslatedICMPError Reason = "translated_icmp_error"
	TranslatedHost      Reason = "translated_host"
	TranslatedStack     Reason = "translated_stack"

	PassedNoLink      Reason = "passed_no_link"
	PassedLocal       Reason = "passed_local"
	PassedNotOutside  Reason = "passed_not_outside"
	PassedUnbound     Reason = "passed_unbound"
	PassedHost        Reason = "passed_host"
	PassedTTL         Reason = "passed_ttl"
	PassedStack       Reason = "passed_stack"
	PassedExcluded    Reason = "passed_excluded"
	PassedDestination Reason = "passed_destination"

	DroppedSpoofed       Reason = "dropped_spoofed"
	DroppedFiltered      Reason = "dropped_filtered"
	DroppedUnsolicited   Reason = "dropped_unsolicited"
	DroppedIsolated      Reason = "dropped_isolated"
	DroppedNoAddress     Reason = "dropped_no_address"
	DroppedPortExhausted Reason = "dropped_port_exhausted"
	DroppedRemoteTaken   Reason = "dropped_remote_taken"
	DroppedBindingsFull  Reason = "dropped_bindings_full"
	DroppedSessionsFull  Reason = "dropped_sessions_full"
	DroppedQuota         Reason = "dropped_quota"

	DroppedHostPorts       Reason = "dropped_host_ports"
	DroppedHostSessions    Reason = "dropped_host_sessions"
	DroppedNetworkPorts    Reason = "dropped_network_ports"
	DroppedNetworkSessions Reason = "dropped_network_sessions"

	DroppedTCPNoSession  Reason = "dropped_tcp_no_session"
	DroppedICMPType      Reason = "dropped_icmp_type"
	DroppedICMPChecksum  Reason = "dropped_icmp_checksum"
	DroppedICMPNoSession Reason = "dropped_icmp_no_session"
	DroppedFragment      Reason = "dropped_fragment"
	DroppedTTL           Reason = "dropped_ttl"
	DroppedConflict      Reason = "dropped_conflict"
)

// Reasons are all of them.
var Reasons = []Reason{
	TranslatedOutbound, TranslatedInbound, TranslatedHairpin, TranslatedICMPError, TranslatedHost, TranslatedStack,
	PassedNoLink, PassedLocal, PassedNotOutside, PassedUnbound, PassedHost, PassedTTL, PassedStack, PassedExcluded, PassedDestination,
	DroppedSpoofed, DroppedFiltered, DroppedUnsolicited, DroppedIsolated, DroppedNoAddress, DroppedPortExhausted, DroppedRemoteTaken, DroppedBindingsFull,
	DroppedSessionsFull, DroppedHostPorts, DroppedHostSessions, DroppedNetworkPorts, DroppedNetworkSessions, DroppedQuota, DroppedTCPNoSession, DroppedICMPType, DroppedICMPChecksum, DroppedICMPNoSession,
	DroppedFragment, DroppedTTL, DroppedConflict,
}
