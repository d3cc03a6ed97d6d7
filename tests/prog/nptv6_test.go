// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// prefixes are an inside one and what it becomes outside.
type prefixes struct{ inside, outside netip.Prefix }

func translation(inside, outside string) prefixes {
	return prefixes{netip.MustParsePrefix(inside), netip.MustParsePrefix(outside)}
}

// usual is br0's in most tests.
var usual = translation("fd00:17::/64", "2001:db8:17:1::/64")

// prefixMapped is RFC 6296's mapping, sections 3.1 to 3.7, in numbers as they are written; not ok: there is none.
func prefixMapped(from, to netip.Prefix, a netip.Addr) (out netip.Addr, ok bool) {
	b := a.As16()
	prefix := to.Addr().As16()
	for i := range to.Bits() {
		bit := byte(0x80) >> (i % 8)
		b[i/8] = b[i/8]&^bit | prefix[i/8]&bit
	}
	at := 6
	if to.Bits() > 48 {
		for at = 8; at < 16 && b[at] == 0xff && b[at+1] == 0xff; at += 2 {
		}
	}
	if at == 16 || (b[at] == 0xff && b[at+1] == 0xff) {
		return netip.Addr{}, false
	}
	sum := (int(binary.BigEndian.Uint16(b[at:])) + ones(from.Addr()) - ones(to.Addr())) % 0xffff
	binary.BigEndian.PutUint16(b[at:], uint16((sum+0xffff)%0xffff))
	return netip.AddrFrom16(b), true
}

// ones is the sum of an address's words, modulo 65535.
func ones(a netip.Addr) (sum int) {
	b := a.As16()
	for i := 0; i < len(b); i += 2 {
		sum += int(binary.BigEndian.Uint16(b[i:]))
	}
	return sum % 0xffff
}

// nptv6 is a rig whose br0 has its prefix translated.
type nptv6 struct {
	*rig.Rig
	prefixes
}

func newNPTv6(t *testing.T, p prefixes, change ...func(*dataplane.Network)) nptv6 {
	t.Helper()
	return nptv6{rig.New(t, rig.In(family.V6), rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name != "br0" {
			return
		}
		n.Prefixes, n.Mode, n.ExternalPrefix = []netip.Prefix{p.inside}, dataplane.ModeNPTv6, p.outside
		n.Address = netip.MustParseAddr(gateway)
		for _, f := range change {
			f(n)
		}
	})), p}
}

// v6 is a place's address, or endpoint, in IPv6.
func v6(place string) string { return family.V6.Text(place) }

// ext is what an inside place is outside.
func (r nptv6) ext(place string) string {
	e := Endpoint(v6(place))
	a, ok := prefixMapped(r.inside, r.outside, e.Addr())
	if !ok {
		r.T.Fatalf("%s has no address outside", place)
	}
	if !strings.Contains(place, ":") {
		return a.String()
	}
	return netip.AddrPortFrom(a, e.Port()).String()
}

// TestNPTv6WorkedExample: RFC 6296 section 3.6, with erratum 3033; and a /64, of which the interface identifier makes up for the
// prefix (section 3.5), not by a word that is 0xffff.
func TestNPTv6WorkedExample(t *testing.T) {
	for name, c := range map[string]struct {
		prefixes
		inside, outside string
	}{
		"Section3.6": {translation("fd01:203:405::/48", "2001:db8:1::/48"), "fd01:203:405:1::1234", "2001:db8:1:d550::1234"},
		"Shorter":    {translation("fd01:203::/32", "2001:db8::/32"), "fd01:203:405:1::1234", "2001:db8:405:d14c::1234"},
		"Zero":       {translation("fd01:203:405::/48", "2001:db8:1::/48"), "fd01:203:405:2ab0::1", "2001:db8:1::1"},
		"Longer":     {translation("fd01:203:405:1::/64", "2001:db8:1:2::/64"), "fd01:203:405:1::1234", "2001:db8:1:2:d54e::1234"},
		"AllOnes":    {translation("fd01:203:405:1::/64", "2001:db8:1:2::/64"), "fd01:203:405:1:ffff:ffff:0:1", "2001:db8:1:2:ffff:ffff:d54e:1"},
	} {
		t.Run(name, func(t *testing.T) {
			if a, ok := prefixMapped(c.prefixes.inside, c.prefixes.outside, netip.MustParseAddr(c.inside)); !ok || a.String() != c.outside {
				t.Fatalf("the model of the test gives %s, %v", a, ok)
			}
			r := newNPTv6(t, c.prefixes)
			remote := "[2001:4860::8888]:53"
			in, out := "["+c.inside+"]:2000", "["+c.outside+"]:2000"
			r.Inside(UDP(in, remote, "x")).Translated("translated_outbound", UDP(out, remote, "x").Hop())
			r.Outside(UDP(remote, out, "y")).Translated("translated_inbound", UDP(remote, in, "y").Hop())
			r.Empty()
		})
	}
}

