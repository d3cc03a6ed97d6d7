// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/tests/bench"
)

var port = bench.Port{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Gateway: net.HardwareAddr{2, 0, 0, 0, 0, 2}}

// TestFrames: once the checksum is completed as a network card would, all of them are right.
func TestFrames(t *testing.T) {
	src, dst := netip.MustParseAddrPort("172.17.0.2:20000"), netip.MustParseAddrPort("203.0.113.1:3478")
	src6, dst6 := netip.MustParseAddrPort("[fd00:17::2]:20000"), netip.MustParseAddrPort("[2001:db8:113::1]:3478")
	for name, c := range map[string]struct {
		size int
		packet
	}{
		"udp":    {60, packet{proto: udp.number, src: src, dst: dst}},
		"tcp":    {60, packet{proto: tcp.number, src: src, dst: dst, flags: syn | ack, seq: 2000, ack: 1001}},
		"echo":   {60, packet{proto: icmp.number, src: src, dst: dst}},
		"reply":  {60, packet{proto: icmp.number, src: dst, dst: src, reply: true}},
		"udp6":   {62, packet{proto: udp.number, src: src6, dst: dst6}},
		"tcp6":   {74, packet{proto: tcp.number, src: src6, dst: dst6, flags: syn | ack, seq: 2000, ack: 1001}},
		"echo6":  {62, packet{proto: icmpv6.number, src: src6, dst: dst6}},
		"reply6": {62, packet{proto: icmpv6.number, src: dst6, dst: src6, reply: true}},
	} {
		t.Run(name, func(t *testing.T) {
			p, frame := c.packet, c.wire(port)
			if len(frame) != c.size {
				t.Errorf("%d bytes", len(frame))
			}
			decoded := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			if failed := decoded.ErrorLayer(); failed != nil {
				t.Fatal(failed.Error())
			}
			for _, layer := range decoded.Layers() {
				sums, ok := layer.(interface {
					SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
				})
				if !ok {
					continue
				}
				if err := sums.SetNetworkLayerForChecksum(decoded.NetworkLayer()); err != nil {
					t.Fatal(err)
				}
			}
			if err, wrong := decoded.VerifyChecksums(); err != nil || len(wrong) > 0 {
				t.Errorf("checksums: %v, %v\n%s", err, wrong, decoded.Dump())
			}
			verify(t, p, decoded)
		})
	}
}

func verify(t *testing.T, p packet, decoded gopacket.Packet) {
	switch l := decoded.TransportLayer().(type) {
	case *layers.UDP:
		if uint16(l.SrcPort) != p.src.Port() || uint16(l.DstPort) != p.dst.Port() {
			t.Errorf("%+v", l)
		}
	case *layers.TCP:
		if uint16(l.SrcPort) != p.src.Port() || uint16(l.DstPort) != p.dst.Port() || !l.SYN || !l.ACK || l.FIN || l.RST || l.Seq != p.seq || l.Ack != p.ack {
			t.Errorf("%+v", l)
		}
	default:
		if p.is6() {
			verify6(t, p, decoded)
			return
		}
		echo, ok := decoded.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if p.reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		if !ok || echo.Id != 20000 || echo.TypeCode.Type() != kind {
			t.Errorf("%+v", echo)
		}
	}
}

func verify6(t *testing.T, p packet, decoded gopacket.Packet) {
	icmp, ok := decoded.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if p.reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	echo, isEcho := decoded.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo)
	if !ok || !isEcho || echo.Identifier != 20000 || icmp.TypeCode.Type() != kind {
		t.Errorf("%+v, %+v", icmp, echo)
	}
}

// TestTrialsAreTold: no two rows of a contender have one name, and each packet that changes does.
func TestTrialsAreTold(t *testing.T) {
	lab := &bench.Lab{Inside: port, Inside2: port, Outside: port}
	lab.Inside.Addr, lab.Inside2.Addr = netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("172.17.0.3")
	for _, c := range append(bench.Contenders(""), bench.Gateways("")...) {
		seen, trials := map[string]bool{}, trialsOf(lab, c)
		if c.Routed {
			trials = gatewayTrials(lab, c)
		}
		for _, trial := range trials {
			if seen[trial.name] {
				t.Errorf("%s: %s is there twice", c.Name, trial.name)
			}
			seen[trial.name] = true
			different := map[packet]bool{}
			for n := range totalPackets {
				different[trial.packet(n)] = true
			}
			if len(different) != 1 && len(different) != totalPackets {
				t.Errorf("%s: %s: %d different packets of %d", c.Name, trial.name, len(different), totalPackets)
			}
		}
		if len(seen) < 4 || len(seen) < 7 && !c.Routed {
			t.Errorf("%s: %d rows", c.Name, len(seen))
		}
	}
}
