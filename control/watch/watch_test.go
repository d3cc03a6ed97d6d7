// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

var (
	outside = netip.MustParseAddr("198.51.100.1")
	inside  = netip.MustParseAddr("172.17.0.2")
	peer    = netip.MustParseAddr("203.0.113.1")
)

func binding(port uint16) dataplane.Binding {
	return dataplane.Binding{Protocol: dataplane.UDP, Network: "br0", Internal: netip.AddrPortFrom(inside, port), External: netip.AddrPortFrom(outside, port)}
}

func session(port, remote uint16) dataplane.Session {
	b := binding(port)
	return dataplane.Session{Protocol: b.Protocol, Network: b.Network, Internal: b.Internal, External: b.External,
		Remote: netip.AddrPortFrom(peer, remote), State: "active"}
}

func newWatcher(d *dataplanetest.Dataplane, history int) *Watcher {
	return New(d, history, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// running starts a watcher in a synctest bubble and ends it with the test.
func running(t *testing.T, w *Watcher) {
	t.Helper()
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}

// summary is a table without times: what `bindings` and `sessions` print.
func summary(bindings, sessions []dataplane.Event) (out []string) {
	for _, b := range bindings {
		out = append(out, fmt.Sprint(b.Protocol, b.Network, b.Internal, b.External, b.Static, b.Sessions))
	}
	for _, s := range sessions {
		out = append(out, fmt.Sprint(s.Protocol, s.Network, s.Internal, s.External, s.Remote, s.State))
	}
	sort.Strings(out)
	return out
}

func truth(t *testing.T, d *dataplanetest.Dataplane) []string {
	t.Helper()
	b, _ := d.Bindings()
	s, _ := d.Sessions()
	table := tableOf(b, s)
	return summary(table.Bindings(), table.Sessions())
}

func replayed(events []dataplane.Event) []string {
	table := Replay(events)
	return summary(table.Bindings(), table.Sessions())
}

func types(events []dataplane.Event) string {
	var out []string
	for _, ev := range events {
		out = append(out, string(ev.Type))
	}
	return strings.Join(out, " ")
}

// live does at random what packets and the sweeper do.
func live(d *dataplanetest.Dataplane, r *rand.Rand, steps int) {
	for range steps {
		port, remote := uint16(1024+r.IntN(20)), uint16(1+r.IntN(5))
		switch r.IntN(8) {
		case 0:
			d.EndBinding(binding(port))
		case 1:
			d.CloseSession(session(port, remote))
		case 2:
			if known(d, session(port, remote)) {
				d.ChangeSession(session(port, remote), []string{"active", "established", "closing"}[r.IntN(3)])
			}
		default:
			if !bound(d, binding(port)) {
				d.OpenBinding(binding(port))
			}
			if !known(d, session(port, remote)) {
				d.OpenSession(session(port, remote))
			}
		}
	}
}

func bound(d *dataplanetest.Dataplane, b dataplane.Binding) bool {
	all, _ := d.Bindings()
	for _, is := range all {
		if is.External == b.External {
			return true
		}
	}
	return false
}

func known(d *dataplanetest.Dataplane, s dataplane.Session) bool {
	all, _ := d.Sessions()
	for _, is := range all {
		if is.External == s.External && is.Remote == s.Remote {
			return true
		}
	}
	return false
}

func TestReplayingTheWholeHistoryGivesTheTables(t *testing.T) {
	for _, history := range []int{4, 50, 100000} { // folded often, now and then, never
		for _, adopted := range []bool{false, true} {
			t.Run(fmt.Sprintf("history_%d_adopted_%v", history, adopted), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := rand.New(rand.NewPCG(1, uint64(history)))
					d := dataplanetest.New()
					if adopted {
						live(d, r, 100)
						d = d.Reopen()
					}
					w := newWatcher(d, history)
					running(t, w)
					for range 50 {
						live(d, r, 20)
						synctest.Wait()
						if diff := cmp.Diff(truth(t, d), replayed(w.History(time.Time{}))); diff != "" {
							t.Fatal(diff)
						}
					}
				})
			})
		}
	}
}

func TestALossIsMadeGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		d := dataplanetest.New()
		w := newWatcher(d, 1000)
		running(t, w)
		_, sub := w.Subscribe(time.Time{})
		defer sub.Close()
		var followed []dataplane.Event
		for range 20 {
			live(d, r, 20)
			d.Mute()
			live(d, r, 20)
			d.Unmute()
			live(d, r, 5)
			time.Sleep(resyncRounds * 2 * resyncDelay)
			synctest.Wait()
			if diff := cmp.Diff(truth(t, d), replayed(w.History(time.Time{}))); diff != "" {
				t.Fatal(diff)
			}
			followed = append(followed, sub.drain()...)
			if diff := cmp.Diff(truth(t, d), replayed(followed)); diff != "" {
				t.Fatalf("who follows sees another table: %s", diff)
			}
		}
		if !strings.Contains(types(followed), string(dataplane.EventsLost)) {
			t.Error("nobody said that events were lost")
		}
	})
}

func TestAMissedEventIsFoundInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := dataplanetest.New()
		w := newWatcher(d, 0)
		running(t, w)
		d.OpenBinding(binding(1))
		d.OpenSession(session(1, 1))
		gone := session(1, 1)
		d.Emit(dataplane.Event{Type: dataplane.SessionClosed, Protocol: gone.Protocol, Internal: gone.Internal, External: gone.External, Remote: gone.Remote})
		time.Sleep(comparePeriod + 2*resyncDelay)
		synctest.Wait()
		if diff := cmp.Diff(truth(t, d), replayed(w.History(time.Time{}))); diff != "" {
			t.Error(diff)
		}
	})
}

func TestSubscribeHasNoGapAndNoDouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := dataplanetest.New()
		w := newWatcher(d, 0)
		running(t, w)
		const n = 2000
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range n {
				d.OpenBinding(binding(uint16(i + 1)))
				time.Sleep(time.Millisecond)
			}
		}()
		for range 20 {
			time.Sleep(50 * time.Millisecond)
			past, sub := w.Subscribe(time.Time{})
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			all := append(past, sub.drain()...)
			sub.Close()
			for i, ev := range all {
				if int(ev.External.Port()) != i+1 {
					t.Fatalf("event %d is of port %d", i, ev.External.Port())
				}
			}
		}
		<-done
	})
}

func TestASlowSubscriberIsToldWhatItMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := dataplanetest.New()
		w := newWatcher(d, 0)
		w.queue = 3
		running(t, w)
		_, slow := w.Subscribe(time.Time{})
		for i := range 10 {
			d.OpenBinding(binding(uint16(i + 1)))
		}
		synctest.Wait()
		got, err := slow.Next(t.Context())
		if err != nil || len(got) != 4 || got[3].Type != dataplane.EventsLost || got[3].Count != 7 {
			t.Errorf("%v, %s, %+v", err, types(got), got[len(got)-1])
		}
		d.OpenBinding(binding(99))
		if got, _ = slow.Next(t.Context()); len(got) != 1 || got[0].External.Port() != 99 {
			t.Errorf("after it: %s", types(got))
		}
		slow.Close()
		if len(w.subs) != 0 {
			t.Error("it is still subscribed")
		}
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	w := newWatcher(dataplanetest.New(), 0)
	_, sub := w.Subscribe(time.Time{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sub.Next(ctx); err != context.Canceled {
		t.Error(err)
	}
}

func TestHistorySince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := dataplanetest.New()
		w := newWatcher(d, 2)
		running(t, w)
		start := time.Now()
		for i := range 6 {
			d.OpenBinding(binding(uint16(i + 1)))
			synctest.Wait()
			time.Sleep(time.Minute)
		}
		for minutes, want := range map[int]int{0: 6, 1: 5, 5: 1, 6: 0} {
			if got := w.History(start.Add(time.Duration(minutes) * time.Minute)); len(got) != want {
				t.Errorf("since minute %d: %d events, want %d", minutes, len(got), want)
			}
		}
	})
}

func TestARemovedNetworkKeepsItsNameInEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := dataplanetest.New()
		w := newWatcher(d, 0)
		running(t, w)
		b := binding(1)
		d.OpenBinding(b)
		d.Emit(dataplane.Event{Type: dataplane.BindingExpired, Protocol: b.Protocol, Internal: b.Internal, External: b.External})
		synctest.Wait()
		if h := w.History(time.Time{}); len(h) != 2 || h[1].Network != "br0" {
			t.Errorf("%+v", h)
		}
	})
}

func TestTimesNeverGoBack(t *testing.T) {
	w := newWatcher(dataplanetest.New(), 0)
	at := time.Now()
	for i, d := range []time.Duration{2, 1, 3} {
		b := binding(uint16(i + 1))
		w.take(dataplane.Event{Type: dataplane.BindingCreated, Time: at.Add(d), Protocol: b.Protocol, Internal: b.Internal, External: b.External})
	}
	h := w.History(time.Time{})
	if h[1].Time.Before(h[0].Time) || h[2].Time.Before(h[1].Time) {
		t.Errorf("%v %v %v", h[0].Time, h[1].Time, h[2].Time)
	}
}

func BenchmarkTake(b *testing.B) {
	w := newWatcher(dataplanetest.New(), 0)
	for i := range b.N {
		s := session(uint16(i), uint16(i>>16))
		w.take(dataplane.Event{Type: dataplane.SessionCreated, Protocol: s.Protocol, Internal: s.Internal, External: s.External, Remote: s.Remote})
		if i > 1000 {
			s := session(uint16(i-1000), uint16((i-1000)>>16))
			w.take(dataplane.Event{Type: dataplane.SessionClosed, Protocol: s.Protocol, Internal: s.Internal, External: s.External, Remote: s.Remote})
		}
	}
}

// TestPortlessBindingsAreToldApart: they have the external address in common, and their remotes and hosts to themselves.
func TestPortlessBindingsAreToldApart(t *testing.T) {
	event := func(typ dataplane.EventType, internal, remote string) dataplane.Event {
		return dataplane.Event{Type: typ, Protocol: dataplane.GRE, Internal: netip.MustParseAddrPort(internal),
			External: netip.MustParseAddrPort("198.51.100.1:0"), Remote: netip.MustParseAddrPort(remote)}
	}
	const first, second, here, there = "172.17.0.2:0", "172.17.0.3:0", "203.0.113.1:0", "203.0.113.2:0"
	table := Replay([]dataplane.Event{
		event(dataplane.BindingCreated, first, here), event(dataplane.SessionCreated, first, here),
		event(dataplane.BindingCreated, second, there), event(dataplane.SessionCreated, second, there),
		event(dataplane.SessionClosed, first, here), event(dataplane.BindingExpired, first, here),
	})
	bindings, sessions := table.Bindings(), table.Sessions()
	if len(bindings) != 1 || bindings[0].Internal.String() != second || bindings[0].Sessions != 1 {
		t.Errorf("bindings %+v, want that of %s with one session", bindings, second)
	}
	if len(sessions) != 1 || sessions[0].Remote.String() != there {
		t.Errorf("sessions %+v, want that with %s", sessions, there)
	}
}

// TestCalm: losses that come one after the other are one.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := make(chan uint64)
		go func() {
			for range 10 {
				time.Sleep(calmAfter / 2)
				lost <- 2
			}
		}()
		start := time.Now()
		if got, took := calm(t.Context(), lost), time.Since(start); got != 20 || took != 10*calmAfter/2+calmAfter {
			t.Errorf("%d were lost in %v", got, took)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() {
			for ctx.Err() == nil {
				select {
				case lost <- 1:
					time.Sleep(calmAfter / 2)
				case <-ctx.Done():
				}
			}
		}()
		start = time.Now()
		if calm(t.Context(), lost); time.Since(start) != calmWithin {
			t.Errorf("a storm is waited for during %v", time.Since(start))
		}
	})
}

// TestRest: a comparison that takes long comes seldom.
func TestRest(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{0: resyncDelay, time.Millisecond: resyncDelay, 2 * time.Second: 18 * time.Second} {
		if got := restAfter(took); got != want {
			t.Errorf("after %v it rests for %v, want %v", took, got, want)
		}
	}
}
