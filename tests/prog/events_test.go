// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// TestEventsInOrder: of a binding's whole life, with all that its packets do.
func TestEventsInOrder(t *testing.T) {
	r := newRig(t)
	binding := "udp br0 " + c1 + ":5000 " + external + ":5000"
	r.inside(UDP(c1+":5000", peer1+":1", "x"))
	r.inside(UDP(c1+":5000", peer2+":2", "x"))
	r.outside(UDP(peer1+":3", external+":5000", "x"))
	r.forward("br0", dataplane.TCP, external+":80", c1+":8080")
	r.outside(TCP(peer1+":4", external+":80", "S", ""))
	r.wantEvents(
		"binding.created "+binding,
		"session.created "+binding+" "+peer1+":1 active",
		"session.created "+binding+" "+peer2+":2 active",
		"session.created "+binding+" "+peer1+":3 active",
		"binding.created tcp br0 "+c1+":8080 "+external+":80 static",
		"session.created tcp br0 "+c1+":8080 "+external+":80 "+peer1+":4 init-outside static",
	)
	r.wait(241 * time.Second)
	if err := r.removeForward(dataplane.TCP, external+":80"); err != nil {
		t.Fatal(err)
	}
	r.wantEvents(
		"session.closed tcp br0 "+c1+":8080 "+external+":80 "+peer1+":4 init-outside static",
		"binding.expired tcp br0 "+c1+":8080 "+external+":80 static",
	)
	r.wait(time.Minute)
	var closed []string
	for _, e := range r.events() {
		closed = append(closed, eventLine(e))
	}
	if len(closed) != 4 || closed[3] != "binding.expired "+binding {
		t.Errorf("events at the end: %q", closed)
	}
}

// TestEventFields: times are the clock's, and counts of sessions those of the binding.
func TestEventFields(t *testing.T) {
	r := newRig(t)
	for i := range 3 {
		r.inside(UDP(c1+":5000", fmt.Sprintf("%s:%d", peer1, i+1), "x"))
		r.wait(time.Second)
	}
	var last time.Time
	for i, e := range r.events() {
		if want := max(1, i); e.Sessions != want {
			t.Errorf("event %d: %d sessions of the binding, want %d", i, e.Sessions, want)
		}
		if e.Time.Before(last.Add(-time.Millisecond)) {
			t.Errorf("event %d is of %v, the one before it of %v", i, e.Time, last)
		}
		if last = e.Time; e.Type == dataplane.SessionCreated && e.Lifetime.Round(time.Second) != 300*time.Second {
			t.Errorf("event %d: lifetime %v", i, e.Lifetime)
		}
	}
}

// replay is the tables as the events tell them.
type replay struct {
	bindings map[string]string // external endpoint -> line of rig.bindings, without the count
	sessions map[string]string // endpoints -> state
}

func (p *replay) apply(t *testing.T, e dataplane.Event) {
	external := fmt.Sprintf("%s %s", e.Protocol, e.External)
	session := fmt.Sprintf("%s %s %s %s", e.Protocol, e.Internal, e.External, e.Remote)
	switch e.Type {
	case dataplane.BindingCreated:
		if p.bindings[external] != "" {
			t.Errorf("binding of %s was created twice", external)
		}
		p.bindings[external] = fmt.Sprintf("%s %s %s %s", e.Protocol, e.Network, e.Internal, e.External)
		if e.Static {
			p.bindings[external] += " static"
		}
	case dataplane.BindingExpired:
		if p.bindings[external] == "" {
			t.Errorf("binding of %s expired, and never was", external)
		}
		delete(p.bindings, external)
	case dataplane.SessionCreated:
		p.sessions[session] = e.State
	case dataplane.SessionState:
		if p.sessions[session] != e.OldState {
			t.Errorf("session %s was %q, its event says %q", session, p.sessions[session], e.OldState)
		}
		p.sessions[session] = e.State
	case dataplane.SessionClosed:
		delete(p.sessions, session)
	}
}

