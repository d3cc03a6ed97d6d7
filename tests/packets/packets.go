// SPDX-License-Identifier: Apache-2.0

// Package packets builds test packets from scratch, with every checksum right, so that a test can compare
// the whole of what came out with what should have. It never parses: what it gives is what was asked for.
package packets

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Spec is an IPv4 packet in an Ethernet frame. Endpoints are "ADDR:PORT"; for ICMP queries the port is the
// identifier, of the source (request) or of the destination (reply).
type Spec struct {
	DstMAC   net.HardwareAddr
	SrcMAC   net.HardwareAddr
	Src, Dst string
	TTL      uint8 // 0: 64
	TOS      uint8
	ID       uint16 // IPv4 identification
	DF       bool
	MF       bool
	Offset   uint16 // of a fragment, bytes
	Options  []byte // IPv4 options, padded by the caller to 4 bytes
	Payload  []byte
	L4       func(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer
}

// Endpoint parses "ADDR:PORT"; "ADDR" is port 0.
func Endpoint(s string) netip.AddrPort {
	if e, err := netip.ParseAddrPort(s); err == nil {
		return e
	}
	return netip.AddrPortFrom(netip.MustParseAddr(s), 0)
}

// UDP is a UDP datagram.
func UDP(src, dst string, payload string) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte(payload), L4: udp}
}

func udp(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer {
	ip.Protocol = layers.IPProtocolUDP
	u := &layers.UDP{SrcPort: layers.UDPPort(Endpoint(s.Src).Port()), DstPort: layers.UDPPort(Endpoint(s.Dst).Port())}
	must(u.SetNetworkLayerForChecksum(ip))
	return []gopacket.SerializableLayer{u, gopacket.Payload(s.Payload)}
}

// TCP is a TCP segment; flags are letters of "SAFRP".
func TCP(src, dst, flags, payload string) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte(payload), L4: func(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer {
		ip.Protocol = layers.IPProtocolTCP
		t := &layers.TCP{SrcPort: layers.TCPPort(Endpoint(s.Src).Port()), DstPort: layers.TCPPort(Endpoint(s.Dst).Port()),
			Seq: 1000, Ack: 2000, Window: 512}
		for _, f := range flags {
			switch f {
			case 'S':
				t.SYN = true
			case 'A':
				t.ACK = true
			case 'F':
				t.FIN = true
			case 'R':
				t.RST = true
			case 'P':
				t.PSH = true
			}
		}
		must(t.SetNetworkLayerForChecksum(ip))
		return []gopacket.SerializableLayer{t, gopacket.Payload(s.Payload)}
	}}
}

// Ping is an echo request with the source's port as identifier.
func Ping(src, dst string) Spec {
	return icmpQuery(src, dst, layers.ICMPv4TypeEchoRequest, Endpoint(src).Port())
}

// Pong is an echo reply with the destination's port as identifier.
func Pong(src, dst string) Spec {
	return icmpQuery(src, dst, layers.ICMPv4TypeEchoReply, Endpoint(dst).Port())
}

// Timestamp and TimestampReply are the other query that is translated (RFC 792).
func Timestamp(src, dst string) Spec {
	return icmpQuery(src, dst, layers.ICMPv4TypeTimestampRequest, Endpoint(src).Port())
}

// TimestampReply answers it.
func TimestampReply(src, dst string) Spec {
	return icmpQuery(src, dst, layers.ICMPv4TypeTimestampReply, Endpoint(dst).Port())
}

func icmpQuery(src, dst string, kind uint8, id uint16) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte("0123456789abcdef"), L4: func(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer {
		ip.Protocol = layers.IPProtocolICMPv4
		return []gopacket.SerializableLayer{
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: id, Seq: 7}, gopacket.Payload(s.Payload)}
	}}
}

// ICMPError is an ICMP error message that embeds the packet that it is about, as long as given: the IPv4
// header and at least 8 bytes.
func ICMPError(src, dst string, kind, code uint8, about Spec, embed int) Spec {
	inner := about.IP()
	if embed > 0 && embed < len(inner) {
		inner = inner[:embed]
	}
	return Spec{Src: src, Dst: dst, Payload: inner, L4: func(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer {
		ip.Protocol = layers.IPProtocolICMPv4
		return []gopacket.SerializableLayer{
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Seq: 1400}, gopacket.Payload(s.Payload)}
	}}
}

// Told is the ICMP error by which the NAT itself tells the sender of a packet that it was dropped: as much of it as 576 bytes
// hold (RFC 1812 section 4.3.2.3). mtu is the next hop's, of Fragmentation Needed; from is the NAT's address.
func Told(from string, kind, code uint8, mtu uint16, about Spec) Spec {
	quote := about.IP()
	return Spec{Src: from, Dst: Endpoint(about.Src).Addr().String(), TOS: 0xc0, DF: true, Payload: quote[:min(len(quote), 548)],
		L4: func(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer {
			ip.Protocol = layers.IPProtocolICMPv4
			return []gopacket.SerializableLayer{
				&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Seq: mtu}, gopacket.Payload(s.Payload)}
		}}
}

