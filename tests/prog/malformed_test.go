// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// shortest is the shortest frame that BPF_PROG_RUN takes as IPv4 (Linux 6.18).
const shortest = rig.L4

// changed is a frame with an IPv4 header that was damaged, its checksum mended.
func changed(frame []byte, change func([]byte)) []byte {
	out := append([]byte{}, frame...)
	change(out)
	if n := int(out[rig.L3]&15) * 4; n >= 20 && rig.L3+n <= len(out) {
		FixIPChecksum(out[rig.L3:])
	}
	return out
}

func setTotal(n int) func([]byte) {
	return func(b []byte) { binary.BigEndian.PutUint16(b[rig.L3+2:], uint16(n)) }
}

// wellFormed are packets of sessions that are there, as each hook sees them.
func wellFormed(h rig.Hook) map[string]Spec {
	in := map[string]Spec{
		"UDP": UDP(rig.C1+":2000", rig.Peer1+":53", "payload"), "TCP": TCP(rig.C1+":2000", rig.Peer1+":80", "PA", "payload"),
		"Ping":  Ping(rig.C1+":2000", rig.Peer1),
		"Error": ICMPError(rig.C1, rig.Peer1, 3, 3, UDP(rig.Peer1+":53", rig.C1+":2000", "payload"), 0),
	}
	out := map[string]Spec{
		"UDP": UDP(rig.Peer1+":53", rig.External+":2000", "payload"), "TCP": TCP(rig.Peer1+":80", rig.External+":2000", "PA", "payload"),
		"Ping":  Pong(rig.Peer1, rig.External+":2000"),
		"Error": ICMPError(rig.Peer1, rig.External, 3, 3, UDP(rig.External+":2000", rig.Peer1+":53", "payload"), 0),
	}
	host := map[string]Spec{
		"UDP": UDP(rig.External+":2000", rig.Peer2+":53", "payload"), "TCP": TCP(rig.External+":2000", rig.Peer2+":80", "S", "payload"),
		"Ping":  Ping(rig.External+":2000", rig.Peer2),
		"Error": ICMPError(rig.External, rig.Peer1, 3, 3, UDP(rig.Peer1+":53", rig.External+":2000", "payload"), 0),
	}
	specs := map[string]map[string]Spec{"Inside": in, "EgressForwarded": in, "Outside": out, "EgressHost": host}[h.Name]
	for name, s := range specs {
		specs[name] = rig.FromContainer(s)
		if h.Name == "Outside" {
			specs[name] = rig.FromOutside(s)
		}
	}
	return specs
}

// headers is how long the header of a packet must be for its ports to be read.
var headers = map[string]int{"UDP": 8, "TCP": 20, "Ping": 8, "Error": 8}

// TestTruncated: cut at every length, with the total length that it had and with the one that it has.
func TestTruncated(t *testing.T) {
	r := rig.New(t)
	r.OpenAll()
	for _, h := range r.Hooks() {
		for name, s := range wellFormed(h) {
			r.Subtest(h.Name+"/"+name, func() {
				frame := s.Bytes()
				for n := shortest; n < len(frame); n++ {
					r.Untouched(h, frame[:n])
				}
				for n := shortest; n < rig.L4+headers[name]; n++ {
					r.Untouched(h, changed(frame[:n], setTotal(n-rig.L3)))
					r.Untouched(h, changed(frame, setTotal(n-rig.L3))) // the rest is padding
				}
			})
		}
	}
	r.Consistent()
}

