// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

func clamping(n *dataplane.Network) { n.MSSClamp = true }

// option is a TCP option as it stands in the header; 0 and 1 have no length.
func option(kind byte, data ...byte) []byte {
	if kind < 2 {
		return []byte{kind}
	}
	return append([]byte{kind, byte(2 + len(data))}, data...)
}

func mss(value uint16) []byte { return option(2, byte(value>>8), byte(value)) }

// withOptions is a segment with these bytes for its options, padded with the end of the list.
func withOptions(src, dst, flags string, options ...[]byte) Spec {
	raw := slices.Concat(options...)
	for len(raw)%4 != 0 {
		raw = append(raw, 0)
	}
	s := TCP(src, dst, flags, "")
	s.L4 = func(s *Spec, ip *Header) []gopacket.SerializableLayer {
		ip.Protocol = layers.IPProtocolTCP
		header := make([]byte, 20, 20+len(raw))
		binary.BigEndian.PutUint16(header, Endpoint(s.Src).Port())
		binary.BigEndian.PutUint16(header[2:], Endpoint(s.Dst).Port())
		header[12] = byte((20 + len(raw)) / 4 << 4)
		for _, f := range flags {
			header[13] |= map[rune]byte{'F': 1, 'S': 2, 'R': 4, 'P': 8, 'A': 16}[f]
		}
		segment := append(header, raw...)
		binary.BigEndian.PutUint16(segment[16:], ip.Checksum(segment))
		return []gopacket.SerializableLayer{gopacket.Payload(segment)}
	}
	return s
}

var (
	nop        = option(1)
	sack       = option(4)
	scale      = option(3, 7)
	timestamps = option(8, 1, 2, 3, 4, 5, 6, 7, 8)
)

// clampMTU is the uplink's where MSS are clamped.
const clampMTU = 1400

// fitting is the largest MSS whose segments it carries: without the two headers.
func fitting(fam family.Family) uint16 {
	if fam == family.V6 {
		return clampMTU - 40 - 20
	}
	return clampMTU - 20 - 20
}

// clampingRig is one with networks that clamp.
func clampingRig(t *testing.T, fam family.Family) *rig.Rig {
	return rig.New(t, rig.In(fam), rig.WithMTU(clampMTU), rig.WithNetworks(clamping))
}

// TestMSSClamp: wherever the option stands, at odd offsets, too; lowered, and never raised.
func TestMSSClamp(t *testing.T) { family.Each(t, testMSSClamp) }

func testMSSClamp(t *testing.T, fam family.Family) {
	fits := fitting(fam)
	for name, c := range map[string]struct{ in, want [][]byte }{
		"Lowered":         {[][]byte{mss(1460)}, [][]byte{mss(fits)}},
		"NotRaised":       {[][]byte{mss(536)}, [][]byte{mss(536)}},
		"JustFits":        {[][]byte{mss(fits)}, [][]byte{mss(fits)}},
		"OneMore":         {[][]byte{mss(fits + 1)}, [][]byte{mss(fits)}},
		"Largest":         {[][]byte{mss(65535)}, [][]byte{mss(fits)}},
		"Zero":            {[][]byte{mss(0)}, [][]byte{mss(0)}},
		"LinuxsSYN":       {[][]byte{mss(1460), sack, timestamps, nop, scale}, [][]byte{mss(fits), sack, timestamps, nop, scale}},
		"Odd":             {[][]byte{nop, mss(1460), sack}, [][]byte{nop, mss(fits), sack}},
		"OddBytesSwapped": {[][]byte{scale, mss(0xb405)}, [][]byte{scale, mss(fits)}},
		"AtTheEnd":        {[][]byte{timestamps, timestamps, timestamps, sack, nop, nop, mss(1460)}, [][]byte{timestamps, timestamps, timestamps, sack, nop, nop, mss(fits)}},
		"AllNOP":          {[][]byte{slices.Repeat(nop, 40)}, [][]byte{slices.Repeat(nop, 40)}},
		"None":            {nil, nil},
		"BehindTheEnd":    {[][]byte{option(0), mss(1460)}, [][]byte{option(0), mss(1460)}},
		"OtherLength":     {[][]byte{option(2, 5, 0xb4, 0), nop, nop, nop, mss(1460)}, [][]byte{option(2, 5, 0xb4, 0), nop, nop, nop, mss(fits)}},
		"LengthOne":       {[][]byte{{5, 1}, nop, nop, mss(1460)}, [][]byte{{5, 1}, nop, nop, mss(1460)}},
		"LengthZero":      {[][]byte{{5, 0}, nop, nop, mss(1460)}, [][]byte{{5, 0}, nop, nop, mss(1460)}},
		"BeyondTheHeader": {[][]byte{{5, 200}, nop, nop, mss(1460)}, [][]byte{{5, 200}, nop, nop, mss(1460)}},
		"CutOff":          {[][]byte{nop, nop, {2, 4}}, [][]byte{nop, nop, {2, 4}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := clampingRig(t, fam)
			inside, outside, remote := rig.C1+":2000", rig.External+":2000", rig.Peer1+":80"
			r.Out(withOptions(inside, remote, "S", c.in...), withOptions(outside, remote, "S", c.want...))
			r.In(withOptions(remote, outside, "SA", c.in...), withOptions(remote, inside, "SA", c.want...))
			r.Out(withOptions(inside, remote, "A", c.in...), withOptions(outside, remote, "A", c.in...)) // no SYN
		})
	}
}

