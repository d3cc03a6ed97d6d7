// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"time"

	"github.com/conenat/conenat/dataplane"
)

// OpenBinding does what the first packet of an internal endpoint does: table and event.
func (d *Dataplane) OpenBinding(b dataplane.Binding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.openBinding(b)
}

// EndBinding does what the sweeper does to an idle binding: its sessions close, then it expires.
func (d *Dataplane) EndBinding(b dataplane.Binding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endBinding(bindingKey{b.Protocol, b.External})
}

// OpenSession does what the first packet to a remote endpoint does.
func (d *Dataplane) OpenSession(s dataplane.Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.Created.IsZero() {
		s.Created = time.Now()
	}
	k := sessionKey{bindingKey{s.Protocol, s.External}, s.Remote}
	d.sessions[k] = s
	d.emit(sessionEvent(dataplane.SessionCreated, s, d.count(k.bindingKey, +1)))
}

// ChangeSession does what a packet that moves a session's state does.
func (d *Dataplane) ChangeSession(s dataplane.Session, state string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := sessionKey{bindingKey{s.Protocol, s.External}, s.Remote}
	was := d.sessions[k]
	now := was
	now.State = state
	d.sessions[k] = now
	ev := sessionEvent(dataplane.SessionState, now, d.count(k.bindingKey, 0))
	ev.OldState = was.State
	d.emit(ev)
}

// CloseSession does what the sweeper does to an idle session.
func (d *Dataplane) CloseSession(s dataplane.Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeSession(sessionKey{bindingKey{s.Protocol, s.External}, s.Remote})
}

// Emit queues an event and changes no table.
func (d *Dataplane) Emit(ev dataplane.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.emit(ev)
}

// Mute makes the events of what follows get lost: tables change, nobody is told. Unmute ends that with the
// events.lost that the real event reader delivers.
func (d *Dataplane) Mute() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute = true
}

// Unmute ends what Mute began.
func (d *Dataplane) Unmute() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute = false
	d.emit(dataplane.Event{Type: dataplane.EventsLost, Count: d.lost})
}

func (d *Dataplane) openBinding(b dataplane.Binding) {
	if b.Created.IsZero() {
		b.Created = time.Now()
	}
	d.bindings[bindingKey{b.Protocol, b.External}] = b
	d.emit(bindingEvent(dataplane.BindingCreated, b))
}

func (d *Dataplane) endBindings(which func(dataplane.Binding) bool) {
	for k, b := range d.bindings {
		if which(b) {
			d.endBinding(k)
		}
	}
}

func (d *Dataplane) endBinding(k bindingKey) {
	b, ok := d.bindings[k]
	if !ok {
		return
	}
	for sk := range d.sessions {
		if sk.bindingKey == k {
			d.closeSession(sk)
		}
	}
	b.Sessions = 0
	delete(d.bindings, k)
	d.emit(bindingEvent(dataplane.BindingExpired, b))
}

func (d *Dataplane) closeSession(k sessionKey) {
	s, ok := d.sessions[k]
	if !ok {
		return
	}
	delete(d.sessions, k)
	d.emit(sessionEvent(dataplane.SessionClosed, s, d.count(k.bindingKey, -1)))
}

// count changes a binding's session count.
func (d *Dataplane) count(k bindingKey, by int) int {
	b, ok := d.bindings[k]
	if !ok {
		return 0
	}
	b.Sessions += by
	d.bindings[k] = b
	return b.Sessions
}

func (d *Dataplane) emit(ev dataplane.Event) {
	if d.mute {
		d.lost++
		return
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	d.queue = append(d.queue, ev)
	select {
	case d.queued <- struct{}{}:
	default:
	}
}

func bindingEvent(t dataplane.EventType, b dataplane.Binding) dataplane.Event {
	return dataplane.Event{Type: t, Protocol: b.Protocol, Network: b.Network, Internal: b.Internal,
		External: b.External, Remote: b.Remote, Static: b.Static, Sessions: b.Sessions}
}

func sessionEvent(t dataplane.EventType, s dataplane.Session, sessions int) dataplane.Event {
	return dataplane.Event{Type: t, Protocol: s.Protocol, Network: s.Network, Internal: s.Internal,
		External: s.External, Remote: s.Remote, Hairpin: s.Hairpin, State: s.State, Sessions: sessions}
}