// TestNPTv6Protocols: each packet is mapped by itself, whatever it is and whoever sent the first one, at every hook.
func TestNPTv6Protocols(t *testing.T) {
	r := newNPTv6(t, usual)
	c1, peer := v6(rig.C1), v6(rig.Peer1)
	for name, between := range map[string]func(src, dst string) Spec{
		"UDP":       func(src, dst string) Spec { return UDP(src, dst, "payload") },
		"SYN":       func(src, dst string) Spec { return TCP(src, dst, "S", "") },
		"Segment":   func(src, dst string) Spec { return TCP(src, dst, "A", "payload") },
		"RST":       func(src, dst string) Spec { return TCP(src, dst, "R", "") },
		"Ping":      Ping,
		"Pong":      Pong,
		"SCTP":      func(src, dst string) Spec { return SCTP(src, dst, 7, "payload") },
		"ESP":       func(src, dst string) Spec { return Raw(src, dst, 50, []byte("sequence and more")) },
		"GRE":       func(src, dst string) Spec { return Raw(src, dst, 47, []byte("header and more")) },
		"6in4":      func(src, dst string) Spec { return Raw(src, dst, 41, UDP(c1, peer, "inner").IP()) },
		"Options":   func(src, dst string) Spec { return UDP(src, dst, "payload").Behind(DestinationOptions(1)) },
		"OtherICMP": func(src, dst string) Spec { return ICMPv6(src, dst, 139, 0, 0, []byte("who are you?")) },
		"Nothing":   NoNextHeader,
	} {
		t.Run(name, func(t *testing.T) {
			r := r
			rr := *r.Rig
			rr.T = t
			r.Rig = &rr
			in, out, remote := v6(rig.C1+":2000"), r.ext(rig.C1+":2000"), v6(rig.Peer1+":443")
			for _, dev := range []string{"p1", "br0"} {
				r.From(dev, between(in, remote)).Translated("translated_outbound", between(out, remote).Hop())
			}
			r.Egress("br0", between(in, remote)).Translated("translated_stack", between(out, remote))
			r.Outside(between(remote, out)).Translated("translated_inbound", between(remote, in).Hop())
		})
	}
	r.Empty()
	r.From("q1", UDP(v6(rig.Other+":2000"), v6(rig.Peer1+":53"), "x")).Translated("translated_outbound", // the other network has bindings
		UDP(v6(rig.External+":2000"), v6(rig.Peer1+":53"), "x").Hop())
}

// TestNPTv6Fragments: each by itself, in any order.
func TestNPTv6Fragments(t *testing.T) {
	r := newNPTv6(t, usual)
	in, out, remote := v6(rig.C1+":2000"), r.ext(rig.C1+":2000"), v6(rig.Peer1+":53")
	for _, c := range []struct {
		hook      rig.Hook
		from, to  Spec
		reason    string
		direction func(Spec) Spec
	}{
		{r.Hooks()[0], UDP(in, remote, long), UDP(out, remote, long).Hop(), "translated_outbound", rig.FromContainer},
		{r.Hooks()[1], UDP(remote, out, long), UDP(remote, in, long).Hop(), "translated_inbound", rig.FromOutside},
	} {
		from, to := c.direction(c.from).Fragments(320), c.direction(c.to).Fragments(320)
		for i := range slices.Backward(from) {
			r.Send(c.hook.Program, c.hook.Dev, from[i], c.hook.Change).Check(rig.Redirect, c.reason, to[i])
		}
		for i := range from {
			r.Send(c.hook.Program, c.hook.Dev, from[i], c.hook.Change).Check(rig.Redirect, c.reason, to[i])
		}
	}
	r.Empty()
}

