// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// headerOf is how long a family's first header is, without options.
func headerOf(fam family.Family) int { return map[family.Family]int{family.V4: 20, family.V6: 40}[fam] }

// behindHeader is where a transport header is in a frame. BPF_PROG_RUN takes no frame that is shorter (Linux 6.18).
func behindHeader(fam family.Family) int { return rig.L3 + headerOf(fam) }

// mend makes the checksum of an IPv4 header right that was damaged; IPv6's has none.
func mend(fam family.Family, ip []byte) {
	if n := int(ip[0]&15) * 4; fam == family.V4 && n >= 20 && n <= len(ip) {
		FixIPChecksum(ip)
	}
}

// changed is a frame with an IP header that was damaged, its checksum mended.
func changed(fam family.Family, frame []byte, change func([]byte)) []byte {
	out := append([]byte{}, frame...)
	change(out)
	mend(fam, out[rig.L3:])
	return out
}

// setTotal sets how long the packet says that it is; IPv6 says so without its first header.
func setTotal(fam family.Family, n int) func([]byte) {
	at := rig.L3 + 2
	if fam == family.V6 {
		at, n = rig.L3+4, n-40
	}
	return func(b []byte) { binary.BigEndian.PutUint16(b[at:], uint16(n)) }
}

// set puts bytes into a frame.
func set(at int, values ...byte) func([]byte) { return func(b []byte) { copy(b[at:], values) } }

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
func TestTruncated(t *testing.T) { family.Each(t, testTruncated) }

func testTruncated(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.OpenAll()
	transport := behindHeader(fam)
	for _, h := range r.Hooks() {
		for name, s := range wellFormed(h) {
			r.Subtest(h.Name+"/"+name, func() {
				frame := r.Frame(s)
				for n := transport; n < len(frame); n++ {
					r.Untouched(h, frame[:n])
				}
				for n := transport; n < transport+headers[name]; n++ {
					r.Untouched(h, changed(fam, frame[:n], setTotal(fam, n-rig.L3)))
					r.Untouched(h, changed(fam, frame, setTotal(fam, n-rig.L3))) // the rest is padding
				}
			})
		}
	}
	r.Consistent()
}

// flaw is what is wrong with one of the packets of wellFormed.
type flaw struct {
	of     string
	change func([]byte)
}

// flaws are of headers that both families have.
func flaws(fam family.Family) map[string]flaw {
	ip, l4 := headerOf(fam), behindHeader(fam)
	total := func(n int) func([]byte) { return setTotal(fam, n) }
	return map[string]flaw{
		"Version0":          {"UDP", set(rig.L3, 0x05)},
		"TotalIsHeader":     {"UDP", total(ip)},
		"TotalInUDPHeader":  {"UDP", total(ip + 7)},
		"TotalInTCPHeader":  {"TCP", total(ip + 19)},
		"TotalInICMPHeader": {"Ping", total(ip + 7)},
		"TotalTooLong":      {"UDP", total(ip + 8 + 8)},
		"TotalLargest":      {"TCP", set(rig.L3+map[family.Family]int{family.V4: 2, family.V6: 4}[fam], 0xff, 0xff)},
		"UDPLength0":        {"UDP", set(l4+4, 0, 0)},
		"UDPLength7":        {"UDP", set(l4+4, 0, 7)},
		"DataOffset0":       {"TCP", set(l4+12, 0)},
		"DataOffset4":       {"TCP", set(l4+12, 0x40)},
		"DataOffsetBeyond":  {"TCP", set(l4+12, 0xf0)},
	}
}

// flaws4 and flaws6 are of what a family has for itself. What an IPv6 header announces next is not there: UDP's is.
var flaws4 = map[string]flaw{
	"Version6":         {"UDP", set(rig.L3, 0x65)},
	"IHL0":             {"UDP", set(rig.L3, 0x40)},
	"IHL4":             {"UDP", set(rig.L3, 0x44)},
	"IHLBeyond":        {"UDP", set(rig.L3, 0x4f)},
	"IHLBeyondTotal":   {"TCP", set(rig.L3, 0x4d)},
	"IHLOverTransport": {"UDP", set(rig.L3, 0x48)},
	"Total0":           {"UDP", set(rig.L3+2, 0, 0)},
	"Total19":          {"UDP", set(rig.L3+2, 0, 19)},
}

