// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"slices"
	"time"
)

// NAT is the model. Its clock stands still until Wait moves it.
type NAT struct {
	config   Config
	now      time.Duration
	bindings []*Binding
	sessions []*Session
	claims   []*claim
	firsts   map[datagram]first
	held     map[netip.AddrPort]bool // UDP: external endpoints that nobody gets yet
	pairs    map[insideHost]netip.Addr
	waiting  []hold // in the order in which they were held
}

// Result is what becomes of a packet. Packet is set where it was translated; where Choice is not nil, its external port is
// not known before somebody says which one was chosen.
type Result struct {
	Reason Reason
	Packet Packet
	Choice *Choice
	ByHost bool          // the host's own routing has it from here
	Inside netip.Addr    // TranslatedStack from outside: the address that the host is to send it to
	again  func() Packet // Packet, once the port is chosen
}

// Translated is the packet after the NAT, with the port that was chosen.
func (r Result) Translated() Packet {
	if r.again != nil {
		return r.again()
	}
	return r.Packet
}

// New gives a NAT without bindings.
func New(c Config) *NAT {
	return &NAT{config: c, firsts: map[datagram]first{}, held: map[netip.AddrPort]bool{}, pairs: map[insideHost]netip.Addr{}}
}

// Bindings are those that live, in the order in which they were made; a static one may have displaced others, whose
// sessions go on.
func (n *NAT) Bindings() []*Binding {
	return slices.DeleteFunc(slices.Clone(n.bindings), func(b *Binding) bool { return b.retired })
}

// Sessions are those that live.
func (n *NAT) Sessions() []*Session { return n.sessions }

// SessionsOf counts a binding's sessions; a hairpin is one of both its bindings, and one where they are the same.
func (n *NAT) SessionsOf(b *Binding) (count int) {
	for _, s := range n.sessions {
		if s.Binding == b || s.Receiver == b {
			count++
		}
	}
	return count
}

// Wait moves the clock, and ends what has expired then.
func (n *NAT) Wait(d time.Duration) {
	n.now += d
	n.sessions = slices.DeleteFunc(n.sessions, func(s *Session) bool { return n.now-n.refreshed(s) > n.lifetime(s) })
	n.bindings = slices.DeleteFunc(n.bindings, n.ended)
	n.release()
	n.claims = slices.DeleteFunc(n.claims, func(c *claim) bool { return n.now-c.last > n.claimLifetime(c) })
	n.unpair()
}

// ended says whether a binding has no session any more; its port is held where RFC 6888 REQ-8 asks for it.
func (n *NAT) ended(b *Binding) bool {
	if b.Static || n.SessionsOf(b) > 0 {
		return false
	}
	if b.Protocol == UDP && !b.retired && n.config.filtering(b) == EndpointIndependent {
		n.held[b.External] = true
		n.waiting = append(n.waiting, hold{b.External, n.now})
	}
	return true
}

func (n *NAT) claimLifetime(c *claim) time.Duration {
	switch {
	case c.protocol == UDP:
		return n.config.UDPTimeout
	case c.protocol == ICMP:
		return n.config.ICMPTimeout
	case c.closing:
		return n.config.TCPClosingTimeout
	}
	return n.config.TCPEstablishedTimeout
}

// open adds a session whose bindings are obtained, if its host may have one more; a binding that is new comes with it.
func (n *NAT) open(s *Session, fresh ...*Binding) Reason {
	if why := n.limitSessions(s.Binding); why != "" {
		return why
	}
	return n.add(s, fresh...)
}

