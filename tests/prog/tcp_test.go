// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// The timeouts of the states (RFC 5382 REQ-5, RFC 7857 section 2.2).
const (
	partialOpen = 240 * time.Second
	established = 7440 * time.Second
	closing     = 240 * time.Second
)

var tcpSequences = []struct {
	name, segments, state string
	lifetime              time.Duration
}{
	{"SYN", ">S", "init-inside", partialOpen},
	{"SYNTwice", ">S >S", "init-inside", partialOpen},
	{"SYNAndData", ">S >A", "init-inside", partialOpen},
	{"SYNACK", ">S <SA", "established", established},
	{"Handshake", ">S <SA >A", "established", established},
	{"Data", ">S <SA >A >PA <PA <A", "established", established},
	{"SimultaneousOpen", ">S <S >SA <SA", "established", established},
	{"FINInside", ">S <SA >A >FA", "fin-inside", established},
	{"FINOutside", ">S <SA >A <FA", "fin-outside", established},
	{"HalfClosed", ">S <SA >A >FA <A <PA >A", "fin-inside", established},
	{"FINBoth", ">S <SA >A >FA <FA >A", "fin-both", closing},
	{"FINBothOutsideFirst", ">S <SA >A <FA >FA <A", "fin-both", closing},
	{"RSTInside", ">S <SA >A >R", "trans", closing},
	{"RSTOutside", ">S <SA >A <R", "trans", closing},
	{"RSTWithACK", ">S <RA", "trans", closing},
	{"DataAfterRST", ">S <SA >A >R >A", "established", established},
	{"DataAfterRSTOutside", ">S <SA >A <R <A", "established", established},
	{"OtherSideAfterRST", ">S <SA >A <R >A", "established", established},
	{"RSTAgainAfterData", ">S <SA >A <R >A <R", "trans", closing},
	{"BothSidesRST", ">S <SA >A <R >R", "trans", closing},
	{"RSTAfterFINs", ">S <SA >A >FA <FA >R <R", "fin-both", closing},
	{"SYNAfterFINs", ">S <SA >A >FA <FA >A >S", "init-inside", partialOpen},
	{"SYNFromOutsideAfterFINs", ">S <SA >A >FA <FA >A <S", "init-outside", partialOpen},
	{"OldSegmentAfterReuse", ">S <SA >A >FA <FA >A >S <A", "init-inside", partialOpen},
	{"ReuseFromOutside", ">S <SA >A >FA <FA >A <S >SA <A", "established", established},
	{"SYNAfterRST", ">S <SA >A >R >S", "init-inside", partialOpen},
	{"SYNAfterTheirRST", ">S <SA >A <R >S", "init-inside", partialOpen},
	{"SYNACKAfterRST", ">S >R <SA", "established", established},
	{"NoFlags", "> >", "init-inside", partialOpen},
	{"NoFlagsInside", ">S <SA >A > <", "established", established},
	{"SYNAndFIN", ">SF", "init-inside", partialOpen},
	{"FINTwice", ">S <SA >A >FA >FA <A", "fin-inside", established},
	{"SYNAgain", ">S <SA >A >S <A >A", "established", established},
	{"ReuseAfterFIN", ">S <SA >A >FA <FA >A >S <SA >A", "established", established},
	{"ReuseAfterRST", ">S <SA >A >R >S <SA", "established", established},
	{"PickUpInside", ">A", "init-inside", partialOpen},
	{"PickUpBoth", ">PA <A", "established", established},
	{"PickUpAndClose", ">PA <A >FA <FA", "fin-both", closing},
}

// TestTCPStates: every sequence passes (RFC 5382 REQ-2), and the session lives as its state says.
func TestTCPStates(t *testing.T) { family.Each(t, testTCPStates) }

func testTCPStates(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, c := range tcpSequences {
		r.Subtest(c.name, func() {
			r.Segments(c.segments)
			r.WantSessions("tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " " + c.state)
			r.LivesFor(c.lifetime)
		})
	}
}

// TestTCPFromOutside: a connection to a static binding, the states the other way round.
func TestTCPFromOutside(t *testing.T) { family.Each(t, testTCPFromOutside) }

func testTCPFromOutside(t *testing.T, fam family.Family) {
	for _, c := range []struct {
		name, segments, state string
		lifetime              time.Duration
	}{
		{"SYN", "<S", "init-outside", partialOpen},
		{"Handshake", "<S >SA <A", "established", established},
		{"FINBoth", "<S >SA <A <FA >FA <A", "fin-both", closing},
		{"Refused", "<S >RA", "trans", closing},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Forward("br0", dataplane.TCP, rig.TcpOutside, rig.TcpInside)
			r.Segments(c.segments)
			r.WantSessions("tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " " + c.state)
			r.Wait(c.lifetime - time.Second)
			r.WantBindings("tcp br0 " + rig.TcpInside + " " + rig.TcpOutside + " 1 static")
			r.Wait(2 * time.Second)
			r.WantBindings("tcp br0 " + rig.TcpInside + " " + rig.TcpOutside + " 0 static")
		})
	}
}

