// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/rig"
)

const (
	ei  = dataplane.EndpointIndependent
	ad  = dataplane.AddressDependent
	apd = dataplane.AddressAndPortDependent
)

// Remotes in the order in which an endpoint sends to them, and with which one, by its index, each shares a mapping.
var towards = []struct {
	remote string
	shares map[dataplane.Behavior]int
}{
	{rig.Peer1 + ":3478", map[dataplane.Behavior]int{ei: 0, ad: 0, apd: 0}},
	{rig.Peer1 + ":3479", map[dataplane.Behavior]int{ei: 0, ad: 0, apd: 1}},
	{rig.Peer2 + ":3478", map[dataplane.Behavior]int{ei: 0, ad: 2, apd: 2}},
	{rig.Peer2 + ":3479", map[dataplane.Behavior]int{ei: 0, ad: 2, apd: 3}},
}

// mapped is the external endpoint that the session of an internal endpoint with a remote one has; a query's remote has no port.
func mapped(r *rig.Rig, proto, internal, remote string) string {
	r.T.Helper()
	if proto == "icmp" {
		remote = Endpoint(remote).Addr().String() + ":0"
	}
	proto, internal, remote = r.Protocol(proto), r.Family.Text(internal), r.Family.Text(remote)
	for _, s := range r.Sessions() {
		if f := strings.Fields(s); f[0] == proto && f[1] == internal && f[3] == remote {
			return f[2]
		}
	}
	r.T.Fatalf("no %s session of %s with %s: %q", proto, internal, remote, r.Sessions())
	return ""
}

// sends a first packet to a remote, checks all of what comes out, and gives the external endpoint that it left by.
func sends(r *rig.Rig, proto, internal, remote string) string {
	r.T.Helper()
	res := r.Inside(packetOf(proto, internal, remote))
	external := mapped(r, proto, internal, remote)
	res.Translated("translated_outbound", packetOf(proto, external, remote).Hop())
	return external
}

// mappings are "internal external remote sessions" of the bindings, sorted; "*": towards every remote.
func mappings(r *rig.Rig) (out []string) {
	r.T.Helper()
	r.Must("bindings", func() error {
		all, err := r.DP.Bindings()
		for _, b := range all {
			remote := "*"
			switch {
			case b.Remote.IsValid() && b.Remote.Port() == 0:
				remote = b.Remote.Addr().String()
			case b.Remote.IsValid():
				remote = b.Remote.String()
			}
			out = append(out, fmt.Sprintf("%s %s %s %d", b.Internal, b.External, remote, b.Sessions))
		}
		return err
	})
	slices.Sort(out)
	return out
}

func wantMappings(r *rig.Rig, want ...string) {
	r.T.Helper()
	want = r.Family.Texts(want...)
	slices.Sort(want)
	if diff := gocmp.Diff(want, mappings(r)); diff != "" {
		r.T.Errorf("mappings (-want +got):\n%s", diff)
	}
	r.Consistent()
}

// TestMapping: towards which remotes an internal endpoint has one external endpoint (RFC 4787 section 4.1), whatever the
// filtering is. Each is of its own, the answers come in by it, and again it is the same.
func TestMapping(t *testing.T) { family.Each(t, testMapping) }

func testMapping(t *testing.T, fam family.Family) {
	for _, mapping := range behaviors {
		for _, filtering := range behaviors {
			t.Run(mapping.String()+"/"+filtering.String(), func(t *testing.T) {
				r := rig.New(t, rig.In(fam), rig.WithMapping(mapping), rig.WithFiltering(filtering))
				for _, proto := range []string{"udp", "tcp", "icmp"} {
					r.Subtest(proto, func() { mapsTowards(r, proto, mapping) })
				}
				r.Consistent()
				r.Wait(3 * time.Hour)
				r.Empty()
			})
		}
	}
}

// mapsTowards sends to all of the remotes. A query has no remote port: it depends on the address at most.
func mapsTowards(r *rig.Rig, proto string, mapping dataplane.Behavior) {
	const internal = rig.C1 + ":20000"
	if proto == "icmp" && mapping == apd {
		mapping = ad
	}
	var left []string
	for i, to := range towards {
		got := sends(r, proto, internal, to.remote)
		left = append(left, got)
		for j, before := range left[:i] {
			same := towards[j].shares[mapping] == to.shares[mapping]
			if (got == before) != same {
				r.T.Errorf("towards %s from %s, towards %s from %s: want the same: %v", towards[j].remote, before, to.remote, got, same)
			}
		}
	}
	if left[0] != r.Family.Text(rig.External+":20000") {
		r.T.Errorf("the first one is %s: its port is not preserved", left[0])
	}
	for i, to := range towards {
		answer, got := answerOf(proto, to.remote, left[i]), answerOf(proto, to.remote, internal)
		r.In(answer, got)
		if again := sends(r, proto, internal, to.remote); again != left[i] {
			r.T.Errorf("towards %s: %s became %s", to.remote, left[i], again)
		}
	}
}

