// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/rig"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
)

// TestEventsInOrder: of a binding's whole life, with all that its packets do.
func TestEventsInOrder(t *testing.T) { family.Each(t, testEventsInOrder) }

func testEventsInOrder(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	binding := "udp br0 " + rig.C1 + ":5000 " + rig.External + ":5000"
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x"))
	r.Inside(UDP(rig.C1+":5000", rig.Peer2+":2", "x"))
	r.Outside(UDP(rig.Peer1+":3", rig.External+":5000", "x"))
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":8080")
	r.Outside(TCP(rig.Peer1+":4", rig.External+":80", "S", ""))
	r.WantEvents(
		"binding.created "+binding,
		"session.created "+binding+" "+rig.Peer1+":1 active",
		"session.created "+binding+" "+rig.Peer2+":2 active",
		"session.created "+binding+" "+rig.Peer1+":3 active",
		"binding.created tcp br0 "+rig.C1+":8080 "+rig.External+":80 static",
		"session.created tcp br0 "+rig.C1+":8080 "+rig.External+":80 "+rig.Peer1+":4 init-outside static",
	)
	r.Wait(241 * time.Second)
	if err := r.RemoveForward(dataplane.TCP, rig.External+":80"); err != nil {
		t.Fatal(err)
	}
	r.WantEvents(
		"session.closed tcp br0 "+rig.C1+":8080 "+rig.External+":80 "+rig.Peer1+":4 init-outside static",
		"binding.expired tcp br0 "+rig.C1+":8080 "+rig.External+":80 static",
	)
	r.Wait(time.Minute)
	var closed []string
	for _, e := range r.Events() {
		closed = append(closed, rig.EventLine(e))
	}
	if len(closed) != 4 || closed[3] != fam.Text("binding.expired "+binding) {
		t.Errorf("events at the end: %q", closed)
	}
}

// TestEventFields: times are the clock's, and counts of sessions those of the binding.
func TestEventFields(t *testing.T) { family.Each(t, testEventFields) }

func testEventFields(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for i := range 3 {
		r.Inside(UDP(rig.C1+":5000", fmt.Sprintf("%s:%d", rig.Peer1, i+1), "x"))
		r.Wait(time.Second)
	}
	var last time.Time
	for i, e := range r.Events() {
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

// TestReplay: the stream of events gives the tables, after any mixture of packets.
func TestReplay(t *testing.T) { family.Each(t, testReplay) }

func testReplay(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithPorts(40000, 40063))
	rnd := rand.New(rand.NewPCG(3, 4))
	told := replay{map[string]string{}, map[string]string{}}
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	for round := range 12 {
		for range 40 {
			r.Anything(rnd)
		}
		r.Wait(time.Duration(rnd.IntN(200)) * time.Second)
		for _, e := range r.Events() {
			told.apply(t, e)
		}
		bindings, sessions := r.Tables()
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
		r.Consistent()
	}
}

// TestEventsLost: what the ring has no room for is counted, and told; nothing else is lost with it.
func TestEventsLost(t *testing.T) {
	r := rig.New(t)
	const changes = 14000 // the ring holds fewer records
	syn, ack, rst := TCP(rig.C1+":5000", rig.Peer1+":1", "S", ""), TCP(rig.C1+":5000", rig.Peer1+":1", "A", ""), TCP(rig.C1+":5000", rig.Peer1+":1", "R", "")
	r.Inside(syn)
	r.Must("change state", func() error {
		frames := [][]byte{rig.FromContainer(rst).Bytes(), rig.FromContainer(ack).Bytes()}
		for i := range changes {
			if _, err := r.Run(r.DP.Objects().NatInside, "p1", frames[i%2]); err != nil {
				return err
			}
		}
		return nil
	})
	var lost, read uint64
	for _, e := range r.Events() {
		if e.Type == dataplane.EventsLost {
			lost += e.Count
			continue
		}
		read++
	}
	if lost == 0 || lost+read != changes+2 {
		t.Errorf("%d events were read and %d told as lost, of %d", read, lost, changes+2)
	}
	r.Must("usage", func() error {
		u, err := r.DP.Usage()
		if u.EventsLost != lost {
			t.Errorf("usage says that %d events were lost, the reader %d", u.EventsLost, lost)
		}
		return err
	})
	r.Inside(rst)
	r.Inside(ack)
	if got := r.Events(); len(got) != 2 {
		t.Errorf("%d events after the loss, want 2", len(got))
	}
}
