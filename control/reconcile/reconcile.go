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
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/firewall"
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
	Unhooked() ([]int, error)
	PutOwner(dataplane.Owner) error
	RemoveOwner(network string, address netip.Addr) error
	Owners() ([]dataplane.Owner, error)
	Held() (dataplane.Held, error)
	Sessions() ([]dataplane.Session, error)
	ImportSession(dataplane.Session) error
	AddForward(dataplane.Forward) (dataplane.Binding, error)
	RemoveForward(dataplane.Protocol, netip.AddrPort) error
	RemoveForwards([]dataplane.Forward) (int, error)
	IndexForwards() error
	ReserveHost(dataplane.Protocol, netip.AddrPort) error
}

// Host is what the loop follows.
type Host interface {
	Snapshot() (hostnet.Snapshot, error)
	Sockets() ([]hostnet.Socket, error)
	Changes() <-chan struct{}
}

// Docker is the Engine that is followed.
type Docker interface {
	Snapshot() docker.Snapshot
	Changes() <-chan struct{}
}

// Firewall reads the host's rules.
type Firewall interface {
	Inspect(firewall.Traffic) (firewall.Report, error)
	Changes() <-chan struct{}
}

// Conntrack is netfilter's table of connections.
type Conntrack interface {
	List() ([]conntrack.Flow, error)
	Replace([]conntrack.Flow) (made int, err error)
}

// Exceptions keeps the host's own NAT off the packets that take the stack.
type Exceptions interface {
	Ensure([]exceptions.Pair) error
}

const (
	resyncPeriod = 30 * time.Second
	hookPeriod   = time.Second
	pauseLast    = 250 * time.Millisecond
	retryFirst   = 250 * time.Millisecond
	retryLast    = 30 * time.Second
)

// World is what the loop follows and drives. Docker, Firewall and Conntrack may be nil: the host has none then, or it
// is none of conenat's business.
type World struct {
	Dataplane  Dataplane
	Host       Host
	Exceptions Exceptions
	Docker     Docker
	Firewall   Firewall
	Conntrack  Conntrack
	Tell       func(dataplane.Event) // an event of the loop's own; nil: nobody listens
	Log        *slog.Logger
}

// Reconciler is the loop. Its methods may be called from any goroutine.
type Reconciler struct {
	cfg        config.Config
	dp         Dataplane
	host       Host
	exceptions Exceptions
	docker     Docker
	firewall   Firewall
	conntrack  Conntrack
	tell       func(dataplane.Event)
	log        *slog.Logger

	mu        sync.Mutex                   // one pass, or one change of forwards, at a time
	forwards  map[string]dataplane.Forward // the operators', by plan.ForwardID
	published []dataplane.Forward          // Docker's
	stale     map[int]bool                 // interfaces to attach again
	lost      map[int]bool                 // those of them whose hooks somebody else took away
	reserved  []netip.Addr                 // external addresses that the host's ports were reserved on
	guard     guard
	settings  configured
	pass      passState

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
	Host      hostnet.Snapshot
	Docker    docker.Snapshot
	Path      Path
	LeftAlone []LeftAlone // by name
	Problems  []string    // what is waited for
	Failures  []Failure   // what did not succeed and is tried again
}

// Failure is an action that did not succeed.
type Failure struct {
	Action string
	Err    error
	Tries  int
	Since  time.Time
}

