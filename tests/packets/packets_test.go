// SPDX-License-Identifier: Apache-2.0

package packets

import (
	"bytes"
	"hash/crc32"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/tests/family"
)

const (
	here  = "198.51.100.1"
	there = "203.0.113.1"
	here6 = "2001:db8:100::1"
)

var hereMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

var question = UDP(here+":2000", there+":3478", "question")

// samples are written in IPv4, and are packets of both families.
var samples = map[string]Spec{
	"UDP":             question,
	"UDPOdd":          UDP(here+":2000", there+":3478", "odd"),
	"TCP":             TCP(here+":2000", there+":80", "PA", "data"),
	"Ping":            Ping(here+":7", there),
	"Pong":            Pong(there, here+":7"),
	"Unreachable":     ICMPError(there, here, 3, 3, question, 0),
	"TooBig":          ICMPError(there, here, 3, 4, TCP(here+":2000", there+":80", "PA", "data"), 28),
	"TimeExceeded":    ICMPError("192.0.2.9", here, 11, 0, Ping(here+":7", there), 28),
	"Told":            Told("192.0.2.9", 3, 4, 1400, UDP(here+":2000", there+":3478", strings.Repeat("x", 2000))),
	"ErrorAboutError": ICMPError(there, here, 3, 1, ICMPError(here, there, 3, 3, UDP(there+":3478", here+":2000", "x"), 0), 0),
	"SCTP":            SCTP(here+":2000", there+":3868", 0x01020304, "chunk"),
	"UDPLite":         UDPLite(here+":2000", there+":3478", "lite"),
	"ESP":             ESP(here, there, 0xabcd, 64),
	"AH":              AH(question, 0xabcd),
	"GRE":             GRE(here, there, UDP("10.0.0.1:1", "10.0.0.2:2", "x")),
	"6in4":            SixIn4(here, there, question.In(family.V6)),
}

// samples6 are of IPv6 alone.
var samples6 = map[string]Spec{
	"HopByHop":     question.In(family.V6).Behind(HopByHop()),
	"Chain":        question.In(family.V6).Behind(HopByHop(), DestinationOptions(2), Routing(0, here6), DestinationOptions(0)),
	"Atomic":       question.In(family.V6).Behind(FragmentHeader(7, 0, false)),
	"First":        question.In(family.V6).With(func(s *Spec) { s.ID, s.MF = 7, true }),
	"Later":        question.In(family.V6).With(func(s *Spec) { s.ID, s.Offset = 7, 64 }),
	"AHInChain":    AH(question, 1).In(family.V6).Behind(DestinationOptions(0)),
	"NoNextHeader": NoNextHeader(here6, "2001:db8:113::1"),
	"ErrorOfChain": ICMPError(there, here, 3, 3, question, 0).In(family.V6).Behind(HopByHop()),
	"Solicitation": NeighborSolicitation(here6, "", "2001:db8:100::fe", hereMAC),
	"Neighbor":     NeighborAdvertisement(here6, "2001:db8:100::fe", here6, hereMAC),
	"RouterAsked":  RouterSolicitation("fe80::1", hereMAC),
	"Router":       RouterAdvertisement("fe80::1", hereMAC),
}

func all() map[string][]byte {
	out := map[string][]byte{}
	for name, s := range samples {
		for _, f := range []family.Family{family.V4, family.V6} {
			out[name+f.String()] = s.In(f).IP()
		}
	}
	for name, s := range samples6 {
		out[name] = s.IP()
	}
	return out
}

