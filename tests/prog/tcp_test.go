// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"slices"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/rig"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
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
	{"SYNAfterFIN", ">S <SA >A >FA <FA >A >S", "fin-outside", established},
	{"ReuseAfterFIN", ">S <SA >A >FA <FA >A >S <SA >A", "established", established},
	{"ReuseAfterRST", ">S <SA >A >R >S <SA", "established", established},
	{"PickUpInside", ">A", "init-inside", partialOpen},
	{"PickUpBoth", ">PA <A", "established", established},
	{"PickUpAndClose", ">PA <A >FA <FA", "fin-both", closing},
}

// TestTCPStates: every sequence passes (RFC 5382 REQ-2), and the session lives as its state says.
func TestTCPStates(t *testing.T) {
	r := rig.New(t)
	for _, c := range tcpSequences {
		r.Subtest(c.name, func() {
			r.Segments(c.segments)
			r.WantSessions("tcp " + rig.TcpInside + " " + rig.TcpOutside + " " + rig.TcpRemote + " " + c.state)
			r.LivesFor(c.lifetime)
		})
	}
}

// TestTCPFromOutside: a connection to a static binding, the states the other way round.
func TestTCPFromOutside(t *testing.T) {
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
			r := rig.New(t)
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
func TestTCPRefresh(t *testing.T) {
	r := rig.New(t)
	r.Segments(">S <SA >A")
	for _, next := range []string{">A", "<A", "<PA"} {
		r.Wait(established - time.Minute)
		r.Segments(next)
	}
	r.LivesFor(established)
}

// TestRSTOfIdleConnection: the session is held 4 minutes from the RST on (RFC 7857 section 2.3), however long
// it was idle, and further RSTs do not prolong that (section 7.1).
func TestRSTOfIdleConnection(t *testing.T) {
	for name, rst := range map[string]string{"FromInside": ">R", "FromOutside": "<R"} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t)
			r.Segments(">S <SA >A")
			r.Wait(time.Hour)
			r.Segments(rst)
			r.Wait(100 * time.Second)
			r.Segments(rst)
			r.LivesFor(closing - 100*time.Second)
		})
	}
}

// TestNoSession: segments that open nothing.
func TestNoSession(t *testing.T) {
	r := rig.New(t)
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
func TestTCPStateEvents(t *testing.T) {
	r := rig.New(t)
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
func TestTCPSessionsOfOneBinding(t *testing.T) {
	r := rig.New(t)
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