// add is open whatever the limits.
func (n *NAT) add(s *Session, fresh ...*Binding) Reason {
	if len(n.sessions)+len(n.claims) >= n.config.Sessions {
		return DroppedSessionsFull
	}
	// One of the ends talks to the other already, by another binding: which way would answers take?
	p := s.Binding.Protocol
	_, sent := n.lookup(s.Binding.Network, p, s.sent())
	_, answered := n.lookup(s.otherPlace(), p, s.answers())
	if sent || answered && !s.isSelf() {
		return DroppedConflict
	}
	s.inside.last, s.outside.last = n.now, n.now
	s.permits = n.config.filtering(s.Binding) == AddressDependent
	n.sessions = append(n.sessions, s)
	n.bindings = append(n.bindings, fresh...)
	for _, b := range fresh {
		n.pair(b)
	}
	return ""
}

// FromInside is what becomes of a packet that comes out of a network.
func (n *NAT) FromInside(place Place, p Packet) Result {
	if _, known := n.config.Networks[place]; !known {
		return Result{Reason: PassedNoLink}
	}
	stolen := n.config.steals(place, p)
	switch {
	case p.Piece == Later && p.Protocol != GRE && stolen:
		return Result{Reason: DroppedSpoofed}
	case p.Piece == Later && p.Protocol != GRE:
		return n.laterFragment(place, p, n.insideUnknown(place, p, DroppedFragment))
	case p.Kind == Error:
		return n.insideError(place, p)
	case p.Kind == Other:
		return Result{Reason: n.insideUnknown(place, p, DroppedICMPType)}
	}
	r := n.insideKnown(place, p)
	if !stolen { // a spoofer's says nothing of the datagrams of whom it pretends to be
		n.remember(place, p, r.Reason)
	}
	return r
}

func (n *NAT) insideKnown(place Place, p Packet) Result {
	d, ok := n.lookup(place, p.Protocol, p.flow())
	if n.config.Stack && !(ok && d.direction == TranslatedHairpin || !ok && n.config.isExternal(p.Dst.Addr())) {
		if n.config.steals(place, p) {
			return Result{Reason: DroppedSpoofed}
		}
		return Result{Reason: PassedStack}
	}
	if ok {
		return n.translate(d, p)
	}
	switch {
	case neverRouted(p.Dst.Addr()):
		return Result{Reason: PassedLocal}
	case n.config.isExternal(p.Dst.Addr()):
		return n.hairpin(place, p)
	}
	if why := n.routed(p.Dst.Addr()); why != "" {
		return Result{Reason: why}
	}
	if why := n.config.admits(place, p); why != "" {
		return Result{Reason: why}
	}
	switch {
	case n.config.excludes(place, p.Dst.Addr()):
		return Result{Reason: PassedDestination}
	case p.TTL <= 1:
		return Result{Reason: n.config.answered(place, PassedTTL)}
	case p.opens() != "":
		return Result{Reason: p.opens()}
	}
	return n.outbound(place, p)
}

// insideUnknown is why a packet that opens no session is not translated; outside: it would leave.
func (n *NAT) insideUnknown(place Place, p Packet, outside Reason) Reason {
	switch {
	case n.config.Stack:
		return PassedStack
	case neverRouted(p.Dst.Addr()) || n.config.isExternal(p.Dst.Addr()):
		return PassedLocal
	case n.routed(p.Dst.Addr()) != "":
		return n.routed(p.Dst.Addr())
	case n.config.admits(place, p) == PassedExcluded:
		return PassedExcluded
	}
	return n.unlessExcluded(place, p, outside)
}

// unlessExcluded is for what opens no session.
func (n *NAT) unlessExcluded(place Place, p Packet, why Reason) Reason {
	if n.config.excludes(place, p.Dst.Addr()) {
		return PassedDestination
	}
	return why
}

