// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

const l3, l4 = rig.L3, rig.L4

// judge sends a frame and holds what comes of it to what must hold of every packet.
func judge(r *rig.Rig, h rig.Hook, frame []byte) {
	r.T.Helper()
	if !canRun(frame) {
		return
	}
	if h.XDP != nil {
		if problem := r.JudgeXDP(h, frame); problem != "" {
			r.T.Errorf("XDP %s: %s", h.Name, problem)
			return
		}
	}
	reason, out, problem := r.Judged(h, frame)
	if problem != "" {
		r.T.Errorf("%s: %s", h.Name, problem)
		return
	}
	if reason == "translated_icmp_error" {
		if before, after := embedded(frame), embedded(out); before != after {
			r.T.Errorf("%s: checksums of what is embedded are right before: %v, after: %v\n%s", h.Name, before, after, Dump(out))
		}
		return
	}
	if back, ok := answer(r, h, reason, frame, out); ok {
		back.send(r)
	}
}

// embedded says whether the checksums of an embedded packet are right, of either family; the transport's only where all of it is there.
func embedded(frame []byte) (s struct{ header, transport Sum }) {
	s.header, s.transport = Sums(Embedded(frame[l3:]))
	return s
}

// way is an answer and where it has to get.
type way struct {
	hook     rig.Hook
	frame    []byte
	src, dst netip.AddrPort // that it has to have then
	about    string
}

// answer is what the receiver of a translated packet sends back; not ok: not every packet has one that is translated.
func answer(r *rig.Rig, h rig.Hook, reason string, in, out []byte) (w way, ok bool) {
	total := int(binary.BigEndian.Uint16(out[l3+2:]))
	plain := out[l3] == 0x45 && binary.BigEndian.Uint16(out[l3+6:])&0x3fff == 0 && total <= 1500
	if reason[:min(len(reason), 10)] != "translated" || !plain {
		return w, false
	}
	w.src, w.dst, ok = ends(in)
	w.src, w.dst = w.dst, w.src
	w.about = fmt.Sprintf("%s: %s\n%s", h.Name, reason, Dump(in))
	w.frame = bytes.Clone(out)
	if !ok || !turn(w.frame) {
		return w, false
	}
	o := r.DP.Objects()
	to, _ := netip.AddrFromSlice(out[l3+16 : l3+20])
	switch reason {
	case "translated_inbound", "translated_hairpin":
		from, _ := netip.AddrFromSlice(in[l3+12 : l3+16])
		if reason == "translated_inbound" && (inside(from) || from.String() == rig.External) {
			return w, false // a remote address that no route to the outside has
		}
		w.hook = rig.Hook{Program: o.NatInside, Dev: "p1"}
		copy(w.frame, slices.Concat(rig.BridgeMAC, rig.C1MAC))
		if second.Contains(to) {
			w.hook.Dev = "q1"
			copy(w.frame, rig.Bridge2)
		}
	default:
		w.hook = rig.Hook{Program: o.NatOutsideIngress, Dev: "eth0"}
		copy(w.frame, slices.Concat(rig.UplinkMAC, rig.RouterMAC))
	}
	return w, true
}

var first, second = netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.18.0.0/16")

func inside(a netip.Addr) bool { return first.Contains(a) || second.Contains(a) }

// ends are a frame's endpoints; a query's or reply's identifier is both ports.
func ends(frame []byte) (src, dst netip.AddrPort, ok bool) {
	at := l3 + int(frame[l3]&15)*4
	if len(frame) < at+8 {
		return src, dst, false
	}
	a, b := binary.BigEndian.Uint16(frame[at:]), binary.BigEndian.Uint16(frame[at+2:])
	if frame[l3+9] == 1 {
		a = binary.BigEndian.Uint16(frame[at+4:])
		b = a
	}
	from, _ := netip.AddrFromSlice(frame[l3+12 : l3+16])
	to, _ := netip.AddrFromSlice(frame[l3+16 : l3+20])
	return netip.AddrPortFrom(from, a), netip.AddrPortFrom(to, b), true
}

// answersOf are the ICMP queries and replies (RFC 792).
var answersOf = map[byte]byte{8: 0, 0: 8, 13: 14, 14: 13}

// turn makes a frame its own answer.
func turn(frame []byte) bool {
	swap := func(at, n int) {
		was := bytes.Clone(frame[at : at+n])
		copy(frame[at:], frame[at+n:at+2*n])
		copy(frame[at+n:], was)
	}
	swap(l3+12, 4)
	frame[l3+8] = 64
	FixIPChecksum(frame[l3:])
	switch frame[l3+9] {
	case 6, 17:
		swap(l4, 2)
		return true
	case 1:
		kind, ok := answersOf[frame[l4]]
		frame[l4] = kind
		return ok
	}
	return false
}

// send checks that the answer gets back to who asked.
func (w way) send(r *rig.Rig) {
	r.T.Helper()
	reason, out, problem := r.Judged(w.hook, w.frame)
	src, dst, _ := ends(out)
	if reason == "translated_outbound" || reason == "translated_stack" || reason == "translated_host" || reason == "translated_inbound" || reason == "translated_hairpin" {
		if src == w.src && dst == w.dst && problem == "" {
			return
		}
	}
	r.T.Errorf("the answer is %s, from %s to %s, want from %s to %s (%s)\n%s\nto what was %s", reason, src, dst, w.src, w.dst, problem, Dump(w.frame), w.about)
}
