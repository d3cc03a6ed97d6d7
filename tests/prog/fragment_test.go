// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"strings"
	"testing"
	"time"

	. "github.com/conenat/conenat/tests/packets"
)

var long = strings.Repeat("0123456789abcdef", 60) // 960 bytes

func identified(s Spec) Spec { return s.With(func(s *Spec) { s.ID = 0x1234 }) }

// fragments sends a packet cut into pieces and checks that each comes out as a piece of want.
func (r *rig) fragments(h hook, in, want Spec, reason string) {
	r.t.Helper()
	want.DstMAC, want.SrcMAC = in.DstMAC, in.SrcMAC
	wanted := identified(want).Fragments(320)
	for i, frame := range identified(in).Fragments(320) {
		verdict := uint32(redirect)
		if reason == "translated_stack" {
			verdict = next
		}
		r.send(h.program, h.dev, frame, h.change).check(verdict, reason, wanted[i])
	}
}

// TestFragments: in order, each protocol, there and back.
func TestFragments(t *testing.T) {
	r := newRig(t)
	hooks := r.hooks()
	for name, c := range map[string]struct{ out, outWant, in, inWant Spec }{
		"UDP": {UDP(c1+":2000", peer1+":53", long), UDP(external+":2000", peer1+":53", long),
			UDP(peer1+":53", external+":2000", long), UDP(peer1+":53", c1+":2000", long)},
		"TCP": {TCP(c1+":2000", peer1+":80", "S", long), TCP(external+":2000", peer1+":80", "S", long),
			TCP(peer1+":80", external+":2000", "SA", long), TCP(peer1+":80", c1+":2000", "SA", long)},
		"Ping": {ping(Ping(c1+":2000", peer1)), ping(Ping(external+":2000", peer1)), ping(Pong(peer1, external+":2000")), ping(Pong(peer1, c1+":2000"))},
	} {
		r.subtest(name, func() {
			r.fragments(hooks[0], fromContainer(c.out), c.outWant.Hop(), "translated_outbound")
			r.fragments(hooks[1], fromOutside(c.in), c.inWant.Hop(), "translated_inbound")
			r.consistent()
		})
	}
}

func ping(s Spec) Spec { return s.With(func(s *Spec) { s.Payload = []byte(long) }) }

// TestFragmentsOfTakenPort: the port is in the first one alone.
func TestFragmentsOfTakenPort(t *testing.T) {
	r := newRig(t)
	r.opened("udp", c1+":2000")
	r.opened("udp", c2+":2000")
	ext := r.externalOf("udp", c2+":2000")
	r.fragments(r.hooks()[0], fromContainer(UDP(c2+":2000", peer1+":53", long)), UDP(ext, peer1+":53", long).Hop(), "translated_outbound")
	r.fragments(r.hooks()[1], fromOutside(UDP(peer1+":53", ext, long)), UDP(peer1+":53", c2+":2000", long).Hop(), "translated_inbound")
}

// TestFragmentsHairpin: between two containers.
func TestFragmentsHairpin(t *testing.T) {
	r := newRig(t)
	r.opened("udp", c1+":2000")
	r.fragments(r.hooks()[0], fromContainer(UDP(c2+":3000", external+":2000", long)), UDP(external+":3000", c1+":2000", long).Hop(), "translated_hairpin")
}

// TestFragmentsByTheStack: what goes the kernel's way does so with all its pieces.
func TestFragmentsByTheStack(t *testing.T) {
	r := newRig(t, withMTU(300))
	s := fromContainer(UDP(c1+":2000", peer1+":53", long))
	for _, frame := range identified(s).Fragments(320) {
		r.send(r.dp.Objects().NatInside, "p1", frame, nil).passed("stack")
	}
	r.fragments(r.hooks()[2], s, UDP(external+":2000", peer1+":53", long), "translated_stack")
}

// TestLaterFragmentAlone: of no known first one. It names no port, so nothing can be said of it.
func TestLaterFragmentAlone(t *testing.T) {
	r := newRig(t)
	later := func(s Spec) []byte { return identified(s).Fragments(320)[1] }
	first := func(s Spec) []byte { return identified(s).Fragments(320)[0] }
	o := r.dp.Objects()
	out, in := fromContainer(UDP(c1+":2000", peer1+":53", long)), fromOutside(UDP(peer1+":53", external+":2000", long))
	r.send(o.NatInside, "p1", later(out), nil).dropped("fragment")
	r.send(o.NatOutsideIngress, "eth0", later(in), nil).passed("unbound")
	r.send(o.NatOutsideEgress, "eth0", later(out), r.hooks()[2].change).dropped("fragment")
	r.send(o.NatOutsideEgress, "eth0", later(fromOutside(UDP(external+":9", peer1+":53", long))), nil).passed("host")
	for _, dst := range []string{"172.17.0.1:53", external + ":53", "224.0.0.251:53"} {
		r.send(o.NatInside, "p1", later(fromContainer(UDP(c1+":2000", dst, long))), nil).passed("local")
	}
	r.send(o.NatInside, "p1", later(fromContainer(UDP(c1+":2000", other+":53", long))), nil).passed("not_outside")

	r.send(o.NatInside, "p1", first(out), nil)
	r.wait(31 * time.Second)
	r.send(o.NatInside, "p1", later(out), nil).dropped("fragment") // too late

	r.inside(UDP(c1+":3000", peer1+":53", "x"))
	r.send(o.NatOutsideIngress, "eth0", first(fromOutside(UDP(peer2+":53", external+":3000", long))), nil).dropped("filtered")
	r.send(o.NatOutsideIngress, "eth0", later(fromOutside(UDP(peer2+":53", external+":3000", long))), nil).passed("unbound")
	r.send(o.NatInside, "p1", first(fromContainer(UDP("172.19.0.1:2000", peer1+":53", long))), nil).dropped("spoofed")
}
