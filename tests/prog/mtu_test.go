// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"strings"
	"testing"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

const insideMTU = 1400

// ipHeader is how long one is.
func ipHeader(fam family.Family) int { return map[family.Family]int{family.V4: 20, family.V6: 40}[fam] }

// sized is the payload of a UDP datagram, with an IP header, of a size.
func sized(fam family.Family, total int) string { return strings.Repeat("x", total-ipHeader(fam)-8) }

// TestTooBigInbound: what the bridge would drop in silence. With DF its sender is told the inside MTU, by the address
// that it has sent to (RFC 4787 REQ-13); what just fits, and what goes whole through a container's own port, passes.
func TestTooBigInbound(t *testing.T) { family.Each(t, testTooBigInbound) }

func testTooBigInbound(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.SetMTU("br0", insideMTU)
	r.Forward("br0", dataplane.UDP, rig.External+":2000", rig.C1+":2000")
	in := func(total int) Spec {
		return UDP(rig.Peer1+":53", rig.External+":2000", sized(fam, total)).With(dontCut)
	}
	inside := func(total int) Spec { return UDP(rig.Peer1+":53", rig.C1+":2000", sized(fam, total)).With(dontCut) }
	for range 2 { // of no session, and of one
		r.Outside(in(insideMTU+1)).Told("too_big", Told(rig.External, 3, 4, insideMTU, in(insideMTU+1)))
	}
	r.In(in(insideMTU), inside(insideMTU))
	r.WantTarget(in(insideMTU), "TARGET_DEVICE")
	if fam == family.V4 { // routers fragment nothing in IPv6
		r.Outside(in(insideMTU + 1).With(func(s *Spec) { s.DF = false })).Dropped("uncut")
	}

	r.Inside(UDP(rig.C1+":2000", rig.Peer2+":54", "x"))
	s := UDP(rig.Peer2+":54", rig.External+":2000", sized(fam, insideMTU+1)).With(dontCut)
	r.WantTarget(s, "TARGET_PORT")
	r.In(s, UDP(rig.Peer2+":54", rig.C1+":2000", sized(fam, insideMTU+1)).With(dontCut))
}

// TestTooBigInboundSegments: a GSO packet counts as what it is on the wire.
func TestTooBigInboundSegments(t *testing.T) { family.Each(t, testTooBigInboundSegments) }

func testTooBigInboundSegments(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.SetMTU("br0", insideMTU)
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	r.In(TCP(rig.Peer1+":9", rig.External+":80", "S", ""), TCP(rig.Peer1+":9", rig.C1+":80", "S", ""))
	s := rig.FromOutside(TCP(rig.Peer1+":9", rig.External+":80", "A", strings.Repeat("y", 2000)).With(dontCut))
	want := TCP(rig.Peer1+":9", rig.C1+":80", "A", strings.Repeat("y", 2000)).With(dontCut).Hop()
	segments := func(size uint32) func(*rig.SKB) {
		return func(c *rig.SKB) { c.GSOSize, c.GSOSegs = size, 2 }
	}
	o := r.DP.Objects()
	r.Send(o.NatOutsideIngress, "eth0", r.Frame(s), segments(insideMTU-uint32(ipHeader(fam))-20)).Translated("translated_inbound", want)
	r.Send(o.NatOutsideIngress, "eth0", r.Frame(s), segments(insideMTU-uint32(ipHeader(fam))-19)).
		Told("too_big", Told(rig.External, 3, 4, insideMTU, s))
}

// TestInsideMTUChanges: a session that lives learns of a larger one.
func TestInsideMTUChanges(t *testing.T) { family.Each(t, testInsideMTUChanges) }

func testInsideMTUChanges(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.SetMTU("br0", insideMTU)
	r.Forward("br0", dataplane.UDP, rig.External+":2000", rig.C1+":2000")
	s := UDP(rig.Peer1+":53", rig.External+":2000", sized(fam, 1500)).With(dontCut)
	r.Outside(s).Told("too_big", Told(rig.External, 3, 4, insideMTU, s))
	r.SetMTU("br0", 1500)
	r.In(s, UDP(rig.Peer1+":53", rig.C1+":2000", sized(fam, 1500)).With(dontCut))
}

// TestTooBigHairpin: the same between two inside hosts; the network's router says it.
func TestTooBigHairpin(t *testing.T) { family.Each(t, testTooBigHairpin) }

func testTooBigHairpin(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), refusing(dataplane.RefuseSilently))
	r.SetMTU("br0", insideMTU)
	r.Opened("udp", rig.C2+":2000")
	s := UDP(rig.C1+":3000", rig.External+":2000", sized(fam, insideMTU+1)).With(dontCut)
	r.Inside(s).Told("too_big", Told(gateway, 3, 4, insideMTU, s))
	if fam == family.V4 {
		r.Inside(s.With(func(s *Spec) { s.DF = false })).Dropped("uncut")
	}
	fits := s.With(func(s *Spec) { s.Payload = []byte(sized(fam, insideMTU)) })
	r.Hairpin("p1", fits, UDP(rig.External+":3000", rig.C2+":2000", sized(fam, insideMTU)).With(dontCut))
}

// TestTooBigForTheHost: what the host itself receives is its own business, and what goes the kernel's way is the kernel's.
func TestTooBigForTheHost(t *testing.T) { family.Each(t, testTooBigForTheHost) }

func testTooBigForTheHost(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.SetMTU("br0", insideMTU)
	r.Opened("udp", rig.C1+":2000")
	r.Egress("", UDP(rig.External+":2000", rig.Peer2+":53", "x")) // the host's own session behind a binding's port
	s := UDP(rig.Peer2+":53", r.ExternalOf("udp", rig.External+":2000"), sized(fam, 1500)).With(dontCut)
	r.Outside(s).Translated("translated_host", UDP(rig.Peer2+":53", rig.External+":2000", sized(fam, 1500)).With(dontCut))
}