// TestTCPRefresh: each direction keeps a session.
func TestTCPRefresh(t *testing.T) { family.Each(t, testTCPRefresh) }

func testTCPRefresh(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Segments(">S <SA >A")
	for _, next := range []string{">A", "<A", "<PA"} {
		r.Wait(established - time.Minute)
		r.Segments(next)
	}
	r.LivesFor(established)
}

// TestRSTOfIdleConnection: the session is held 4 minutes from the RST on (RFC 7857 section 2.3), however long
// it was idle, and further RSTs do not prolong that (section 7.1).
func TestRSTOfIdleConnection(t *testing.T) { family.Each(t, testRSTOfIdleConnection) }

func testRSTOfIdleConnection(t *testing.T, fam family.Family) {
	for name, rst := range map[string]string{"FromInside": ">R", "FromOutside": "<R"} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Segments(">S <SA >A")
			r.Wait(time.Hour)
			r.Segments(rst)
			r.Wait(100 * time.Second)
			r.Segments(rst)
			r.LivesFor(closing - 100*time.Second)
		})
	}
}

// TestNothingKeepsWhatIsClosed: after both sides' FIN the session ends 4 minutes later, whatever comes (RFC 6146 section
// 3.5.2.2, V4 FIN + V6 FIN RCV), unless that is a SYN, which begins a connection of its own.
func TestNothingKeepsWhatIsClosed(t *testing.T) { family.Each(t, testNothingKeepsWhatIsClosed) }

func testNothingKeepsWhatIsClosed(t *testing.T, fam family.Family) {
	for name, late := range map[string]string{"ACKs": ">A <A", "FINs": ">FA <FA", "RSTs": ">R <R", "Data": ">PA <PA"} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Segments(">S <SA >A >FA <FA")
			r.Wait(100 * time.Second)
			r.Segments(late)
			r.LivesFor(closing - 100*time.Second)
		})
	}
	t.Run("SYN", func(t *testing.T) {
		r := rig.New(t, rig.In(fam))
		r.Segments(">S <SA >A >FA <FA")
		r.Wait(100 * time.Second)
		r.Segments(">S")
		r.LivesFor(partialOpen)
	})
	t.Run("Anew", func(t *testing.T) {
		r := rig.New(t, rig.In(fam))
		r.Segments(">S <SA >A >FA <FA")
		r.Wait(100 * time.Second)
		r.Segments(">S <SA >A")
		r.Wait(time.Hour)
		r.Segments(">A")
		r.LivesFor(established)
	})
}

// TestSimultaneousOpen: the outside's SYN crosses the inside's (RFC 5382 REQ-2a), or comes first: then it is dropped in
// silence where filtering says so, and the inside's own, whenever it comes, opens as ever (REQ-4).
func TestSimultaneousOpen(t *testing.T) { family.Each(t, testSimultaneousOpen) }

func testSimultaneousOpen(t *testing.T, fam family.Family) {
	const remote = rig.Peer2 + ":443"
	for _, filtering := range []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressAndPortDependent} {
		for _, later := range []time.Duration{0, 5 * time.Second, 7 * time.Second} {
			t.Run(fmt.Sprintf("%s/%s", filtering, later), func(t *testing.T) {
				r := rig.New(t, rig.In(fam), rig.WithFiltering(filtering), rig.WithNetworks(func(n *dataplane.Network) {
					n.Address, n.Refusal = netip.MustParseAddr("172.17.0.1"), dataplane.RefuseAdminProhibited
				}))
				r.Segments(">S <S >SA <SA >A <A")
				syn := TCP(remote, rig.TcpOutside, "S", "")
				if filtering == dataplane.EndpointIndependent {
					r.In(syn, TCP(remote, rig.TcpInside, "S", ""))
				} else {
					r.Outside(syn).Dropped("filtered")
				}
				r.Wait(later)
				r.Out(TCP(rig.TcpInside, remote, "S", ""), TCP(rig.TcpOutside, remote, "S", ""))
				r.In(syn, TCP(remote, rig.TcpInside, "S", ""))
				r.Out(TCP(rig.TcpInside, remote, "SA", ""), TCP(rig.TcpOutside, remote, "SA", ""))
				r.WantSessions("tcp "+rig.TcpInside+" "+rig.TcpOutside+" "+rig.TcpRemote+" established",
					"tcp "+rig.TcpInside+" "+rig.TcpOutside+" "+remote+" established")
			})
		}
	}
}

