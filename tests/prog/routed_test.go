// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// inBothFamilies has a rig whose br0 is routed, in each family.
func inBothFamilies(t *testing.T, test func(t *testing.T, r *rig.Rig), options ...rig.Option) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) {
			test(t, rig.New(t, slices.Concat([]rig.Option{rig.In(fam), routedBridge}, options)...))
		})
	}
}

var routedBridge = rig.WithNetworks(func(n *dataplane.Network) {
	if n.Name == "br0" {
		n.Mode = dataplane.ModeRouted
	}
})

// TestRouted: what an inside host sends stays as it is, and what it has sent to may answer; the other network has its NAT.
func TestRouted(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, r *rig.Rig) {
		for _, s := range []Spec{UDP(rig.C1+":2000", rig.Peer1+":53", "x"), TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""), Ping(rig.C1+":7", rig.Peer1)} {
			r.Out(s, s)
			r.From("br0", s).Translated("translated_outbound", s.Hop())
			r.Egress("br0", s).Translated("translated_stack", s)
		}
		for _, s := range []Spec{UDP(rig.Peer1+":53", rig.C1+":2000", "y"), TCP(rig.Peer1+":80", rig.C1+":2000", "SA", ""), Pong(rig.Peer1, rig.C1+":7")} {
			r.In(s, s)
		}
		r.Wait(2 * time.Minute) // the ping's has ended
		r.WantBindings("tcp br0 172.17.0.2:2000 172.17.0.2:2000 1", "udp br0 172.17.0.2:2000 172.17.0.2:2000 1")
		about := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
		message := ICMPError("192.0.2.99", rig.C1, 3, 4, about, 0)
		r.Outside(message).Translated("translated_icmp_error", message.Hop())
		r.From("q1", UDP(rig.Other+":2000", rig.Peer1+":53", "x")).Translated("translated_outbound", UDP(rig.External+":2000", rig.Peer1+":53", "x").Hop())
		r.Wait(2 * time.Hour)
		r.Wait(10 * time.Minute)
		r.Empty()
	})
}

// TestRoutedFilters: what nobody has asked for is dropped, by the network's filtering; what is the host's own is not.
func TestRoutedFilters(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, r *rig.Rig) {
		for _, s := range []Spec{UDP(rig.Peer1+":53", rig.C1+":2000", "x"), TCP(rig.Peer1+":80", rig.C1+":2000", "S", ""), Ping(rig.Peer1+":7", rig.C1),
			Raw(rig.Peer1, rig.C1, 50, []byte("sequence and more")), Raw(rig.Peer1, rig.C1, 99, []byte("anything")),
			ICMPError(rig.Peer1, rig.C1, 3, 3, UDP(rig.C1+":2000", rig.Peer1+":53", "x"), 0)} {
			r.Outside(s).Dropped("filtered")
		}
		r.Outside(UDP(rig.Peer1+":53", gateway+":2000", "x")).Passed("unbound")
		r.Outside(UDP(rig.Peer1+":53", rig.External+":2000", "x")).Passed("unbound")
		r.Outside(UDP(rig.Peer1+":53", rig.Other+":2000", "x")).Passed("unbound")
		r.Outside(UDP(rig.C2+":53", rig.C1+":2000", "x")).Dropped("spoofed")
		r.Owner(rig.C2, "p2", func(o *dataplane.Owner) { o.Excluded = true })
		r.Outside(UDP(rig.Peer1+":53", rig.C2+":2000", "x")).Passed("excluded")

		// Address-dependent: another port of who was sent to, and nobody else.
		r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
		r.In(UDP(rig.Peer1+":54", rig.C1+":2000", "y"), UDP(rig.Peer1+":54", rig.C1+":2000", "y"))
		r.Outside(UDP(rig.Peer2+":53", rig.C1+":2000", "y")).Dropped("filtered")
	})
}

// TestRoutedForward: a static binding of an inside host's own endpoint opens it for everybody.
func TestRoutedForward(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, r *rig.Rig) {
		r.Forward("br0", dataplane.TCP, rig.C1+":80", rig.C1+":80")
		syn, answer := TCP(rig.Peer1+":1", rig.C1+":80", "S", ""), TCP(rig.C1+":80", rig.Peer1+":1", "SA", "")
		r.In(syn, syn)
		r.Out(answer, answer)
		r.Outside(TCP(rig.Peer1+":1", rig.C1+":81", "S", "")).Dropped("filtered")
		r.Refused(dataplane.ErrPortTaken, dataplane.TCP, "br0", rig.C1+":80", rig.C1+":80")
		r.Refused(dataplane.ErrNotFound, dataplane.TCP, "br0", rig.C1+":80", rig.C1+":81")
		r.Refused(dataplane.ErrNotFound, dataplane.TCP, "br1", rig.Other+":80", rig.Other+":80")
		if err := r.RemoveForward(dataplane.TCP, rig.C1+":80"); err != nil {
			t.Error(err)
		}
		r.Outside(TCP(rig.Peer2+":1", rig.C1+":80", "S", "")).Dropped("filtered")

		// One that is open already becomes static.
		out := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
		r.Out(out, out)
		r.Forward("br0", dataplane.UDP, rig.C1+":2000", rig.C1+":2000")
		in := UDP(rig.Peer2+":53", rig.C1+":2000", "y")
		r.In(in, in)
		r.WantBindings("udp br0 172.17.0.2:2000 172.17.0.2:2000 2 static")
	})
}