// FromStack is what becomes of a packet of a network's that the host has routed to the outside: on the stack path, or
// because the NAT has left it to the host.
func (n *NAT) FromStack(place Place, p Packet) Result {
	network := n.config.Networks[place]
	if !network.contains(p.Src.Addr()) {
		return Result{Reason: PassedNotOutside}
	}
	if p.Kind == Other {
		return Result{Reason: n.unlessExcluded(place, p, DroppedICMPType)}
	}
	if p.Kind == Error {
		return n.stackError(place, p)
	}
	d, ok := n.lookup(place, p.Protocol, p.flow())
	if !ok {
		if n.config.excludes(place, p.Dst.Addr()) {
			return Result{Reason: PassedDestination}
		}
		if why := p.opens(); why != "" {
			return Result{Reason: why}
		}
		p.Port = ""
		b, fresh, choice, why := n.obtain(place, p.Protocol, p.Src, p.Dst)
		s := &Session{Binding: b, Remote: p.Dst}
		if why == "" {
			why = n.open(s, newOnes(b, fresh)...)
		}
		if why != "" {
			return Result{Reason: why}
		}
		return n.first(s, choice, func() Result { return n.leaveTheHost(s.fromInside(), p) })
	}
	return n.leaveTheHost(d, p)
}

// leaveTheHost: it was the host that routed it.
func (n *NAT) leaveTheHost(d side, p Packet) Result {
	d.touch(n.now, p.Kind)
	return Result{Reason: TranslatedStack, Packet: p.between(d.out), ByHost: true}
}

// routed is why a packet to that address is not the NAT's; "" is outside.
func (n *NAT) routed(dst netip.Addr) Reason {
	if slices.Contains(n.config.Local, dst) {
		return PassedLocal
	}
	_, inside := n.config.networkOf(dst)
	if inside || slices.ContainsFunc(n.config.Elsewhere, func(p netip.Prefix) bool { return p.Contains(dst) }) {
		return PassedNotOutside
	}
	return ""
}

// outbound opens a session from inside, or from the host.
func (n *NAT) outbound(place Place, p Packet) Result {
	b, fresh, choice, why := n.obtain(place, p.Protocol, p.Src, p.Dst)
	if why != "" {
		return Result{Reason: why}
	}
	s := &Session{Binding: b, Remote: p.Dst, inside: end{port: p.Port}}
	if why := n.open(s, newOnes(b, fresh)...); why != "" {
		return Result{Reason: why}
	}
	return n.first(s, choice, func() Result { return n.translate(s.fromInside(), p) })
}

func newOnes(b *Binding, fresh bool) []*Binding {
	if fresh {
		return []*Binding{b}
	}
	return nil
}

// first translates the packet that opened a session from its binding's end.
func (n *NAT) first(s *Session, choice *Choice, translate func() Result) Result {
	r := translate()
	r.Choice = choice
	if choice != nil && r.Reason.Translated() {
		translated := r.Packet
		r.again = func() Packet {
			translated.Src, translated.Dst = s.fromInside().out.src, s.fromInside().out.dst
			return translated
		}
	}
	return r
}

// FromOutside is what becomes of a packet that comes in by the outside interface, to the external address.
func (n *NAT) FromOutside(p Packet) Result {
	switch {
	case p.Piece == Later && p.Protocol != GRE:
		return n.laterFragment(Outside, p, PassedUnbound)
	case p.Kind == Error:
		return n.outsideError(p)
	case p.Kind == Other:
		return Result{Reason: PassedUnbound}
	}
	r := n.outsideKnown(p)
	n.remember(Outside, p, r.Reason)
	return r
}

// unbound is what becomes of a packet to an endpoint that nobody has; of the host's sockets the model knows none.
func (n *NAT) unbound(p Packet) Reason {
	c, port := n.config, p.Dst.Port()
	if c.Drop && p.Protocol != ICMP && c.isExternal(p.Dst.Addr()) && port >= c.PortLow && port <= c.PortHigh {
		return DroppedUnsolicited
	}
	return PassedUnbound
}

