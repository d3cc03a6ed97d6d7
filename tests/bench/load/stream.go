// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/packets"
)

// The least and the most bytes of a frame, without its checksum.
const (
	MinSize = 60
	MaxSize = 1514
)

// maxPortBits keeps a session's port from the first one on within 16 bits.
const maxPortBits = 14

const (
	ethernetBytes = 14
	ipBytes       = 20
	udpBytes      = 8
	headerBytes   = ethernetBytes + ipBytes + udpBytes
)

// Stream is UDP datagrams of IPv4, of many sessions in turn: each has one of 2 to the power of PortBits local ports, and one
// of as many remote addresses as that takes.
type Stream struct {
	Interface int            // whose end sends them
	Local     netip.AddrPort // and the ports after it
	Remote    netip.AddrPort // and the addresses after it
	Inbound   bool           // from the remote endpoints, else to them
	SrcMAC    net.HardwareAddr
	DstMAC    net.HardwareAddr
	Size      int // bytes of a frame
	Sessions  int
	PortBits  int
}

func (s Stream) check() error {
	switch {
	case s.Size < MinSize || s.Size > MaxSize:
		return fmt.Errorf("frames of %d bytes, want %d to %d", s.Size, MinSize, MaxSize)
	case s.Sessions < 1:
		return fmt.Errorf("%d sessions", s.Sessions)
	case s.PortBits < 0 || s.PortBits > maxPortBits || int(s.Local.Port())+1<<s.PortBits > 1<<16:
		return fmt.Errorf("2^%d ports from %d on", s.PortBits, s.Local.Port())
	case !s.Local.Addr().Is4() || !s.Remote.Addr().Is4():
		return fmt.Errorf("%v and %v are not of IPv4", s.Local, s.Remote)
	}
	return nil
}

// Frames are each session's packet, for who sends them in another way.
func (s Stream) Frames() (frames [][]byte) {
	remote := s.Remote.Addr()
	for i := range s.Sessions {
		port := i & (1<<s.PortBits - 1)
		if i > 0 && port == 0 {
			remote = remote.Next()
		}
		frames = append(frames, s.frame(netip.AddrPortFrom(s.Local.Addr(), s.Local.Port()+uint16(port)), netip.AddrPortFrom(remote, s.Remote.Port())))
	}
	return frames
}

func (s Stream) frame(local, remote netip.AddrPort) []byte {
	src, dst := local, remote
	if s.Inbound {
		src, dst = dst, src
	}
	spec := packets.UDP(src.String(), dst.String(), string(make([]byte, s.Size-headerBytes)))
	spec.SrcMAC, spec.DstMAC, spec.DF = s.SrcMAC, s.DstMAC, true
	return spec.Bytes()
}

// shape has the sums of what is the same in all packets.
func (s Stream) shape(frame []byte) loadLoadShape {
	be := binary.BigEndian
	shape := loadLoadShape{Sessions: uint32(s.Sessions), PortBits: uint32(s.PortBits),
		FirstPort: s.Local.Port(), FirstRemote: be.Uint32(s.Remote.Addr().AsSlice())}
	fixed := append([]byte{}, frame...)
	ip, udp := fixed[ethernetBytes:][:ipBytes], fixed[ethernetBytes+ipBytes:]
	remote, port := ip[16:20], udp[0:2]
	if s.Inbound {
		shape.Inbound = 1
		remote, port = ip[12:16], udp[2:4]
	}
	clear(remote)
	clear(port)
	clear(ip[10:12])
	clear(udp[6:8])
	copy(shape.Headers[:], fixed)
	shape.IpSum = ^packets.Checksum(ip)
	pseudo := append([]byte{}, ip[12:20]...)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP, 0, 0)
	be.PutUint16(pseudo[10:], uint16(len(udp)))
	shape.UdpSum = uint32(^packets.Checksum(append(pseudo, udp...)))
	return shape
}
