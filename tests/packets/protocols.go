// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/tests/family"
)

// Protocols' numbers.
const (
	protoICMP    = 1
	protoIPIP    = 4
	protoTCP     = 6
	protoUDP     = 17
	protoIPv6    = 41
	protoGRE     = 47
	protoESP     = 50
	protoICMPv6  = 58
	protoSCTP    = 132
	protoUDPLite = 136
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SCTP is a packet with one DATA chunk, and the CRC32c of RFC 9260 appendix A, which does not cover addresses.
func SCTP(src, dst string, tag uint32, payload string) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte(payload), L4: func(s *Spec, ip *Header) []gopacket.SerializableLayer {
		ip.Protocol = protoSCTP
		b := binary.BigEndian.AppendUint16(nil, Endpoint(s.Src).Port())
		b = binary.BigEndian.AppendUint16(b, Endpoint(s.Dst).Port())
		b = binary.BigEndian.AppendUint32(b, tag)
		b = append(b, make([]byte, 4)...) // the checksum
		b = binary.BigEndian.AppendUint16(append(b, 0, 3), uint16(16+len(s.Payload)))
		b = append(append(b, make([]byte, 12)...), s.Payload...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
		return []gopacket.SerializableLayer{gopacket.Payload(b)}
	}}
}

// UDPLite is a datagram whose checksum covers all of it (RFC 3828).
func UDPLite(src, dst, payload string) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte(payload), L4: func(s *Spec, ip *Header) []gopacket.SerializableLayer {
		ip.Protocol = protoUDPLite
		b := binary.BigEndian.AppendUint16(nil, Endpoint(s.Src).Port())
		b = binary.BigEndian.AppendUint16(b, Endpoint(s.Dst).Port())
		b = append(append(b, 0, 0, 0, 0), s.Payload...)
		binary.BigEndian.PutUint16(b[6:], ip.Checksum(b))
		return []gopacket.SerializableLayer{gopacket.Payload(b)}
	}}
}

// ESP is an encapsulated packet (RFC 4303): nobody on the way can see of what.
func ESP(src, dst string, spi uint32, size int) Spec {
	b := binary.BigEndian.AppendUint32(nil, spi)
	return Raw(src, dst, protoESP, append(binary.BigEndian.AppendUint32(b, 1), make([]byte, size)...))
}

// AH is a packet with an authentication header (RFC 4302), which covers its addresses: in IPv6 an extension header.
func AH(s Spec, spi uint32) Spec {
	header := func(next uint8) []byte {
		b := binary.BigEndian.AppendUint32([]byte{next, 4, 0, 0}, spi) // 24 bytes: 4 words more than 2
		return append(binary.BigEndian.AppendUint32(b, 1), make([]byte, 12)...)
	}
	l4 := s.L4
	s.L4 = func(s *Spec, ip *Header) []gopacket.SerializableLayer {
		inner := l4(s, ip)
		next := uint8(ip.Protocol)
		ip.Protocol = authentication
		return append([]gopacket.SerializableLayer{gopacket.Payload(header(next))}, inner...)
	}
	return s
}

// GRE is a packet with another one in it (RFC 2784).
func GRE(src, dst string, inner Spec) Spec {
	return tunnel(src, dst, protoGRE, inner, func() []byte {
		if inner.Family() == family.V6 {
			return []byte{0, 0, 0x86, 0xdd}
		}
		return []byte{0, 0, 0x08, 0x00}
	}())
}

// SixIn4 is an IPv6 packet in one of either family (RFC 4213).
func SixIn4(src, dst string, inner Spec) Spec { return tunnel(src, dst, protoIPv6, inner, nil) }

// IPIP is an IPv4 packet in one of either family (RFC 2003, RFC 2473).
func IPIP(src, dst string, inner Spec) Spec { return tunnel(src, dst, protoIPIP, inner, nil) }

func tunnel(src, dst string, protocol layers.IPProtocol, inner Spec, header []byte) Spec {
	return Raw(src, dst, uint8(protocol), append(header, inner.IP()...))
}
