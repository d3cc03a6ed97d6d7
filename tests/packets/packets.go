// SPDX-License-Identifier: Apache-2.0

// Package packets builds test packets from scratch, with every checksum right, so that a test can compare
// the whole of what came out with what should have. What it gives is what was asked for: builders do not look at what they have
// built. Sums and Verify do, of any packet, and share nothing with the builders but RFC 1071's sum.
package packets

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/conenat/conenat/tests/family"
)

// Spec is an IP packet in an Ethernet frame, of the family of its addresses. Endpoints are "ADDR:PORT"; for ICMP queries the
// port is the identifier, of the source (request) or of the destination (reply).
type Spec struct {
	DstMAC     net.HardwareAddr
	SrcMAC     net.HardwareAddr
	Src, Dst   string
	TTL        uint8       // or hop limit; 0: 64
	TOS        uint8       // or traffic class
	ID         uint16      // IPv4 identification; IPv6: of a fragment
	DF         bool        // IPv6 says that of every packet, and has no bit for it
	MF         bool        // IPv6: as Offset, by a fragment header
	Offset     uint16      // of a fragment, bytes
	Options    []byte      // IPv4 options, padded by the caller to 4 bytes
	Extensions []Extension // IPv6 headers before the transport's
	Payload    []byte
	L4         func(s *Spec, ip *Header) []gopacket.SerializableLayer

	quote *quote // what the payload is of, in an ICMP error
}

// Header is the IP header that a transport header is made for.
type Header struct {
	Protocol layers.IPProtocol     // the transport's, which sets it
	Network  gopacket.NetworkLayer // for gopacket's SetNetworkLayerForChecksum
	Src, Dst netip.Addr
}

// Endpoint parses "ADDR:PORT", "[ADDR]:PORT" or "ADDR", whose port is 0.
func Endpoint(s string) netip.AddrPort {
	if e, err := netip.ParseAddrPort(s); err == nil {
		return e
	}
	return netip.AddrPortFrom(netip.MustParseAddr(strings.Trim(s, "[]")), 0)
}

// Family is the packet's.
func (s Spec) Family() family.Family { return family.Of(Endpoint(s.Src).Addr()) }

// settled is the packet in IPv6 where one of its addresses is that already.
func (s Spec) settled() Spec {
	if s.is(family.V4) {
		return s
	}
	return s.In(family.V6)
}

// is says whether both addresses are of a family.
func (s Spec) is(f family.Family) bool {
	return s.Family() == f && family.Of(Endpoint(s.Dst).Addr()) == f
}

// In is the same packet in a family: between the same places, and about the same packet, if it is an ICMP error. What is asked for
// IPv4 alone (options, timestamps) cannot be built in IPv6. A payload that was quoted and then changed cannot follow: say In first.
// One address may be the family's already, as one that a test has read.
func (s Spec) In(f family.Family) Spec {
	if s.is(f) {
		return s
	}
	if s.quote != nil {
		if !bytes.Equal(s.Payload, s.quote.bytes()) {
			panic("packets: In of an ICMP error whose payload was changed")
		}
		q := *s.quote
		q.about = q.about.In(f)
		s.quote, s.Payload = &q, q.bytes()
		if q.told {
			s.TOS = q.trafficClass()
		}
	}
	s.Src, s.Dst = f.Text(s.Src), f.Text(s.Dst)
	return s
}

// OnlyIPv4 says whether the packet, or one that it is about, has what In cannot say in IPv6: options.
func (s Spec) OnlyIPv4() bool {
	return len(s.Options) > 0 || s.quote != nil && s.quote.about.OnlyIPv4()
}

// UDP is a UDP datagram.
func UDP(src, dst string, payload string) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte(payload), L4: udp}
}