// TestMSSClampWays: connections from outside, the kernel's way, and where nobody has asked for it.
func TestMSSClampWays(t *testing.T) { family.Each(t, testMSSClampWays) }

func testMSSClampWays(t *testing.T, fam family.Family) {
	fits := fitting(fam)
	inside, outside, remote := rig.C1+":80", rig.External+":80", rig.Peer1+":2000"
	syn := func(src, dst string, value uint16) Spec { return withOptions(src, dst, "S", mss(value), sack) }
	ack := func(src, dst string, value uint16) Spec { return withOptions(src, dst, "SA", mss(value), sack) }
	t.Run("FromOutside", func(t *testing.T) {
		r := clampingRig(t, fam)
		r.Forward("br0", dataplane.TCP, outside, inside)
		r.In(syn(remote, outside, 1460), syn(remote, inside, fits))
		r.Out(ack(inside, remote, 1460), ack(outside, remote, fits))
	})
	t.Run("Egress", func(t *testing.T) {
		r := clampingRig(t, fam)
		r.Egress("br0", syn(inside, remote, 1460)).Translated("translated_stack", syn(outside, remote, fits))
		r.Egress("br0", syn(inside, remote, 1460)).Translated("translated_stack", syn(outside, remote, fits))
		r.In(ack(remote, outside, 1460), ack(remote, inside, fits))
	})
	t.Run("Off", func(t *testing.T) {
		r := rig.New(t, rig.In(fam), rig.WithMTU(clampMTU))
		r.Out(syn(inside, remote, 1460), syn(outside, remote, 1460))
		r.In(ack(remote, outside, 1460), ack(remote, inside, 1460))
	})
	t.Run("Hairpin", func(t *testing.T) {
		r := clampingRig(t, fam)
		r.Forward("br0", dataplane.TCP, outside, inside)
		r.Hairpin("p2", syn(rig.C2+":3000", outside, 1460), syn(rig.External+":3000", inside, 1460))
	})
}

// TestMSSClampFirstFragment: an option that is in it, and not one whose end is what the frame has behind the datagram.
func TestMSSClampFirstFragment(t *testing.T) { family.Each(t, testMSSClampFirstFragment) }

func testMSSClampFirstFragment(t *testing.T, fam family.Family) {
	fits := fitting(fam)
	first := func(src string, hops uint8, behind []byte, options ...[]byte) []byte {
		s := rig.FromContainer(withOptions(src, rig.Peer1+":80", "S", options...)).With(func(s *Spec) { s.TTL = 64 - hops })
		return append(rig.Identified(s).In(fam).Fragments(24)[0], behind...)
	}
	inside, outside, value := rig.C1+":2000", rig.External+":2000", mss(1460)[2:]
	for name, c := range map[string]struct{ in, want []byte }{
		"Whole": {first(inside, 0, nil, mss(1460), timestamps), first(outside, 1, nil, mss(fits), timestamps)},
		"Cut":   {first(inside, 0, value, nop, nop, mss(1460)), first(outside, 1, value, nop, nop, mss(1460))},
	} {
		t.Run(name, func(t *testing.T) {
			r := clampingRig(t, fam)
			r.Send(r.DP.Objects().NatInside, "p1", c.in, nil).Check(rig.Redirect, "translated_outbound", c.want)
		})
	}
}