var flaws6 = map[string]flaw{
	"Version4":           {"UDP", set(rig.L3, 0x45)},
	"HopByHop":           {"UDP", set(rig.L3+6, 0)},
	"Routing":            {"UDP", set(rig.L3+6, 43)},
	"Fragment":           {"UDP", set(rig.L3+6, 44)},
	"Authentication":     {"UDP", set(rig.L3+6, 51)},
	"NothingNext":        {"UDP", set(rig.L3+6, 59)},
	"DestinationOptions": {"UDP", set(rig.L3+6, 60)},
	"Mobility":           {"UDP", set(rig.L3+6, 135)},
	"ICMPOfIPv4":         {"Ping", set(rig.L3+6, 1)},
}

// TestMalformedHeaders: each field that can be wrong.
func TestMalformedHeaders(t *testing.T) { family.Each(t, testMalformedHeaders) }

func testMalformedHeaders(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.OpenAll()
	all := flaws(fam)
	maps.Copy(all, map[family.Family]map[string]flaw{family.V4: flaws4, family.V6: flaws6}[fam])
	for name, c := range all {
		r.Subtest(name, func() {
			for _, h := range r.Hooks() {
				r.Untouched(h, changed(fam, r.Frame(wellFormed(h)[c.of]), c.change))
			}
			r.Consistent()
		})
	}
}

func garbage(b []byte) {
	for i := range b {
		b[i] = byte(i * 37)
	}
}

// embeddedFlaws are of the header of the packet that an error embeds, from its first byte on.
var embeddedFlaws = map[family.Family]map[string]func([]byte){
	family.V4: {"Version6": set(0, 0x65), "IHL4": set(0, 0x44), "IHLBeyond": set(0, 0x4f), "Protocol": set(9, 99), "Later": set(7, 1),
		"Garbage": garbage, "ErrorInError": func(b []byte) { b[9], b[20] = 1, 3 }},
	family.V6: {"Version4": set(0, 0x45), "Protocol": set(6, 99), "Later": set(6, 44), "HopByHop": set(6, 0), "Routing": set(6, 43),
		"NothingNext": set(6, 59), "DestinationOptions": set(6, 60), "Garbage": garbage,
		"ErrorInError": func(b []byte) { b[6], b[40] = 58, 1 }},
}

// TestMalformedErrors: the embedded packet cut or damaged, the message's own checksum being right.
func TestMalformedErrors(t *testing.T) { family.Each(t, testMalformedErrors) }

func testMalformedErrors(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.OpenAll()
	for _, h := range r.Hooks() {
		s := wellFormed(h)["Error"].In(fam)
		for n := range headerOf(fam) + 8 {
			r.Untouched(h, s.With(func(s *Spec) { s.Payload = s.Payload[:n] }).Bytes())
		}
		for name, change := range embeddedFlaws[fam] {
			r.Subtest(h.Name+"/"+name, func() {
				r.Untouched(h, embedded(s, change).Bytes())
				mended := func(b []byte) {
					change(b)
					if b[0]&15 == 5 {
						mend(fam, b)
					}
				}
				r.Untouched(h, embedded(s, mended).Bytes())
			})
		}
	}
	r.Consistent()
}

// mutated changes up to four bytes of a frame, and perhaps cuts it; most often the header's checksum is mended.
func mutated(rnd *rand.Rand, fam family.Family, frame []byte) []byte {
	out := append([]byte{}, frame...)
	for range 1 + rnd.IntN(4) {
		at := rig.L3 + rnd.IntN(min(len(out)-rig.L3, headerOf(fam)+40))
		out[at] = byte(rnd.UintN(256))
	}
	if shortest := behindHeader(fam); rnd.IntN(8) == 0 {
		out = out[:shortest+rnd.IntN(len(out)-shortest)]
	}
	if rnd.IntN(4) != 0 {
		mend(fam, out[rig.L3:])
	}
	return out
}

// TestMutations: whatever comes, it passes or is dropped as it was and is counted once; or it is translated,
// and its checksums are as right, or as wrong, as they were.
func TestMutations(t *testing.T) { family.Each(t, testMutations) }

func testMutations(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.OpenAll()
	rnd := rand.New(rand.NewPCG(1, 2))
	hooks := r.Hooks()
	for i := range 4000 {
		h := hooks[rnd.IntN(len(hooks))]
		name := []string{"UDP", "TCP", "Ping", "Error"}[rnd.IntN(4)]
		s := wellFormed(h)[name]
		if rnd.IntN(4) == 0 {
			s = lengthened(fam, s)
		}
		frame := mutated(rnd, fam, r.Frame(s))
		if rnd.IntN(8) == 0 { // as it is
			frame = r.Frame(s)
		}
		if err := r.Judge(h, frame); err != "" {
			t.Fatalf("packet %d, %s of %s: %s\n%s", i, name, h.Name, err, Dump(frame))
		}
	}
	r.Consistent()
}