func answerOf(proto, remote, to string) Spec {
	switch proto {
	case "tcp":
		return TCP(remote, to, "SA", "")
	case "icmp":
		return Pong(Endpoint(remote).Addr().String(), to)
	}
	return UDP(remote, to, "x")
}

// TestMappingFiltered: whom a binding admits is a matter of what was sent by it, not by the endpoint's other bindings.
func TestMappingFiltered(t *testing.T) { family.Each(t, testMappingFiltered) }

func testMappingFiltered(t *testing.T, fam family.Family) {
	const stranger = "203.0.113.77:5"
	for _, filtering := range behaviors {
		t.Run(filtering.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithMapping(apd), rig.WithFiltering(filtering))
			for _, proto := range []string{"udp", "tcp"} {
				first, second := sends(r, proto, rig.C1+":20000", rig.Peer1+":9"), sends(r, proto, rig.C1+":20000", rig.Peer2+":9")
				for _, c := range []struct {
					from, to string
					admitted bool
				}{
					{rig.Peer1 + ":10", first, filtering != apd}, {rig.Peer2 + ":10", second, filtering != apd},
					{rig.Peer2 + ":11", first, filtering == ei}, {rig.Peer1 + ":11", second, filtering == ei}, {stranger, first, filtering == ei},
				} {
					in := packetOf(proto, c.from, c.to)
					if !c.admitted {
						r.Outside(in).Dropped("filtered")
						continue
					}
					r.In(in, packetOf(proto, c.from, rig.C1+":20000"))
					// It is answered from where it was sent to: the session is there before a mapping is asked for.
					r.Inside(answerOf(proto, rig.C1+":20000", c.from)).Translated("translated_outbound", answerOf(proto, c.to, c.from).Hop())
				}
			}
			r.Consistent()
		})
	}
}

// TestMappingPerProtocol: each network, and each protocol in it, has its own.
func TestMappingPerProtocol(t *testing.T) { family.Each(t, testMappingPerProtocol) }

func testMappingPerProtocol(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Must("put network", func() error {
		return r.DP.PutNetwork(dataplane.Network{Name: "br0", IfIndex: r.Ports["br0"], Gateway: rig.BridgeMAC,
			Prefixes: []netip.Prefix{fam.Prefix(netip.MustParsePrefix("172.17.0.0/16"))}, Mapping: [3]dataplane.Behavior{apd, ei, ad}})
	})
	for proto, mapping := range map[string]dataplane.Behavior{"udp": apd, "tcp": ei, "icmp": ad} {
		r.Subtest(proto, func() { mapsTowards(r, proto, mapping) })
	}
	for _, to := range towards {
		r.From("q1", UDP(rig.Other+":20001", to.remote, "x")).Translated("translated_outbound", UDP(rig.External+":20001", to.remote, "x").Hop())
	}
	r.Consistent()
}

// TestMappingPorts: the first binding of an endpoint preserves the port; its others have random ones of the same parity and
// range (RFC 4787 REQ-3 and REQ-4), and none when none is left.
func TestMappingPorts(t *testing.T) { family.Each(t, testMappingPorts) }

func testMappingPorts(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMapping(apd), rig.WithPorts(40000, 40007))
	for _, internal := range []uint16{40003, 500} {
		var got []uint16
		for i := range 4 {
			external := Endpoint(sends(r, "udp", fmt.Sprintf("%s:%d", rig.C1, internal), fmt.Sprintf("%s:%d", rig.Peer1, 1+i)))
			got = append(got, external.Port())
			if external.Port()%2 != internal%2 || (external.Port() < 1024) != (internal < 1024) {
				t.Errorf("internal port %d became %d", internal, external.Port())
			}
		}
		if got[0] != internal || len(slices.Compact(slices.Sorted(slices.Values(got)))) != 4 {
			t.Errorf("internal port %d became %d", internal, got)
		}
	}
	for i := range 4 { // of the other parity, then
		sends(r, "udp", rig.C1+":40003", fmt.Sprintf("%s:%d", rig.Peer2, 1+i))
	}
	r.Inside(UDP(rig.C1+":40003", rig.Peer2+":99", "x")).Dropped("port_exhausted")
	r.Consistent()
}