// Raw is an IPv4 packet of any protocol; the payload is its transport header and data.
func Raw(src, dst string, proto uint8, payload []byte) Spec {
	return Spec{Src: src, Dst: dst, Payload: payload, L4: func(s *Spec, ip *layers.IPv4) []gopacket.SerializableLayer {
		ip.Protocol = layers.IPProtocol(proto)
		return []gopacket.SerializableLayer{gopacket.Payload(s.Payload)}
	}}
}

// With changes a copy of the spec.
func (s Spec) With(change func(*Spec)) Spec {
	change(&s)
	return s
}

// Hop is the packet after one more router: TTL less 1.
func (s Spec) Hop() Spec {
	if s.TTL == 0 {
		s.TTL = 64
	}
	s.TTL--
	return s
}

func (s Spec) ipv4() *layers.IPv4 {
	ttl := s.TTL
	if ttl == 0 {
		ttl = 64
	}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: ttl, TOS: s.TOS, Id: s.ID, FragOffset: s.Offset / 8,
		SrcIP: Endpoint(s.Src).Addr().AsSlice(), DstIP: Endpoint(s.Dst).Addr().AsSlice()}
	if s.DF {
		ip.Flags |= layers.IPv4DontFragment
	}
	if s.MF {
		ip.Flags |= layers.IPv4MoreFragments
	}
	return ip
}

// IP is the packet from its IPv4 header on.
func (s Spec) IP() []byte {
	ip := s.ipv4()
	parts := append([]gopacket.SerializableLayer{ip}, s.L4(&s, ip)...)
	out := serialize(parts...)
	if len(s.Options) > 0 {
		out = withOptions(out, s.Options)
	}
	return out
}

// withOptions puts options into a packet without any, and mends length and header checksum.
func withOptions(packet, options []byte) []byte {
	out := append(append(append([]byte{}, packet[:20]...), options...), packet[20:]...)
	out[0] = 4<<4 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	FixIPChecksum(out)
	return out
}

// FixIPChecksum sets the header checksum of an IPv4 packet.
func FixIPChecksum(ip []byte) {
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], Checksum(ip[:int(ip[0]&15)*4]))
}

// Checksum is RFC 1071's.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// Bytes is the whole frame.
func (s Spec) Bytes() []byte {
	eth := append(append([]byte{}, mac(s.DstMAC)...), mac(s.SrcMAC)...)
	return append(append(eth, 0x08, 0x00), s.IP()...)
}

// Fragments cuts the packet into fragments with at most size bytes of IPv4 payload each; size is a multiple
// of 8.
func (s Spec) Fragments(size int) [][]byte {
	whole := s.IP()
	header, payload := whole[:20], whole[20:]
	var out [][]byte
	for at := 0; at < len(payload); at += size {
		end := min(at+size, len(payload))
		part := append(append([]byte{}, header...), payload[at:end]...)
		binary.BigEndian.PutUint16(part[2:], uint16(len(part)))
		field := uint16(at / 8)
		if end < len(payload) {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(part[6:], field)
		FixIPChecksum(part)
		eth := append(append([]byte{}, mac(s.DstMAC)...), mac(s.SrcMAC)...)
		out = append(out, append(append(eth, 0x08, 0x00), part...))
	}
	return out
}

func mac(m net.HardwareAddr) []byte {
	if m == nil {
		return make([]byte, 6)
	}
	return m
}

func serialize(parts ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...))
	return append([]byte{}, buf.Bytes()...)
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("build test packet: %v", err))
	}
}

// Dump is a frame in words.
func Dump(frame []byte) string {
	return gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).Dump()
}

// Same fails the test when two frames differ, with both in words, and leaves them in a pcap.
func Same(t testing.TB, got, want []byte) {
	t.Helper()
	if diff := cmp.Diff(Dump(want), Dump(got)); diff != "" {
		t.Errorf("packet differs (-want +got; both in %s):\n%s", writePcap(t, want, got), diff)
	}
}

func writePcap(t testing.TB, frames ...[]byte) string {
	name := filepath.Join(t.ArtifactDir(), "packets.pcap")
	f, err := os.Create(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	w := pcapgo.NewWriter(f)
	must(w.WriteFileHeader(65535, layers.LinkTypeEthernet))
	for _, frame := range frames {
		info := gopacket.CaptureInfo{Timestamp: time.Now(), CaptureLength: len(frame), Length: len(frame)}
		must(w.WritePacket(info, frame))
	}
	return name
}
