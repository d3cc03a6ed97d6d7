// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/conenat/conenat/control/hostnet"
)

// passState is what one pass knows of failures; those of the pass before tell which are new.
type passState struct {
	before   map[string]Failure // by action
	failures map[string]Failure
	order    []string // of actions, as they failed first
	fatal    []error
}

// Failure is an action that did not succeed.
type Failure struct {
	Action string
	Err    error
	Tries  int
	Since  time.Time
}

func (r *Reconciler) newPass() passState {
	p := passState{before: map[string]Failure{}, failures: map[string]Failure{}}
	for _, f := range r.View().Failures {
		p.before[f.Action] = f
	}
	return p
}

func (r *Reconciler) fail(action string, err error, vital bool) {
	f := Failure{Action: action, Err: err, Tries: 1, Since: time.Now()}
	if before, again := r.pass.before[action]; again {
		f.Tries, f.Since = before.Tries+1, before.Since
	}
	_, already := r.pass.failures[action] // by the pass's first plan
	switch {
	case already:
	case f.Tries == 1:
		r.log.Warn("action failed, and will be tried again", "what", action, "error", err)
	default:
		r.log.Debug("action failed again", "what", action, "error", err, "tries", f.Tries)
	}
	if !already {
		r.pass.order = append(r.pass.order, action)
	}
	r.pass.failures[action] = f
	if vital {
		r.pass.fatal = append(r.pass.fatal, fmt.Errorf("%s: %w", action, err))
	}
}

// failed are the pass's failures, in order.
func (p passState) failed() (list []Failure) {
	for _, action := range p.order {
		list = append(list, p.failures[action])
	}
	return list
}

// publish shows the pass to View, and logs what is new or over.
func (r *Reconciler) publish(host hostnet.Snapshot, t target) {
	next := View{Host: host, Path: r.guard.path, LeftAlone: t.leftAlone, XDP: t.xdp, Problems: t.problems, Failures: r.pass.failed()}
	if r.docker != nil {
		next.Docker = r.docker.Snapshot()
	}
	before := r.show(next)
	for _, n := range t.leftAlone {
		if !slices.Contains(before.LeftAlone, n) {
			r.log.Info("network left alone", "network", n.Name, "because", n.Reason)
		}
	}
	for _, p := range t.problems {
		if !slices.Contains(before.Problems, p) {
			r.log.Warn(p)
		}
	}
	for _, p := range before.Problems {
		if !slices.Contains(t.problems, p) {
			r.log.Info("no longer: " + p)
		}
	}
	if len(before.Failures) > 0 && len(next.Failures) == 0 {
		r.log.Info("all actions succeed again")
	}
}

// publishFailure is a pass that could not read what it needed: all else is as it was.
func (r *Reconciler) publishFailure(action string, err error) {
	r.fail(action, err, true)
	next := r.View()
	next.Failures = r.pass.failed()
	r.show(next)
}

// show swaps the view, and returns the one before.
func (r *Reconciler) show(next View) (before View) {
	r.viewMu.Lock()
	defer r.viewMu.Unlock()
	before, r.view = r.view, next
	return before
}
