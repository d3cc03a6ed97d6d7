// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// Dataplane is what the loop drives.
type Dataplane interface {
	Adopted() bool
	Configure(dataplane.Settings) error
	Settings() (dataplane.Settings, error)
	PutNetwork(dataplane.Network) error
	RemoveNetwork(name string) error
	Networks() ([]dataplane.Network, error)
	PutOutside(dataplane.Outside) error
	RemoveOutside(name string) error
	Outsides() ([]dataplane.Outside, error)
	Attach(dataplane.Link) error
	Detach(ifindex int) error
	Links() ([]dataplane.Link, error)
	Bindings() ([]dataplane.Binding, error)
	AddForward(dataplane.Forward) (dataplane.Binding, error)
	RemoveForward(dataplane.Protocol, netip.AddrPort) error
	ReserveHost(dataplane.Protocol, netip.AddrPort) error
}

// Host is what the loop follows.
type Host interface {
	Snapshot() (hostnet.Snapshot, error)
	Sockets() ([]hostnet.Socket, error)
	Changes() <-chan struct{}
}

// Exceptions keeps the host's own NAT off the packets that take the stack.
type Exceptions interface {
	Ensure([]exceptions.Pair) error
}

const (
	resyncPeriod = 30 * time.Second
	retryFirst   = 250 * time.Millisecond
	retryLast    = 30 * time.Second
)

// Reconciler is the loop. Its methods may be called from any goroutine.
type Reconciler struct {
	cfg        config.Config
	dp         Dataplane
	host       Host
	exceptions Exceptions
	log        *slog.Logger

	mu       sync.Mutex                   // one pass, or one change of forwards, at a time
	forwards map[string]dataplane.Forward // wanted, by plan.ForwardID
	stale    map[int]bool                 // interfaces to attach again
	reserved []netip.Addr                 // external addresses that the host's sockets were reserved on
	leftover bool                         // there may be static bindings that nobody wants
	settings configured
	pass     passState

	viewMu sync.Mutex
	view   View
}

// configured are the settings that were given and what the dataplane made of them (it rounds durations).
type configured struct{ given, taken dataplane.Settings }

// passState is what one pass knows of failures; those of the pass before tell which are new.
type passState struct {
	failures []Failure
	fatal    []error
}

// View is the outcome of the last pass.
type View struct {
	Host     hostnet.Snapshot
	Problems []string  // what is waited for
	Failures []Failure // what did not succeed and is tried again
}

// Failure is an action that did not succeed.
type Failure struct {
	Action string
	Err    error
	Tries  int
	Since  time.Time
}

// New is a loop that has done nothing yet.
func New(cfg config.Config, dp Dataplane, host Host, exc Exceptions, log *slog.Logger) *Reconciler {
	r := &Reconciler{cfg: cfg, dp: dp, host: host, exceptions: exc, log: log, leftover: true,
		forwards: map[string]dataplane.Forward{}, stale: map[int]bool{}}
	for _, f := range cfg.Forwards {
		r.forwards[plan.ForwardID(f.Protocol, f.External)] = f
	}
	return r
}

// Start makes the first pass. Its error is an action without which conenat does not work at all; a forward
// or a bridge port that fails is only reported and tried again.
func (r *Reconciler) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dp.Adopted() {
		if err := r.adopt(); err != nil {
			return err
		}
	}
	r.reconcile(true)
	return errors.Join(r.pass.fatal...)
}

// adopt takes over what an earlier daemon left: forwards that were made while it ran are kept, and all hooks
// are put on anew, because they still run its programs.
func (r *Reconciler) adopt() error {
	bindings, err := r.dp.Bindings()
	if err != nil {
		return fmt.Errorf("adopt bindings: %w", err)
	}
	for _, f := range forwardsOf(bindings) {
		id := plan.ForwardID(f.Protocol, f.External)
		if _, configured := r.forwards[id]; !configured && slices.Contains(r.cfg.Inside, f.Network) {
			r.forwards[id] = f
		}
	}
	links, err := r.dp.Links()
	if err != nil {
		return fmt.Errorf("adopt hooks: %w", err)
	}
	for _, l := range links {
		r.stale[l.IfIndex] = true
	}
	return nil
}

