// SPDX-License-Identifier: Apache-2.0

package oracle

import "slices"

// FromHost is what becomes of a packet that the host itself sends outside from the external address. From a free port:
// the host holds that port from now on. From one that a binding holds: it is translated like anybody's, so that the
// binding's port stays the binding's.
func (n *NAT) FromHost(p Packet) Result {
	if p.Kind == Error || p.Kind == Reply || p.Kind == Other || p.Piece == Later && p.Protocol != GRE || !n.config.isExternal(p.Src.Addr()) {
		return Result{Reason: PassedHost}
	}
	if p.Protocol == GRE {
		n.hostTalks(p)
		return Result{Reason: PassedHost}
	}
	if c := n.claimAt(p.Protocol, p.Src); c != nil {
		c.touch(n, p.Kind)
		return Result{Reason: PassedHost}
	}
	if n.bindingAt(p.Protocol, p.Src) == nil {
		if len(n.sessions)+len(n.claims) < n.config.Sessions && !n.isHeld(p.Protocol, p.Src) {
			n.claims = append(n.claims, &claim{protocol: p.Protocol, endpoint: p.Src, last: n.now})
		}
		return Result{Reason: PassedHost}
	}
	if d, ok := n.lookup(Host, p.Protocol, p.flow()); ok {
		return n.translate(d, p)
	}
	if p.Protocol == TCP && p.Kind != Syn { // it began before the binding did
		return Result{Reason: PassedHost}
	}
	return n.outbound(Host, p)
}

// hostTalks: without ports, what the host says to a remote is a session of its own, and ends one that somebody inside has there.
func (n *NAT) hostTalks(p Packet) {
	d, ok := n.lookup(Outside, p.Protocol, p.flow().reversed())
	if ok && d.session.Binding.Network == Host {
		d.session.inside.last = n.now
		return
	}
	if ok {
		n.sessions = slices.DeleteFunc(n.sessions, func(s *Session) bool { return s == d.session })
		n.bindings = slices.DeleteFunc(n.bindings, n.ended)
		n.unpair()
	}
	n.outbound(Host, p)
}

func (c *claim) touch(n *NAT, k Kind) {
	c.last = n.now
	switch k {
	case Fin, Rst:
		c.closing = true
	case Syn, SynAck:
		c.closing = false
	}
}