// TestNPTv6Hairpin: an inside host is reached at its external address from inside, too, and sees the sender's (RFC 6296 section
// 4.3).
func TestNPTv6Hairpin(t *testing.T) {
	r := newNPTv6(t, usual)
	a, b := v6(rig.C1+":2000"), v6(rig.C2+":3000")
	extA, extB := r.ext(rig.C1+":2000"), r.ext(rig.C2+":3000")
	for _, stack := range []bool{false, true} {
		r.TakePath(stack)
		r.Hairpin("p1", UDP(a, extB, "x"), UDP(extA, b, "x"))
		r.Hairpin("p2", TCP(b, extA, "SA", ""), TCP(extB, a, "SA", ""))
		r.Hairpin("p1", UDP(a, extA, "to itself"), UDP(extA, a, "to itself"))
		r.From("p2", ICMPError(v6(rig.C2), r.ext(rig.C1), 3, 3, UDP(extA, b, "x"), 0)).Translated("translated_icmp_error",
			ICMPError(r.ext(rig.C2), v6(rig.C1), 3, 3, UDP(a, extB, "x"), 0).Hop())
	}
	r.TakePath(false)
	r.Inside(UDP(a, extB, "x").With(lastHop)).Told("ttl", Told(v6(gateway), 11, 0, 0, UDP(a, extB, "x").With(lastHop)))

}

// TestNPTv6Isolated: hosts that do not reach each other do not by their external addresses.
func TestNPTv6Isolated(t *testing.T) {
	r := newNPTv6(t, usual, func(n *dataplane.Network) { n.Isolated = true })
	r.Inside(UDP(v6(rig.C1+":2000"), r.ext(rig.C2+":3000"), "x")).Dropped("isolated")
}

// TestNPTv6Errors: of what an error quotes, its reader knows the addresses, and all checksums are right.
func TestNPTv6Errors(t *testing.T) {
	r := newNPTv6(t, usual)
	in, out, remote := v6(rig.C1+":2000"), r.ext(rig.C1+":2000"), v6(rig.Peer1+":53")
	router := v6("192.0.2.99")
	for name, size := range map[string]int{"Whole": 0, "Short": 28} {
		t.Run(name, func(t *testing.T) {
			r.Outside(ICMPError(router, r.ext(rig.C1), 3, 4, UDP(out, remote, long), size)).Translated("translated_icmp_error",
				ICMPError(router, v6(rig.C1), 3, 4, UDP(in, remote, long), size).Hop())
			r.Inside(ICMPError(v6(rig.C1), v6(rig.Peer1), 3, 3, UDP(remote, in, long), size)).Translated("translated_icmp_error",
				ICMPError(r.ext(rig.C1), v6(rig.Peer1), 3, 3, UDP(remote, out, long), size).Hop())
			r.Egress("br0", ICMPError(v6(rig.C1), v6(rig.Peer1), 3, 3, UDP(remote, in, long), size)).Check(rig.Next, "translated_icmp_error",
				fromHost(ICMPError(r.ext(rig.C1), v6(rig.Peer1), 3, 3, UDP(remote, out, long), size)))
		})
	}
	// About a packet of somebody else's, and about none: as it is, but for whom it is for.
	about := UDP(remote, v6(rig.External+":7"), "x")
	r.Outside(ICMPError(router, r.ext(rig.C1), 3, 0, about, 0)).Translated("translated_icmp_error", ICMPError(router, v6(rig.C1), 3, 0, about, 0).Hop())
	stub := func(dst string) Spec { return ICMPv6(router, dst, 1, 0, 0, []byte("short")) }
	r.Outside(stub(r.ext(rig.C1))).Translated("translated_icmp_error", stub(v6(rig.C1)).Hop())
}

// TestNPTv6Unmapped: what the other prefix has no address for is dropped, and its sender told which of the two it is (section 3.7).
func TestNPTv6Unmapped(t *testing.T) {
	remote := v6(rig.Peer1 + ":53")
	for name, c := range map[string]struct {
		prefixes
		in, out string
	}{
		"Interface": {usual, "fd00:17::ffff:ffff:ffff:ffff", "2001:db8:17:1:ffff:ffff:ffff:ffff"},
		"Subnet":    {translation("fd00:17::/48", "2001:db8:17::/48"), "fd00:17:0:ffff::2", "2001:db8:17:ffff::2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newNPTv6(t, c.prefixes)
			s := UDP("["+c.in+"]:2000", remote, "x")
			r.Inside(s).Told("unmapped", Told(v6(gateway), 12, 0, 8, s))
			s = UDP(remote, "["+c.out+"]:2000", "x")
			r.Outside(s).Told("unmapped", Told(v6(rig.External), 12, 0, 24, s))
		})
	}
}