// TestRoutedFragments: the later ones go as the first one, dropped or not.
func TestRoutedFragments(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, r *rig.Rig) {
		out := UDP(rig.C1+":2000", rig.Peer1+":53", long)
		r.Fragments(r.Hooks()[0], rig.FromContainer(out), out.Hop(), "translated_outbound")
		in := UDP(rig.Peer1+":53", rig.C1+":2000", long)
		r.Fragments(r.Hooks()[1], rig.FromOutside(in), in.Hop(), "translated_inbound")
		for i, frame := range rig.Identified(rig.FromOutside(UDP(rig.Peer2+":53", rig.C2+":9", long)).In(r.Family)).Fragments(320) {
			reason := "filtered"
			if i > 0 {
				reason = "fragment"
			}
			r.Send(r.DP.Objects().NatOutsideIngress, "eth0", frame, nil).Dropped(reason)
		}
	})
}

// TestRoutedByTwoUplinks: a session goes by whichever uplink the route says, with the same address.
func TestRoutedByTwoUplinks(t *testing.T) {
	r := rig.New(t, routedBridge)
	r.Must("second uplink", r.SecondUplink)
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
	r.Out(s, s)
	r.Must("move the route", func() error { return r.DefaultBy("eth1", "192.0.2.254") })
	r.Now += 2 * time.Second
	r.Must("clock", func() error { return r.DP.SetClock(uint64(r.Now)) })
	r.Out(s, s)
	other := UDP(rig.C1+":2000", rig.Peer2+":53", "x")
	r.Out(other, other)
	r.WantBindings("udp br0 172.17.0.2:2000 172.17.0.2:2000 2")
}

// TestRoutedOnTheStackPath: IPv4's destination is the outside's own address until nft sets it, as Docker drops what is for a container's.
func TestRoutedOnTheStackPath(t *testing.T) {
	r := rig.New(t, routedBridge)
	r.TakePath(true)
	defer r.TakePath(false)
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
	r.Inside(s).Passed("stack")
	r.Egress("br0", s).Translated("translated_stack", s)
	r.Enters(UDP(rig.Peer1+":53", rig.C1+":2000", "y"), UDP(rig.Peer1+":53", rig.External+":2000", "y"), rig.C1)
	r.Outside(UDP(rig.Peer2+":53", rig.C1+":2000", "y")).Dropped("filtered")
}

// TestRoutedComesAndGoes: a network's bindings end with its mode, and two networks that share addresses cannot both be routed.
func TestRoutedComesAndGoes(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
			r.Out(s, UDP(rig.External+":2000", rig.Peer1+":53", "x"))
			for _, c := range []struct {
				mode dataplane.Mode
				want Spec
			}{{dataplane.ModeRouted, s}, {dataplane.ModeNAT, UDP(rig.External+":2000", rig.Peer1+":53", "x")}} {
				if err := putMode(r, "br0", c.mode); err != nil {
					t.Fatal(err)
				}
				r.Empty()
				r.Out(s, c.want)
			}
			r.Outside(UDP(rig.Peer2+":53", rig.C2+":2000", "x")).Passed("unbound")
			share := func(mode dataplane.Mode) error {
				return r.Do(func() error {
					return r.DP.PutNetwork(dataplane.Network{Name: "br1", IfIndex: r.Ports["br1"], Gateway: rig.Bridge2, Mode: mode,
						Prefixes: []netip.Prefix{fam.Prefix(netip.MustParsePrefix("172.17.0.0/16"))}})
				})
			}
			if err := errors.Join(putMode(r, "br0", dataplane.ModeRouted), share(dataplane.ModeNAT)); err != nil {
				t.Fatal(err)
			}
			if err := share(dataplane.ModeRouted); !errors.Is(err, dataplane.ErrAddressTaken) {
				t.Errorf("two routed networks with one prefix: %v", err)
			}
		})
	}
}

func putMode(r *rig.Rig, name string, mode dataplane.Mode) error {
	return r.Do(func() error {
		networks, err := r.DP.Networks()
		i := slices.IndexFunc(networks, func(n dataplane.Network) bool { return n.Name == name })
		if err != nil || i < 0 {
			return errors.Join(err, dataplane.ErrNotFound)
		}
		n := networks[i]
		n.Mode = mode
		return r.DP.PutNetwork(n)
	})
}