// tables are bindings (without counts) and sessions, as the maps have them.
func (r *rig) tables() (bindings, sessions []string) {
	r.t.Helper()
	r.must("read bindings", func() error {
		all, err := r.dp.Bindings()
		for _, b := range all {
			line := fmt.Sprintf("%s %s %s %s", b.Protocol, b.Network, b.Internal, b.External)
			if b.Static {
				line += " static"
			}
			bindings = append(bindings, line)
		}
		return err
	})
	slices.Sort(bindings)
	return bindings, r.sessions()
}

// TestReplay: the stream of events gives the tables, after any mixture of packets.
func TestReplay(t *testing.T) {
	r := newRig(t, withPorts(40000, 40063))
	rnd := rand.New(rand.NewPCG(3, 4))
	told := replay{map[string]string{}, map[string]string{}}
	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	for round := range 12 {
		for range 40 {
			r.anything(rnd)
		}
		r.wait(time.Duration(rnd.IntN(200)) * time.Second)
		for _, e := range r.events() {
			told.apply(t, e)
		}
		bindings, sessions := r.tables()
		var toldBindings, toldSessions []string
		for _, line := range told.bindings {
			toldBindings = append(toldBindings, line)
		}
		for key, state := range told.sessions {
			toldSessions = append(toldSessions, key+" "+state)
		}
		slices.Sort(toldBindings)
		slices.Sort(toldSessions)
		if diff := gocmp.Diff(bindings, toldBindings) + gocmp.Diff(sessions, toldSessions); diff != "" {
			t.Fatalf("round %d: tables (-maps +events):\n%s", round, diff)
		}
		r.consistent()
	}
}

// anything sends one packet of a few endpoints, so that many meet.
func (r *rig) anything(rnd *rand.Rand) {
	r.t.Helper()
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	in := pick(c1, c2) + pick(":40001", ":40002", ":80", ":5000")
	remote := pick(peer1, peer2) + pick(":1", ":2", ":3")
	ext := external + pick(":40001", ":40002", ":40003", ":80")
	flags := pick("S", "S", "A", "FA", "R", "SA")
	switch rnd.IntN(8) {
	case 0, 1:
		r.inside(UDP(in, remote, "x"))
	case 2, 3:
		r.inside(TCP(in, remote, flags, "x"))
	case 4:
		r.outside(TCP(remote, ext, flags, "x"))
	case 5:
		r.outside(UDP(remote, ext, "x"))
	case 6:
		r.inside(pickSpec(rnd, UDP(in, ext, "x"), TCP(in, ext, flags, "x")))
	case 7:
		r.egress("", pickSpec(rnd, UDP(ext, remote, "x"), TCP(ext, remote, flags, "x"), Ping(ext, peer1)))
	}
}

func pickSpec(rnd *rand.Rand, of ...Spec) Spec { return of[rnd.IntN(len(of))] }

// TestEventsLost: what the ring has no room for is counted, and told; nothing else is lost with it.
func TestEventsLost(t *testing.T) {
	r := newRig(t)
	const changes = 14000 // the ring holds fewer records
	syn, ack, rst := TCP(c1+":5000", peer1+":1", "S", ""), TCP(c1+":5000", peer1+":1", "A", ""), TCP(c1+":5000", peer1+":1", "R", "")
	r.inside(syn)
	r.must("change state", func() error {
		frames := [][]byte{fromContainer(rst).Bytes(), fromContainer(ack).Bytes()}
		for i := range changes {
			if _, err := r.run(r.dp.Objects().NatInside, "p1", frames[i%2]); err != nil {
				return err
			}
		}
		return nil
	})
	var lost, read uint64
	for _, e := range r.events() {
		if e.Type == dataplane.EventsLost {
			lost += e.Count
			continue
		}
		read++
	}
	if lost == 0 || lost+read != changes+2 {
		t.Errorf("%d events were read and %d told as lost, of %d", read, lost, changes+2)
	}
	r.must("usage", func() error {
		u, err := r.dp.Usage()
		if u.EventsLost != lost {
			t.Errorf("usage says that %d events were lost, the reader %d", u.EventsLost, lost)
		}
		return err
	})
	r.inside(rst)
	r.inside(ack)
	if got := r.events(); len(got) != 2 {
		t.Errorf("%d events after the loss, want 2", len(got))
	}
}
