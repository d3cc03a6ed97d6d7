// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestPathStack: what comes from inside is the kernel's, and translated at egress; what comes from outside has its port
// translated, and the kernel and the nft table do the rest.
func TestPathStack(t *testing.T) { family.Each(t, testPathStack) }

func testPathStack(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.TakePath(true)
	for _, dev := range []string{"p1", "br0"} {
		r.From(dev, UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Passed("stack")
	}
	r.WantBindings()
	r.Egress("br0", UDP(rig.C1+":2000", rig.Peer1+":53", "x").With(routed)).
		Translated("translated_stack", UDP(rig.External+":2000", rig.Peer1+":53", "x").With(routed))
	r.From("p1", UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Passed("stack")
	r.Enters(UDP(rig.Peer1+":53", rig.External+":2000", "y"), UDP(rig.Peer1+":53", rig.External+":2000", "y"), rig.C1)
	r.Outside(UDP(rig.Peer2+":53", rig.External+":2000", "y")).Dropped("filtered")
	r.Outside(UDP(rig.Peer1+":53", rig.External+":2001", "y")).Passed("unbound")
	r.Egress("br0", Ping(rig.C1, rig.Peer1).With(routed))
	about := UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Enters(ICMPError(router, rig.External, 3, 1, about, 0), ICMPError(router, rig.External, 3, 1, UDP(rig.C1+":2000", rig.Peer1+":53", "x"), 0), rig.C1)
	r.Consistent()
}

// TestPathStackForward: a published port, whose external port is another one.
func TestPathStackForward(t *testing.T) { family.Each(t, testPathStackForward) }

func testPathStackForward(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.TakePath(true)
	r.Forward("br0", dataplane.TCP, rig.External+":8080", rig.C1+":80")
	r.Enters(TCP(rig.Peer1+":999", rig.External+":8080", "S", ""), TCP(rig.Peer1+":999", rig.External+":80", "S", ""), rig.C1)
	r.Inside(TCP(rig.C1+":80", rig.Peer1+":999", "SA", "")).Passed("stack")
	r.Egress("br0", TCP(rig.C1+":80", rig.Peer1+":999", "SA", "").With(routed)).
		Translated("translated_stack", TCP(rig.External+":8080", rig.Peer1+":999", "SA", "").With(routed))
	r.WantSessions("tcp " + rig.C1 + ":80 " + rig.External + ":8080 " + rig.Peer1 + ":999 established")
}

// TestPathStackHairpin: hairpins are translated inside on this path, too.
func TestPathStackHairpin(t *testing.T) { family.Each(t, testPathStackHairpin) }

func testPathStackHairpin(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.TakePath(true)
	r.Forward("br0", dataplane.UDP, rig.External+":8080", rig.C1+":80")
	r.Hairpin("p2", UDP(rig.C2+":2001", rig.External+":8080", "hello"), UDP(rig.External+":2001", rig.C1+":80", "hello"))
	r.Hairpin("p1", UDP(rig.C1+":80", rig.External+":2001", "hi"), UDP(rig.External+":8080", rig.C2+":2001", "hi"))
	r.From("p2", UDP(rig.C2+":2001", rig.External+":9", "x")).Passed("local")
}

// TestPathFollowed: sessions go on when the path changes, both ways.
func TestPathFollowed(t *testing.T) { family.Each(t, testPathFollowed) }

func testPathFollowed(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	s, out := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	answer := UDP(rig.Peer1+":53", rig.External+":2000", "y")
	for range 2 {
		r.TakePath(false)
		r.Out(s, out)
		r.In(answer, UDP(rig.Peer1+":53", rig.C1+":2000", "y"))
		r.TakePath(true)
		r.Inside(s).Passed("stack")
		r.Egress("br0", s.With(routed)).Translated("translated_stack", out.With(routed))
		r.Enters(answer, answer, rig.C1)
	}
	r.WantBindings("udp br0 " + rig.C1 + ":2000 " + rig.External + ":2000 1")
}

// TestPathStackOutside: at egress the interface that the kernel has chosen counts, and a session's route is looked up
// anew when it goes direct again.
func TestPathStackOutside(t *testing.T) { family.Each(t, testPathStackOutside) }

func testPathStackOutside(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.TakePath(true)
	s, out := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Egress("br0", s.With(routed)).Translated("translated_stack", out.With(routed))
	r.TakePath(false)
	r.Out(s, out)
	r.Consistent()
}