func TestWhatIsBuiltIsSound(t *testing.T) {
	for name, ip := range all() {
		if err := Verify(ip); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// gopacket shares no code with the headers that are built here, nor with Verify.
func TestOthersUnderstandIt(t *testing.T) {
	for name, ip := range all() {
		first := layers.LayerTypeIPv4
		if ip[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(ip, first, gopacket.Default)
		cut := strings.HasPrefix(name, "Later") || strings.HasPrefix(name, "First")
		if e := p.ErrorLayer(); e != nil && !cut && name != "NoNextHeader" { // which gopacket takes for a jumbogram without its option
			t.Errorf("%s: %v", name, e.Error())
		}
		if strings.HasPrefix(name, "UDP") && !strings.HasPrefix(name, "UDPLite") && p.TransportLayer() == nil {
			t.Errorf("%s has no transport layer:\n%s", name, p.Dump())
		}
		checkByGopacket(t, name, p)
	}
}

// checkByGopacket verifies the checksum of each layer that has one, each with the IP header before it.
func checkByGopacket(t *testing.T, name string, p gopacket.Packet) {
	t.Helper()
	var ip gopacket.NetworkLayer
	for _, l := range p.Layers() {
		if network, ok := l.(gopacket.NetworkLayer); ok {
			ip = network
		}
		if over, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			must(over.SetNetworkLayerForChecksum(ip))
		}
		if summed, ok := l.(gopacket.LayerWithChecksum); ok {
			if err, result := summed.VerifyChecksum(); err != nil || !result.Valid {
				t.Errorf("%s: %v's checksum: %+v, %v", name, l.LayerType(), result, err)
			}
		}
	}
}

// TestChecksumsByAnother: ICMPv6's, which gopacket also makes.
func TestChecksumsByAnother(t *testing.T) {
	ours := Ping(here+":7", there).In(family.V6)
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolICMPv6,
		SrcIP: Endpoint(ours.Src).Addr().AsSlice(), DstIP: Endpoint(ours.Dst).Addr().AsSlice()}
	head := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	must(head.SetNetworkLayerForChecksum(ip))
	theirs := serialize(ip, head, &layers.ICMPv6Echo{Identifier: 7, SeqNumber: 7}, gopacket.Payload(ours.Payload))
	if diff := cmp.Diff(theirs, ours.IP()); diff != "" {
		t.Errorf("echo request (-gopacket +ours):\n%s", diff)
	}
	const check = 0xe3069283 // RFC 3720's, of "123456789"
	if got := crc32.Checksum([]byte("123456789"), castagnoli); got != check {
		t.Errorf("CRC32c %#x, want %#x", got, check)
	}
}

// Each bit of a whole packet is covered by one check or another, but for those that a NAT may find as they like.
func TestVerifyFindsEveryBit(t *testing.T) {
	for name, s := range map[string]Spec{"UDP": question, "TCP": samples["TCP"], "Ping": samples["Ping"], "SCTP": samples["SCTP"]} {
		for _, f := range []family.Family{family.V4, family.V6} {
			ip := s.In(f).IP()
			for at := range ip {
				free := f == family.V6 && (at < 4 || at == 7) || // class, flow label, hop limit
					name == "SCTP" && f == family.V6 && at >= 8 && at < 40 // which its sum does not cover
				if free {
					continue
				}
				changed := bytes.Clone(ip)
				changed[at] ^= 0x10
				if name == "UDP" && f == family.V4 && (at == 26 || at == 27) && changed[26]|changed[27] == 0 {
					continue
				}
				if at == 6 && f == family.V6 || at == 0 { // another protocol, or version
					continue
				}
				if Verify(changed) == nil {
					t.Errorf("%s %v: byte %d may be anything", name, f, at)
				}
			}
		}
	}
}

// TestVerifyLooksIntoErrors: RFC 5508 REQ-3a is about the embedded header.
func TestVerifyLooksIntoErrors(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"Header":    func(s *Spec) { s.Payload[8]++ },
		"Transport": func(s *Spec) { s.Payload[len(s.Payload)-1]++ },
		"Port":      func(s *Spec) { s.Payload[21]++ },
	} {
		s := ICMPError(there, here, 3, 3, question, 0)
		change(&s)
		if err := Verify(s.IP()); err == nil || !strings.Contains(err.Error(), "embedded") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFragments: put together they are the packet, in both families and whatever is before them.
func TestFragments(t *testing.T) {
	long := UDP(here+":2000", there+":3478", strings.Repeat("0123456789", 100)).With(func(s *Spec) { s.ID = 77 })
	for name, s := range map[string]Spec{"IPv4": long, "IPv6": long.In(family.V6),
		"Chain": long.In(family.V6).Behind(HopByHop(), DestinationOptions(0), Routing(0, here6), DestinationOptions(3))} {
		frames := s.Fragments(320)
		if len(frames) != 4 {
			t.Errorf("%s: %d fragments", name, len(frames))
		}
		var whole []byte
		for i, frame := range frames {
			ip := frame[14:]
			if err := Verify(ip); err != nil {
				t.Errorf("%s: fragment %d: %v", name, i, err)
			}
			if _, sum := Sums(ip); sum != NoSum {
				t.Errorf("%s: fragment %d has a transport's checksum", name, i)
			}
			p, _ := parse(ip)
			if s.Family() == family.V4 || i > 0 { // of a first one in IPv6 parse has stepped over what follows the fragment header
				whole = append(whole, p.transport...)
				continue
			}
			n := s.perFragment()
			before := 40 + 8
			for _, h := range s.Extensions[:n] {
				before += len(h.Bytes)
			}
			whole = append(whole, ip[before:]...)
		}
		want := s.IP()
		if !bytes.HasSuffix(want, whole) || len(whole) < 1008 {
			t.Errorf("%s: fragments have %d bytes that are not the packet's %d", name, len(whole), len(want))
		}
	}
}

// TestInAndBack: what a packet is about goes along.
func TestInAndBack(t *testing.T) {
	for name, s := range samples {
		v6 := s.In(family.V6)
		if v6.Family() != family.V6 || s.Family() != family.V4 {
			t.Errorf("%s is of %v, and %v", name, v6.Family(), s.Family())
		}
		if diff := cmp.Diff(v6.IP(), v6.In(family.V6).IP()); diff != "" {
			t.Errorf("%s changes by being what it is:\n%s", name, diff)
		}
	}
	about := samples["Unreachable"].In(family.V6).Payload
	if diff := cmp.Diff(question.In(family.V6).IP(), about); diff != "" {
		t.Errorf("embedded packet (-want +got):\n%s", diff)
	}
	if short := samples["TooBig"].In(family.V6).Payload; len(short) != 48 {
		t.Errorf("%d bytes embedded, want IPv6's header and 8 bytes", len(short))
	}
	if told := samples["Told"].In(family.V6).IP(); len(told) != 1280 {
		t.Errorf("the NAT's own error has %d bytes, want the least MTU's", len(told))
	}
}

// TestEmbedded: of errors alone, and of those that embed a part, too.
func TestEmbedded(t *testing.T) {
	for _, f := range []family.Family{family.V4, family.V6} {
		whole := Embedded(samples["Unreachable"].In(f).IP())
		if diff := cmp.Diff(question.In(f).IP(), whole); diff != "" {
			t.Errorf("%v (-want +got):\n%s", f, diff)
		}
		if got, want := len(Embedded(samples["TooBig"].In(f).IP())), map[family.Family]int{family.V4: 28, family.V6: 48}[f]; got != want {
			t.Errorf("%v: %d bytes are embedded, want %d", f, got, want)
		}
		if got := Embedded(question.In(f).IP()); got != nil {
			t.Errorf("%v: a datagram embeds %x", f, got)
		}
	}
}

// What cannot be said in IPv6 must not become something else.
func TestWhatIPv6HasNot(t *testing.T) {
	changed := ICMPError(there, here, 3, 3, question, 0)
	changed.Payload = append(bytes.Clone(changed.Payload), 0)
	for name, build := range map[string]func(){
		"Timestamp": func() { Timestamp(here+":1", there).In(family.V6).IP() },
		"Quench":    func() { ICMPError(there, here, 4, 0, question, 0).In(family.V6).IP() },
		"Options": func() {
			question.With(func(s *Spec) { s.Options = []byte{1, 1, 1, 0} }).In(family.V6).IP()
		},
		"Quoted":     func() { changed.In(family.V6) },
		"Extensions": func() { question.Behind(HopByHop()).IP() },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was built")
				}
			}()
			build()
		})
	}
}
