// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/tests/family"
)

// ICMP's types and codes are those of IPv4 wherever a test names them, as its addresses are.
const (
	echoReply        = 0
	echoRequest      = 8
	timestampRequest = 13
	timestampReply   = 14
)

type message struct{ kind, code uint8 }

// icmpv6 is what says the same in RFC 4443, by RFC 7915 section 4.2; but that a host cannot be reached has a code of its own.
var icmpv6 = map[message]message{
	{echoReply, 0}: {129, 0}, {echoRequest, 0}: {128, 0},
	{3, 0}: {1, 0}, {3, 1}: {1, 3}, {3, 2}: {4, 1}, {3, 3}: {1, 4}, {3, 4}: {2, 0},
	{3, 9}: {1, 1}, {3, 10}: {1, 1}, {3, 13}: {1, 1},
	{11, 0}: {3, 0}, {11, 1}: {3, 1}, {12, 0}: {4, 0},
}

// ICMPType is a type and a code of IPv4's ICMP in a family; not ok: it has no such message.
func ICMPType(f family.Family, kind, code uint8) (ofKind, ofCode uint8, ok bool) {
	if f == family.V4 {
		return kind, code, true
	}
	m, ok := icmpv6[message{kind, code}]
	return m.kind, m.code, ok
}

// icmp is a message whose type and code are IPv4's; rest is what stands behind the checksum.
func icmp(src, dst string, kind, code uint8, rest uint32, payload []byte) Spec {
	return Spec{Src: src, Dst: dst, Payload: payload, L4: func(s *Spec, ip *Header) []gopacket.SerializableLayer {
		kind, code, ok := ICMPType(s.Family(), kind, code)
		if !ok {
			panic(fmt.Sprintf("packets: %v has no ICMP message of type %d code %d", s.Family(), kind, code))
		}
		return ip.icmp(kind, code, rest, s.Payload)
	}}
}

// ICMPv6 is a message by its own type and code.
func ICMPv6(src, dst string, kind, code uint8, rest uint32, payload []byte) Spec {
	return Spec{Src: src, Dst: dst, Payload: payload, L4: func(s *Spec, ip *Header) []gopacket.SerializableLayer {
		return ip.icmp(kind, code, rest, s.Payload)
	}}
}

func (h *Header) icmp(kind, code uint8, rest uint32, payload []byte) []gopacket.SerializableLayer {
	m := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	m = append(m, payload...)
	sum := Checksum(m)
	if h.Protocol = layers.IPProtocolICMPv4; h.Src.Is6() {
		h.Protocol = layers.IPProtocolICMPv6
		sum = h.Checksum(m)
	}
	binary.BigEndian.PutUint16(m[2:], sum)
	return []gopacket.SerializableLayer{gopacket.Payload(m)}
}

// Checksum is that of a transport header and its data, whose own checksum field is zero, with the pseudo-header (RFC 9293 section
// 3.1, RFC 8200 section 8.1). It needs the protocol.
func (h *Header) Checksum(transport []byte) uint16 {
	return pseudoChecksum(h.Src, h.Dst, uint8(h.Protocol), transport)
}

func pseudoChecksum(src, dst netip.Addr, protocol uint8, transport []byte) uint16 {
	length := binary.BigEndian.AppendUint32(nil, uint32(len(transport)))
	return Checksum(slices.Concat(src.AsSlice(), dst.AsSlice(), length, []byte{0, 0, 0, protocol}, transport))
}

// Ping is an echo request with the source's port as identifier.
func Ping(src, dst string) Spec { return query(src, dst, echoRequest, Endpoint(src).Port()) }

// Pong is an echo reply with the destination's port as identifier.
func Pong(src, dst string) Spec { return query(src, dst, echoReply, Endpoint(dst).Port()) }

// Timestamp and TimestampReply are the other query that is translated (RFC 792). IPv6 has none.
func Timestamp(src, dst string) Spec { return query(src, dst, timestampRequest, Endpoint(src).Port()) }

// TimestampReply answers it.
func TimestampReply(src, dst string) Spec {
	return query(src, dst, timestampReply, Endpoint(dst).Port())
}

func query(src, dst string, kind uint8, id uint16) Spec {
	const seq = 7
	return icmp(src, dst, kind, 0, uint32(id)<<16|seq, []byte("0123456789abcdef"))
}

// quote is what an ICMP error has of the packet that it is about.
type quote struct {
	about Spec
	most  int // bytes, if there were an IPv4 header; 0: all
	told  bool
}

func (q *quote) bytes() []byte {
	whole, most := q.about.IP(), q.most
	v6 := q.about.Family() == family.V6
	switch {
	case q.told && v6:
		most = 1280 - 40 - 8 // RFC 4443 section 2.4 (c)
	case most == 0:
		most = len(whole)
	case v6:
		most += 40 - 20
	}
	return whole[:min(len(whole), most)]
}

// trafficClass of what a router says: RFC 1812 section 4.3.2.5 asks for precedence, RFC 4443 for nothing.
func (q *quote) trafficClass() uint8 {
	if q.about.Family() == family.V6 {
		return 0
	}
	return 0xc0
}

func (q *quote) error(src, dst string, kind, code uint8, rest uint32) Spec {
	return icmp(src, dst, kind, code, rest, q.bytes()).With(func(s *Spec) { s.quote = q })
}

// ICMPError is an ICMP error message that embeds the packet that it is about, as long as given: the IP header and at least 8
// bytes. The length is as if the header were IPv4's.
func ICMPError(src, dst string, kind, code uint8, about Spec, embed int) Spec {
	return (&quote{about: about.settled(), most: embed}).error(src, dst, kind, code, 1400)
}

// ICMPv6Error is ICMPError by IPv6's own type and code.
func ICMPv6Error(src, dst string, kind, code uint8, about Spec, embed int) Spec {
	q := &quote{about: about.settled(), most: embed}
	return ICMPv6(src, dst, kind, code, 1400, q.bytes()).With(func(s *Spec) { s.quote = q })
}

// Told is the ICMP error by which the NAT itself tells the sender of a packet that it was dropped: as much of it as 576 bytes
// hold (RFC 1812 section 4.3.2.3), or 1280 in IPv6. mtu is the next hop's, of Fragmentation Needed; from is the NAT's address.
func Told(from string, kind, code uint8, mtu uint16, about Spec) Spec {
	q := &quote{about: about.settled(), most: 548, told: true}
	s := q.error(from, Endpoint(about.Src).Addr().String(), kind, code, uint32(mtu))
	s.TOS, s.DF = q.trafficClass(), true
	return s
}