// TestMappingExpires: each binding ends with its own sessions, and the others go on. Events name what it depended on.
func TestMappingExpires(t *testing.T) { family.Each(t, testMappingExpires) }

func testMappingExpires(t *testing.T, fam family.Family) {
	for _, mapping := range []dataplane.Behavior{ad, apd} {
		t.Run(mapping.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithMapping(mapping))
			port := map[dataplane.Behavior]string{ad: ":0", apd: ":9"}[mapping]
			first := sends(r, "udp", rig.C1+":20000", rig.Peer1+":9")
			r.WantEvents("binding.created udp br0 "+rig.C1+":20000 "+first+" towards "+rig.Peer1+port, "session.created *")
			r.Wait(200 * time.Second)
			second := sends(r, "udp", rig.C1+":20000", rig.Peer2+":9")
			wantMappings(r, rig.C1+":20000 "+first+" "+strings.TrimSuffix(rig.Peer1+port, ":0")+" 1",
				rig.C1+":20000 "+second+" "+strings.TrimSuffix(rig.Peer2+port, ":0")+" 1")
			r.Forget()
			r.Wait(101 * time.Second)
			r.WantEvents("session.closed *", "binding.expired udp br0 "+rig.C1+":20000 "+first+" towards "+rig.Peer1+port)
			if again := sends(r, "udp", rig.C1+":20000", rig.Peer2+":9"); again != second {
				t.Errorf("%s became %s when another binding of the endpoint ended", second, again)
			}
			if again := sends(r, "udp", rig.C1+":20000", rig.Peer1+":9"); again != first {
				t.Errorf("port %s is free, and became %s", first, again)
			}
			r.Wait(301 * time.Second)
			r.Empty()
		})
	}
}

// TestMappingStatic: a static binding is its host's towards every remote, whatever the mapping is; what was opened before
// goes on as it was.
func TestMappingStatic(t *testing.T) { family.Each(t, testMappingStatic) }

func testMappingStatic(t *testing.T, fam family.Family) {
	const internal, published = rig.C1 + ":80", rig.External + ":8080"
	for _, mapping := range []dataplane.Behavior{ad, apd} {
		t.Run(mapping.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithMapping(mapping))
			before := sends(r, "udp", internal, rig.Peer1+":1")
			r.Forward("br0", dataplane.UDP, published, internal)
			r.Forward("br0", dataplane.UDP, rig.External+":8081", internal)
			for _, remote := range []string{rig.Peer1 + ":2", rig.Peer1 + ":3", rig.Peer2 + ":2"} {
				if got := sends(r, "udp", internal, remote); got != fam.Text(published) {
					t.Errorf("towards %s from %s, want %s", remote, got, published)
				}
				r.In(UDP(remote, published, "x"), UDP(remote, internal, "x"))
			}
			r.In(UDP(rig.Peer2+":77", published, "x"), UDP(rig.Peer2+":77", internal, "x"))
			if got := sends(r, "udp", internal, rig.Peer1+":1"); got != before {
				t.Errorf("an open session's %s became %s", before, got)
			}
			r.Consistent()
			if err := r.RemoveForward(dataplane.UDP, published); err != nil {
				t.Fatal(err)
			}
			r.Must("index", r.DP.IndexForwards)
			if got := sends(r, "udp", internal, rig.Peer2+":2"); got != fam.Text(rig.External+":8081") {
				t.Errorf("from %s, want the other static binding's", got)
			}
			if err := r.RemoveForward(dataplane.UDP, rig.External+":8081"); err != nil {
				t.Fatal(err)
			}
			if one, other := sends(r, "udp", internal, rig.Peer2+":2"), sends(r, "udp", internal, "203.0.113.7:2"); one == other {
				t.Errorf("without a static binding towards both from %s", one)
			}
			r.Wait(301 * time.Second)
			r.Empty()
		})
	}
}

// TestMappingBecomesStatic: the very binding is made static: it is its host's towards every remote from then on, and no more
// when it is removed.
func TestMappingBecomesStatic(t *testing.T) { family.Each(t, testMappingBecomesStatic) }