func (n *NAT) outsideKnown(p Packet) Result {
	if d, ok := n.lookup(Outside, p.Protocol, p.flow()); ok {
		return n.translate(d, p)
	}
	if p.Kind == Query || p.Protocol == GRE { // the host answers pings; without ports there is no other remote
		return Result{Reason: PassedUnbound}
	}
	b := n.bindingAt(p.Protocol, p.Dst)
	switch {
	case b == nil && n.claimAt(p.Protocol, p.Dst) != nil:
		return Result{Reason: PassedHost}
	case b == nil:
		return Result{Reason: n.unbound(p)}
	case n.isMartian(p.Src.Addr(), b):
		return Result{Reason: DroppedSpoofed}
	case p.Protocol == ICMP || !n.admits(b, p.Src.Addr()):
		return Result{Reason: DroppedFiltered}
	case p.Protocol == TCP && p.Kind != Syn:
		return Result{Reason: DroppedTCPNoSession}
	case b.Network != Host && !n.config.Stack && p.TTL <= 1:
		return Result{Reason: DroppedTTL}
	}
	return n.inbound(b, p)
}

// isMartian: nothing from outside has such an address.
func (n *NAT) isMartian(src netip.Addr, b *Binding) bool {
	return neverRouted(src) || n.config.isExternal(src) || n.config.Networks[b.Network].contains(src)
}

// admits is filtering (RFC 4787 section 5) of a remote that has no session with the binding.
func (n *NAT) admits(b *Binding, remote netip.Addr) bool {
	if b.Static {
		return true
	}
	switch n.config.filtering(b) {
	case EndpointIndependent:
		return true
	case AddressDependent:
		return slices.ContainsFunc(n.sessions, func(s *Session) bool { return s.Binding == b && s.permits && s.Remote.Addr() == remote })
	}
	return false
}

// inbound opens a session from outside.
func (n *NAT) inbound(b *Binding, p Packet) Result {
	if why := n.quota(b); why != "" {
		return Result{Reason: why}
	}
	s := &Session{Binding: b, Remote: p.Src}
	if why := n.open(s); why != "" {
		return Result{Reason: why}
	}
	// It is as old as the binding's last packet out, where inbound packets do not refresh.
	if b.Protocol == UDP && !b.Static && n.config.filtering(b) == EndpointIndependent {
		s.inside.last = b.lastOut
	}
	return n.translate(s.fromOutside(), p)
}

// hairpin is a packet from inside to the external address (RFC 4787 REQ-9): within one network to any binding, from
// another to static ones alone.
func (n *NAT) hairpin(place Place, p Packet) Result {
	to := n.bindingAt(p.Protocol, p.Dst)
	switch {
	case p.Protocol == ICMP || p.Protocol == GRE || to == nil:
		return Result{Reason: PassedLocal}
	case !n.reaches(place, to):
		return Result{Reason: DroppedIsolated}
	case n.config.Stack && to.Network != place && to.published:
		return Result{Reason: PassedStack} // the host's rules see it, and its own NAT leads on
	case n.config.Stack && to.Network != place:
		return Result{Reason: DroppedIsolated}
	}
	if why := n.config.admits(place, p); why != "" {
		return Result{Reason: why}
	}
	switch {
	case p.Protocol == TCP && p.Kind != Syn:
		return Result{Reason: DroppedTCPNoSession}
	case p.TTL <= 1:
		return Result{Reason: DroppedTTL}
	}
	if why := n.quota(to); why != "" {
		return Result{Reason: why}
	}
	b, fresh, choice, why := n.obtain(place, p.Protocol, p.Src, p.Dst)
	if why == "" && b == to && n.SessionsOf(b)+1 >= n.config.SessionsPerBinding {
		why = DroppedQuota // both ends are counted until they turn out to be one
	}
	if why != "" {
		return Result{Reason: why}
	}
	s := &Session{Binding: b, Remote: p.Dst, Receiver: to, inside: end{port: p.Port}}
	if why := n.open(s, newOnes(b, fresh)...); why != "" {
		return Result{Reason: why}
	}
	return n.first(s, choice, func() Result { return n.translate(s.fromInside(), p) })
}

func (n *NAT) reaches(place Place, to *Binding) bool {
	if to.Static {
		return to.Network != Host
	}
	return to.Network == place && !n.config.Networks[place].Isolated
}