// Run follows the host until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error {
	resync := time.NewTicker(resyncPeriod)
	defer resync.Stop()
	retry := retryFirst
	for {
		var again <-chan time.Time
		if len(r.View().Failures) > 0 {
			again = time.After(retry)
		}
		sockets := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.host.Changes():
			retry = retryFirst
		case <-resync.C:
			sockets = true
		case <-again:
			retry = min(2*retry, retryLast)
		}
		r.mu.Lock()
		r.reconcile(sockets)
		r.mu.Unlock()
	}
}

// View is the outcome of the last pass.
func (r *Reconciler) View() View {
	r.viewMu.Lock()
	defer r.viewMu.Unlock()
	return r.view
}

// reconcile is one pass. With sockets, the host's sockets are reserved anew, which lasts for a while only.
func (r *Reconciler) reconcile(sockets bool) {
	r.pass = passState{}
	host, err := r.host.Snapshot()
	if err != nil {
		r.fail("read the host's network", err, true)
		r.publish(r.View().Host, nil)
		return
	}
	actual, err := r.actual()
	if err != nil {
		r.fail("read the dataplane", err, true)
		r.publish(host, nil)
		return
	}
	t := desire(r.cfg, host, actual, r.wanted())
	actions := plan.New(t.State, actual)
	r.carryOut(actions, t.Outsides, sockets)
	if len(r.forwards) > 0 && slices.ContainsFunc(actions, endsForwards) {
		if actual, err = r.actual(); err == nil {
			r.carryOut(plan.New(t.State, actual), t.Outsides, false)
		}
	}
	r.ensureExceptions()
	r.leftover = r.leftover && len(r.pass.failures) > 0
	r.publish(host, t.problems)
}

// endsForwards are the actions that may take static bindings along: these are made anew, or it shows why they
// cannot be.
func endsForwards(a plan.Action) bool {
	return a.Verb == plan.PutOutside || a.Verb == plan.RemoveOutside || a.Verb == plan.RemoveNetwork
}

// carryOut executes a plan; the host's ports are reserved before any hook is put on.
func (r *Reconciler) carryOut(actions []plan.Action, outsides []dataplane.Outside, sockets bool) {
	hooks := slices.IndexFunc(actions, func(a plan.Action) bool { return a.Verb == plan.Attach })
	if hooks < 0 {
		hooks = len(actions)
	}
	r.execute(actions[:hooks])
	r.reserve(outsides, sockets)
	r.execute(actions[hooks:])
}

func (r *Reconciler) wanted() (out []dataplane.Forward) {
	for _, f := range r.forwards {
		out = append(out, f)
	}
	return out
}

// actual reads what the dataplane holds. Bindings, which may be many, are read only where forwards are.
func (r *Reconciler) actual() (plan.State, error) {
	s, err := r.hooked()
	if err != nil {
		return s, err
	}
	settings, err := r.dp.Settings()
	if err != nil {
		return s, err
	}
	if settings == r.settings.taken { // else zero, which is configured in any case
		s.Settings = r.settings.given
	}
	if len(r.forwards) > 0 || r.leftover {
		bindings, err := r.dp.Bindings()
		if err != nil {
			return s, err
		}
		s.Forwards = forwardsOf(bindings)
	}
	for index := range r.stale {
		s.Stale = append(s.Stale, index)
	}
	return s, nil
}

// hooked reads who has hooks.
func (r *Reconciler) hooked() (s plan.State, err error) {
	if s.Networks, err = r.dp.Networks(); err != nil {
		return s, err
	}
	if s.Outsides, err = r.dp.Outsides(); err != nil {
		return s, err
	}
	s.Links, err = r.dp.Links()
	before := r.View().Host
	for i, l := range s.Links { // one that is gone has no name any more
		if was, ok := before.LinkAt(l.IfIndex); ok && l.Name == "" {
			s.Links[i].Name = was.Name
		}
	}
	return s, err
}

func forwardsOf(bindings []dataplane.Binding) (out []dataplane.Forward) {
	for _, b := range bindings {
		if b.Static {
			out = append(out, dataplane.Forward{Protocol: b.Protocol, Network: b.Network, External: b.External, Internal: b.Internal})
		}
	}
	return out
}

