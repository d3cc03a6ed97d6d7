// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

const (
	tcpInside  = c1 + ":20000"
	tcpOutside = external + ":20000"
	tcpRemote  = peer1 + ":443"
)

// segments sends ">S" from inside and "<SA" from outside, and checks that every one goes through.
func (r *rig) segments(sequence string) {
	r.t.Helper()
	for _, step := range strings.Fields(sequence) {
		if step[0] == '>' {
			r.out(TCP(tcpInside, tcpRemote, step[1:], "x"), TCP(tcpOutside, tcpRemote, step[1:], "x"))
			continue
		}
		r.in(TCP(tcpRemote, tcpOutside, step[1:], "x"), TCP(tcpRemote, tcpInside, step[1:], "x"))
	}
}

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
	r := newRig(t)
	for _, c := range tcpSequences {
		r.subtest(c.name, func() {
			r.segments(c.segments)
			r.wantSessions("tcp " + tcpInside + " " + tcpOutside + " " + tcpRemote + " " + c.state)
			r.livesFor(c.lifetime)
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
			r := newRig(t)
			r.forward("br0", dataplane.TCP, tcpOutside, tcpInside)
			r.segments(c.segments)
			r.wantSessions("tcp " + tcpInside + " " + tcpOutside + " " + tcpRemote + " " + c.state)
			r.wait(c.lifetime - time.Second)
			r.wantBindings("tcp br0 " + tcpInside + " " + tcpOutside + " 1 static")
			r.wait(2 * time.Second)
			r.wantBindings("tcp br0 " + tcpInside + " " + tcpOutside + " 0 static")
		})
	}
}

// TestTCPRefresh: each direction keeps a session.
func TestTCPRefresh(t *testing.T) {
	r := newRig(t)
	r.segments(">S <SA >A")
	for _, next := range []string{">A", "<A", "<PA"} {
		r.wait(established - time.Minute)
		r.segments(next)
	}
	r.livesFor(established)
}

// TestRSTOfIdleConnection: the session is held 4 minutes from the RST on (RFC 7857 section 2.3), however long
// it was idle, and further RSTs do not prolong that (section 7.1).
func TestRSTOfIdleConnection(t *testing.T) {
	for name, rst := range map[string]string{"FromInside": ">R", "FromOutside": "<R"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.segments(">S <SA >A")
			r.wait(time.Hour)
			r.segments(rst)
			r.wait(100 * time.Second)
			r.segments(rst)
			r.livesFor(closing - 100*time.Second)
		})
	}
}

// TestNoSession: segments that open nothing.
func TestNoSession(t *testing.T) {
	r := newRig(t)
	for _, flags := range []string{"R", "RA"} {
		r.inside(TCP(tcpInside, tcpRemote, flags, "")).dropped("tcp_no_session")
	}
	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	for _, flags := range []string{"A", "SA", "FA", "R", "RA", "PA"} {
		r.outside(TCP(peer1+":9", external+":80", flags, "")).dropped("tcp_no_session")
		r.outside(TCP(peer1+":9", external+":81", flags, "")).passed("unbound")
	}
	r.wantSessions()
	r.consistent()
}

// TestTCPStateEvents: each change is told once, with the new lifetime.
func TestTCPStateEvents(t *testing.T) {
	r := newRig(t)
	r.segments(">S <SA >A >PA <PA >FA <FA >A <A")
	r.wait(closing + time.Second)
	r.segments(">S <R")
	head := "tcp br0 " + tcpInside + " " + tcpOutside
	session := head + " " + tcpRemote
	r.wantEvents(
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
	r := newRig(t)
	r.segments(">S <SA >A")
	r.out(TCP(tcpInside, peer2+":80", "S", ""), TCP(tcpOutside, peer2+":80", "S", ""))
	want := []string{
		"tcp " + tcpInside + " " + tcpOutside + " " + tcpRemote + " established",
		"tcp " + tcpInside + " " + tcpOutside + " " + peer2 + ":80 init-inside",
	}
	slices.Sort(want)
	r.wantSessions(want...)
	r.wait(partialOpen + time.Second)
	r.wantBindings("tcp br0 " + tcpInside + " " + tcpOutside + " 1")
}
