// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// exclude is br0's excluded destinations.
func exclude(r *rig.Rig, prefixes ...string) {
	r.T.Helper()
	r.Must("exclude", func() error { return putExcluded(r, prefixes...) })
}

func putExcluded(r *rig.Rig, prefixes ...string) error {
	networks, err := r.DP.Networks()
	for _, n := range networks {
		if n.Name != "br0" || err != nil {
			continue
		}
		n.Exclude = nil
		for _, p := range prefixes {
			n.Exclude = append(n.Exclude, r.Family.Prefix(netip.MustParsePrefix(p)))
		}
		err = r.DP.PutNetwork(n)
	}
	return err
}

// TestExcludedDestination: whatever is sent there goes the kernel's way as it is (RFC 6888 REQ-6), of this network alone.
func TestExcludedDestination(t *testing.T) { family.Each(t, testExcludedDestination) }

func testExcludedDestination(t *testing.T, fam family.Family) {
	about := UDP(rig.Peer1+":53", rig.C1+":2000", "x")
	for name, s := range map[string]Spec{
		"UDP": UDP(rig.C1+":2000", rig.Peer1+":53", "x"), "SYN": TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""),
		"Answer": TCP(rig.C1+":2000", rig.Peer1+":80", "SA", ""), "RST": TCP(rig.C1+":2000", rig.Peer1+":80", "R", ""),
		"Ping": Ping(rig.C1+":7", rig.Peer1), "Pong": Pong(rig.C1, rig.Peer1+":7"), "Expires": UDP(rig.C1+":2000", rig.Peer1+":53", "x").With(lastHop),
		"Error": ICMPError(rig.C1, rig.Peer1, 3, 3, about, 0),
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			exclude(r, "192.0.2.0/24", rig.Peer1+"/32")
			for _, dev := range []string{"p1", "br0"} {
				r.From(dev, s).Passed("destination")
			}
			r.Egress("br0", s.With(routed)).Passed("destination")
			r.WantBindings()
		})
	}
	r := rig.New(t, rig.In(fam))
	exclude(r, "203.0.113.0/31")
	s := UDP(rig.Other+":2000", rig.Peer1+":53", "x")
	r.From("q1", s).Translated("translated_outbound", UDP(rig.External+":2000", rig.Peer1+":53", "x").Hop())
	r.Out(UDP(rig.C1+":2002", rig.Peer2+":53", "x"), UDP(rig.External+":2002", rig.Peer2+":53", "x"))
	r.Inside(UDP("172.19.0.1:2000", rig.Peer1+":53", "x")).Dropped("spoofed")
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) { o.Excluded = true })
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Passed("excluded")
}

// TestExcludedFragments: the later ones go as the first one, which they wait for: it may be of a session.
func TestExcludedFragments(t *testing.T) { family.Each(t, testExcludedFragments) }

func testExcludedFragments(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	f := r.inside(UDP(rig.C1+":2000", rig.Peer1+":53", long))
	r.arrives("translated_outbound", f...)
	exclude(r.Rig, rig.Peer1+"/32")
	r.arrives("diverted_fragment", f[1], f[0])
	r.returns("translated_outbound", f...)

	other := r.inside(UDP(rig.C2+":3000", rig.Peer1+":53", long))
	r.arrives("passed_destination", other[0])
	r.arrives("passed_stack", other[1:]...)
	r.arrives("diverted_fragment", other[1], other[0])
	r.returns("passed_destination", other[0])
	r.Wait(31 * time.Second)
	r.setLink(0)
	r.arrives("passed_destination", r.inside(UDP(rig.C2+":3001", rig.Peer1+":53", long))[1])
}

// TestExclusionComesAndGoes: what lives keeps its translation until it ends; what is new follows the change.
func TestExclusionComesAndGoes(t *testing.T) { family.Each(t, testExclusionComesAndGoes) }

func testExclusionComesAndGoes(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	s, out := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Out(s, out)
	exclude(r, rig.Peer1+"/32")
	r.Out(s, out)
	r.In(UDP(rig.Peer1+":53", rig.External+":2000", "y"), UDP(rig.Peer1+":53", rig.C1+":2000", "y"))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":54", "x")).Passed("destination") // of the same binding
	r.Wait(301 * time.Second)
	r.Inside(s).Passed("destination")
	exclude(r)
	r.Out(s, out)
}

// TestExcludedIsReachable: the NAT's own addresses are never an excluded destination, and who is one may call in.
func TestExcludedIsReachable(t *testing.T) { family.Each(t, testExcludedIsReachable) }

func testExcludedIsReachable(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	exclude(r, "0.0.0.0/0")
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C2+":80")
	syn := TCP(rig.Peer1+":1", rig.External+":80", "S", "")
	r.In(syn, TCP(rig.Peer1+":1", rig.C2+":80", "S", ""))
	r.From("p2", TCP(rig.C2+":80", rig.Peer1+":1", "SA", "")).Translated("translated_outbound", TCP(rig.External+":80", rig.Peer1+":1", "SA", "").Hop())
	r.Hairpin("p1", TCP(rig.C1+":4000", rig.External+":80", "S", ""), TCP(rig.External+":4000", rig.C2+":80", "S", ""))
}

// TestExcludedAnswers: to the inside host's own address they come by the stack path's way in, as Docker would drop them; what
// conntrack does not know for an answer stays as it is.
func TestExcludedAnswers(t *testing.T) { family.Each(t, testExcludedAnswers) }

func testExcludedAnswers(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	pong := Pong(rig.Peer1, rig.C1+":7")
	r.Outside(pong).Passed("unbound")
	exclude(r, rig.Peer1+"/32")
	r.Enters(pong, Pong(rig.Peer1, rig.External+":7"), rig.C1)
	r.Outside(Pong(rig.Peer2, rig.C1+":7")).Passed("unbound")
	r.Outside(Pong(rig.Peer1, rig.Other+":7")).Passed("unbound")
	r.Outside(Pong(rig.Peer1, rig.External+":7")).Passed("unbound")
	r.Outside(Ping(rig.Peer1+":7", rig.C1)).Passed("unbound")
	r.Outside(UDP(rig.Peer1+":53", rig.C1+":2000", "x")).Passed("unbound")
	r.Outside(TCP(rig.Peer1+":80", rig.C1+":2000", "S", "")).Passed("unbound")
	exclude(r)
	r.Outside(pong).Passed("unbound")
}

// TestExcludedWithTheStack: the inside hook leaves all to the kernel, and egress leaves it as it is.
func TestExcludedWithTheStack(t *testing.T) { family.Each(t, testExcludedWithTheStack) }

func testExcludedWithTheStack(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.TakePath(true)
	defer r.TakePath(false)
	exclude(r, rig.Peer1+"/32")
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
	r.Inside(s).Passed("stack")
	r.Egress("br0", s.With(routed)).Passed("destination")
}

// TestExclusionsFull: all networks share the table, and one that goes gives its part back.
func TestExclusionsFull(t *testing.T) {
	r := rig.New(t)
	var many []string
	for i := range 4096 {
		many = append(many, fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255))
	}
	exclude(r, many...)
	err := r.Do(func() error { return putExcluded(r, append(many, "192.0.2.0/24")...) })
	if !errors.Is(err, dataplane.ErrFull) {
		t.Errorf("one more: %v", err)
	}
	exclude(r, "192.0.2.0/24")
	r.Must("look", func() error {
		networks, err := r.DP.Networks()
		if len(networks) == 0 || fmt.Sprint(networks[0].Exclude) != "[192.0.2.0/24]" {
			t.Errorf("networks %+v", networks)
		}
		return err
	})
}