// TestMalformedHeaders: each field that can be wrong.
func TestMalformedHeaders(t *testing.T) {
	r := rig.New(t)
	r.OpenAll()
	for name, c := range map[string]struct {
		of     string
		change func([]byte)
	}{
		"Version6":          {"UDP", func(b []byte) { b[rig.L3] = 0x65 }},
		"Version0":          {"UDP", func(b []byte) { b[rig.L3] = 0x05 }},
		"IHL0":              {"UDP", func(b []byte) { b[rig.L3] = 0x40 }},
		"IHL4":              {"UDP", func(b []byte) { b[rig.L3] = 0x44 }},
		"IHLBeyond":         {"UDP", func(b []byte) { b[rig.L3] = 0x4f }},
		"IHLBeyondTotal":    {"TCP", func(b []byte) { b[rig.L3] = 0x4d }},
		"IHLOverTransport":  {"UDP", func(b []byte) { b[rig.L3] = 0x48 }},
		"Total0":            {"UDP", setTotal(0)},
		"Total19":           {"UDP", setTotal(19)},
		"Total20":           {"UDP", setTotal(20)},
		"TotalInUDPHeader":  {"UDP", setTotal(27)},
		"TotalInTCPHeader":  {"TCP", setTotal(39)},
		"TotalInICMPHeader": {"Ping", setTotal(27)},
		"TotalTooLong":      {"UDP", setTotal(36)},
		"Total65535":        {"TCP", setTotal(65535)},
		"UDPLength0":        {"UDP", func(b []byte) { b[rig.L4+4], b[rig.L4+5] = 0, 0 }},
		"UDPLength7":        {"UDP", func(b []byte) { b[rig.L4+4], b[rig.L4+5] = 0, 7 }},
		"DataOffset0":       {"TCP", func(b []byte) { b[rig.L4+12] = 0 }},
		"DataOffset4":       {"TCP", func(b []byte) { b[rig.L4+12] = 0x40 }},
		"DataOffsetBeyond":  {"TCP", func(b []byte) { b[rig.L4+12] = 0xf0 }},
	} {
		r.Subtest(name, func() {
			for _, h := range r.Hooks() {
				r.Untouched(h, changed(wellFormed(h)[c.of].Bytes(), c.change))
			}
			r.Consistent()
		})
	}
}

// TestMalformedErrors: the embedded packet cut or damaged, the message's own checksum being right.
func TestMalformedErrors(t *testing.T) {
	r := rig.New(t)
	r.OpenAll()
	for _, h := range r.Hooks() {
		s := wellFormed(h)["Error"]
		for n := range 28 {
			r.Untouched(h, s.With(func(s *Spec) { s.Payload = s.Payload[:n] }).Bytes())
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
			r.Subtest(h.Name+"/"+name, func() {
				r.Untouched(h, embedded(s, change).Bytes())
				mended := func(b []byte) {
					change(b)
					if b[0]&15 == 5 {
						FixIPChecksum(b)
					}
				}
				r.Untouched(h, embedded(s, mended).Bytes())
			})
		}
	}
	r.Consistent()
}

// mutated changes up to four bytes of a frame, and perhaps cuts it; most often the header's checksum is mended.
func mutated(rnd *rand.Rand, frame []byte) []byte {
	out := append([]byte{}, frame...)
	for range 1 + rnd.IntN(4) {
		at := rig.L3 + rnd.IntN(min(len(out)-rig.L3, 60))
		out[at] = byte(rnd.UintN(256))
	}
	if rnd.IntN(8) == 0 {
		out = out[:shortest+rnd.IntN(len(out)-shortest)]
	}
	if n := int(out[rig.L3]&15) * 4; rnd.IntN(4) != 0 && n >= 20 && rig.L3+n <= len(out) {
		FixIPChecksum(out[rig.L3:])
	}
	return out
}

// TestMutations: whatever comes, it passes or is dropped as it was and is counted once; or it is translated,
// and its checksums are as right, or as wrong, as they were.
func TestMutations(t *testing.T) {
	r := rig.New(t)
	r.OpenAll()
	rnd := rand.New(rand.NewPCG(1, 2))
	hooks := r.Hooks()
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
		if err := r.Judge(h, frame); err != "" {
			t.Fatalf("packet %d, %s of %s: %s\n%s", i, name, h.Name, err, Dump(frame))
		}
	}
	r.Consistent()
}
