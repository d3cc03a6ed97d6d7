// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Numbers of IPv6's headers (IANA, Assigned Internet Protocol Numbers).
const (
	hopByHop           = 0
	routing            = 43
	fragmentHeader     = 44
	authentication     = 51
	noNextHeader       = 59
	destinationOptions = 60
	mobility           = 135
)

// Extension is an IPv6 header between the first one and the transport's. Its first byte, the next header's number, is not the
// caller's to set.
type Extension struct {
	Number uint8
	Bytes  []byte // a multiple of 8
}

// HopByHop is a header with a router alert (RFC 2711), DestinationOptions one with padding alone, of 8 bytes and as many
// times 8 more as asked for.
func HopByHop() Extension { return Extension{hopByHop, []byte{0, 0, 5, 2, 0, 0, 1, 0}} }

// DestinationOptions is above.
func DestinationOptions(more int) Extension {
	b := make([]byte, 8+8*more)
	b[1], b[2], b[3] = byte(more), 1, byte(len(b)-4) // PadN
	return Extension{destinationOptions, b}
}

// Routing is a routing header of type 2 (RFC 6275) by way of an address. The packet's checksums are as if its destination were the
// last one.
func Routing(left uint8, by string) Extension {
	b := []byte{0, 2, 2, left, 0, 0, 0, 0}
	return Extension{routing, append(b, netip.MustParseAddr(by).AsSlice()...)}
}

// FragmentHeader is that of a fragment; one of offset 0 without more is an atomic one (RFC 6946).
func FragmentHeader(id uint32, offset uint16, more bool) Extension {
	b := make([]byte, 8)
	field := offset &^ 7
	if more {
		field |= 1
	}
	binary.BigEndian.PutUint16(b[2:], field)
	binary.BigEndian.PutUint32(b[4:], id)
	return Extension{fragmentHeader, b}
}

// Behind puts extension headers before the transport's, after those that it has.
func (s Spec) Behind(headers ...Extension) Spec {
	s.Extensions = slices.Concat(s.Extensions, headers)
	return s
}

// Chain are extension headers one after another, and what comes behind them.
func chain(headers []Extension, protocol uint8, rest []byte) (first uint8, b []byte) {
	first, b = protocol, rest
	for _, h := range slices.Backward(headers) {
		part := slices.Concat(h.Bytes, b)
		part[0] = first
		first, b = h.Number, part
	}
	return first, b
}

// header6 is the first header alone.
func (s Spec) header6(next uint8, length int) []byte {
	b := make([]byte, 8, 40)
	binary.BigEndian.PutUint32(b, 6<<28|uint32(s.TOS)<<20)
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = next, s.ttl()
	return slices.Concat(b, Endpoint(s.Src).Addr().AsSlice(), Endpoint(s.Dst).Addr().AsSlice())
}

func (s Spec) transport6() (protocol uint8, b []byte) {
	if len(s.Options) > 0 {
		panic("packets: IPv4 options in IPv6")
	}
	return s.transport(&layers.IPv6{SrcIP: Endpoint(s.Src).Addr().AsSlice(), DstIP: Endpoint(s.Dst).Addr().AsSlice()})
}

func (s Spec) ipv6() []byte {
	protocol, transport := s.transport6()
	headers := s.Extensions
	if s.MF || s.Offset > 0 {
		headers = slices.Concat(headers, []Extension{FragmentHeader(uint32(s.ID), s.Offset, s.MF)})
	}
	next, rest := chain(headers, protocol, transport)
	return append(s.header6(next, len(rest)), rest...)
}

// perFragment is how many of the extension headers every fragment has: those that routers on the way look at (RFC 8200 section 4.5).
func (s Spec) perFragment() (n int) {
	for i, h := range s.Extensions {
		if h.Number == hopByHop || h.Number == routing {
			n = i + 1
		}
	}
	return n
}

func (s Spec) fragments6(size int) (out [][]byte) {
	protocol, transport := s.transport6()
	n := s.perFragment()
	next, payload := chain(s.Extensions[n:], protocol, transport)
	for at := 0; at < len(payload); at += size {
		end := min(at+size, len(payload))
		headers := slices.Concat(s.Extensions[:n], []Extension{FragmentHeader(uint32(s.ID), uint16(at), end < len(payload))})
		first, rest := chain(headers, next, payload[at:end])
		out = append(out, append(s.header6(first, len(rest)), rest...))
	}
	return out
}

// The types of neighbour discovery (RFC 4861).
const (
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136
)

func discovery(src, dst string, kind uint8, rest uint32, body ...[]byte) Spec {
	s := ICMPv6(src, dst, kind, 0, rest, slices.Concat(body...))
	s.TTL = 255
	return s
}

func linkLayerAddress(option byte, mac net.HardwareAddr) []byte {
	return append([]byte{option, 1}, mac...)
}

// RouterSolicitation is sent by a host whose address is src.
func RouterSolicitation(src string, mac net.HardwareAddr) Spec {
	return discovery(src, "ff02::2", routerSolicitation, 0, linkLayerAddress(1, mac))
}

// RouterAdvertisement is sent to all nodes.
func RouterAdvertisement(src string, mac net.HardwareAddr) Spec {
	const hopLimit, lifetime = 64, 1800
	return discovery(src, "ff02::1", routerAdvertisement, hopLimit<<24|lifetime, make([]byte, 8), linkLayerAddress(1, mac))
}

// NeighborSolicitation asks dst, or the target's solicited-node address if dst is empty, who has target.
func NeighborSolicitation(src, dst, target string, mac net.HardwareAddr) Spec {
	t := netip.MustParseAddr(target)
	if dst == "" {
		b := netip.MustParseAddr("ff02::1:ff00:0").As16()
		copy(b[13:], t.AsSlice()[13:])
		dst = netip.AddrFrom16(b).String()
	}
	return discovery(src, dst, neighborSolicitation, 0, t.AsSlice(), linkLayerAddress(1, mac))
}

// NeighborAdvertisement answers: solicited, and overriding.
func NeighborAdvertisement(src, dst, target string, mac net.HardwareAddr) Spec {
	return discovery(src, dst, neighborAdvertisement, 0x60000000, netip.MustParseAddr(target).AsSlice(), linkLayerAddress(2, mac))
}

// NoNextHeader is a packet that ends behind its extension headers (RFC 8200 section 4.7).
func NoNextHeader(src, dst string) Spec {
	return Spec{Src: src, Dst: dst, L4: func(_ *Spec, ip *Header) []gopacket.SerializableLayer {
		ip.Protocol = noNextHeader
		return nil
	}}
}
