// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	. "github.com/conenat/conenat/tests/packets"
)

const (
	l3 = 14      // offset of the IPv4 header in a frame
	l4 = 14 + 20 // of a transport header behind one without options
)

// shortest is the shortest frame that BPF_PROG_RUN takes as IPv4 (Linux 6.18).
const shortest = l4

// untouched sends a frame that may pass or be dropped, but not be changed; send checks that one counter moved.
func (r *rig) untouched(h hook, frame []byte) {
	r.t.Helper()
	res := r.send(h.program, h.dev, frame, h.change)
	verdict := uint32(next)
	if strings.HasPrefix(res.reason, "dropped_") {
		verdict = shot
	} else if !strings.HasPrefix(res.reason, "passed_") {
		r.t.Errorf("%s: counted as %q", h.name, res.reason)
	}
	res.check(verdict, res.reason, frame)
}

// changed is a frame with an IPv4 header that was damaged, its checksum mended.
func changed(frame []byte, change func([]byte)) []byte {
	out := append([]byte{}, frame...)
	change(out)
	if n := int(out[l3]&15) * 4; n >= 20 && l3+n <= len(out) {
		FixIPChecksum(out[l3:])
	}
	return out
}

func setTotal(n int) func([]byte) {
	return func(b []byte) { binary.BigEndian.PutUint16(b[l3+2:], uint16(n)) }
}

// wellFormed are packets of sessions that are there, as each hook sees them.
func wellFormed(h hook) map[string]Spec {
	in := map[string]Spec{
		"UDP": UDP(c1+":2000", peer1+":53", "payload"), "TCP": TCP(c1+":2000", peer1+":80", "PA", "payload"),
		"Ping":  Ping(c1+":2000", peer1),
		"Error": ICMPError(c1, peer1, 3, 3, UDP(peer1+":53", c1+":2000", "payload"), 0),
	}
	out := map[string]Spec{
		"UDP": UDP(peer1+":53", external+":2000", "payload"), "TCP": TCP(peer1+":80", external+":2000", "PA", "payload"),
		"Ping":  Pong(peer1, external+":2000"),
		"Error": ICMPError(peer1, external, 3, 3, UDP(external+":2000", peer1+":53", "payload"), 0),
	}
	host := map[string]Spec{
		"UDP": UDP(external+":2000", peer2+":53", "payload"), "TCP": TCP(external+":2000", peer2+":80", "S", "payload"),
		"Ping":  Ping(external+":2000", peer2),
		"Error": ICMPError(external, peer1, 3, 3, UDP(peer1+":53", external+":2000", "payload"), 0),
	}
	specs := map[string]map[string]Spec{"Inside": in, "EgressForwarded": in, "Outside": out, "EgressHost": host}[h.name]
	for name, s := range specs {
		specs[name] = fromContainer(s)
		if h.name == "Outside" {
			specs[name] = fromOutside(s)
		}
	}
	return specs
}

// openAll makes the sessions of wellFormed.
func (r *rig) openAll() {
	r.t.Helper()
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	r.inside(TCP(c1+":2000", peer1+":80", "S", ""))
	r.inside(Ping(c1+":2000", peer1))
}

// headers is how long the header of a packet must be for its ports to be read.
var headers = map[string]int{"UDP": 8, "TCP": 20, "Ping": 8, "Error": 8}

// TestTruncated: cut at every length, with the total length that it had and with the one that it has.
func TestTruncated(t *testing.T) {
	r := newRig(t)
	r.openAll()
	for _, h := range r.hooks() {
		for name, s := range wellFormed(h) {
			r.subtest(h.name+"/"+name, func() {
				frame := s.Bytes()
				for n := shortest; n < len(frame); n++ {
					r.untouched(h, frame[:n])
				}
				for n := shortest; n < l4+headers[name]; n++ {
					r.untouched(h, changed(frame[:n], setTotal(n-l3)))
					r.untouched(h, changed(frame, setTotal(n-l3))) // the rest is padding
				}
			})
		}
	}
	r.consistent()
}

// TestMalformedHeaders: each field that can be wrong.
func TestMalformedHeaders(t *testing.T) {
	r := newRig(t)
	r.openAll()
	for name, c := range map[string]struct {
		of     string
		change func([]byte)
	}{
		"Version6":          {"UDP", func(b []byte) { b[l3] = 0x65 }},
		"Version0":          {"UDP", func(b []byte) { b[l3] = 0x05 }},
		"IHL0":              {"UDP", func(b []byte) { b[l3] = 0x40 }},
		"IHL4":              {"UDP", func(b []byte) { b[l3] = 0x44 }},
		"IHLBeyond":         {"UDP", func(b []byte) { b[l3] = 0x4f }},
		"IHLBeyondTotal":    {"TCP", func(b []byte) { b[l3] = 0x4d }},
		"IHLOverTransport":  {"UDP", func(b []byte) { b[l3] = 0x48 }},
		"Total0":            {"UDP", setTotal(0)},
		"Total19":           {"UDP", setTotal(19)},
		"Total20":           {"UDP", setTotal(20)},
		"TotalInUDPHeader":  {"UDP", setTotal(27)},
		"TotalInTCPHeader":  {"TCP", setTotal(39)},
		"TotalInICMPHeader": {"Ping", setTotal(27)},
		"TotalTooLong":      {"UDP", setTotal(36)},
		"Total65535":        {"TCP", setTotal(65535)},
		"UDPLength0":        {"UDP", func(b []byte) { b[l4+4], b[l4+5] = 0, 0 }},
		"UDPLength7":        {"UDP", func(b []byte) { b[l4+4], b[l4+5] = 0, 7 }},
		"DataOffset0":       {"TCP", func(b []byte) { b[l4+12] = 0 }},
		"DataOffset4":       {"TCP", func(b []byte) { b[l4+12] = 0x40 }},
		"DataOffsetBeyond":  {"TCP", func(b []byte) { b[l4+12] = 0xf0 }},
	} {
		r.subtest(name, func() {
			for _, h := range r.hooks() {
				r.untouched(h, changed(wellFormed(h)[c.of].Bytes(), c.change))
			}
			r.consistent()
		})
	}
}

