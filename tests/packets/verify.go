// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
)

// Sum is what a checksum is.
type Sum int8

// The sums. A packet has none that can be judged where the protocol knows none, where it says so (UDP's zero), and where not all
// of what it covers is there: in fragments.
const (
	NoSum Sum = iota
	RightSum
	WrongSum
)

// parsed is a packet from its IP header on.
type parsed struct {
	src, dst  netip.Addr
	header    Sum   // of the IPv4 header
	protocol  uint8 // the transport's
	transport []byte
	whole     bool // no fragment
}

var errShort = errors.New("the packet is shorter than it says")

func parse(ip []byte) (p parsed, err error) {
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		return parse4(ip)
	case len(ip) >= 40 && ip[0]>>4 == 6:
		return parse6(ip)
	}
	return p, errors.New("no IP header")
}

func parse4(ip []byte) (p parsed, err error) {
	length, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if length < 20 || total < length || length > len(ip) {
		return p, errShort
	}
	p.src, _ = netip.AddrFromSlice(ip[12:16])
	p.dst, _ = netip.AddrFromSlice(ip[16:20])
	if p.header = WrongSum; Checksum(ip[:length]) == 0 {
		p.header = RightSum
	}
	p.protocol, p.whole = ip[9], binary.BigEndian.Uint16(ip[6:])&0x3fff == 0
	if total > len(ip) {
		return p, errShort
	}
	p.transport = ip[length:total]
	return p, nil
}

// parse6 steps over extension headers (RFC 8200 section 4).
func parse6(ip []byte) (p parsed, err error) {
	p.src, _ = netip.AddrFromSlice(ip[8:24])
	p.dst, _ = netip.AddrFromSlice(ip[24:40])
	total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
	if p.protocol, p.whole = ip[6], true; total > len(ip) {
		return p, errShort
	}
	b := ip[40:total]
	for {
		var length int
		switch {
		case p.protocol == fragmentHeader:
			length = 8
		case len(b) < 2:
		case p.protocol == hopByHop, p.protocol == routing, p.protocol == destinationOptions, p.protocol == mobility:
			length = (int(b[1]) + 1) * 8
		case p.protocol == authentication:
			length = (int(b[1]) + 2) * 4
		}
		if length == 0 {
			p.transport = b
			return p, nil
		}
		if length > len(b) {
			return p, errShort
		}
		if p.protocol == fragmentHeader && binary.BigEndian.Uint16(b[2:])&^6 != 0 {
			p.whole = false
			if binary.BigEndian.Uint16(b[2:])&^7 != 0 { // what follows is of the middle of something
				p.protocol, p.transport = b[0], b[length:]
				return p, nil
			}
		}
		p.protocol, b = b[0], b[length:]
	}
}

// least is how long the headers are at least that have a checksum, by their protocols.
var least = map[uint8]int{protoICMP: 8, protoTCP: 20, protoUDP: 8, protoICMPv6: 8, protoSCTP: 12, protoUDPLite: 8}

// transportSum judges the checksum of a whole packet.
func (p parsed) transportSum() Sum {
	b := p.transport
	shortest, known := least[p.protocol]
	switch {
	case !p.whole || !known || len(b) < shortest:
		return NoSum
	case p.protocol == protoUDP && b[6]|b[7] == 0:
		return NoSum
	case p.protocol == protoUDPLite && b[4]|b[5] != 0: // it covers a part: no test has one
		return NoSum
	case p.protocol == protoSCTP:
		return crc32c(b)
	}
	sum := Checksum(b)
	if p.protocol != protoICMP {
		sum = pseudoChecksum(p.src, p.dst, p.protocol, b)
	}
	if sum != 0 {
		return WrongSum
	}
	return RightSum
}

func crc32c(b []byte) Sum {
	blank := append(append(append([]byte{}, b[:8]...), 0, 0, 0, 0), b[12:]...)
	if crc32.Checksum(blank, castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return WrongSum
	}
	return RightSum
}

// Sums judges the checksums of a packet that begins with its IP header: the header's own, which IPv6 has none of, and the transport's.
func Sums(ip []byte) (header, transport Sum) {
	p, err := parse(ip)
	if err != nil {
		return p.header, NoSum
	}
	return p.header, p.transportSum()
}

// Verify says what is wrong with the lengths and checksums of a packet that begins with its IP header, and of the packet that it speaks
// of if it is an ICMP error: of that one the transport's checksum only if it is all there.
func Verify(ip []byte) error {
	p, err := parse(ip)
	switch {
	case err != nil:
		return err
	case p.header == WrongSum:
		return errors.New("the IP header's checksum is wrong")
	case p.transportSum() == WrongSum:
		return fmt.Errorf("the checksum of protocol %d is wrong", p.protocol)
	case p.whole && len(p.transport) < least[p.protocol]:
		return fmt.Errorf("the header of protocol %d is not all there", p.protocol)
	case p.whole && p.protocol == protoUDP && int(binary.BigEndian.Uint16(p.transport[4:])) != len(p.transport):
		return errors.New("UDP's length is not the packet's")
	case !p.isError():
		return nil
	}
	inner := p.transport[8:]
	about, err := parse(inner)
	switch {
	case errors.Is(err, errShort):
		err = nil
		if about.header == WrongSum {
			err = errors.New("the embedded IP header's checksum is wrong")
		}
	case err == nil:
		err = Verify(inner)
	}
	if err != nil {
		return fmt.Errorf("embedded packet: %w", err)
	}
	return nil
}

// Embedded is what an ICMP error has of the packet that it speaks of, from the IP header on, all of it or not; nil: this is no such error.
func Embedded(ip []byte) []byte {
	if p, err := parse(ip); err == nil && p.isError() {
		return p.transport[8:]
	}
	return nil
}

// isError tells ICMP errors (RFC 792, RFC 4443) from all else.
func (p parsed) isError() bool {
	if !p.whole || len(p.transport) < 8 {
		return false
	}
	kind := p.transport[0]
	switch p.protocol {
	case protoICMP:
		return kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12
	case protoICMPv6:
		return kind < 128
	}
	return false
}
