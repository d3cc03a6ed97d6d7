// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/conenat/conenat/dataplane"
)

const (
	// DefaultHistory is how many events are kept; about 20 MB when it is full.
	DefaultHistory = 65536
	// DefaultQueue is how many events may wait for one subscriber.
	DefaultQueue = 16384

	// A storm of new sessions loses events all the time: the tables are read when none was lost for a while, or after a longer one.
	// Read meanwhile they would take the CPU that the storm needs, and be out of date.
	calmAfter  = 500 * time.Millisecond
	calmWithin = 30 * time.Second

	// After a loss, the tables are read when the events that were under way have been, and again until they
	// agree with the events: a table read says nothing of what is still in the ring.
	resyncDelay  = 200 * time.Millisecond
	resyncRounds = 8
	// Each comparison waits as many times as long as the last one took: a million sessions take seconds to read, and a storm
	// of new ones loses events all the time.
	restFactor = 9

	// The tables are compared now and then without a known loss, too: two processors may tell the end of a
	// session and the beginning of the next one between the same endpoints in the wrong order.
	comparePeriod = time.Minute
)

// Source is where events and tables come from.
type Source interface {
	ReadEvent(context.Context) (dataplane.Event, error)
	Bindings() ([]dataplane.Binding, error)
	Sessions() ([]dataplane.Session, error)
}

// Watcher is the history and its subscribers. Its methods may be called from any goroutine.
type Watcher struct {
	source Source
	log    *slog.Logger
	queue  int

	mu    sync.Mutex
	base  *Table  // what the events before ring leave
	ring  history // the latest events
	known *Table  // what all events leave
	taken int     // events so far
	subs  map[*Subscription]bool
}

// New is a watcher that keeps up to size events; 0 means DefaultHistory.
func New(source Source, size int, log *slog.Logger) *Watcher {
	if size == 0 {
		size = DefaultHistory
	}
	return &Watcher{source: source, log: log, queue: DefaultQueue,
		base: NewTable(), known: NewTable(), ring: history{size: size}, subs: map[*Subscription]bool{}}
}

// Start reads what lives already, which the history begins with.
func (w *Watcher) Start() error {
	truth, err := w.read()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ev := range truth.events() {
		w.take(ev)
	}
	return nil
}

// Run reads events until ctx ends, whose error it returns, or until they cannot be read.
func (w *Watcher) Run(ctx context.Context) error {
	repair := make(chan uint64, 64)
	go w.repair(ctx, repair)
	for {
		ev, err := w.source.ReadEvent(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read events of the dataplane: %w", err)
		}
		w.mu.Lock()
		w.take(ev)
		w.mu.Unlock()
		if ev.Type == dataplane.EventsLost {
			select {
			case repair <- ev.Count:
			default: // it is busy, and will look for them, too
			}
		}
	}
}

// Tell adds an event that is not the dataplane's.
func (w *Watcher) Tell(ev dataplane.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.take(ev)
}

// repair tells the difference between events and tables, for as long as there is one.
func (w *Watcher) repair(ctx context.Context, lost <-chan uint64) {
	now := time.NewTicker(comparePeriod)
	defer now.Stop()
	rest := resyncDelay
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-lost:
			n += calm(ctx, lost)
			w.log.Warn("events were lost: comparing with the tables", "count", n)
		case <-now.C:
		}
		rest = w.repairOnce(ctx, rest)
	}
}

// calm waits until no more events are lost, and returns how many were meanwhile.
func calm(ctx context.Context, lost <-chan uint64) (count uint64) {
	end := time.After(calmWithin)
	for {
		select {
		case n := <-lost:
			count += n
		case <-time.After(calmAfter):
			return count
		case <-end:
			return count
		case <-ctx.Done():
			return count
		}
	}
}

// repairOnce rests before it begins, and returns for how long the next one is to.
func (w *Watcher) repairOnce(ctx context.Context, rest time.Duration) time.Duration {
	for range resyncRounds {
		select {
		case <-ctx.Done():
			return rest
		case <-time.After(rest):
		}
		start := time.Now()
		corrected, unsure, err := w.correct()
		rest = restAfter(time.Since(start))
		if err != nil {
			w.log.Error("events cannot be compared with the tables", "error", err)
			continue
		}
		if corrected > 0 {
			w.log.Info("events were brought in line with the tables", "corrections", corrected)
		}
		if corrected+unsure == 0 {
			break
		}
	}
	return rest
}

