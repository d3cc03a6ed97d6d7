// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// reorderer is a rig that believes that it has a namespace which puts fragments in order: BPF_PROG_RUN redirects nothing, so what
// would have been done there the test does.
type reorderer struct {
	*rig.Rig
	ordered map[string]*ebpf.Program // by hook: as a fragment that has come back
}

// fragment is one of a datagram's on its way.
type fragment struct {
	hook  rig.Hook
	frame []byte
}

func newReorderer(t *testing.T, fam family.Family, options ...rig.Option) *reorderer {
	r := &reorderer{Rig: rig.New(t, append(options, rig.In(fam))...), ordered: map[string]*ebpf.Program{}}
	r.setLink(r.Ports["p2"])
	const reorderedMark = 0xc07f // of reorder.h
	for _, h := range r.Hooks()[:2] {
		r.ordered[h.Name] = r.After(h.Program, asm.Mov.Imm(asm.R1, reorderedMark), asm.StoreMem(asm.R6, 44, asm.R1, asm.Word))
	}
	return r
}

// setLink says which interface leads to the namespace; 0: none does.
func (r *reorderer) setLink(ifindex int) {
	r.T.Helper()
	r.Must("change the settings", func() error {
		var cfg bpf.Config
		if err := r.DP.Objects().Config.Lookup(uint32(0), &cfg); err != nil {
			return err
		}
		cfg.ReorderIfindex = uint32(ifindex)
		return r.DP.Objects().Config.Put(uint32(0), cfg)
	})
}

// cut gives the frames of a datagram's fragments.
func (r *reorderer) cut(s Spec, size int) [][]byte {
	return rig.Identified(s).In(r.Family).Fragments(size)
}

func (r *reorderer) inside(s Spec) (out []fragment) {
	for _, f := range r.cut(rig.FromContainer(s), 320) {
		out = append(out, fragment{r.Hooks()[0], f})
	}
	return out
}

func (r *reorderer) outside(s Spec) (out []fragment) {
	for _, f := range r.cut(rig.FromOutside(s), 320) {
		out = append(out, fragment{r.Hooks()[1], f})
	}
	return out
}

// arrives has fragments arrive and checks each one's reason.
func (r *reorderer) arrives(reason string, fragments ...fragment) {
	r.T.Helper()
	for i, f := range fragments {
		if got := r.Send(f.hook.Program, f.hook.Dev, f.frame, f.hook.Change).Reason; got != reason {
			r.T.Errorf("fragment %d: %s, want %s", i, got, reason)
		}
	}
}

// returns has them come back from the namespace, and checks each one's reason where it came from.
func (r *reorderer) returns(reason string, fragments ...fragment) {
	r.T.Helper()
	for i, f := range fragments {
		r.back("diverted_back", f)
		if got := r.Send(r.ordered[f.hook.Name], f.hook.Dev, f.frame, nil).Reason; got != reason {
			r.T.Errorf("fragment %d: %s, want %s", i, got, reason)
		}
	}
}

// isIPv6 says of which family a frame is.
func isIPv6(frame []byte) bool { return frame[rig.L3]>>4 == 6 }

// identifyThere gives a zone's fragment the identification that it has in the namespace: ip_set_id of ip.h. br0 is zone 1. That of
// IPv6 stays: the namespace gives it another one.
func identifyThere(frame []byte, zone byte) {
	if isIPv6(frame) {
		return
	}
	frame[rig.L3+4] ^= zone
	frame[rig.L3+5] ^= zone
	FixIPChecksum(frame[rig.L3:])
}

// back checks that a fragment comes out of the namespace as it went in: it has another's link addresses there.
func (r *reorderer) back(reason string, f fragment) {
	r.T.Helper()
	frame, verdict, want := slices.Clone(f.frame), uint32(rig.Redirect), f.frame
	clear(frame[:12])
	if f.hook.Name == "Inside" {
		identifyThere(frame, 1)
	}
	if reason != "diverted_back" {
		verdict, want = rig.Shot, frame
	}
	r.Send(r.DP.Objects().NatFragments, "p2", frame, nil).Check(verdict, reason, want)
}

// gone is a way that is not remembered, any more or yet.
const gone = 255

