// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
	"github.com/conenat/conenat/tests/topo"
)

func TestRFC5382(t *testing.T) {
	conform(t, rfc5382, conformance{
		"REQ-1":  tcp.mapsIndependently,
		"REQ-2":  everySequence,
		"REQ-2a": simultaneousOpen,
		"REQ-3":  tcp.filters,
		"REQ-3a": tcp.filters,
		"REQ-3b": filtersPerProtocol,
		"REQ-4":  unsolicitedSYN,
		"REQ-4a": silentForGood,
		"REQ-5":  tcpLivesAtLeast,
		"REQ-5a": tcpTimersAreConfigurable,
		"REQ-6":  tcp.payloadStays,
		"REQ-7":  tcp.neverOverloads,
		"REQ-8":  tcp.hairpins,
		"REQ-8a": tcp.hairpins,
		"REQ-9":  unreachableOfTCP,
		"REQ-10": tcp.icmpEndsNothing,
	})
}

// sequences are RFC 9293's ways through a connection: > from inside, < from outside.
var sequences = []string{
	">S <SA >A >PA <A <PA >A >FA <A <FA >A", // closed by the inside
	">S <SA >A >PA <A <FA >A >FA <A",        // by the outside
	">S <SA >A >FA <FA >A <A",               // by both at once
	">S <SA >A >FA <A <PA >A <PA >A <FA >A", // half closed for a while
	">S >S <SA <SA >A >A >PA >PA <A",        // retransmitted
	">S <SA >A >R",                          // reset by either
	">S <SA >A <R",
	">S <RA",                                // refused
	">S <SA >A >FA <FA >A >S <SA >A >PA <A", // the same endpoints again
	">S <SA >A >FPA <FA >A",                 // FIN with data
	">S <A >R >S <SA >A",                    // an old connection's answer (RFC 9293, figure 9)
}

// turned is a sequence that the outside begins.
func turned(sequence string) string {
	return strings.NewReplacer(">", "<", "<", ">").Replace(sequence)
}

// everySequence: on the rig, segment by segment; and a kernel's own connections, both ways and hairpinned.
func everySequence(l *line) {
	for _, s := range sequences {
		l.part("from inside "+s, func(l *line) {
			l.rig().Segments(s)
		})
		l.part("from outside "+s, func(l *line) {
			r := l.rig()
			r.Forward("br0", dataplane.TCP, rig.TcpOutside, rig.TcpInside)
			r.Segments(turned(s))
		})
	}
	l.part("kernels", realConnections)
}

func realConnections(l *line) {
	lab := l.lab(topo.Figure3Config{Containers: 2}, "")
	serve := func(ns *topo.NS, port uint16) {
		server, err := lab.probe(ns).ServeTCP(port)
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(func() { server.Close() })
	}
	serve(lab.Peer1, 8080)
	serve(lab.Containers[0], 80)
	lab.Client("forward", "add", at(l.external, 8080), at(l.c1, 80))
	for name, c := range map[string]struct {
		from *topo.NS
		to   netip.Addr
	}{"out": {lab.Containers[0], topo.Peer1Addr}, "in": {lab.Peer1, topo.HostAddr}, "hairpin": {lab.Containers[1], topo.HostAddr}} {
		conn := lab.Dial(lab.probe(c.from), l.family.At(c.to, 8080))
		if _, err := conn.Download(1 << 20); err != nil {
			l.Errorf("%s: %v", name, err)
		}
		if _, err := conn.Upload(1 << 20); err != nil {
			l.Errorf("%s: %v", name, err)
		}
	}
}

