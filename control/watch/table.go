// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/dataplane"
)

// No two bindings of a protocol share an external endpoint (RFC 4787 REQ-3), so it names a binding, and with
// the remote endpoint a session. Where protocols have no ports, the external address and the remote one name it.
type bindingKey struct {
	protocol dataplane.Protocol
	external netip.AddrPort
	remote   netip.Addr
}

type sessionKey struct {
	bindingKey
	remote netip.AddrPort
}

// Table is the bindings and sessions that a run of events leaves: each with the event that created it,
// brought up to date by later ones.
type Table struct {
	bindings map[bindingKey]dataplane.Event
	sessions map[sessionKey]dataplane.Event
}

// NewTable is an empty table.
func NewTable() *Table {
	return &Table{bindings: map[bindingKey]dataplane.Event{}, sessions: map[sessionKey]dataplane.Event{}}
}

// Replay applies events, oldest first, to an empty table.
func Replay(events []dataplane.Event) *Table {
	t := NewTable()
	for _, ev := range events {
		t.Apply(ev)
	}
	return t
}

// Bindings are the binding.created events of the live bindings, with Sessions counted from the sessions.
func (t *Table) Bindings() []dataplane.Event {
	counts := map[bindingKey]int{}
	for k := range t.sessions {
		counts[k.bindingKey]++
	}
	out := make([]dataplane.Event, 0, len(t.bindings))
	for k, ev := range t.bindings {
		ev.Sessions = counts[k]
		out = append(out, ev)
	}
	slices.SortFunc(out, compareEvents)
	return out
}

// Sessions are the session.created events of the live sessions, with their present state.
func (t *Table) Sessions() []dataplane.Event {
	out := make([]dataplane.Event, 0, len(t.sessions))
	for _, ev := range t.sessions {
		out = append(out, ev)
	}
	slices.SortFunc(out, compareEvents)
	return out
}

func compareEvents(a, b dataplane.Event) int {
	return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Protocol, b.Protocol), a.External.Compare(b.External), a.Remote.Compare(b.Remote))
}

// Apply brings the table up to date, and says whether the event told something new. One that does not
// speak of the table (a filtered packet) always does.
func (t *Table) Apply(ev dataplane.Event) bool {
	sk := keyOf(ev)
	bk := sk.bindingKey
	switch ev.Type {
	case dataplane.BindingCreated:
		return t.bind(bk, ev)
	case dataplane.BindingChanged:
		return t.rebind(bk, ev)
	case dataplane.BindingExpired:
		was, ok := t.bindings[bk]
		if !ok || was.Internal != ev.Internal { // another one has the endpoint by now
			return false
		}
		delete(t.bindings, bk)
	case dataplane.SessionCreated:
		was, ok := t.sessions[sk]
		if ok && was.Internal == ev.Internal { // known, and perhaps older than what is known
			return false
		}
		t.sessions[sk] = ev
	case dataplane.SessionState:
		was, ok := t.sessions[sk]
		if !ok || was.State == ev.State { // unknown: it closed, or its creation is behind a loss
			return false
		}
		was.State, was.Lifetime = ev.State, ev.Lifetime
		t.sessions[sk] = was
	case dataplane.SessionClosed:
		was, ok := t.sessions[sk]
		if !ok || was.Internal != ev.Internal {
			return false
		}
		delete(t.sessions, sk)
	}
	return true
}

func (t *Table) bind(k bindingKey, ev dataplane.Event) bool {
	was, ok := t.bindings[k]
	if ok && sameBinding(was, ev) {
		return false
	}
	t.bindings[k] = ev
	return true
}

func sameBinding(a, b dataplane.Event) bool {
	return a.Internal == b.Internal && a.Remote == b.Remote && a.Static == b.Static
}

// rebind takes the change of what a binding is; its session count is not kept here.
func (t *Table) rebind(k bindingKey, ev dataplane.Event) bool {
	was, ok := t.bindings[k]
	if !ok {
		return false
	}
	was.Internal, was.Remote, was.Static = ev.Internal, ev.Remote, ev.Static
	t.bindings[k] = was
	return true
}

// named fills in the network where the dataplane could not name it any more: a removed one's.
func (t *Table) named(ev dataplane.Event) dataplane.Event {
	if ev.Network != "" || !ev.External.IsValid() {
		return ev
	}
	k := keyOf(ev)
	ev.Network = t.bindings[k.bindingKey].Network
	if ev.Network == "" {
		ev.Network = t.sessions[k].Network
	}
	return ev
}

// events are the table as a history: bindings and sessions by the time of their creation, a binding before
// its sessions (clocks of two processors may have it the other way by a microsecond).
func (t *Table) events() []dataplane.Event {
	out := t.Bindings()
	for _, ev := range t.Sessions() {
		if b := t.bindings[keyOf(ev).bindingKey]; ev.Time.Before(b.Time) {
			ev.Time = b.Time
		}
		out = append(out, ev)
	}
	slices.SortStableFunc(out, func(a, b dataplane.Event) int { return a.Time.Compare(b.Time) })
	return out
}

// tableOf is what the dataplane's tables say.
func tableOf(bindings []dataplane.Binding, sessions []dataplane.Session) *Table {
	t := NewTable()
	for _, b := range bindings {
		t.Apply(dataplane.Event{Time: b.Created, Type: dataplane.BindingCreated, Protocol: b.Protocol, Network: b.Network,
			Internal: b.Internal, External: b.External, Remote: b.Remote, Static: b.Static, Sessions: b.Sessions})
	}
	for _, s := range sessions {
		t.Apply(dataplane.Event{Time: s.Created, Type: dataplane.SessionCreated, Protocol: s.Protocol, Network: s.Network,
			Internal: s.Internal, External: s.External, Remote: s.Remote, Hairpin: s.Hairpin, State: s.State, Lifetime: s.ExpiresIn})
	}
	return t
}

// corrections are the events that take the table to what truth says: ends first, in the order that the
// dataplane ends things in, then beginnings.
func (t *Table) corrections(truth *Table) (out []dataplane.Event) {
	for k, ev := range t.sessions {
		if is, ok := truth.sessions[k]; !ok || is.Internal != ev.Internal {
			ev.Type = dataplane.SessionClosed
			out = append(out, ev)
		}
	}
	for k, ev := range t.bindings {
		if is, ok := truth.bindings[k]; !ok || is.Internal != ev.Internal {
			ev.Type, ev.Sessions = dataplane.BindingExpired, 0
			out = append(out, ev)
		}
	}
	return append(out, t.beginnings(truth)...)
}

func (t *Table) beginnings(truth *Table) (out []dataplane.Event) {
	for k, is := range truth.bindings {
		if ev, ok := t.bindings[k]; !ok || !sameBinding(ev, is) {
			out = append(out, is)
		}
	}
	for k, is := range truth.sessions {
		ev, ok := t.sessions[k]
		switch {
		case !ok || ev.Internal != is.Internal:
			out = append(out, is)
		case ev.State != is.State:
			is.Type, is.OldState = dataplane.SessionState, ev.State
			out = append(out, is)
		}
	}
	return out
}

func keyOf(ev dataplane.Event) sessionKey {
	k := sessionKey{bindingKey{protocol: ev.Protocol, external: ev.External}, ev.Remote}
	if !ev.Protocol.HasPorts() {
		k.bindingKey.remote = ev.Remote.Addr()
	}
	return k
}