// wantWay checks what is remembered of the datagram.
func (r *reorderer) wantWay(f fragment, zone uint16, want uint8) {
	r.T.Helper()
	ip := f.frame[14:]
	key := bpf.FragmentKey{Zone: zone}
	if isIPv6(f.frame) {
		key.Saddr, key.Daddr = bpf.AddrOf(netip.AddrFrom16([16]byte(ip[8:]))), bpf.AddrOf(netip.AddrFrom16([16]byte(ip[24:])))
		key.Id = binary.NativeEndian.Uint32(ip[44:])
	} else {
		key.Saddr, key.Daddr = bpf.AddrOf(netip.AddrFrom4([4]byte(ip[12:]))), bpf.AddrOf(netip.AddrFrom4([4]byte(ip[16:])))
		key.Id, key.Proto = uint32(binary.NativeEndian.Uint16(ip[4:])), ip[9]
	}
	got, err := r.Maps().Fragments.Lookup(key)
	if err != nil {
		got.Way = gone
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || got.Way != want {
		r.T.Errorf("remembered way %d, %v; want %d", got.Way, err, want)
	}
}

// TestReorder: who comes first decides, for each protocol, in each direction, and for a hairpin.
func TestReorder(t *testing.T) { family.Each(t, testReorder) }

func testReorder(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	for name, c := range map[string]struct{ out, in Spec }{
		"UDP":  {UDP(rig.C1+":2000", rig.Peer1+":53", long), UDP(rig.Peer1+":53", rig.External+":2000", long)},
		"TCP":  {TCP(rig.C1+":2000", rig.Peer1+":80", "S", long), TCP(rig.Peer1+":80", rig.External+":2000", "SA", long)},
		"Ping": {ping(Ping(rig.C1+":2000", rig.Peer1)), ping(Pong(rig.Peer1, rig.External+":2000"))},
	} {
		r.Subtest(name, func() {
			r.ordersOf(r.inside(c.out), 1, "translated_outbound")
			r.ordersOf(r.outside(c.in), 0, "translated_inbound")
			r.Consistent()
		})
	}
	r.Subtest("Hairpin", func() {
		r.Opened("udp", rig.C2+":2000")
		r.ordersOf(r.inside(UDP(rig.C1+":3000", r.ExternalOf("udp", rig.C2+":2000"), long)), 1, "translated_hairpin")
	})
}

// ordersOf has one datagram come with a later fragment first, and then others with the first one first, all with one
// identification. It has three fragments or four.
func (r *reorderer) ordersOf(f []fragment, zone uint16, reason string) {
	r.T.Helper()
	last := len(f) - 1
	r.arrives("diverted_fragment", f[last])
	r.wantWay(f[0], zone, bpf.FragmentReorder)
	r.arrives("diverted_fragment", f[0], f[1])
	r.arrives("diverted_fragment", f[2:last]...)
	r.returns(reason, f[:last]...)
	r.wantWay(f[0], zone, bpf.FragmentTranslate)
	r.returns(reason, f[last])
	r.wantWay(f[0], zone, gone)

	r.arrives(reason, f...)
	r.wantWay(f[0], zone, gone)
	r.arrives(reason, f[0], f[last], f[0], f[1]) // not in order, and the first one twice: it goes on as it has begun
	r.wantWay(f[0], zone, bpf.FragmentTranslate)
	r.Wait(31 * time.Second)
}

// TestReorderForgets: who has come first counts for as long as the defragmenter waits.
func TestReorderForgets(t *testing.T) { family.Each(t, testReorderForgets) }

func testReorderForgets(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	f := r.inside(UDP(rig.C1+":2000", rig.Peer1+":53", long))
	r.arrives("translated_outbound", f[0])
	r.Wait(31 * time.Second)
	r.arrives("diverted_fragment", f[1])
	r.Wait(31 * time.Second)
	r.arrives("translated_outbound", f[0], f[1])
}

// TestReorderFrame: what goes into the namespace is as it came, but for the hop that the namespace takes off, and for what tells
// networks apart there.
func TestReorderFrame(t *testing.T) { family.Each(t, testReorderFrame) }

func testReorderFrame(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	for _, ttl := range []uint8{1, 64, 254, 255} {
		s := UDP(rig.C1+":2000", rig.Peer1+":53", long).With(func(s *Spec) { s.TTL = ttl })
		f := r.inside(s)[1]
		r.Send(f.hook.Program, f.hook.Dev, f.frame, func(c *rig.SKB) { c.Mark = 77 }).
			Check(rig.Redirect, "diverted_fragment", sent(f.frame, 1))
	}
	r.wantOrigin(rig.C1, rig.Peer1, bpf.Origin{Ifindex: uint32(r.Ports["p1"]), Mark: 77, Zone: 1,
		Mac: [12]uint8(slices.Concat(rig.BridgeMAC, rig.C1MAC))})
}

func (r *reorderer) originKey(src, dst string, zone uint16) bpf.OriginKey {
	addr := func(s string) bpf.Addr { return bpf.AddrOf(r.Address(s)) }
	if r.Family == family.V6 { // addresses are all that stays the same there
		return bpf.OriginKey{Saddr: addr(src), Daddr: addr(dst)}
	}
	id := binary.NativeEndian.Uint16([]byte{0x12 ^ byte(zone), 0x34 ^ byte(zone)}) // rig.Identified's
	return bpf.OriginKey{Saddr: addr(src), Daddr: addr(dst), Id: uint32(id), Proto: 17}
}

func (r *reorderer) wantOrigin(src, dst string, want bpf.Origin) {
	r.T.Helper()
	got, err := r.Maps().Origins.Lookup(r.originKey(src, dst, want.Zone))
	want.LastSeen = got.LastSeen
	if err != nil || got != want {
		r.T.Errorf("origin %+v, %v; want %+v", got, err, want)
	}
}

// TestReorderNeeds: without a namespace all is as if there were none of this; what is not conenat's does not go there.
func TestReorderNeeds(t *testing.T) { family.Each(t, testReorderNeeds) }

func testReorderNeeds(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	out, in := UDP(rig.C1+":2000", rig.Peer1+":53", long), UDP(rig.Peer1+":53", rig.External+":2000", long)
	r.arrives("dropped_spoofed", r.inside(UDP("172.19.0.1:2000", rig.Peer1+":53", long))[1])
	r.arrives("dropped_spoofed", r.inside(UDP("172.19.0.1:2000", rig.External+":53", long))[1])
	r.arrives("passed_local", r.inside(UDP(rig.C1+":2000", "172.17.0.1:53", long))[1])
	r.arrives("passed_not_outside", r.inside(UDP(rig.C1+":2000", rig.Other+":53", long))[1])
	r.arrives("passed_unbound", r.outside(UDP(rig.Peer1+":53", "198.51.100.77:2000", long))[1])

	r.setLink(0)
	r.arrives("dropped_fragment", r.inside(out)[1])
	r.arrives("passed_unbound", r.outside(in)[1])
	r.arrives("translated_outbound", r.inside(out)...)
	r.arrives("translated_inbound", r.outside(in)...)
}

// TestReorderByTheStack: what the host's own defragmenter puts together stays on its way; a hairpin does not go there.
func TestReorderByTheStack(t *testing.T) { family.Each(t, testReorderByTheStack) }

func testReorderByTheStack(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	r.TakePath(true)
	defer r.TakePath(false)
	r.arrives("passed_stack", r.inside(UDP(rig.C1+":2000", rig.Peer1+":53", long))[1])
	early := "passed_unbound" // while the destination is the external address, the host's does it
	if fam == family.V6 {
		early = "diverted_fragment"
	}
	r.arrives(early, r.outside(UDP(rig.Peer1+":53", rig.External+":2000", long))[1])
	r.arrives("diverted_fragment", r.inside(UDP(rig.C1+":2000", rig.External+":53", long))[1])
	egress := r.Hooks()[2]
	f := r.inside(UDP(rig.C1+":2000", rig.Peer1+":53", long))[1]
	r.Send(egress.Program, egress.Dev, f.frame, egress.Change).Dropped("fragment")
}

// TestReorderedAreFinal: what has been in the namespace never goes there again, whatever was lost meanwhile.
func TestReorderedAreFinal(t *testing.T) { family.Each(t, testReorderedAreFinal) }

func testReorderedAreFinal(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	f := r.inside(UDP(rig.C1+":2000", rig.Peer1+":53", long))
	r.arrives("diverted_fragment", f[1])
	r.returns("dropped_fragment", f[1])
	r.back("dropped_fragment", r.inside(UDP(rig.C2+":2000", rig.Peer1+":53", long))[1]) // nobody sent it there
	arp := slices.Concat(f[0].frame[:12], []byte{8, 6}, f[0].frame[14:])
	r.Send(r.DP.Objects().NatFragments, "p2", arp, nil).Dropped("malformed")
}

// TestReorderFirstsFate: the later fragments share it.
func TestReorderFirstsFate(t *testing.T) { family.Each(t, testReorderFirstsFate) }

func testReorderFirstsFate(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	r.Inside(UDP(rig.C1+":3000", rig.Peer1+":53", "x"))
	filtered := r.outside(UDP(rig.Peer2+":53", rig.External+":3000", long))
	r.arrives("dropped_filtered", filtered[0])
	r.wantWay(filtered[0], 0, bpf.FragmentDrop)
	r.arrives("dropped_fragment", filtered[1:]...)
	r.wantWay(filtered[0], 0, gone)

	hosts := r.outside(UDP(rig.Peer1+":53", rig.External+":4000", long)) // to no binding
	r.arrives("diverted_fragment", hosts[1], hosts[0])
	r.returns("passed_unbound", hosts[0])
	r.returns("passed_stack", hosts[1])
	r.wantWay(hosts[0], 0, bpf.FragmentPass)
	r.returns("passed_stack", hosts[2:]...)
	r.wantWay(hosts[0], 0, gone)

	late := r.outside(UDP(rig.Peer2+":99", rig.External+":3000", long))
	r.Wait(31 * time.Second)
	r.arrives("diverted_fragment", late[1])
	r.arrives("dropped_filtered", late[0])
	r.arrives("dropped_fragment", late[2])
}

// TestReorderShort: a first fragment without a whole TCP header (RFC 1858) is none; behind a first one that was
// translated, its ports would pass untranslated.
func TestReorderShort(t *testing.T) { family.Each(t, testReorderShort) }

func testReorderShort(t *testing.T, fam family.Family) {
	r := newReorderer(t, fam)
	pieces := func(size int) (out []fragment) {
		s := rig.FromContainer(TCP(rig.C1+":2000", rig.Peer1+":80", "S", long))
		for _, f := range r.cut(s, size) {
			out = append(out, fragment{r.Hooks()[0], f})
		}
		return out
	}
	for _, size := range []int{8, 16} {
		r.Subtest(fmt.Sprint(size), func() {
			f := pieces(size)
			r.arrives("diverted_fragment", f[0], f[1], f[2])
			whole := pieces(24)
			r.returns("translated_outbound", whole[:2]...)
			r.arrives("dropped_malformed", f[0])
			r.returns("translated_outbound", whole[2:]...)
			r.Wait(31 * time.Second)
			r.arrives("diverted_fragment", f[1])
			r.returns("dropped_fragment", f[0])
		})
		r.Wait(31 * time.Second)
	}
}

// TestReorderNetworksApart: two networks with the same addresses have fragments put in order at once, of datagrams with one
// identification; where two are one in the namespace, the second one's never get into the first one's.
func TestReorderNetworksApart(t *testing.T) {
	r := newReorderer(t, family.V4, overlapping)
	f := r.inside(UDP(rig.C1+":2000", rig.Peer1+":53", long))
	r.arrives("diverted_fragment", f[1])
	twin := slices.Clone(f[1].frame)
	copy(twin, rig.Bridge2)
	r.Send(r.DP.Objects().NatInside, "q1", twin, nil).Check(rig.Redirect, "diverted_fragment", sent(twin, 2))
	r.back("diverted_back", f[1])
	back := slices.Clone(twin)
	clear(back[:12])
	identifyThere(back, 2)
	r.Send(r.DP.Objects().NatFragments, "p2", back, nil).Check(rig.Redirect, "diverted_back", twin)

	key, origins := r.originKey(rig.C1, rig.Peer1, 1), r.Maps().Origins
	origin, err := origins.Lookup(key)
	if err != nil {
		t.Fatal(err)
	}
	origin.Zone++
	if err := origins.Put(key, origin); err != nil {
		t.Fatal(err)
	}
	r.arrives("dropped_fragment", f[2])
	r.Wait(31 * time.Second)
	r.arrives("diverted_fragment", f[2])
}

// sent is a zone's fragment on its way into the namespace, which takes one from its TTL.
func sent(frame []byte, zone byte) []byte {
	out, ttl := slices.Clone(frame), rig.L3+8
	if isIPv6(frame) {
		ttl = rig.L3 + 7
	}
	out[ttl] = max(out[ttl], out[ttl]+1)
	identifyThere(out, zone)
	return out
}

// TestReorderCut: what the inside device does not take and may be fragmented (RFC 4787 REQ-13a) comes back in pieces that it
// takes; of a datagram in fragments too large, each goes there.
func TestReorderCut(t *testing.T) {
	r := newReorderer(t, family.V4)
	r.SetMTU("br0", 300)
	r.Forward("br0", dataplane.UDP, rig.External+":2000", rig.C1+":2000")
	s := UDP(rig.Peer1+":53", rig.External+":2000", long)
	whole := fragment{r.Hooks()[1], rig.Identified(rig.FromOutside(s)).Bytes()}
	var pieces []fragment
	for _, f := range r.cut(rig.FromOutside(s), 280) {
		pieces = append(pieces, fragment{r.Hooks()[1], f})
	}
	large := r.outside(s)
	for range 2 { // of no session, and of one
		r.arrives("diverted_too_big", whole)
		r.returns("translated_inbound", pieces...)
		r.Wait(31 * time.Second)
		r.arrives("diverted_fragment", large...)
		r.wantWay(large[0], 0, bpf.FragmentReorder)
		r.returns("translated_inbound", pieces...)
		r.Wait(31 * time.Second)
		r.arrives("diverted_fragment", large[1], large[0])
		r.returns("dropped_uncut", large[0])
		r.returns("dropped_fragment", large[1])
		r.Wait(31 * time.Second)
	}
	r.setLink(0)
	r.arrives("dropped_uncut", whole)
	r.arrives("dropped_uncut", large[0])
}
