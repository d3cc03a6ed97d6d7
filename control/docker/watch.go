// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
)

// MinAPI is the oldest API that is spoken: Docker 19.03's.
const MinAPI = "1.40"

// The events that may change a picture. Others, which health checks alone make every second, stay at the Engine.
var wanted = filters.NewArgs(
	filters.Arg("type", "container"), filters.Arg("type", "network"), filters.Arg("type", "daemon"),
	filters.Arg("event", "start"), filters.Arg("event", "restart"), filters.Arg("event", "die"), filters.Arg("event", "stop"),
	filters.Arg("event", "destroy"), filters.Arg("event", "rename"), filters.Arg("event", "update"),
	filters.Arg("event", "connect"), filters.Arg("event", "disconnect"), filters.Arg("event", "create"),
	filters.Arg("event", "remove"), filters.Arg("event", "reload"),
)

// Watch follows the Engine until ctx ends, whose error it returns. ready is closed after the first attempt,
// whether it gave a picture or not. While the Engine is gone Watch tries again, at least once per second.
func (s *Source) Watch(ctx context.Context, ready chan<- struct{}) error {
	tried := sync.OnceFunc(func() { close(ready) })
	defer tried()
	wait := s.times.backoff
	// What was known of the containers outlives a session: for one that the Engine does not answer for.
	known := map[string]*containerState{}
	for {
		n, start := newSession(s, known, tried), time.Now()
		err := n.run(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.disconnected(s.explain(err))
		tried()
		if n.published {
			known = n.containers
		}
		if time.Since(start) > wait {
			wait = s.times.backoff
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, s.times.maxBackoff)
	}
}

// session is one connection to the Engine and what is known by it.
type session struct {
	s      *Source
	cli    *client.Client
	tried  func()
	engine string
	known  map[string]*containerState // of earlier sessions

	networks   []network.Summary
	containers map[string]*containerState // by ID: running ones
	failed     map[string]error           // the last inspection's, by container ID
	changed    bool                       // since the last picture
	published  bool                       // there was a picture

	dirty      dirt
	inspecting map[string]*inspecting // by container ID
	slots      chan struct{}
	results    chan inspected
	workers    sync.WaitGroup

	// When the burst of events counts as over, when a picture waits no longer for inspections, and when those
	// that failed are tried again; nil: not at all.
	act, show, again <-chan time.Time
	retryWait        time.Duration
}

// dirt is what events say has changed.
type dirt struct {
	containers    map[string]bool // by ID
	networks, all bool
}

func newSession(s *Source, known map[string]*containerState, tried func()) *session {
	return &session{
		s: s, known: known, tried: tried, retryWait: s.times.retry,
		containers: map[string]*containerState{}, failed: map[string]error{},
		dirty:      dirt{containers: map[string]bool{}},
		inspecting: map[string]*inspecting{}, slots: make(chan struct{}, inspectors), results: make(chan inspected),
	}
}

// run ends with an error, that of ctx or of the Engine.
func (n *session) run(ctx context.Context) error {
	var err error
	if n.cli, err = n.s.client(); err != nil {
		return err
	}
	defer n.cli.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer n.workers.Wait()
	defer cancel()
	if err := n.greet(ctx); err != nil {
		return err
	}
	messages, broken, err := n.subscribe(ctx, cancel)
	if err != nil {
		return err
	}
	if err := n.list(ctx); err != nil {
		return err
	}
	n.showWithin(n.s.times.first)
	return n.follow(ctx, messages, broken)
}

// greet negotiates the API's version.
func (n *session) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.s.times.answer)
	defer cancel()
	ping, err := n.cli.Ping(ctx)
	if err != nil {
		return err
	}
	if ping.APIVersion == "" || versions.LessThan(ping.APIVersion, MinAPI) {
		return &oldError{ping.APIVersion}
	}
	n.cli.NegotiateAPIVersionPing(ping)
	v, err := n.cli.ServerVersion(ctx)
	n.engine = fmt.Sprintf("%s, API %s", v.Version, n.cli.ClientVersion())
	return err
}

// subscribe returns when the Engine has answered. One that does not ends the session, by its cancel.
func (n *session) subscribe(ctx context.Context, cancel func()) (<-chan events.Message, <-chan error, error) {
	late := time.AfterFunc(n.s.times.answer, cancel)
	// The Engine (20.10's at least) answers before it subscribes; what happens in between is replayed.
	now := time.Now()
	since := fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())
	messages, broken := n.cli.Events(ctx, events.ListOptions{Since: since, Filters: wanted})
	if !late.Stop() {
		return nil, nil, fmt.Errorf("subscribe to events: %w", context.DeadlineExceeded)
	}
	return messages, broken, nil
}

// follow lives as long as the subscription.
func (n *session) follow(ctx context.Context, messages <-chan events.Message, broken <-chan error) error {
	resync := time.NewTicker(n.s.times.resync)
	defer resync.Stop()
	for {
		select { // a subscription that failed must not be followed by a picture
		case err := <-broken:
			return lost(err)
		default:
		}
		if len(n.inspecting) == 0 {
			n.showNow()
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err = <-broken:
			return lost(err)
		case m := <-messages:
			n.hear(m)
		case <-n.act:
			err = n.settle(ctx)
		case r := <-n.results:
			err = n.take(ctx, r)
		case <-n.show:
			n.showNow()
		case <-n.again:
			n.retry(ctx)
		case <-resync.C:
			err = n.list(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// hear notes what an event is about. The first one of a burst starts the clock.
func (n *session) hear(m events.Message) {
	switch {
	case m.Type == events.ContainerEventType:
		n.dirty.containers[m.Actor.ID] = true
	case m.Type == events.NetworkEventType && (m.Action == events.ActionConnect || m.Action == events.ActionDisconnect):
		n.dirty.containers[m.Actor.Attributes["container"]] = true
	case m.Type == events.NetworkEventType:
		n.dirty.networks = true
	default:
		n.dirty.all = true
	}
	n.actSoon()
}

func (n *session) actSoon() {
	if n.act == nil {
		n.act = time.After(n.s.times.debounce)
	}
}

// settle reads what a burst has changed.
func (n *session) settle(ctx context.Context) error {
	d := n.dirty
	n.act, n.dirty = nil, dirt{containers: map[string]bool{}}
	for id := range d.containers {
		n.inspect(ctx, id)
	}
	switch {
	case d.all:
		return n.list(ctx)
	case d.networks:
		return n.listNetworks(ctx)
	}
	return nil
}

func (n *session) showWithin(d time.Duration) {
	if n.show == nil {
		n.show = time.After(d)
	}
}

// showNow publishes the picture if it has changed. Where the Engine has not answered for a container yet, what
// was known of it before stays.
func (n *session) showNow() {
	n.show = nil
	if n.published && !n.changed {
		return
	}
	incomplete := false
	for id := range n.inspecting {
		n.recall(id)
		incomplete = incomplete || n.containers[id] == nil
	}
	next := n.picture()
	next.Incomplete = incomplete
	n.s.publish(next)
	n.changed, n.published = false, true
	n.tried()
}

// recall takes over what an earlier session knew of a container.
func (n *session) recall(id string) {
	if known := n.known[id]; known != nil && n.containers[id] == nil {
		n.containers[id] = known
	}
}
