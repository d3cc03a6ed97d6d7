// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

func TestRFC7857(t *testing.T) {
	conform(t, rfc7857, conformance{
		"2.1":      stateMachine,
		"2.2":      timersApart,
		"2.3":      resetsPass,
		"2.3-hold": resetIsHeld,
		"5":        mapsPerProtocol,
		"6":        filtersPerProtocol,
		"7":        noInboundRefresh,
		"7.1":      answersDoNotRefresh,
		"9":        portsAreRandom,
		"10":       ipv4Only(identification), // which IPv6 has in fragments alone
	})
}

// stateMachine: RFC 6146, section 3.5.2.2, by what a session lives for in each state.
func stateMachine(l *line) {
	const transitory, established = 4 * time.Minute, 2*time.Hour + 4*time.Minute
	for _, c := range []struct {
		sequence string
		lives    time.Duration
	}{
		{">S", transitory},          // V6 INIT
		{">S >S", transitory},       // refreshed by more of them
		{">S <S", established},      // V4 SYN
		{">S <SA", established},     // the same
		{">S <SA >FA", established}, // V6 FIN RCV
		{">S <SA <FA", established}, // V4 FIN RCV
		{">S <SA <FA >A <PA", established},
		{">S <SA >FA <FA", transitory}, // V4 + V6 FIN RCV
		{">S <SA <FA >FA", transitory},
		{">S <SA <R", transitory}, // TRANS
		{">S <SA >R", transitory},
		{">S <SA <R >PA", established}, // it was not the end
		{">S <SA >R <A", established},
	} {
		l.part(c.sequence, func(l *line) {
			r := l.rig()
			r.Segments(c.sequence)
			r.LivesFor(c.lives)
		})
	}
	l.part("V4 INIT", func(l *line) { // opened from outside
		r := l.rig()
		r.Forward("br0", dataplane.TCP, rig.TcpOutside, rig.TcpInside)
		r.Segments("<S")
		r.Wait(transitory - time.Second)
		if len(r.Sessions()) != 1 {
			l.Errorf("sessions %q", r.Sessions())
		}
		r.Wait(2 * time.Second)
		r.WantSessions()
	})
}

func timersApart(l *line) {
	for which, c := range map[string]struct {
		sequence string
		change   func(*dataplane.Settings)
		lives    time.Duration
	}{
		"by default: opening":  {">S", func(*dataplane.Settings) {}, 4 * time.Minute},
		"by default: closing":  {">S <SA >FA <FA", func(*dataplane.Settings) {}, 4 * time.Minute},
		"opening":              {">S", func(s *dataplane.Settings) { s.TCPPartialOpenTimeout = 6 * time.Minute }, 6 * time.Minute},
		"closing":              {">S <SA >FA <FA", func(s *dataplane.Settings) { s.TCPClosingTimeout = 6 * time.Minute }, 6 * time.Minute},
		"opening, not closing": {">S", func(s *dataplane.Settings) { s.TCPClosingTimeout = 6 * time.Minute }, 4 * time.Minute},
		"closing, not opening": {">S <SA >FA <FA", func(s *dataplane.Settings) { s.TCPPartialOpenTimeout = 6 * time.Minute }, 4 * time.Minute},
	} {
		l.part(which, func(l *line) {
			r := l.rig(rig.WithSettings(c.change))
			r.Segments(c.sequence)
			r.LivesFor(c.lives)
		})
	}
}

func resetsPass(l *line) {
	for _, sequence := range []string{">S <R", ">S <RA", ">S <SA >A >R", ">S <SA >A <RA", ">S <SA >A >R >R <R", ">S <SA >A >FA <FA >R"} {
		l.part(sequence, func(l *line) { l.rig().Segments(sequence) })
	}
}

// resetIsHeld: from the first RST on, however long the connection was idle before.
func resetIsHeld(l *line) {
	for _, rst := range []string{">R", "<R"} {
		l.part(rst, func(l *line) {
			r := l.rig()
			r.Segments(">S <SA >A")
			r.Wait(time.Hour)
			r.Segments(rst)
			r.LivesFor(4 * time.Minute)
		})
	}
}

// mapsPerProtocol: each protocol by its own behaviour, in either combination.
func mapsPerProtocol(l *line) {
	for _, c := range []struct {
		cone, symmetric protocol
		mapping         [3]dataplane.Behavior
	}{
		{udp, tcp, [3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressAndPortDependent, dataplane.EndpointIndependent}},
		{tcp, udp, [3]dataplane.Behavior{dataplane.AddressDependent, dataplane.EndpointIndependent, dataplane.EndpointIndependent}},
	} {
		l.part(c.cone.name, func(l *line) {
			r := l.rig()
			setMapping(r, c.mapping)
			bindings := map[string]int{}
			for _, remote := range []string{l.peer1, l.peer2} {
				r.Inside(c.cone.first(at(l.c1, 20000), at(remote, 443)))
				r.Inside(c.symmetric.first(at(l.c1, 20000), at(remote, 443)))
			}
			for _, b := range r.Bindings() {
				bindings[b[:3]]++
			}
			if bindings[c.cone.name] != 1 || bindings[c.symmetric.name] != 2 {
				l.Errorf("towards two remotes: bindings %q", r.Bindings())
			}
		})
	}
}