// New is a loop that has done nothing yet.
func New(cfg config.Config, w World) *Reconciler {
	r := &Reconciler{cfg: cfg, dp: w.Dataplane, host: w.Host, exceptions: w.Exceptions, docker: w.Docker, firewall: w.Firewall,
		conntrack: w.Conntrack, tell: w.Tell, log: w.Log,
		forwards: map[string]dataplane.Forward{}, stale: map[int]bool{}, lost: map[int]bool{}}
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
	held, err := r.dp.Held()
	if err != nil {
		return fmt.Errorf("adopt bindings: %w", err)
	}
	networks, err := r.dp.Networks()
	if err != nil {
		return fmt.Errorf("adopt networks: %w", err)
	}
	kept := map[string]bool{}
	for _, n := range networks {
		kept[n.Shown()] = r.cfg.Docker || slices.Contains(r.cfg.Inside, n.Name)
	}
	for _, f := range held.Forwards {
		id := plan.ForwardID(f.Protocol, f.External)
		if _, configured := r.forwards[id]; !configured && !f.Published && kept[f.Network] {
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

// Run follows the host, Docker and the firewall until ctx ends. However fast they change, passes take no more than a
// third of a processor.
func (r *Reconciler) Run(ctx context.Context) error {
	resync, hooks := time.NewTicker(resyncPeriod), time.NewTicker(hookPeriod)
	defer resync.Stop()
	defer hooks.Stop()
	var dockerChanges, ruleChanges <-chan struct{}
	if r.docker != nil {
		dockerChanges = r.docker.Changes()
	}
	if r.firewall != nil {
		ruleChanges = r.firewall.Changes()
	}
	retry := retryFirst
	again := r.retryAfter(retry)
	for {
		all, rules := false, false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.host.Changes():
			retry = retryFirst
		case <-dockerChanges:
			retry = retryFirst
		case <-ruleChanges:
			rules = true
		case <-resync.C:
			all = true
		case <-hooks.C:
			if !r.unhooked() {
				continue
			}
		case <-again:
			retry = min(2*retry, retryLast)
		}
		took := r.passed(all, rules)
		again = r.retryAfter(retry)
		select {
		case <-ctx.Done():
		case <-time.After(min(2*took, pauseLast)):
		}
	}
}

// retryAfter is when to try what has failed; never, if nothing has.
func (r *Reconciler) retryAfter(after time.Duration) <-chan time.Time {
	if len(r.View().Failures) == 0 {
		return nil
	}
	return time.After(after)
}

// passed makes a pass, and says how long it took.
func (r *Reconciler) passed(all, rules bool) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	start := time.Now()
	r.guard.stale = r.guard.stale || rules || all
	r.reconcile(all)
	return time.Since(start)
}

// unhooked says whether somebody else has taken hooks away, which the kernel may tell nobody: a TCX link that is
// detached.
func (r *Reconciler) unhooked() bool {
	list, err := r.dp.Unhooked()
	return err != nil || len(list) > 0
}

// View is the outcome of the last pass.
func (r *Reconciler) View() View {
	r.viewMu.Lock()
	defer r.viewMu.Unlock()
	return r.view
}

// reconcile is one pass. With all, what lasts for a while only (the host's ports) is done anew.
func (r *Reconciler) reconcile(all bool) {
	r.pass = passState{}
	host, err := r.host.Snapshot()
	if err != nil {
		r.fail("read the host's network", err, true)
		r.publish(r.View().Host, target{})
		return
	}
	actual, held, err := r.actual()
	if err != nil {
		r.fail("read the dataplane", err, true)
		r.publish(host, target{})
		return
	}
	in := inputs{cfg: r.cfg, host: host, actual: actual, forwards: r.wanted(),
		bound: func(a netip.Addr) bool { return held.Dynamic[a] > 0 }}
	if r.docker != nil {
		in.docker = r.docker.Snapshot()
	}
	t := desire(in)
	r.published = slices.DeleteFunc(slices.Clone(t.Forwards), func(f dataplane.Forward) bool { return !f.Published })
	r.choosePath(&t)
	t.diverted = r.diverted(&t, externalAddresses(t.Outsides))
	actions := plan.New(t.State, actual)
	r.carryOut(actions, &t, actual, all)
	if slices.ContainsFunc(actions, endsForwards) {
		if actual, _, err = r.actual(); err == nil {
			r.carryOut(plan.New(t.State, actual), &t, actual, false)
		}
	}
	if all {
		r.index()
	}
	r.ensureExceptions()
	r.publish(host, t)
}

// endsForwards are the actions that may take static bindings along: these are made anew, or it shows why they
// cannot be.
func endsForwards(a plan.Action) bool {
	return a.Verb == plan.PutOutside || a.Verb == plan.RemoveOutside || a.Verb == plan.RemoveNetwork || a.Verb == plan.RemoveOwner
}

// carryOut executes a plan. What others hold is reserved, and what lives is taken over, before any hook is put on; and
// once more after that, for what began in between.
func (r *Reconciler) carryOut(actions []plan.Action, t *target, actual plan.State, all bool) {
	hooks := slices.IndexFunc(actions, func(a plan.Action) bool { return a.Verb == plan.Attach })
	if hooks < 0 {
		hooks = len(actions)
	}
	r.execute(actions[:hooks])
	over := takesOver(actions, actual)
	if external := externalAddresses(t.Outsides); all || over || !slices.Equal(external, r.reserved) {
		r.occupy(t, external, over)
		r.reserved = external
	}
	turns := turnsToStack(actions, actual)
	var told []conntrack.Flow
	if turns {
		told = r.seed(nil)
	}
	r.execute(actions[hooks:])
	if turns {
		r.seed(told)
	}
	if !over {
		return
	}
	r.importSessions(r.flows(t.State).sessions)
	if r.guard.path.Stack {
		r.ensureExceptions()
	}
}

// occupy makes external ports somebody's. A host's connection of TCP goes on although a binding has its port, which
// nothing tells of its UDP: so that comes first.
func (r *Reconciler) occupy(t *target, external []netip.Addr, over bool) {
	flows := r.flows(t.State)
	ports := slices.Concat(r.hostReservations(external), flows.others)
	r.reserve(only(ports, dataplane.UDP))
	if over {
		r.importSessions(flows.sessions)
	}
	r.reserve(only(ports, dataplane.TCP))
	r.reserve(t.diverted)
}

func (r *Reconciler) index() {
	if err := r.dp.IndexForwards(); err != nil {
		r.fail("use forwards for what their containers send", err, false)
	}
}

// actual reads what the dataplane holds.
func (r *Reconciler) actual() (plan.State, dataplane.Held, error) {
	s, err := r.hooked()
	if err != nil {
		return s, dataplane.Held{}, err
	}
	settings, err := r.dp.Settings()
	if err != nil {
		return s, dataplane.Held{}, err
	}
	if settings == r.settings.taken { // else zero, which is configured in any case
		s.Settings = r.settings.given
	}
	if s.Owners, err = r.dp.Owners(); err != nil {
		return s, dataplane.Held{}, err
	}
	held, err := r.dp.Held()
	s.Forwards = held.Forwards
	for _, l := range s.Links {
		if l.Mechanism == "" && l.Name != "" && !r.stale[l.IfIndex] {
			r.stale[l.IfIndex], r.lost[l.IfIndex] = true, true
		}
	}
	for index := range r.stale {
		s.Stale = append(s.Stale, index)
	}
	return s, held, err
}

// hooked reads who has hooks.
func (r *Reconciler) hooked() (s plan.State, err error) {
	if s.Networks, err = r.dp.Networks(); err != nil {
		return s, err
	}
	if s.Outsides, err = r.dp.Outsides(); err != nil {
		return s, err
	}
	if s.Links, err = r.dp.Links(); err != nil {
		return s, err
	}
	before := r.View().Host
	for i, l := range s.Links { // one that is gone has no name any more
		if was, ok := before.LinkAt(l.IfIndex); ok && l.Name == "" {
			s.Links[i].Name, s.Links[i].Mechanism = was.Name, "gone"
		}
	}
	return s, nil
}

// execute carries out actions in order; what is many at once is done, and told, at once.
func (r *Reconciler) execute(actions []plan.Action) {
	for len(actions) > 0 {
		n := 1
		for n < len(actions) && actions[n].Verb == actions[0].Verb {
			n++
		}
		if actions[0].Verb == plan.RemoveForward {
			r.removeForwards(actions[:n])
		} else {
			r.executeEach(actions[:n])
		}
		actions = actions[n:]
	}
}

// tellEach is up to how many actions of a kind are told one by one.
const tellEach = 16

func (r *Reconciler) executeEach(actions []plan.Action) {
	done := 0
	for _, a := range actions {
		err := r.act(a)
		r.attached(a, err)
		if err != nil {
			r.fail(a.String(), err, vital(a))
			continue
		}
		done++
		if len(actions) <= tellEach {
			r.log.Info(a.String())
		}
	}
	if len(actions) > tellEach {
		r.log.Info(string(actions[0].Verb), "count", done)
	}
}

func (r *Reconciler) removeForwards(actions []plan.Action) {
	list := make([]dataplane.Forward, 0, len(actions))
	for _, a := range actions {
		list = append(list, a.Forward)
	}
	if _, err := r.dp.RemoveForwards(list); err != nil {
		r.fail("remove forwards", err, false)
		return
	}
	for _, a := range actions[:min(len(actions), tellEach)] {
		r.log.Info(a.String())
	}
	if n := len(actions) - tellEach; n > 0 {
		r.log.Info("remove forward", "more", n)
	}
}

// attached keeps the book of what is to be attached again, and tells of hooks that somebody else took away.
func (r *Reconciler) attached(a plan.Action, err error) {
	if a.Verb != plan.Attach && a.Verb != plan.Detach {
		return
	}
	index := a.Link.IfIndex
	if err != nil && a.Verb == plan.Attach {
		r.stale[index] = true
		return
	}
	delete(r.stale, index)
	if r.lost[index] && a.Verb == plan.Attach {
		r.log.Warn("hooks were taken away by somebody else: attached again", "interface", a.Link.Name, "index", index)
		if r.tell != nil {
			r.tell(dataplane.Event{Time: time.Now(), Type: dataplane.LinkReattached, Link: a.Link.Name})
		}
	}
	delete(r.lost, index)
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
	case plan.RemoveOwner:
		return gone(r.dp.RemoveOwner(a.Owner.Network, a.Owner.Address))
	case plan.PutOwner:
		return r.dp.PutOwner(a.Owner)
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

// ensureExceptions covers the networks and outsides that do have hooks: without them, the host's own NAT
// must stay in charge.
func (r *Reconciler) ensureExceptions() {
	const action = "keep the host's NAT off packets that take the stack"
	s, err := r.hooked()
	if err == nil {
		s.Owners, err = r.dp.Owners()
	}
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
			if !hooked(dataplane.InsideDevice, n.Name) || !hooked(dataplane.OutsideLink, o.Name) || o.IfIndex == 0 {
				continue
			}
			for _, p := range n.Prefixes {
				out = append(out, exceptions.Pair{Inside: p, Outside: o.IfIndex, Name: o.Name, External: o.Address, Except: excluded(s, n, p)})
			}
		}
	}
	return out
}

// excluded are the addresses of a network that the host's NAT has.
func excluded(s plan.State, n dataplane.Network, in netip.Prefix) (out []netip.Addr) {
	for _, o := range s.Owners {
		if o.Excluded && o.Network == n.Name && in.Contains(o.Address) {
			out = append(out, o.Address)
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
func (r *Reconciler) publish(host hostnet.Snapshot, t target) {
	problems := t.problems
	r.viewMu.Lock()
	before := r.view
	r.view = View{Host: host, Path: r.guard.path, LeftAlone: t.leftAlone, Problems: problems, Failures: r.pass.failures}
	if r.docker != nil {
		r.view.Docker = r.docker.Snapshot()
	}
	r.viewMu.Unlock()
	for _, n := range t.leftAlone {
		if !slices.Contains(before.LeftAlone, n) {
			r.log.Info("network left alone", "network", n.Name, "because", n.Reason)
		}
	}
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