func testMappingBecomesStatic(t *testing.T, fam family.Family) {
	const internal = rig.C1 + ":80"
	for _, mapping := range []dataplane.Behavior{ad, apd} {
		t.Run(mapping.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithMapping(mapping))
			one, two := sends(r, "udp", internal, rig.Peer1+":1"), sends(r, "udp", internal, rig.Peer2+":1")
			r.Forget()
			r.Forward("br0", dataplane.UDP, two, internal)
			r.WantEvents("binding.changed udp br0 " + internal + " " + two + " static")
			for _, remote := range []string{rig.Peer1 + ":2", "203.0.113.7:2"} {
				if got := sends(r, "udp", internal, remote); got != two {
					t.Errorf("towards %s from %s, want %s", remote, got, two)
				}
			}
			if got := sends(r, "udp", internal, rig.Peer1+":1"); got != one {
				t.Errorf("an open session's %s became %s", one, got)
			}
			wantMappings(r, internal+" "+one+" "+strings.TrimSuffix(rig.Peer1+map[dataplane.Behavior]string{ad: "", apd: ":1"}[mapping], ":0")+" 1", internal+" "+two+" * 3")
			r.Wait(301 * time.Second)
			wantMappings(r, internal+" "+two+" * 0")
			if err := r.RemoveForward(dataplane.UDP, two); err != nil {
				t.Fatal(err)
			}
			r.Empty()
			sends(r, "udp", internal, rig.Peer2+":1")
			r.Consistent()
		})
	}
}

// TestMappingPublished: a published port is what its container sends from, also towards those to whom it has bindings.
func TestMappingPublished(t *testing.T) { family.Each(t, testMappingPublished) }

func testMappingPublished(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMapping(ad))
	was := sends(r, "tcp", rig.C1+":80", rig.Peer1+":1")
	r.Publish(dataplane.TCP, rig.External+":8080", rig.C1+":80")
	if got := sends(r, "tcp", rig.C1+":80", rig.Peer1+":2"); got != fam.Text(rig.External+":8080") {
		t.Errorf("from %s", got)
	}
	if got := sends(r, "tcp", rig.C1+":80", rig.Peer1+":1"); got != was {
		t.Errorf("an open session's %s became %s", was, got)
	}
	// Another one's dynamic binding gives way to a published port, and what is opened anew gets another.
	theirs := sends(r, "tcp", rig.C1+":9000", rig.Peer1+":1")
	r.Publish(dataplane.TCP, theirs, rig.C2+":80")
	if got := sends(r, "tcp", rig.C1+":9000", rig.Peer1+":1"); got != theirs {
		t.Errorf("an open session's %s became %s", theirs, got)
	}
	if got := sends(r, "tcp", rig.C1+":9000", rig.Peer1+":2"); got == theirs {
		t.Errorf("%s is published for another, and opens a session", got)
	}
	r.Consistent()
}

// TestMappingChanges: live; sessions and their bindings go on as they are, what is opened from then on is as the new mapping
// has it.
func TestMappingChanges(t *testing.T) { family.Each(t, testMappingChanges) }

func testMappingChanges(t *testing.T, fam family.Family) {
	const internal = rig.C1 + ":20000"
	for _, from := range behaviors {
		for _, to := range behaviors {
			if from == to {
				continue
			}
			t.Run(from.String()+"/"+to.String(), func(t *testing.T) {
				r := rig.New(t, rig.In(fam), rig.WithMapping(from))
				first, second := sends(r, "udp", internal, rig.Peer1+":1"), sends(r, "udp", internal, rig.Peer2+":1")
				r.Behave(to, ad)
				for remote, was := range map[string]string{rig.Peer1 + ":1": first, rig.Peer2 + ":1": second} {
					r.In(UDP(remote, was, "x"), UDP(remote, internal, "x"))
					if got := sends(r, "udp", internal, remote); got != was {
						t.Errorf("an open session's %s became %s", was, got)
					}
				}
				a, b, c := sends(r, "udp", internal, rig.Peer1+":2"), sends(r, "udp", internal, rig.Peer1+":3"), sends(r, "udp", internal, rig.Peer2+":2")
				if sameAddress, other := a == b, a == c; sameAddress != (to != apd) || other != (to == ei) {
					t.Errorf("opened anew from %s, %s and %s", a, b, c)
				}
				r.Forward("br0", dataplane.UDP, rig.External+":5060", internal)
				r.Consistent()
				r.Wait(301 * time.Second)
				r.Must("index", r.DP.IndexForwards)
				if got := sends(r, "udp", internal, rig.Peer1+":4"); got != fam.Text(rig.External+":5060") {
					t.Errorf("from %s, and the static binding is the only one left", got)
				}
				r.Consistent()
			})
		}
	}
}