// noInboundRefresh: neither by who was sent to, nor by whoever else the filter lets in.
func noInboundRefresh(l *line) {
	r := l.rig(rig.WithFiltering(dataplane.EndpointIndependent))
	r.Inside(UDP(at(l.c1, 20000), at(l.peer1, 53), "x"))
	for minute := range 4 {
		r.Wait(time.Minute)
		for _, remote := range []string{at(l.peer1, 53), at(l.peer2, 1000+minute)} {
			r.In(UDP(remote, at(l.external, 20000), "x"), UDP(remote, at(l.c1, 20000), "x"))
		}
	}
	r.LivesFor(time.Minute)
}

// answersDoNotRefresh: a port unreachable, and a RST after the first one, whose four minutes they leave as they are.
func answersDoNotRefresh(l *line) {
	l.part("ICMP", func(l *line) {
		r := l.rig(rig.WithFiltering(dataplane.EndpointIndependent))
		remote := at(l.peer1, 53)
		r.Inside(UDP(at(l.c1, 20000), remote, "x"))
		for range 4 {
			r.Wait(time.Minute)
			r.In(UDP(remote, at(l.external, 20000), "x"), UDP(remote, at(l.c1, 20000), "x"))
			r.Inside(ICMPError(l.c1, l.peer1, 3, 3, UDP(remote, at(l.c1, 20000), "x"), 0)).
				Translated("translated_icmp_error", ICMPError(l.external, l.peer1, 3, 3, UDP(remote, at(l.external, 20000), "x"), 0).Hop())
		}
		r.LivesFor(time.Minute)
	})
	l.part("RST", func(l *line) {
		r := l.rig()
		r.Segments(">S <SA >A >R")
		for range 3 {
			r.Wait(time.Minute)
			r.Segments(">R")
		}
		r.LivesFor(time.Minute)
	})
}

// portsAreRandom: 256 hosts want one port. The first one keeps it; the others' ports lie in 16 equal parts of the range, 16 in
// each on average: of a uniform choice, a part has none in one run of a million, and as many go up as go down.
func portsAreRandom(l *line) {
	for _, p := range []protocol{udp, tcp} {
		l.part(p.name, func(l *line) {
			r := l.rig()
			if got := r.Opened(p.name, at(l.c1, 20000)); got != 20000 {
				l.Errorf("port 20000 is free, and became %d", got)
			}
			var parts [16]int
			last, ups := 0, 0
			for host := range 255 {
				got := r.Opened(p.name, at(l.host(host), 20000))
				parts[(got-1024)/4032]++
				if got > last {
					ups++
				}
				last = got
			}
			for i, n := range parts {
				if n == 0 {
					l.Errorf("no port of %d to %d: %v", 1024+i*4032, 1023+(i+1)*4032, parts)
				}
			}
			if ups < 64 || ups > 192 { // 13 standard deviations off
				l.Errorf("%d of 255 ports are higher than the one before", ups)
			}
		})
	}
}

// identification: hosts' datagrams of one identification have different ones outside, where they may be cut; the fragments of
// one have one; and what can never be cut keeps what it has.
func identification(l *line) {
	r := l.rig()
	id := func(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[rig.L3+4:]) }
	same := func(s *Spec) { s.ID = 0x1234 }
	seen := map[uint16]int{}
	for i := range 1000 {
		s := UDP(at(l.host(i%2), 20000), at(l.peer1, 53), "x").With(same)
		seen[id(r.Inside(s).Frame())]++
	}
	if len(seen) != 1000 {
		l.Errorf("1000 datagrams of two hosts have %d identifications", len(seen))
	}
	whole := map[uint16]int{}
	for _, frame := range rig.FromContainer(UDP(at(l.c1, 20002), at(l.peer1, 53), strings.Repeat("x", 960)).With(same)).Fragments(320) {
		whole[id(r.Send(r.DP.Objects().NatInside, "p1", frame, nil).Frame())]++
	}
	if len(whole) != 1 {
		l.Errorf("a datagram's fragments have %d identifications", len(whole))
	}
	atomic := func(s *Spec) { s.ID, s.DF = 0x1234, true }
	if got := id(r.Inside(UDP(at(l.c1, 20001), at(l.peer1, 53), "x").With(atomic)).Frame()); got != 0x1234 {
		l.Errorf("an atomic datagram's identification became %#x", got)
	}
}
