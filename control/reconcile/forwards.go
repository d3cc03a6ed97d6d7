// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	if f.Network, err = r.networkName(b.Network); err != nil {
		return b, err
	}
	r.forwards[id] = f
	r.log.Info("forward added", "id", id, "internal", f.Internal, "network", b.Network)
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
	networks, err := r.dp.Networks()
	if err != nil {
		return nil, err
	}
	failed := r.failedForwards()
	active := map[string]dataplane.Forward{}
	for _, f := range held.Forwards {
		active[plan.ForwardID(f.Protocol, f.External)] = f
	}
	var out []Forward
	for _, f := range append(r.wanted(), r.published...) {
		id := plan.ForwardID(f.Protocol, f.External)
		shown := Forward{Forward: f, Problem: cmp.Or(failed[id], "not made yet")}
		if is, ok := active[id]; ok {
			shown = Forward{Forward: is, Active: true}
		}
		shown.Network = shownNetwork(networks, shown.Network)
		out = append(out, shown)
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

// failedForwards are why forwards are not made, by their identifiers.
func (r *Reconciler) failedForwards() map[string]string {
	out := map[string]string{}
	for _, failure := range r.View().Failures {
		if id, ok := strings.CutPrefix(failure.Action, string(plan.AddForward)+" "); ok {
			out[id] = failure.Err.Error()
		}
	}
	return out
}

// networkName is the name of the network that people call so; names and what is shown may change places.
func (r *Reconciler) networkName(shown string) (string, error) {
	networks, err := r.dp.Networks()
	for _, n := range networks {
		if n.Shown() == shown {
			return n.Name, nil
		}
	}
	return shown, err
}

func shownNetwork(networks []dataplane.Network, name string) string {
	for _, n := range networks {
		if n.Name == name {
			return n.Shown()
		}
	}
	return name
}
