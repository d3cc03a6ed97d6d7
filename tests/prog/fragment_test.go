// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

var long = strings.Repeat("0123456789abcdef", 60) // 960 bytes

// TestFragments: in order, each protocol, there and back.
func TestFragments(t *testing.T) { family.Each(t, testFragments) }

func testFragments(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	hooks := r.Hooks()
	for name, c := range map[string]struct{ out, outWant, in, inWant Spec }{
		"UDP": {UDP(rig.C1+":2000", rig.Peer1+":53", long), UDP(rig.External+":2000", rig.Peer1+":53", long),
			UDP(rig.Peer1+":53", rig.External+":2000", long), UDP(rig.Peer1+":53", rig.C1+":2000", long)},
		"TCP": {TCP(rig.C1+":2000", rig.Peer1+":80", "S", long), TCP(rig.External+":2000", rig.Peer1+":80", "S", long),
			TCP(rig.Peer1+":80", rig.External+":2000", "SA", long), TCP(rig.Peer1+":80", rig.C1+":2000", "SA", long)},
		"Ping": {ping(Ping(rig.C1+":2000", rig.Peer1)), ping(Ping(rig.External+":2000", rig.Peer1)), ping(Pong(rig.Peer1, rig.External+":2000")), ping(Pong(rig.Peer1, rig.C1+":2000"))},
	} {
		r.Subtest(name, func() {
			r.Fragments(hooks[0], rig.FromContainer(c.out), c.outWant.Hop(), "translated_outbound")
			r.Fragments(hooks[1], rig.FromOutside(c.in), c.inWant.Hop(), "translated_inbound")
			r.Consistent()
		})
	}
}

func ping(s Spec) Spec { return s.With(func(s *Spec) { s.Payload = []byte(long) }) }

// TestFragmentsOfTakenPort: the port is in the first one alone.
func TestFragmentsOfTakenPort(t *testing.T) {
	r := rig.New(t)
	r.Opened("udp", rig.C1+":2000")
	r.Opened("udp", rig.C2+":2000")
	ext := r.ExternalOf("udp", rig.C2+":2000")
	r.Fragments(r.Hooks()[0], rig.FromContainer(UDP(rig.C2+":2000", rig.Peer1+":53", long)), UDP(ext, rig.Peer1+":53", long).Hop(), "translated_outbound")
	r.Fragments(r.Hooks()[1], rig.FromOutside(UDP(rig.Peer1+":53", ext, long)), UDP(rig.Peer1+":53", rig.C2+":2000", long).Hop(), "translated_inbound")
}

// TestFragmentsHairpin: between two containers.
func TestFragmentsHairpin(t *testing.T) { family.Each(t, testFragmentsHairpin) }

func testFragmentsHairpin(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Opened("udp", rig.C1+":2000")
	r.Fragments(r.Hooks()[0], rig.FromContainer(UDP(rig.C2+":3000", rig.External+":2000", long)), UDP(rig.External+":3000", rig.C1+":2000", long).Hop(), "translated_hairpin")
}

// TestFragmentsByTheStack: what goes the kernel's way does so with all its pieces.
func TestFragmentsByTheStack(t *testing.T) {
	r := rig.New(t, rig.WithMTU(300))
	s := rig.FromContainer(UDP(rig.C1+":2000", rig.Peer1+":53", long))
	for _, frame := range rig.Identified(s).Fragments(320) {
		r.Send(r.DP.Objects().NatInside, "p1", frame, nil).Passed("stack")
	}
	r.Fragments(r.Hooks()[2], s, UDP(rig.External+":2000", rig.Peer1+":53", long), "translated_stack")
}

// TestLaterFragmentAlone: of no known first one. It names no port, so nothing can be said of it.
func TestLaterFragmentAlone(t *testing.T) {
	r := rig.New(t)
	later := func(s Spec) []byte { return rig.Identified(s).Fragments(320)[1] }
	first := func(s Spec) []byte { return rig.Identified(s).Fragments(320)[0] }
	o := r.DP.Objects()
	out, in := rig.FromContainer(UDP(rig.C1+":2000", rig.Peer1+":53", long)), rig.FromOutside(UDP(rig.Peer1+":53", rig.External+":2000", long))
	r.Send(o.NatInside, "p1", later(out), nil).Dropped("fragment")
	r.Send(o.NatOutsideIngress, "eth0", later(in), nil).Passed("unbound")
	r.Send(o.NatOutsideEgress, "eth0", later(out), r.Hooks()[2].Change).Dropped("fragment")
	r.Send(o.NatOutsideEgress, "eth0", later(rig.FromOutside(UDP(rig.External+":9", rig.Peer1+":53", long))), nil).Passed("host")
	for _, dst := range []string{"172.17.0.1:53", rig.External + ":53", "224.0.0.251:53"} {
		r.Send(o.NatInside, "p1", later(rig.FromContainer(UDP(rig.C1+":2000", dst, long))), nil).Passed("local")
	}
	r.Send(o.NatInside, "p1", later(rig.FromContainer(UDP(rig.C1+":2000", rig.Other+":53", long))), nil).Passed("not_outside")

	r.Send(o.NatInside, "p1", first(out), nil)
	r.Wait(31 * time.Second)
	r.Send(o.NatInside, "p1", later(out), nil).Dropped("fragment") // too late

	r.Inside(UDP(rig.C1+":3000", rig.Peer1+":53", "x"))
	r.Send(o.NatOutsideIngress, "eth0", first(rig.FromOutside(UDP(rig.Peer2+":53", rig.External+":3000", long))), nil).Dropped("filtered")
	r.Send(o.NatOutsideIngress, "eth0", later(rig.FromOutside(UDP(rig.Peer2+":53", rig.External+":3000", long))), nil).Dropped("fragment")
	r.Send(o.NatInside, "p1", first(rig.FromContainer(UDP("172.19.0.1:2000", rig.Peer1+":53", long))), nil).Dropped("spoofed")
}
