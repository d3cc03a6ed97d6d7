// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

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
			r.fail(a.String(), err, r.vital(a))
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

// vital: without these there is no NAT, or not the one that the operator has named. A bridge port may go away at any
// moment, and its bridge's hooks see its packets as well; so may a network of Docker's; an old hook or a forward that
// fails harms nobody else.
func (r *Reconciler) vital(a plan.Action) bool {
	switch a.Verb {
	case plan.Configure, plan.PutOutside:
		return true
	case plan.PutNetwork:
		return slices.Contains(r.cfg.Inside, a.Network.Name)
	case plan.Attach:
		return a.Link.Kind == dataplane.OutsideLink ||
			a.Link.Kind == dataplane.InsideDevice && slices.Contains(r.cfg.Inside, a.Link.Owner)
	}
	return false
}

func (r *Reconciler) act(a plan.Action) error {
	switch a.Verb {
	case plan.Detach:
		return gone(r.dp.Detach(a.Link.IfIndex))
	case plan.RemoveOwner:
		return gone(r.dp.RemoveOwner(a.Owner.Network, a.Owner.Address))
	case plan.ForgetOwner:
		return gone(r.dp.ForgetOwner(a.Owner.Network, a.Owner.Address))
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
	case plan.AttachXDP:
		err := r.dp.AttachXDP(a.Link)
		if a.Link.Kind == dataplane.InsidePort {
			return gone(err)
		}
		return err
	case plan.DetachXDP:
		return gone(r.dp.DetachXDP(a.Link.IfIndex))
	case plan.Attach:
		err := r.dp.Attach(a.Link)
		if a.Link.Kind == dataplane.InsidePort { // a container that ended since the snapshot
			return gone(err)
		}
		return err
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