// TestNPTv6LeavesAlone: what is the host's, or the network's own, is as it came; and nobody takes another address.
func TestNPTv6LeavesAlone(t *testing.T) {
	r := newNPTv6(t, usual, func(n *dataplane.Network) { n.Exclude = []netip.Prefix{netip.MustParsePrefix(v6(rig.Peer2 + "/32"))} })
	c1 := v6(rig.C1 + ":2000")
	peer := v6(rig.Peer1 + ":53")
	r.Inside(NeighborSolicitation(v6(rig.C1), v6(gateway), v6(gateway), rig.C1MAC)).Passed("local")
	r.Inside(NeighborAdvertisement("fe80::2", "fe80::1", v6(rig.C1), rig.C1MAC)).Passed("local")
	r.Inside(UDP(c1, v6(gateway+":53"), "x")).Passed("local")
	r.Inside(UDP(c1, v6(rig.External+":53"), "x")).Passed("local")
	r.Inside(UDP(c1, v6(rig.Other+":53"), "x")).Passed("not_outside")
	r.Inside(UDP(c1, v6(rig.Peer2+":53"), "x")).Passed("destination")
	r.Inside(UDP("[fd00:99::2]:2000", peer, "x")).Dropped("spoofed")
	r.Inside(UDP(c1, peer, "x").With(lastHop)).Passed("ttl")
	r.Inside(UDP(c1, peer, "x").Behind(HopByHop())).Passed("stack")
	r.Outside(UDP(peer, v6(rig.External+":2000"), "x")).Passed("unbound")
	r.Outside(UDP(peer, "[2001:db8:99::1]:2000", "x")).Passed("unbound")
	r.Outside(Raw(v6(rig.Peer1), v6(rig.External), 51, []byte("sequence and more"))).Passed("protocol")
	r.Outside(UDP(c1, r.ext(rig.C1+":7"), "x")).Dropped("spoofed")
	last := UDP(peer, r.ext(rig.C1+":7"), "x").With(lastHop)
	r.Outside(last).Told("ttl", Told(v6(rig.External), 11, 0, 0, last))
	r.Owner(rig.C2, "p2", nil)
	r.Inside(UDP(v6(rig.C2+":2000"), peer, "x")).Dropped("spoofed")
	r.Empty()
}

// TestNPTv6HostWithinThePrefix: an address of the host's stays its own.
func TestNPTv6HostWithinThePrefix(t *testing.T) {
	r := newNPTv6(t, translation("fd00:17::/64", "2001:db8:100::/64")) // the uplink's own
	peer, host := v6(rig.Peer1+":53"), v6(rig.External+":2000")
	r.Outside(UDP(peer, host, "x")).Passed("unbound")
	r.Inside(UDP(v6(rig.C1+":2000"), host, "x")).Passed("local")
	out := r.ext(rig.C1 + ":2000")
	r.Outside(UDP(peer, out, "x")).Translated("translated_inbound", UDP(peer, v6(rig.C1+":2000"), "x").Hop())
}

// TestNPTv6TooBig: what is larger than the way is told so, each way.
func TestNPTv6TooBig(t *testing.T) {
	r := newNPTv6(t, usual)
	in, out, remote := v6(rig.C1+":2000"), r.ext(rig.C1+":2000"), v6(rig.Peer1+":53")
	big := strings.Repeat("x", 1400)
	r.SetMTU("eth0", 1300)
	r.SetMTU("br0", 1300)
	r.Inside(UDP(in, remote, big)).Passed("too_big")
	s := UDP(remote, out, big)
	r.Outside(s).Told("too_big", Told(v6(rig.External), 3, 4, 1300, s))
}

// TestNPTv6Owner: to a container whose port is known straight, and what is left to the host's NAT is left alone.
func TestNPTv6Owner(t *testing.T) {
	r := newNPTv6(t, usual)
	in, out, remote := v6(rig.C1+":2000"), r.ext(rig.C1+":2000"), v6(rig.Peer1+":53")
	r.Owner(rig.C1, "p1", nil)
	r.Outside(UDP(remote, out, "x")).Translated("translated_inbound", UDP(remote, in, "x").Hop())
	r.Owner(rig.C1, "p1", func(o *dataplane.Owner) { o.Excluded = true })
	r.Inside(UDP(in, remote, "x")).Passed("excluded")
	r.Outside(UDP(remote, out, "x")).Passed("excluded")
}

