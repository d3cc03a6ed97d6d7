// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
)

// change is a step between lines of a script.
type change func(*NAT)

// TestChanges holds what is changed from outside to what it has to mean, by hand: lines and changes in turn.
func TestChanges(t *testing.T) { both(t, testChanges) }

func testChanges(t *testing.T, in names) {
	const out, back = "net1 udp datagram 172.17.0.2:5000 203.0.113.1:9", "out udp datagram 203.0.113.1:9 198.51.100.1:5000"
	reconfigure := func(with func(*Config)) change {
		return func(n *NAT) {
			c := n.config
			with(&c)
			n.Configure(c)
		}
	}
	done := func(t *testing.T, what string, ok bool) {
		if !ok {
			t.Errorf("%s was refused", what)
		}
	}
	for _, test := range []struct {
		name string
		do   []any // lines and changes
		want []string
	}{
		{"filtering that is changed holds for what is opened from then on", []any{out,
			reconfigure(func(c *Config) { c.Networks = in.config(EndpointIndependent, AddressAndPortDependent).Networks }),
			back, "out udp datagram 203.0.113.1:7 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "inbound 203.0.113.1:9 172.17.0.2:5000", "dropped_filtered"}},
		{"what lives on an external address ends with it", []any{out, reconfigure(func(c *Config) { c.External = nil }), back, out},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "passed_unbound", "dropped_no_address"}},
		{"and with its network", []any{out, reconfigure(func(c *Config) { c.Networks = map[Place]Network{net2: c.Networks[net2]} }), back, out},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "passed_unbound", "passed_no_link"}},
		{"path stack: the host routes, and egress translates", []any{reconfigure(func(c *Config) { c.Stack = true }), out, "stack:" + out, back},
			[]string{"passed_stack", "stack 198.51.100.1:5000 203.0.113.1:9", "stack 203.0.113.1:9 198.51.100.1:5000"}},
		{"a container that is gone takes its bindings along", []any{out, change(func(n *NAT) { n.RemoveOwner(net1, in.at(c1).Addr()) }), back},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "passed_unbound"}},
		{"one that is excluded is the host's", []any{change(func(n *NAT) { n.PutOwner(net1, in.at(c1).Addr(), Owner{Excluded: true}) }), out}, []string{"passed_excluded"}},
		{"published over another's: that goes on, and opens no more", []any{out,
			change(func(n *NAT) { done(t, "publish", n.Forward(net1, UDP, in.at(ext+":5000"), in.at(c2+":80"), true)) }),
			back, "out udp datagram 203.0.113.2:9 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "inbound 203.0.113.1:9 172.17.0.2:5000", "inbound 203.0.113.2:9 172.17.0.3:80"}},
		{"removed", []any{change(func(n *NAT) { n.Forward(net1, TCP, in.at(ext+":80"), in.at(c1+":80"), false) }), "out tcp syn 203.0.113.1:9 198.51.100.1:80",
			change(func(n *NAT) { done(t, "remove", n.RemoveForward(TCP, in.at(ext+":80"))) }), "out tcp segment 203.0.113.1:9 198.51.100.1:80"},
			[]string{"inbound 203.0.113.1:9 172.17.0.2:80", "passed_unbound"}},
		{"imported", []any{change(func(n *NAT) {
			done(t, "import", n.Import(net1, TCP, in.at(c1+":80"), in.at(ext+":3333"), in.at(peer1+":9")))
		}),
			"net1 tcp segment 172.17.0.2:80 203.0.113.1:9", "net1 tcp syn 172.17.0.2:80 203.0.113.2:9"},
			[]string{"outbound 198.51.100.1:3333 203.0.113.1:9", "outbound 198.51.100.1:3333 203.0.113.2:9"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := New(in.config(EndpointIndependent, AddressDependent))
			var got []string
			for _, step := range test.do {
				switch step := step.(type) {
				case string:
					got = append(got, in.script(t, n, step)...)
				case change:
					step(n)
				}
			}
			if diff := cmp.Diff(in.Texts(test.want...), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestFragmentsFollowTheFirst: RFC 4787 REQ-14, in order; without the first one nobody knows whose they are.
func TestFragmentsFollowTheFirst(t *testing.T) { both(t, testFragmentsFollowTheFirst) }

func testFragmentsFollowTheFirst(t *testing.T, in names) {
	n := New(in.config(EndpointIndependent, AddressDependent))
	p := Packet{Protocol: UDP, Kind: Datagram, Src: in.at(c1 + ":5000"), Dst: in.at(peer1 + ":9"), TTL: 64, ID: 7, Piece: First}
	later := p
	later.Src, later.Dst, later.Piece = in.at(c1), in.at(peer1), Later
	if r := n.FromInside(net1, later); r.Reason != DroppedFragment {
		t.Errorf("later one alone: %s", r.Reason)
	}
	n.FromInside(net1, p)
	if r := n.FromInside(net1, later); r.Reason != TranslatedOutbound || r.Translated().Src != in.at(ext) {
		t.Errorf("later one: %s %v", r.Reason, r.Translated())
	}
	n.Wait(fragmentTime + 1)
	if r := n.FromInside(net1, later); r.Reason != DroppedFragment {
		t.Errorf("late one: %s", r.Reason)
	}
}

// TestDamagedErrors: RFC 5508 REQ-3 and 3a.
func TestDamagedErrors(t *testing.T) { both(t, testDamagedErrors) }

func testDamagedErrors(t *testing.T, in names) {
	n := New(in.config(EndpointIndependent, AddressDependent))
	in.script(t, n, "net1 udp datagram 172.17.0.2:5000 203.0.113.1:9")
	sound := Packet{Protocol: ICMP, Kind: Error, Src: in.at(peer2), Dst: in.at(ext), TTL: 64, About: &Packet{Protocol: UDP, Src: in.at(ext + ":5000"), Dst: in.at(peer1 + ":9")}}
	outer, inner := sound, sound
	outer.Damaged = true
	about := *sound.About
	about.Damaged = true
	inner.About = &about
	header := DroppedICMPChecksum
	if in.Family == family.V6 { // it has no checksum
		header = TranslatedICMPError
	}
	for _, test := range []struct {
		packet Packet
		want   Reason
	}{{sound, TranslatedICMPError}, {outer, DroppedICMPChecksum}, {inner, header}} {
		if r := n.FromOutside(test.packet); r.Reason != test.want {
			t.Errorf("%v: %s, want %s", test.packet, r.Reason, test.want)
		}
	}
}