// TestWindowsAreTheEndsOwn: sequence numbers and windows are not looked at: an old or wild one passes and counts as any.
func TestWindowsAreTheEndsOwn(t *testing.T) { family.Each(t, testWindowsAreTheEndsOwn) }

func testWindowsAreTheEndsOwn(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Segments(">S <SA >A")
	wild := func(s Spec) Spec {
		l4 := s.L4
		s.L4 = func(s *Spec, ip *Header) []gopacket.SerializableLayer {
			all := l4(s, ip)
			tcp := all[0].(*layers.TCP)
			tcp.Seq, tcp.Ack, tcp.Window = 0xdeadbeef, 0x7fffffff, 0
			return all
		}
		return s
	}
	for range 2 {
		r.Out(wild(TCP(rig.TcpInside, rig.TcpRemote, "A", "x")), wild(TCP(rig.TcpOutside, rig.TcpRemote, "A", "x")))
		r.In(wild(TCP(rig.TcpRemote, rig.TcpOutside, "A", "x")), wild(TCP(rig.TcpRemote, rig.TcpInside, "A", "x")))
	}
	r.In(wild(TCP(rig.TcpRemote, rig.TcpOutside, "R", "")), wild(TCP(rig.TcpRemote, rig.TcpInside, "R", "")))
	r.WantSessions("tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " trans")
}

// TestPickUpOfImported: a connection that another NAT had goes on from what it was, in whichever way it goes on.
func TestPickUpOfImported(t *testing.T) { family.Each(t, testPickUpOfImported) }

func testPickUpOfImported(t *testing.T, fam family.Family) {
	for _, c := range []struct {
		name, was, segments, state string
		lifetime                   time.Duration
	}{
		{"Idle", "established", "", "established", established},
		{"Data", "established", "<PA >A", "established", established},
		{"Closes", "established", ">FA <FA >A", "fin-both", closing},
		{"Reset", "established", "<R", "trans", closing},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.MustImport(dataplane.TCP, c.was, rig.TcpInside, rig.TcpOutside, rig.TcpRemote)
			r.Segments(c.segments)
			r.WantSessions("tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " " + c.state)
			r.LivesFor(c.lifetime)
		})
	}
}

// TestNoSession: segments that open nothing.
func TestNoSession(t *testing.T) { family.Each(t, testNoSession) }

func testNoSession(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, flags := range []string{"R", "RA"} {
		r.Inside(TCP(rig.TcpInside, rig.TcpRemote, flags, "")).Dropped("tcp_no_session")
	}
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	for _, flags := range []string{"A", "SA", "FA", "R", "RA", "PA"} {
		r.Outside(TCP(rig.Peer1+":9", rig.External+":80", flags, "")).Dropped("tcp_no_session")
		r.Outside(TCP(rig.Peer1+":9", rig.External+":81", flags, "")).Passed("unbound")
	}
	r.WantSessions()
	r.Consistent()
}

// TestTCPStateEvents: each change is told once, with the new lifetime.
func TestTCPStateEvents(t *testing.T) { family.Each(t, testTCPStateEvents) }

func testTCPStateEvents(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Segments(">S <SA >A >PA <PA >FA <FA >A <A")
	r.Wait(closing + time.Second)
	r.Segments(">S <R")
	head := "tcp br0 " + rig.TcpInside + " " + rig.TcpOutside
	session := head + " " + rig.TcpRemote
	r.WantEvents(
		"binding.created "+head,
		"session.created "+session+" init-inside",
		"session.state "+session+" init-inside->established 7440s",
		"session.state "+session+" established->fin-inside 7440s",
		"session.state "+session+" fin-inside->fin-both 240s",
		"session.closed "+session+" fin-both",
		"binding.expired "+head,
		"binding.created "+head,
		"session.created "+session+" init-inside",
		"session.state "+session+" init-inside->trans 240s",
	)
}

// TestTCPSessionsOfOneBinding: one binding, a state for each remote.
func TestTCPSessionsOfOneBinding(t *testing.T) { family.Each(t, testTCPSessionsOfOneBinding) }

func testTCPSessionsOfOneBinding(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Segments(">S <SA >A")
	r.Out(TCP(rig.TcpInside, rig.Peer2+":80", "S", ""), TCP(rig.TcpOutside, rig.Peer2+":80", "S", ""))
	want := []string{
		"tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " established",
		"tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.Peer2 + ":80 init-inside",
	}
	slices.Sort(want)
	r.WantSessions(want...)
	r.Wait(partialOpen + time.Second)
	r.WantBindings("tcp br0 " + rig.TcpInside + " " + rig.TcpOutside + " 1")
}