// TestNPTv6OnTheStackPath: the kernel routes and filters; egress and ingress translate.
func TestNPTv6OnTheStackPath(t *testing.T) {
	r := newNPTv6(t, usual)
	r.TakePath(true)
	defer r.TakePath(false)
	in, out, remote := v6(rig.C1+":2000"), r.ext(rig.C1+":2000"), v6(rig.Peer1+":53")
	r.Inside(UDP(in, remote, "x")).Passed("stack")
	r.Egress("br0", UDP(in, remote, "x")).Translated("translated_stack", UDP(out, remote, "x"))
	r.Egress("", TCP(v6(rig.C1+":80"), remote, "RA", "")).Translated("translated_stack", TCP(r.ext(rig.C1+":80"), remote, "RA", "")) // REJECT's
	about := UDP(remote, in, "x")
	r.Egress("", ICMPError(v6(rig.External), v6(rig.Peer1), 3, 1, about, 0)).Check(rig.Next, "translated_icmp_error",
		fromHost(ICMPError(v6(rig.External), v6(rig.Peer1), 3, 1, UDP(remote, out, "x"), 0)))

	// Inbound, nft writes the last 32 bits of the address from the mark: the checksum is that of the whole one already.
	res := r.Outside(UDP(remote, out, "y"))
	want := rig.FromOutside(UDP(remote, in, "y")).Bytes()
	copy(want[14+36:], []byte{0, 0, 0, 0})
	res.Check(rig.Next, "translated_stack", want)
}

func fromHost(s Spec) []byte {
	s.DstMAC, s.SrcMAC = rig.RouterMAC, rig.UplinkMAC
	return s.Bytes()
}

// TestNPTv6Published: a published port of the host's own address has its sessions, beside the prefix.
func TestNPTv6Published(t *testing.T) {
	r := newNPTv6(t, usual)
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":8080")
	r.In(TCP(rig.Peer1+":1", rig.External+":80", "S", ""), TCP(rig.Peer1+":1", rig.C1+":8080", "S", ""))
	r.Out(TCP(rig.C1+":8080", rig.Peer1+":1", "SA", ""), TCP(rig.External+":80", rig.Peer1+":1", "SA", ""))
	s := TCP(v6(rig.C1+":8080"), v6(rig.Peer1+":2"), "SA", "")
	r.Inside(s).Translated("translated_outbound", TCP(r.ext(rig.C1+":8080"), v6(rig.Peer1+":2"), "SA", "").Hop())
}

// TestNPTv6ComesAndGoes: a network's bindings end when its prefix is translated, and the external prefix is another's then.
func TestNPTv6ComesAndGoes(t *testing.T) {
	r := rig.New(t, rig.In(family.V6))
	put := func(name string, mode dataplane.Mode, external string) error {
		return r.Do(func() error {
			networks, err := r.DP.Networks()
			i := slices.IndexFunc(networks, func(n dataplane.Network) bool { return n.Name == name })
			if err != nil || i < 0 {
				return errors.Join(err, fmt.Errorf("no network %s", name))
			}
			n := networks[i]
			n.Mode, n.ExternalPrefix = mode, netip.Prefix{}
			if external != "" {
				n.ExternalPrefix = netip.MustParsePrefix(external)
			}
			return r.DP.PutNetwork(n)
		})
	}
	s := UDP(v6(rig.C1+":2000"), v6(rig.Peer1+":53"), "x")
	r.Inside(s).Translated("translated_outbound", UDP(v6(rig.External+":2000"), v6(rig.Peer1+":53"), "x").Hop())
	if err := put("br0", dataplane.ModeNPTv6, usual.outside.String()); err != nil {
		t.Fatal(err)
	}
	r.Empty()
	n := nptv6{r, usual}
	n.Inside(s).Translated("translated_outbound", UDP(n.ext(rig.C1+":2000"), v6(rig.Peer1+":53"), "x").Hop())
	if err := put("br1", dataplane.ModeNPTv6, usual.outside.String()); !errors.Is(err, dataplane.ErrAddressTaken) {
		t.Errorf("two networks with one external prefix: %v", err)
	}
	for _, wrong := range []string{"", "2001:db8:18::/48", "2001:db8:18::1/64", "fd00:18::/64", "10.0.0.0/8"} {
		if err := put("br1", dataplane.ModeNPTv6, wrong); err == nil {
			t.Errorf("external prefix %q is taken", wrong)
		}
	}
	if err := put("br1", dataplane.ModeNAT, "2001:db8:18::/64"); err == nil {
		t.Error("an external prefix without its mode is taken")
	}
	if err := errors.Join(put("br0", dataplane.ModeNAT, ""), put("br1", dataplane.ModeNPTv6, usual.outside.String())); err != nil {
		t.Fatal(err)
	}
	r.Inside(s).Translated("translated_outbound", UDP(v6(rig.External+":2000"), v6(rig.Peer1+":53"), "x").Hop())
	r.Outside(UDP(v6(rig.Peer1+":53"), n.ext(rig.C1+":7"), "x")).Check(rig.Redirect, "translated_inbound",
		rig.FromOutside(UDP(v6(rig.Peer1+":53"), "[fd00:18::"+strings.TrimPrefix(reverse(t, n.ext(rig.C1)), "fd00:18::")+"]:7", "x").Hop()).Bytes())
}

