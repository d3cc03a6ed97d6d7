// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

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
	if has, ok := r.publishes(id); ok {
		return dataplane.Binding{}, fmt.Errorf("forward %s: %w: Docker publishes it to %s of network %s", id, dataplane.ErrPortTaken, has.Internal, has.Network)
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
	if has, ok := r.publishes(id); ok {
		return fmt.Errorf("forward %s: Docker publishes it to %s of network %s: remove the container, or publish the port no more", id, has.Internal, has.Network)
	}
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
	held, err := r.dp.Held()
	if err != nil {
		return nil, err
	}
	active := map[string]dataplane.Forward{}
	for _, f := range held.Forwards {
		active[plan.ForwardID(f.Protocol, f.External)] = f
	}
	var out []Forward
	for _, f := range append(r.wanted(), r.published...) {
		id := plan.ForwardID(f.Protocol, f.External)
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

// publishes finds a forward that is Docker's.
func (r *Reconciler) publishes(id string) (dataplane.Forward, bool) {
	i := slices.IndexFunc(r.published, func(f dataplane.Forward) bool { return plan.ForwardID(f.Protocol, f.External) == id })
	if i < 0 {
		return dataplane.Forward{}, false
	}
	return r.published[i], true
}

// wanted are the operators' forwards.
func (r *Reconciler) wanted() (out []dataplane.Forward) {
	for _, f := range r.forwards {
		out = append(out, f)
	}
	return out
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