func udp(s *Spec, ip *Header) []gopacket.SerializableLayer {
	ip.Protocol = layers.IPProtocolUDP
	u := &layers.UDP{SrcPort: layers.UDPPort(Endpoint(s.Src).Port()), DstPort: layers.UDPPort(Endpoint(s.Dst).Port())}
	must(u.SetNetworkLayerForChecksum(ip.Network))
	return []gopacket.SerializableLayer{u, gopacket.Payload(s.Payload)}
}

// TCP is a TCP segment; flags are letters of "SAFRP".
func TCP(src, dst, flags, payload string) Spec {
	return Spec{Src: src, Dst: dst, Payload: []byte(payload), L4: func(s *Spec, ip *Header) []gopacket.SerializableLayer {
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
		must(t.SetNetworkLayerForChecksum(ip.Network))
		return []gopacket.SerializableLayer{t, gopacket.Payload(s.Payload)}
	}}
}

// Raw is an IP packet of any protocol; the payload is its transport header and data.
func Raw(src, dst string, proto uint8, payload []byte) Spec {
	return Spec{Src: src, Dst: dst, Payload: payload, L4: func(s *Spec, ip *Header) []gopacket.SerializableLayer {
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
	s.TTL = s.ttl() - 1
	return s
}

// IP is the packet from its IP header on.
func (s Spec) IP() []byte {
	if s.Family() == family.V6 {
		return s.ipv6()
	}
	return s.ipv4()
}

func (s Spec) ttl() uint8 {
	if s.TTL == 0 {
		return 64
	}
	return s.TTL
}

// transport is the packet behind its IP headers.
func (s Spec) transport(network gopacket.NetworkLayer) (protocol uint8, b []byte) {
	ip := &Header{Network: network, Src: Endpoint(s.Src).Addr(), Dst: Endpoint(s.Dst).Addr()}
	parts := s.L4(&s, ip)
	return uint8(ip.Protocol), serialize(parts...)
}

func (s Spec) ipv4() []byte {
	if len(s.Extensions) > 0 {
		panic("packets: extension headers in IPv4")
	}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: s.ttl(), TOS: s.TOS, Id: s.ID, FragOffset: s.Offset / 8,
		SrcIP: Endpoint(s.Src).Addr().AsSlice(), DstIP: Endpoint(s.Dst).Addr().AsSlice()}
	if s.DF {
		ip.Flags |= layers.IPv4DontFragment
	}
	if s.MF {
		ip.Flags |= layers.IPv4MoreFragments
	}
	protocol, transport := s.transport(ip)
	ip.Protocol = layers.IPProtocol(protocol)
	out := serialize(ip, gopacket.Payload(transport))
	if len(s.Options) > 0 {
		out = withOptions(out, s.Options)
	}
	return out
}

// withOptions puts options into a packet without any, and mends length and header checksum.
func withOptions(packet, options []byte) []byte {
	out := slices.Concat(packet[:20], options, packet[20:])
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
func (s Spec) Bytes() []byte { return s.frame(s.IP()) }

func (s Spec) frame(ip []byte) []byte {
	etherType := []byte{0x08, 0x00}
	if s.Family() == family.V6 {
		etherType = []byte{0x86, 0xdd}
	}
	return slices.Concat(mac(s.DstMAC), mac(s.SrcMAC), etherType, ip)
}

// Fragments cuts the packet into fragments with at most size bytes of payload each; size is a multiple of 8.
func (s Spec) Fragments(size int) (frames [][]byte) {
	cut := s.fragments4
	if s.Family() == family.V6 {
		cut = s.fragments6
	}
	for _, ip := range cut(size) {
		frames = append(frames, s.frame(ip))
	}
	return frames
}

func (s Spec) fragments4(size int) (out [][]byte) {
	whole := s.IP()
	header, payload := whole[:20], whole[20:]
	for at := 0; at < len(payload); at += size {
		end := min(at+size, len(payload))
		part := slices.Concat(header, payload[at:end])
		binary.BigEndian.PutUint16(part[2:], uint16(len(part)))
		field := uint16(at / 8)
		if end < len(payload) {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(part[6:], field)
		FixIPChecksum(part)
		out = append(out, part)
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
