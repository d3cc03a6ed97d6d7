// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"fmt"
	"testing"

	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

func idOf(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[rig.L3+4:]) }

// TestIDsOfTwoHosts: two hosts that share the external address and happen to use one ID do not on the wire (RFC 6864
// section 5.3.1, RFC 7857 section 10): every ID is another one, on every way that packets leave by.
func TestIDsOfTwoHosts(t *testing.T) {
	r := rig.New(t)
	seen := map[uint16]string{}
	note := func(name string, frame []byte) {
		id := idOf(frame)
		if was, twice := seen[id]; twice || id == 0 {
			t.Errorf("%s has the ID %d, as %q", name, id, was)
		}
		seen[id] = name
	}
	for i := range 200 {
		port := 2000 + i%3
		for dev, from := range map[string]string{"p1": rig.C1, "p2": rig.C2, "br0": "172.17.0.9"} {
			s := rig.Identified(UDP(fmt.Sprintf("%s:%d", from, port), rig.Peer1+":53", "x"))
			note(fmt.Sprint(dev, i), r.From(dev, s).Frame())
		}
		s := rig.Identified(UDP(fmt.Sprintf("172.17.0.10:%d", port), rig.Peer1+":53", "x"))
		note(fmt.Sprint("egress", i), r.Egress("br0", s).Frame())
	}
}

// TestIDsThatStay: atomic datagrams (DF, whole), what comes in, and what the host itself sends.
func TestIDsThatStay(t *testing.T) {
	r := rig.New(t)
	id := func(s Spec) Spec { return rig.Identified(s) }
	r.Out(id(UDP(rig.C1+":2000", rig.Peer1+":53", "x").With(dontCut)), id(UDP(rig.External+":2000", rig.Peer1+":53", "x").With(dontCut)))
	in := r.Outside(id(UDP(rig.Peer1+":53", rig.External+":2000", "x")))
	in.Translated("translated_inbound", id(UDP(rig.Peer1+":53", rig.C1+":2000", "x")).Hop())
	if got := idOf(in.Frame()); got != 0x1234 {
		t.Errorf("an inbound datagram's ID became %#x", got)
	}
	res := r.Egress("", id(UDP(rig.External+":2000", rig.Peer2+":53", "x")))
	if got := idOf(res.Frame()); res.Reason != "translated_host" || got != 0x1234 {
		t.Errorf("%s: the ID of the host's own datagram became %#x", res.Reason, got)
	}
}

// TestIDsOfFragments: those of one datagram share one, another than the next datagram's; also with DF, and hairpinned.
func TestIDsOfFragments(t *testing.T) {
	for name, change := range map[string]func(*Spec){"Plain": func(*Spec) {}, "DF": dontCut} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t)
			r.Opened("udp", rig.C2+":4000")
			seen := map[uint16]bool{}
			for i := range 3 {
				for _, s := range []Spec{UDP(rig.C1+":2000", rig.Peer1+":53", long), UDP(rig.C1+":3000", rig.External+":4000", long)} {
					s = rig.FromContainer(rig.Identified(s).With(change).With(func(s *Spec) { s.ID += uint16(i) }))
					seen[oneID(r, s)] = true
				}
			}
			if len(seen) != 6 || seen[0] {
				t.Errorf("the IDs of six datagrams: %v", seen)
			}
		})
	}
}

// oneID is the ID that all fragments of a datagram leave with.
func oneID(r *rig.Rig, s Spec) (id uint16) {
	r.T.Helper()
	for i, frame := range s.Fragments(320) {
		res := r.Send(r.DP.Objects().NatInside, "p1", frame, nil)
		if got := idOf(res.Frame()); i > 0 && got != id {
			r.T.Errorf("fragment %d has the ID %d, the first one %d", i, got, id)
		}
		if res.Verdict != rig.Redirect || Checksum(res.Frame()[rig.L3:rig.L4]) != 0 {
			r.T.Errorf("fragment %d: verdict %d for %s:\n%s", i, res.Verdict, res.Reason, Dump(res.Frame()))
		}
		id = idOf(res.Frame())
	}
	return id
}

// TestIDsAreNotForeseen: which counter an address has is another one each time that the tables are made.
func TestIDsAreNotForeseen(t *testing.T) {
	r := rig.New(t)
	used := map[uint32]bool{}
	for range 8 {
		for index, zero := uint32(0), uint32(0); index < r.DP.Objects().Identifications.MaxEntries(); index++ {
			if err := r.DP.Objects().Identifications.Put(index, zero); err != nil {
				t.Fatal(err)
			}
		}
		r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
		var index, counter uint32
		for it := r.DP.Objects().Identifications.Iterate(); it.Next(&index, &counter); {
			if counter != 0 {
				used[index] = true
				break // behind it is the secret
			}
		}
	}
	if len(used) < 2 {
		t.Errorf("the address counts at %v, however often the tables are made", used)
	}
}