// simultaneousOpen: both SYNs cross, or the outside's comes before anything was sent to it.
func simultaneousOpen(l *line) {
	for _, filtering := range behaviors {
		l.part(filtering.String(), func(l *line) {
			r := l.rig(rig.WithFiltering(filtering))
			r.Segments(">S <S >SA <SA >A <A >PA <PA")
			r.WantSessions("tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " established")
		})
	}
	l.part("outside first", func(l *line) {
		r := l.rig()
		r.Opened("tcp", rig.TcpInside) // towards another port: of peer1, so let it be peer2 that calls
		syn := TCP(at(l.peer2, 443), rig.TcpOutside, "S", "")
		r.Outside(syn).Dropped("filtered")
		out(r, TCP(rig.TcpInside, at(l.peer2, 443), "S", ""), TCP(rig.TcpOutside, at(l.peer2, 443), "S", ""))
		r.In(syn, TCP(at(l.peer2, 443), rig.TcpInside, "S", ""))
		out(r, TCP(rig.TcpInside, at(l.peer2, 443), "SA", ""), TCP(rig.TcpOutside, at(l.peer2, 443), "SA", ""))
		r.In(TCP(at(l.peer2, 443), rig.TcpOutside, "SA", ""), TCP(at(l.peer2, 443), rig.TcpInside, "SA", ""))
	})
}

// filtersPerProtocol: each protocol by its own behaviour, in either combination.
func filtersPerProtocol(l *line) {
	for _, c := range []struct {
		open, closed protocol
		filtering    [3]dataplane.Behavior
	}{
		{udp, tcp, [3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressAndPortDependent, dataplane.AddressDependent}},
		{tcp, udp, [3]dataplane.Behavior{dataplane.AddressAndPortDependent, dataplane.EndpointIndependent, dataplane.AddressDependent}},
	} {
		l.part(c.open.name, func(l *line) {
			r := l.rig()
			r.Put("br0", rig.BridgeMAC, "172.17.0.0/16", c.filtering)
			r.Opened("udp", at(l.c1, 20000))
			r.Opened("tcp", at(l.c1, 20000))
			r.In(c.open.first(at(l.peer2, 9), at(l.external, 20000)), c.open.first(at(l.peer2, 9), at(l.c1, 20000)))
			r.Outside(c.closed.first(at(l.peer2, 9), at(l.external, 20000))).Dropped("filtered")
		})
	}
}

// unsolicitedSYN: no answer; and the outbound SYN, with the connection that follows, knows nothing of it.
func unsolicitedSYN(l *line) {
	for _, filtering := range behaviors[1:] {
		l.part(filtering.String(), func(l *line) {
			r := l.rig(rig.WithFiltering(filtering))
			r.Opened("tcp", rig.TcpInside)
			remote := at(l.peer2, 443)
			r.Outside(TCP(remote, rig.TcpOutside, "S", "")).Dropped("filtered")
			r.Wait(5 * time.Second)
			r.Outside(TCP(remote, rig.TcpOutside, "S", "")).Dropped("filtered") // its retransmission
			out(r, TCP(rig.TcpInside, remote, "S", ""), TCP(rig.TcpOutside, remote, "S", ""))
			r.In(TCP(remote, rig.TcpOutside, "SA", ""), TCP(remote, rig.TcpInside, "SA", ""))
			out(r, TCP(rig.TcpInside, remote, "A", ""), TCP(rig.TcpOutside, remote, "A", ""))
		})
	}
}

// silentForGood: nothing comes back within the 6 seconds, and nothing after them.
func silentForGood(l *line) {
	r := l.rig()
	r.Opened("tcp", rig.TcpInside)
	for range 10 {
		r.Outside(TCP(at(l.peer2, 443), rig.TcpOutside, "S", "")).Dropped("filtered")
		r.Wait(time.Second)
	}
}

func tcpLivesAtLeast(l *line) {
	const established, transitory = 2*time.Hour + 4*time.Minute, 4 * time.Minute
	for sequence, least := range map[string]time.Duration{
		">S": transitory, ">S <SA >A": established, ">S <SA >A >FA": transitory, ">S <SA >A >FA <FA": transitory, ">S <SA >A <R": transitory,
	} {
		l.part(sequence, func(l *line) {
			r := l.rig()
			r.Segments(sequence)
			r.Wait(least)
			if len(r.Sessions()) != 1 {
				l.Errorf("%v after the last segment: sessions %q", least, r.Sessions())
			}
		})
	}
}

func tcpTimersAreConfigurable(l *line) {
	settings := func(s *dataplane.Settings) {
		s.TCPEstablishedTimeout, s.TCPPartialOpenTimeout, s.TCPClosingTimeout = 3*time.Hour, 5*time.Minute, 6*time.Minute
	}
	for sequence, lives := range map[string]time.Duration{
		">S": 5 * time.Minute, ">S <SA >A": 3 * time.Hour, ">S <SA >A >FA <FA": 6 * time.Minute,
	} {
		l.part(sequence, func(l *line) {
			r := l.rig(rig.WithSettings(settings))
			r.Segments(sequence)
			r.LivesFor(lives)
		})
	}
}

// unreachableOfTCP: every code, about any segment, of which no more may be embedded than the ports and the sequence number.
func unreachableOfTCP(l *line) {
	r := l.rig()
	r.Segments(">S <SA >A")
	sent, known := TCP(rig.TcpOutside, rig.TcpRemote, "PA", "data"), TCP(rig.TcpInside, rig.TcpRemote, "PA", "data")
	for _, m := range l.unreachable() {
		for _, embed := range []int{0, 28} {
			r.Outside(l.icmpError(l.router, l.external, m, sent, embed)).
				Translated("translated_icmp_error", l.icmpError(l.router, l.c1, m, known, embed).Hop())
		}
	}
}