func (r *Reconciler) execute(actions []plan.Action) {
	for _, a := range actions {
		err := r.act(a)
		switch a.Verb {
		case plan.Attach:
			delete(r.stale, a.Link.IfIndex)
			if err != nil {
				r.stale[a.Link.IfIndex] = true
			}
		case plan.Detach:
			delete(r.stale, a.Link.IfIndex)
		}
		if err != nil {
			r.fail(a.String(), err, vital(a))
			continue
		}
		r.log.Info(a.String())
	}
}

// vital: without these there is no NAT. A bridge port may go away at any moment, and its bridge's hooks see
// its packets as well; an old hook or a forward that fails harms nobody else.
func vital(a plan.Action) bool {
	switch a.Verb {
	case plan.Configure, plan.PutOutside, plan.PutNetwork:
		return true
	case plan.Attach:
		return a.Link.Kind != dataplane.InsidePort
	}
	return false
}

func (r *Reconciler) act(a plan.Action) error {
	switch a.Verb {
	case plan.Detach:
		return gone(r.dp.Detach(a.Link.IfIndex))
	case plan.RemoveForward:
		return gone(r.dp.RemoveForward(a.Forward.Protocol, a.Forward.External))
	case plan.RemoveNetwork:
		return gone(r.dp.RemoveNetwork(a.Network.Name))
	case plan.RemoveOutside:
		return gone(r.dp.RemoveOutside(a.Outside.Name))
	case plan.Configure:
		return r.configure(a.Settings)
	case plan.PutOutside:
		return r.dp.PutOutside(a.Outside)
	case plan.PutNetwork:
		return r.dp.PutNetwork(a.Network)
	case plan.AddForward:
		_, err := r.dp.AddForward(a.Forward)
		return err
	case plan.Attach:
		return r.dp.Attach(a.Link)
	}
	return fmt.Errorf("plan has an unknown verb %q", a.Verb)
}

func (r *Reconciler) configure(s dataplane.Settings) error {
	if err := r.dp.Configure(s); err != nil {
		return err
	}
	taken, err := r.dp.Settings()
	if err != nil {
		return err
	}
	r.settings = configured{given: s, taken: taken}
	return nil
}

// gone: what is not there needs no removal.
func gone(err error) error {
	if errors.Is(err, dataplane.ErrNotFound) {
		return nil
	}
	return err
}

// reserve keeps bindings off the ports of the host's connected sockets.
func (r *Reconciler) reserve(outsides []dataplane.Outside, anyway bool) {
	var external []netip.Addr
	for _, o := range outsides {
		if o.Address.IsValid() {
			external = append(external, o.Address)
		}
	}
	if !anyway && slices.Equal(external, r.reserved) {
		return
	}
	const action = "reserve the ports of the host's sockets"
	sockets, err := r.host.Sockets()
	if err != nil {
		r.fail(action, err, false)
		return
	}
	for _, s := range sockets {
		if !slices.Contains(external, s.Local.Addr()) {
			continue
		}
		if err := r.dp.ReserveHost(s.Protocol, s.Local); err != nil {
			r.fail(action, err, false)
			return
		}
	}
	r.reserved = external
}

// ensureExceptions covers the networks and outsides that do have hooks: without them, the host's own NAT
// must stay in charge.
func (r *Reconciler) ensureExceptions() {
	const action = "keep the host's NAT off packets that take the stack"
	s, err := r.hooked()
	if err == nil {
		err = r.exceptions.Ensure(pairs(s))
	}
	if err != nil {
		r.fail(action, err, false)
	}
}

func pairs(s plan.State) (out []exceptions.Pair) {
	hooked := func(kind dataplane.LinkKind, owner string) bool {
		return slices.ContainsFunc(s.Links, func(l dataplane.Link) bool { return l.Kind == kind && l.Owner == owner })
	}
	for _, n := range s.Networks {
		for _, o := range s.Outsides {
			if !hooked(dataplane.InsideDevice, n.Name) || !hooked(dataplane.OutsideLink, o.Name) {
				continue
			}
			for _, p := range n.Prefixes {
				out = append(out, exceptions.Pair{Inside: p, Outside: o.Name})
			}
		}
	}
	return out
}