// reverse is br1's address of an external one of the usual prefix.
func reverse(t *testing.T, external string) string {
	a, ok := prefixMapped(usual.outside, netip.MustParsePrefix("fd00:18::/64"), netip.MustParseAddr(external))
	if !ok {
		t.Fatalf("%s has no address inside", external)
	}
	return a.String()
}

// TestNPTv6IsNeutral: whatever the prefixes and the packet, an address sums up to what it did, nothing else changes but the hop limit,
// 0xffff is never made, and what answers comes back to just the host that was mapped (RFC 6296 sections 3.2 to 3.5).
func TestNPTv6IsNeutral(t *testing.T) {
	for _, bits := range []int{16, 32, 40, 48, 49, 56, 60, 64} {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			r := newNPTv6(t, prefixes{prefixOf("fdca:9b31:70f4:e15a::", bits), prefixOf("2a0d:3c44:ff02:8be7::", bits)})
			rapid.Check(t, func(rt *rapid.T) { r.neutral(rt) })
		})
	}
}

func prefixOf(a string, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.MustParseAddr(a), bits).Masked()
}

func (r nptv6) neutral(rt *rapid.T) {
	words := rapid.SliceOfN(rapid.OneOf(rapid.Just(uint16(0xffff)), rapid.Just(uint16(0)), rapid.Uint16()), 8, 8).Draw(rt, "address")
	var b [16]byte
	for i, w := range words {
		binary.BigEndian.PutUint16(b[2*i:], w)
	}
	prefix := r.inside.Addr().As16()
	for i := range r.inside.Bits() {
		bit := byte(0x80) >> (i % 8)
		b[i/8] = b[i/8]&^bit | prefix[i/8]&bit
	}
	in := netip.AddrFrom16(b)
	payload := string(rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(rt, "payload"))
	remote := v6(rig.Peer1 + ":53")
	s := rapid.SampledFrom([]Spec{UDP(netip.AddrPortFrom(in, 2000).String(), remote, payload), Ping(netip.AddrPortFrom(in, 2000).String(), v6(rig.Peer1)),
		TCP(netip.AddrPortFrom(in, 2000).String(), remote, "A", payload)}).Draw(rt, "packet")
	want, ok := prefixMapped(r.inside, r.outside, in)
	res := r.Inside(s)
	if !ok {
		if res.Reason != "dropped_unmapped" {
			rt.Fatalf("%s has no address outside, and its packet is %s", in, res.Reason)
		}
		return
	}
	before, after := rig.FromContainer(s).Bytes(), res.Frame()
	out, _ := netip.AddrFromSlice(after[14+8 : 14+24])
	if res.Reason != "translated_outbound" || out != want {
		rt.Fatalf("%s is %s, %s; want %s", in, out, res.Reason, want)
	}
	if ones(in) != ones(out) || !bytes.Equal(before[14+24:], after[14+24:]) {
		rt.Fatalf("%s to %s is not neutral:\n%x\n%x", in, out, before, after)
	}
	answer := r.Outside(UDP(remote, netip.AddrPortFrom(out, 2000).String(), payload))
	if back, _ := netip.AddrFromSlice(answer.Frame()[14+24 : 14+40]); back != in {
		rt.Fatalf("%s to %s comes back to %s", in, out, back)
	}
}
