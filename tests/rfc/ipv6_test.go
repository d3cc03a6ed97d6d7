// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/tests/rig"
)

func TestIPv6(t *testing.T) {
	tests := conformance{}
	for item, next := range map[string]layers.IPProtocol{
		"NAT66": layers.IPProtocolUDP, "too-big": layers.IPProtocolICMPv6,
		"extension-headers": layers.IPProtocolIPv6HopByHop, "fragment-header": layers.IPProtocolIPv6Fragment,
	} {
		tests[item] = func(l *line) { untouched(l, next) }
	}
	tests["NPTv6"] = nptv6
	conform(t, ipv6, tests)
}

// untouched: an IPv6 packet goes on as it came, at every hook.
func untouched(l *line, next layers.IPProtocol) {
	r := l.rig()
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true},
		&layers.Ethernet{SrcMAC: rig.C1MAC, DstMAC: rig.BridgeMAC, EthernetType: layers.EthernetTypeIPv6},
		&layers.IPv6{Version: 6, NextHeader: next, HopLimit: 64, SrcIP: net.ParseIP("fd00::2"), DstIP: net.ParseIP("2001:db8::1")},
		gopacket.Payload(make([]byte, 64))); err != nil {
		l.Fatal(err)
	}
	for _, h := range r.Hooks() {
		if res := r.Send(h.Program, h.Dev, buffer.Bytes(), h.Change); res.Verdict != rig.Next || string(res.Frame()) != string(buffer.Bytes()) {
			return
		}
	}
	l.lacks("IPv6 packets go on as they came")
}