// TestMappingHairpin: a hairpin's sender has a binding towards the external endpoint that it sends to, as towards any remote
// (RFC 4787 REQ-9a); answers go back by the same two.
func TestMappingHairpin(t *testing.T) { family.Each(t, testMappingHairpin) }

func testMappingHairpin(t *testing.T, fam family.Family) {
	for _, mapping := range []dataplane.Behavior{ad, apd} {
		t.Run(mapping.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithMapping(mapping))
			one, two := sends(r, "udp", rig.C1+":1001", rig.Peer1+":1"), sends(r, "udp", rig.C1+":1003", rig.Peer1+":1")
			sends(r, "udp", rig.C2+":2001", rig.Peer1+":1")
			hairpins := func(dev, from, to, receiver string) string {
				res := r.From(dev, UDP(from, to, "x"))
				external := mapped(r, "udp", from, to)
				res.Translated("translated_hairpin", UDP(external, receiver, "x").Hop())
				return external
			}
			first := hairpins("p2", rig.C2+":2001", one, rig.C1+":1001")
			if first == fam.Text(rig.External+":2001") {
				t.Error("towards a hairpin from what is towards the peer")
			}
			if second := hairpins("p2", rig.C2+":2001", two, rig.C1+":1003"); (second == first) != (mapping == ad) {
				t.Errorf("towards two ports of one address from %s and %s", first, second)
			}
			r.Hairpin("p1", UDP(rig.C1+":1001", first, "y"), UDP(one, rig.C2+":2001", "y"))
			// To itself: by another binding, unless that is the one towards the external address.
			self := hairpins("p1", rig.C1+":1001", one, rig.C1+":1001")
			if self == one {
				t.Errorf("towards itself from %s", self)
			}
			r.Hairpin("p1", UDP(rig.C1+":1001", self, "y"), UDP(one, rig.C1+":1001", "y"))
			r.Wait(301 * time.Second)
			r.Empty()
		})
	}
}

// TestMappingHairpinToItself: sender and receiver are one binding: what is towards the external address leads back to itself.
func TestMappingHairpinToItself(t *testing.T) { family.Each(t, testMappingHairpinToItself) }

func testMappingHairpinToItself(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMapping(ad))
	sends(r, "udp", rig.C2+":2001", rig.Peer1+":1")
	r.From("p1", UDP(rig.C1+":1001", rig.External+":2001", "x"))
	own := mapped(r, "udp", rig.C1+":1001", rig.External+":2001")
	r.Hairpin("p1", UDP(rig.C1+":1001", own, "echo"), UDP(own, rig.C1+":1001", "echo"))
	r.Hairpin("p1", UDP(rig.C1+":1001", own, "more"), UDP(own, rig.C1+":1001", "more"))
	r.Consistent()
	r.Wait(301 * time.Second)
	r.Empty()
}

// TestMappingImport: another NAT's sessions go on from the external endpoints that they have; what is opened anew is as the
// mapping has it, and takes an imported one towards the same remote.
func TestMappingImport(t *testing.T) { family.Each(t, testMappingImport) }

func testMappingImport(t *testing.T, fam family.Family) {
	const internal = rig.C1 + ":2000"
	r := rig.New(t, rig.In(fam), rig.WithMapping(apd))
	for remote, external := range map[string]string{rig.Peer1 + ":53": ":2000", rig.Peer2 + ":53": ":1024"} {
		r.MustImport(dataplane.UDP, "", internal, rig.External+external, remote)
	}
	r.MustImport(dataplane.UDP, "", internal, rig.External+":2000", rig.Peer2+":54") // a cone's: two by one
	for remote, external := range map[string]string{rig.Peer1 + ":53": ":2000", rig.Peer2 + ":53": ":1024", rig.Peer2 + ":54": ":2000"} {
		r.Out(UDP(internal, remote, "x"), UDP(rig.External+external, remote, "x"))
		r.In(UDP(remote, rig.External+external, "x"), UDP(remote, internal, "x"))
	}
	wantMappings(r, internal+" "+rig.External+":2000 "+rig.Peer1+":53 2", internal+" "+rig.External+":1024 "+rig.Peer2+":53 1")
	r.Behave(ad, ad)
	if got := sends(r, "udp", internal, rig.Peer1+":99"); got == fam.Text(rig.External+":2000") {
		t.Errorf("towards an address from what is towards an endpoint of it: %s", got)
	}
	r.MustImport(dataplane.TCP, "established", internal, rig.External+":3000", rig.Peer1+":80")
	if got := sends(r, "tcp", internal, rig.Peer1+":81"); got != fam.Text(rig.External+":3000") {
		t.Errorf("beside an imported connection with that address from %s", got)
	}
	r.Consistent()
	r.Wait(3 * time.Hour)
	r.Empty()
}

