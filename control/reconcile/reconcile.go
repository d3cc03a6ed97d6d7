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
	AttachXDP(dataplane.Link) error
	DetachXDP(ifindex int) error
	ForgetHops() error
	Links() ([]dataplane.Link, error)
	Unhooked() ([]int, error)
	EnsureReordering(mtu int) error
	PutOwner(dataplane.Owner) error
	RemoveOwner(network string, address netip.Addr) error
	ForgetOwner(network string, address netip.Addr) error
	Owners() ([]dataplane.Owner, error)
	Held() (dataplane.Held, error)
	Sessions() ([]dataplane.Session, error)
	ImportSession(dataplane.Session) error
	AddForward(dataplane.Forward) (dataplane.Binding, error)
	RemoveForward(dataplane.Protocol, netip.AddrPort) error
	RemoveForwards([]dataplane.Forward) (int, error)
	IndexForwards() error
	ReserveHost(dataplane.Protocol, netip.AddrPort) error
	ReserveForwarded(dataplane.Protocol, netip.AddrPort) error
}

// Host is what the loop follows.
type Host interface {
	Snapshot() (hostnet.Snapshot, error)
	Sockets() ([]hostnet.Socket, error)
	Changes() <-chan struct{}
	Hops() <-chan struct{} // the next hop of some route may be another one
}

// Docker is the Engine that is followed.
type Docker interface {
	Snapshot() docker.Snapshot
	Changes() <-chan struct{}
}

// Firewall reads the host's rules.
type Firewall interface {
	Inspect(firewall.Traffic) (firewall.Report, error)
	DockerIPv6() (bool, error)
	Changes() <-chan struct{}
}

// Conntrack is netfilter's table of connections.
type Conntrack interface {
	List() ([]conntrack.Flow, error)
	Replace([]conntrack.Flow) (made int, err error)
	Forget([]conntrack.Flow) error
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
	seen      hostnet.Snapshot             // the pass's
	guard     guard
	unordered unordered
	settings  configured
	pass      passState

	viewMu sync.Mutex
	view   View
}

// configured are the settings that were given and what the dataplane made of them (it rounds durations).
type configured struct{ given, taken dataplane.Settings }

// View is the outcome of the last pass.
type View struct {
	Host      hostnet.Snapshot
	Docker    docker.Snapshot
	Path      Path
	LeftAlone []LeftAlone // by name
	XDP       []XDP       // by index; empty where XDP is not asked for
	Problems  []string    // what is waited for
	Failures  []Failure   // what did not succeed and is tried again
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
		kept[n.Name] = r.cfg.Docker || slices.Contains(r.cfg.Inside, n.Name)
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
	r.pass = r.newPass()
	host, err := r.host.Snapshot()
	if err != nil {
		r.publishFailure("read the host's network", err)
		return
	}
	r.seen = host
	actual, held, err := r.actual()
	if err != nil {
		r.publishFailure("read the dataplane", err)
		return
	}
	in := inputs{cfg: r.cfg, host: host, actual: actual, forwards: r.wanted(),
		bound: func(a netip.Addr) bool { return held.Dynamic[a] > 0 }}
	if r.docker != nil {
		in.docker = r.withoutRouted(r.docker.Snapshot(), actual)
	}
	t := desire(in)
	r.published = slices.DeleteFunc(slices.Clone(t.Forwards), func(f dataplane.Forward) bool { return !f.Published })
	r.choosePath(&t)
	t.chooseXDP(r.cfg, host)
	t.apart(host, r.guard.path.Stack)
	t.diverted = r.diverted(&t, externalAddresses(t.Outsides))
	actions := plan.New(t.State, actual)
	r.carryOut(actions, &t, actual, all)
	if slices.ContainsFunc(actions, endsForwards) {
		if actual, _, err = r.actual(); err != nil {
			r.publishFailure("read the dataplane", err)
			return
		}
		r.carryOut(plan.New(t.State, actual), &t, actual, false)
	}
	if all {
		r.index()
	}
	r.ensureExceptions()
	r.ensureReordering(t.Networks)
	r.publish(host, t)
}

// ensureReordering has fragments put in order, and cut to what all inside networks take.
func (r *Reconciler) ensureReordering(networks []dataplane.Network) {
	mtu := 0
	for _, n := range networks {
		if l, there := r.seen.LinkAt(n.IfIndex); there && (mtu == 0 || l.MTU < mtu) {
			mtu = l.MTU
		}
	}
	if mtu == 0 {
		return // nothing comes from inside, nor goes there
	}
	// Trying changes the host's links, which makes a pass: not each of them is to try again.
	if r.unordered.err == nil || time.Since(r.unordered.at) > retryLast {
		r.unordered = unordered{r.dp.EnsureReordering(mtu), time.Now()}
	}
	if r.unordered.err != nil {
		r.fail("pass fragments that arrive out of order", r.unordered.err, false)
	}
}

// unordered is why fragments cannot be put in order, and when that was tried.
type unordered struct {
	err error
	at  time.Time
}

// endsForwards are the actions that may take static bindings along: these are made anew, or it shows why they
// cannot be.
func endsForwards(a plan.Action) bool {
	return a.Verb == plan.PutOutside || a.Verb == plan.RemoveOutside || a.Verb == plan.RemoveNetwork || a.Verb == plan.RemoveOwner
}

// carryOut executes a plan, in this order: what is configured; the ports that others hold, and what lives in another NAT;
// the nftables table, for what comes in by the stack; hooks; and once more what began in between.
func (r *Reconciler) carryOut(actions []plan.Action, t *target, actual plan.State, all bool) {
	hooks := slices.IndexFunc(actions, func(a plan.Action) bool { return a.Verb == plan.Attach })
	if hooks < 0 {
		hooks = len(actions)
	}
	r.execute(actions[:hooks])
	over := takesOver(actions, actual)
	if external := externalAddresses(t.Outsides); all || over || r.guard.inspected || !slices.Equal(external, r.reserved) {
		r.guard.inspected = false
		r.occupy(t, external, over)
	}
	if hooks < len(actions) {
		r.ensureExceptions()
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
	if over {
		r.finishTakeover(t)
	}
}

// occupy makes external ports somebody's. A host's connection of TCP goes on although a binding has its port, which
// nothing tells of its UDP: so that comes first.
func (r *Reconciler) occupy(t *target, external []netip.Addr, over bool) {
	flows := r.flows(t.State)
	ports := slices.Concat(r.hostReservations(external), flows.others)
	done := r.reserve(only(ports, dataplane.UDP))
	if over {
		r.importSessions(flows.sessions)
	}
	done = r.reserve(only(ports, dataplane.TCP)) && done
	if r.reserve(t.diverted) && done {
		r.reserved = external
	}
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