func (r *Reconciler) fail(action string, err error, vital bool) {
	f := Failure{Action: action, Err: err, Tries: 1, Since: time.Now()}
	before := r.View().Failures
	if i := slices.IndexFunc(before, func(b Failure) bool { return b.Action == action }); i >= 0 {
		f.Tries, f.Since = before[i].Tries+1, before[i].Since
	}
	already := slices.ContainsFunc(r.pass.failures, func(b Failure) bool { return b.Action == action }) // by the pass's first plan
	switch {
	case already:
	case f.Tries == 1:
		r.log.Warn("action failed, and will be tried again", "what", action, "error", err)
	default:
		r.log.Debug("action failed again", "what", action, "error", err, "tries", f.Tries)
	}
	r.pass.failures = slices.DeleteFunc(r.pass.failures, func(b Failure) bool { return b.Action == action })
	r.pass.failures = append(r.pass.failures, f)
	if vital {
		r.pass.fatal = append(r.pass.fatal, fmt.Errorf("%s: %w", action, err))
	}
}

// publish shows the pass to View, and logs what is new or over.
func (r *Reconciler) publish(host hostnet.Snapshot, problems []string) {
	r.viewMu.Lock()
	before := r.view
	r.view = View{Host: host, Problems: problems, Failures: r.pass.failures}
	r.viewMu.Unlock()
	for _, p := range problems {
		if !slices.Contains(before.Problems, p) {
			r.log.Warn(p)
		}
	}
	for _, p := range before.Problems {
		if !slices.Contains(problems, p) {
			r.log.Info("no longer: " + p)
		}
	}
	if len(before.Failures) > 0 && len(r.pass.failures) == 0 {
		r.log.Info("all actions succeed again")
	}
}

// Forward is a static binding that is wanted, and whether it is there.
type Forward struct {
	dataplane.Forward
	Active  bool
	Problem string // why it is not
}

// AddForward makes a static binding, and keeps it: one that goes away with its interface comes back with it.
// Errors: those of the dataplane.
func (r *Reconciler) AddForward(f dataplane.Forward) (dataplane.Binding, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := plan.ForwardID(f.Protocol, f.External)
	if has, ok := r.forwards[id]; ok {
		return dataplane.Binding{}, fmt.Errorf("forward %s: %w, by the forward to %s: remove that one first", id, dataplane.ErrPortTaken, has.Internal)
	}
	b, err := r.dp.AddForward(f)
	if errors.Is(err, dataplane.ErrHostSocket) {
		err = fmt.Errorf("%w: stop what listens there, or forward over it (--over-host-socket)", err)
	}
	if err != nil {
		return b, err
	}
	f.Network = b.Network
	r.forwards[id] = f
	r.log.Info("forward added", "id", id, "internal", f.Internal, "network", f.Network)
	return b, nil
}

// RemoveForward ends a static binding for good. Error: dataplane.ErrNotFound.
func (r *Reconciler) RemoveForward(p dataplane.Protocol, external netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := plan.ForwardID(p, external)
	_, wanted := r.forwards[id]
	err := r.dp.RemoveForward(p, external)
	if err != nil && !(wanted && errors.Is(err, dataplane.ErrNotFound)) {
		return err
	}
	delete(r.forwards, id)
	r.log.Info("forward removed", "id", id)
	return nil
}

// Forwards are the static bindings that are there or waited for, by protocol and external endpoint.
func (r *Reconciler) Forwards() ([]Forward, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bindings, err := r.dp.Bindings()
	if err != nil {
		return nil, err
	}
	active := map[string]dataplane.Forward{}
	for _, f := range forwardsOf(bindings) {
		active[plan.ForwardID(f.Protocol, f.External)] = f
	}
	var out []Forward
	for id, f := range r.forwards {
		is, ok := active[id]
		if ok {
			out = append(out, Forward{Forward: is, Active: true})
			continue
		}
		out = append(out, Forward{Forward: f, Problem: r.why(f)})
	}
	slices.SortFunc(out, func(a, b Forward) int {
		if a.Protocol != b.Protocol {
			return int(a.Protocol) - int(b.Protocol)
		}
		return a.External.Compare(b.External)
	})
	return out, nil
}

func (r *Reconciler) why(f dataplane.Forward) string {
	action := plan.Action{Verb: plan.AddForward, Forward: f}.String()
	for _, failure := range r.View().Failures {
		if failure.Action == action {
			return failure.Err.Error()
		}
	}
	return "not made yet"
}