// TestMappingHost: the host's own packets have no network to ask: endpoint-independent.
func TestMappingHost(t *testing.T) { family.Each(t, testMappingHost) }

func testMappingHost(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMapping(apd))
	sends(r, "udp", rig.C1+":5000", rig.Peer1+":1")
	r.Egress("", UDP(rig.External+":5000", rig.Peer1+":2", "x"))
	own := mapped(r, "udp", rig.External+":5000", rig.Peer1+":2")
	if own == fam.Text(rig.External+":5000") {
		t.Errorf("the host sends from a container's %s", own)
	}
	r.Egress("", UDP(rig.External+":5000", rig.Peer2+":3", "x")).Translated("translated_host", UDP(own, rig.Peer2+":3", "x"))
	r.Consistent()
}

// TestMappingStackPath: at egress, on the kernel's way, it is the same.
func TestMappingStackPath(t *testing.T) { family.Each(t, testMappingStackPath) }

func testMappingStackPath(t *testing.T, fam family.Family) {
	const internal = rig.C1 + ":2000"
	r := rig.New(t, rig.In(fam), rig.WithMapping(apd))
	r.TakePath(true)
	var left []string
	for _, to := range towards {
		s := UDP(internal, to.remote, "x")
		r.Inside(s).Passed("stack")
		res := r.Egress("br0", s.With(routed))
		left = append(left, mapped(r, "udp", internal, to.remote))
		res.Translated("translated_stack", UDP(left[len(left)-1], to.remote, "x").With(routed))
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(left)))); n != len(towards) {
		t.Errorf("%d external endpoints towards %d remotes: %q", n, len(towards), left)
	}
	r.Consistent()
}

// TestMappingRaces: as TestRaces, where bindings are made by the packet.
func TestMappingRaces(t *testing.T) {
	require.Long(t, "hammers for seconds")
	for name, c := range map[string]struct {
		mapping dataplane.Behavior
		senders func(*bpf.Objects) []rig.Hammer
	}{
		"ManyRemotes":     {apd, oneEndpoint},
		"SameFirstPacket": {apd, sameFirstPacket},
		"Hairpins":        {ad, hairpins},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.WithMapping(c.mapping), rig.WithRealClock(), rig.WithSettings(rig.ShortTimeouts))
			r.Hammers(r.DP.Sweep, c.senders(r.DP.Objects())...)
			r.Settled()
		})
	}
}

// TestStaticUnderFire: an endpoint's bindings are made static, and ended, while it sends to three remotes from two CPUs.
func TestStaticUnderFire(t *testing.T) {
	require.Long(t, "hammers for seconds")
	r := rig.New(t, rig.WithMapping(ad), rig.WithRealClock(), rig.WithSettings(rig.ShortTimeouts), rig.WithPorts(5000, 5003))
	made := 0
	comeAndGo := func() error {
		for port := uint16(5000); port < 5004; port++ {
			external := netip.AddrPortFrom(netip.MustParseAddr(rig.External), port)
			_, err := r.DP.AddForward(dataplane.Forward{Protocol: dataplane.UDP, External: external, Internal: Endpoint(rig.C1 + ":5000")})
			if errors.Is(err, dataplane.ErrPortTaken) {
				continue
			}
			if err == nil {
				made++
				err = r.DP.RemoveForward(dataplane.UDP, external)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	sender := rig.Hammer{Program: r.DP.Objects().NatInside, Dev: "p1", Frame: frames(30, func(i int) Spec {
		return rig.FromContainer(UDP(rig.C1+":5000", fmt.Sprintf("203.0.113.%d:%d", 1+i%3, 1+i/3), "x"))
	})}
	r.Hammers(comeAndGo, sender, sender)
	if made == 0 {
		t.Error("nothing was made static")
	}
	r.Settled()
	t.Logf("%d forwards", made)
}