// restAfter leaves a comparison a tenth of one CPU.
func restAfter(took time.Duration) time.Duration { return max(resyncDelay, restFactor*took) }

// correct compares once. It is unsure of what events spoke of while the tables were being read.
func (w *Watcher) correct() (corrected, unsure int, err error) {
	w.mu.Lock()
	start := w.taken
	w.mu.Unlock()
	truth, err := w.read()
	if err != nil {
		return 0, 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	meanwhile := map[bindingKey]bool{}
	for _, ev := range w.ring.latest(w.taken - start) {
		meanwhile[keyOf(ev).bindingKey] = true
	}
	now := time.Now()
	for _, ev := range w.known.corrections(truth) {
		if meanwhile[keyOf(ev).bindingKey] {
			unsure++
			continue
		}
		corrected++
		ev.Time = now
		w.take(ev)
	}
	return corrected, unsure, nil
}

func (w *Watcher) read() (*Table, error) {
	bindings, err := w.source.Bindings()
	if err != nil {
		return nil, fmt.Errorf("read bindings: %w", err)
	}
	sessions, err := w.source.Sessions()
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	return tableOf(bindings, sessions), nil
}

// take is an event's way: into the table, the history and the queues. One that is known already goes no
// further.
func (w *Watcher) take(ev dataplane.Event) {
	ev = w.known.named(ev)
	if !w.known.Apply(ev) {
		return
	}
	if last := w.ring.last(); last != nil && ev.Time.Before(last.Time) { // the clocks of two processors
		ev.Time = last.Time
	}
	w.taken++
	if old, full := w.ring.add(ev); full {
		w.base.Apply(old)
	}
	for s := range w.subs {
		s.put(ev)
	}
}

// past is the history since a moment; the zero time is the beginning. The caller has the lock.
func (w *Watcher) past(since time.Time) []dataplane.Event {
	if since.IsZero() {
		return append(w.base.events(), w.ring.latest(w.taken)...)
	}
	var out []dataplane.Event
	for _, ev := range w.base.events() {
		if !ev.Time.Before(since) {
			out = append(out, ev)
		}
	}
	for _, ev := range w.ring.latest(w.taken) {
		if !ev.Time.Before(since) {
			out = append(out, ev)
		}
	}
	return out
}

// History is the events since a moment, oldest first. The zero time asks for all, and replaying that gives
// what lives.
func (w *Watcher) History(since time.Time) []dataplane.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.past(since)
}

// Subscribe gives the history since a moment and a subscription that goes on behind it, without a gap and
// without an event twice. Close it.
func (w *Watcher) Subscribe(since time.Time) ([]dataplane.Event, *Subscription) {
	s := &Subscription{limit: w.queue, wake: make(chan struct{}, 1), watcher: w}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.subs[s] = true
	return w.past(since), s
}

// Subscription is one reader of events.
type Subscription struct {
	watcher *Watcher
	limit   int
	wake    chan struct{}

	mu   sync.Mutex
	wait []dataplane.Event
	lost uint64
}

func (s *Subscription) put(ev dataplane.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lost > 0 || len(s.wait) >= s.limit:
		s.lost++
	default:
		s.wait = append(s.wait, ev)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next waits for events, and gives all that are there. Those that had no room come as one EventsLost behind
// the ones that had. Error: ctx's, when it ends.
func (s *Subscription) Next(ctx context.Context) ([]dataplane.Event, error) {
	for {
		if evs := s.drain(); len(evs) > 0 {
			return evs, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.wake:
		}
	}
}

func (s *Subscription) drain() []dataplane.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	evs := s.wait
	if s.lost > 0 {
		evs = append(evs, dataplane.Event{Time: time.Now(), Type: dataplane.EventsLost, Count: s.lost})
	}
	s.wait, s.lost = nil, 0
	return evs
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.watcher.mu.Lock()
	defer s.watcher.mu.Unlock()
	delete(s.watcher.subs, s)
}