// TestMalformedErrors: the embedded packet cut or damaged, the message's own checksum being right.
func TestMalformedErrors(t *testing.T) {
	r := newRig(t)
	r.openAll()
	for _, h := range r.hooks() {
		s := wellFormed(h)["Error"]
		for n := range 28 {
			r.untouched(h, s.With(func(s *Spec) { s.Payload = s.Payload[:n] }).Bytes())
		}
		for name, change := range map[string]func([]byte){
			"Version6":  func(b []byte) { b[0] = 0x65 },
			"IHL4":      func(b []byte) { b[0] = 0x44 },
			"IHLBeyond": func(b []byte) { b[0] = 0x4f },
			"Protocol":  func(b []byte) { b[9] = 99 },
			"Later":     func(b []byte) { b[7] = 1 },
			"Garbage": func(b []byte) {
				for i := range b {
					b[i] = byte(i * 37)
				}
			},
			"ErrorInError": func(b []byte) { b[9], b[20] = 1, 3 },
		} {
			r.subtest(h.name+"/"+name, func() {
				r.untouched(h, embedded(s, change).Bytes())
				mended := func(b []byte) {
					change(b)
					if b[0]&15 == 5 {
						FixIPChecksum(b)
					}
				}
				r.untouched(h, embedded(s, mended).Bytes())
			})
		}
	}
	r.consistent()
}

// sumOK says whether the IPv4 header's checksum is right, and the transport's: 1 yes, 0 no, -1 has none.
func sumOK(frame []byte) (ip bool, transport int) {
	if len(frame) < l4 || frame[l3]>>4 != 4 {
		return false, -1
	}
	b := frame[l3:]
	ihl, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if ihl < 20 || total < ihl || total > len(b) {
		return false, -1
	}
	ip = Checksum(b[:ihl]) == 0
	if binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return ip, -1
	}
	body := b[ihl:total]
	switch {
	case b[9] == 1:
	case b[9] == 17 && len(body) >= 8 && body[6]|body[7] == 0:
		return ip, -1
	case b[9] == 6, b[9] == 17:
		body = append(append([]byte{}, b[12:20]...), append([]byte{0, b[9], byte(len(body) >> 8), byte(len(body))}, body...)...)
	default:
		return ip, -1
	}
	if Checksum(body) != 0 {
		return ip, 0
	}
	return ip, 1
}

// mutated changes up to four bytes of a frame, and perhaps cuts it; most often the header's checksum is mended.
func mutated(rnd *rand.Rand, frame []byte) []byte {
	out := append([]byte{}, frame...)
	for range 1 + rnd.IntN(4) {
		at := l3 + rnd.IntN(min(len(out)-l3, 60))
		out[at] = byte(rnd.UintN(256))
	}
	if rnd.IntN(8) == 0 {
		out = out[:shortest+rnd.IntN(len(out)-shortest)]
	}
	if n := int(out[l3]&15) * 4; rnd.IntN(4) != 0 && n >= 20 && l3+n <= len(out) {
		FixIPChecksum(out[l3:])
	}
	return out
}

// TestMutations: whatever comes, it passes or is dropped as it was and is counted once; or it is translated,
// and its checksums are as right, or as wrong, as they were.
func TestMutations(t *testing.T) {
	r := newRig(t)
	r.openAll()
	rnd := rand.New(rand.NewPCG(1, 2))
	hooks := r.hooks()
	for i := range 4000 {
		h := hooks[rnd.IntN(len(hooks))]
		name := []string{"UDP", "TCP", "Ping", "Error"}[rnd.IntN(4)]
		s := wellFormed(h)[name]
		if rnd.IntN(4) == 0 {
			s = s.With(optioned)
		}
		frame := mutated(rnd, s.Bytes())
		if rnd.IntN(8) == 0 { // as it is
			frame = s.Bytes()
		}
		if err := r.judge(h, frame); err != "" {
			t.Fatalf("packet %d, %s of %s: %s\n%s", i, name, h.name, err, Dump(frame))
		}
	}
	r.consistent()
}

func (r *rig) judge(h hook, frame []byte) string {
	r.t.Helper()
	res := r.send(h.program, h.dev, frame, h.change)
	switch kind, _, _ := strings.Cut(res.reason, "_"); {
	case res.reason == "":
		return "no counter moved"
	case kind == "passed" && res.verdict != next, kind == "dropped" && res.verdict != shot:
		return fmt.Sprintf("verdict %d for %s", int32(res.verdict), res.reason)
	case kind != "translated":
		if string(res.out) != string(frame) {
			return res.reason + ", and changed to\n" + Dump(res.out)
		}
		return ""
	}
	ip, transport := sumOK(frame)
	ipAfter, transportAfter := sumOK(res.out)
	if ip != ipAfter || transport != transportAfter {
		return fmt.Sprintf("%s: checksums right before: %v %d, after: %v %d\n%s", res.reason, ip, transport, ipAfter, transportAfter, Dump(res.out))
	}
	return ""
}
