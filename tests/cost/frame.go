// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/packets"
)

// packet is the smallest of its protocol, and no smaller than an Ethernet frame: of IPv4 60 bytes.
type packet struct {
	proto    uint8
	src, dst netip.AddrPort // of an echo the source's port, of its reply the destination's, is the identifier
	reply    bool           // an echo's
	flags    byte           // TCP's
	seq, ack uint32
}

// TCP's flags.
const (
	syn = 0x02
	ack = 0x10
)

const (
	frameSize    = 60
	ethernetSize = 14
)

func (p packet) is6() bool { return p.src.Addr().Is6() }

func (p packet) ipSize() int {
	if p.is6() {
		return 40
	}
	return 20
}

// segmentSize is what the transport header needs, and fills the frame.
func (p packet) segmentSize() int {
	header := 8
	if p.proto == unix.IPPROTO_TCP {
		header = 20
	}
	return max(header, frameSize-ethernetSize-p.ipSize())
}

// frame is a packet as AF_PACKET takes it: virtio's header, then Ethernet's. UDP and TCP leave their checksum to
// whoever sends them over a wire, as those of a container's sockets do, and nobody on the way verifies it.
func (p packet) frame(from bench.Port) []byte {
	segment, offset := p.segment()
	spec := packets.Raw(p.src.String(), p.dst.String(), p.proto, segment)
	spec.SrcMAC, spec.DstMAC, spec.DF = from.MAC, from.Gateway, true
	var header [virtioSize]byte
	if offset > 0 {
		header[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(header[6:], uint16(ethernetSize+p.ipSize()))
		binary.NativeEndian.PutUint16(header[8:], uint16(offset))
	}
	return append(header[:], spec.Bytes()...)
}

// wire is the packet as it comes out of a wire: whoever has sent it has completed the checksum.
func (p packet) wire(from bench.Port) []byte {
	raw := p.frame(from)
	header, frame := raw[:virtioSize], raw[virtioSize:]
	if header[0] == 0 {
		return frame
	}
	start, offset := binary.NativeEndian.Uint16(header[6:]), binary.NativeEndian.Uint16(header[8:])
	sum := packets.Checksum(frame[start:])
	if sum == 0 && p.proto == unix.IPPROTO_UDP {
		sum = 0xffff // RFC 768: 0 is none
	}
	binary.BigEndian.PutUint16(frame[start+offset:], sum)
	return frame
}

// virtioSize is struct virtio_net_hdr's (include/uapi/linux/virtio_net.h).
const virtioSize = 10

// segment is what comes after the IP header, and where in it a checksum is still to be completed; 0: nowhere.
func (p packet) segment() (segment []byte, offset int) {
	b := make([]byte, p.segmentSize())
	be := binary.BigEndian
	switch p.proto {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return p.echo(b), 0
	case unix.IPPROTO_UDP:
		be.PutUint16(b[4:], uint16(len(b)))
		offset = 6
	case unix.IPPROTO_TCP:
		be.PutUint32(b[4:], p.seq)
		be.PutUint32(b[8:], p.ack)
		b[12], b[13] = 5<<4, p.flags
		be.PutUint16(b[14:], 512)
		offset = 16
	}
	be.PutUint16(b, p.src.Port())
	be.PutUint16(b[2:], p.dst.Port())
	be.PutUint16(b[offset:], ^packets.Checksum(p.pseudoHeader()))
	return b, offset
}

// echo is a request or its reply; nobody completes the checksum on the way.
func (p packet) echo(b []byte) []byte {
	request, reply := byte(8), byte(0)
	var covered []byte
	if p.is6() {
		request, reply, covered = 128, 129, p.pseudoHeader()
	}
	b[0] = request
	binary.BigEndian.PutUint16(b[4:], p.src.Port())
	if p.reply {
		b[0] = reply
		binary.BigEndian.PutUint16(b[4:], p.dst.Port())
	}
	binary.BigEndian.PutUint16(b[2:], packets.Checksum(append(covered, b...)))
	return b
}

// pseudoHeader is that of RFC 768, and of RFC 8200 section 8.1 but for zeros.
func (p packet) pseudoHeader() []byte {
	b := append(p.src.Addr().AsSlice(), p.dst.Addr().AsSlice()...)
	return append(b, 0, p.proto, 0, byte(p.segmentSize()))
}
