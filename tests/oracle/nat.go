// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"maps"
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
	hidden   map[*Binding]bool                // static, and its internal endpoint had a binding when it came
	held     map[netip.AddrPort]time.Duration // UDP: external endpoints that nobody gets yet, and since when
}

// Result is what becomes of a packet. Packet is set where it was translated; where Choice is not nil, its external port is
// not known before somebody says which one was chosen.
type Result struct {
	Reason Reason
	Packet Packet
	Choice *Choice
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
	return &NAT{config: c, hidden: map[*Binding]bool{}, held: map[netip.AddrPort]time.Duration{}}
}

// Bindings and Sessions are those that live, in the order in which they were made.
func (n *NAT) Bindings() []*Binding { return n.bindings }

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
	maps.DeleteFunc(n.held, func(_ netip.AddrPort, since time.Duration) bool { return n.now-since > portHold })
	n.claims = slices.DeleteFunc(n.claims, func(c *claim) bool { return n.now-c.last > n.claimLifetime(c) })
}

// ended says whether a binding has no session any more; its port is held where RFC 6888 REQ-8 asks for it.
func (n *NAT) ended(b *Binding) bool {
	if b.Static || n.SessionsOf(b) > 0 {
		return false
	}
	if b.Protocol == UDP && n.config.filtering(b.Network, UDP) == EndpointIndependent {
		n.held[b.External] = n.now
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

// open adds a session whose bindings are obtained; a binding that is new comes with it.
func (n *NAT) open(s *Session, fresh ...*Binding) Reason {
	if len(n.sessions)+len(n.claims) >= n.config.Sessions {
		return DroppedSessionsFull
	}
	s.inside.last, s.outside.last = n.now, n.now
	n.sessions = append(n.sessions, s)
	n.bindings = append(n.bindings, fresh...)
	return ""
}

// FromInside is what becomes of a packet that comes out of a network.
func (n *NAT) FromInside(place Place, p Packet) Result {
	if p.Kind == Error {
		return n.insideError(place, p)
	}
	if d, ok := n.lookup(place, p.Protocol, p.flow()); ok {
		return n.translate(d, p)
	}
	switch {
	case neverRouted(p.Dst.Addr()):
		return Result{Reason: PassedLocal}
	case p.Dst.Addr() == n.config.External:
		return n.hairpin(place, p)
	}
	if why := n.routed(p.Dst.Addr()); why != "" {
		return Result{Reason: why}
	}
	switch {
	case !n.config.Networks[place].contains(p.Src.Addr()):
		return Result{Reason: DroppedSpoofed}
	case p.TTL <= 1:
		return Result{Reason: PassedTTL}
	case p.opens() != "":
		return Result{Reason: p.opens()}
	}
	return n.outbound(place, p)
}

// routed is why a packet to that address is not the NAT's; "" is outside.
func (n *NAT) routed(dst netip.Addr) Reason {
	if slices.Contains(n.config.Local, dst) {
		return PassedLocal
	}
	if _, inside := n.config.networkOf(dst); inside {
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
	s := &Session{Binding: b, Remote: p.Dst}
	if why := n.open(s, newOnes(b, fresh)...); why != "" {
		return Result{Reason: why}
	}
	return n.first(s, p, choice)
}

func newOnes(b *Binding, fresh bool) []*Binding {
	if fresh {
		return []*Binding{b}
	}
	return nil
}

// first translates the packet that opened a session from its binding's end.
func (n *NAT) first(s *Session, p Packet, choice *Choice) Result {
	r := n.translate(s.fromInside(), p)
	if choice != nil && r.Packet != (Packet{}) {
		translated := r.Packet
		r.Choice = choice
		r.again = func() Packet {
			translated.Src, translated.Dst = s.fromInside().out.src, s.fromInside().out.dst
			return translated
		}
	}
	return r
}

// FromOutside is what becomes of a packet that comes in by the outside interface, to the external address.
func (n *NAT) FromOutside(p Packet) Result {
	if p.Kind == Error {
		return n.outsideError(p)
	}
	if d, ok := n.lookup(Outside, p.Protocol, p.flow()); ok {
		return n.translate(d, p)
	}
	if p.Kind == Query { // the host answers pings
		return Result{Reason: PassedUnbound}
	}
	b := n.bindingAt(p.Protocol, p.Dst)
	switch {
	case b == nil && n.claimAt(p.Protocol, p.Dst) != nil:
		return Result{Reason: PassedHost}
	case b == nil:
		return Result{Reason: PassedUnbound}
	case n.isMartian(p.Src.Addr(), b):
		return Result{Reason: DroppedSpoofed}
	case p.Protocol == ICMP || !n.admits(b, p.Src.Addr()):
		return Result{Reason: DroppedFiltered}
	case p.Protocol == TCP && p.Kind != Syn:
		return Result{Reason: DroppedTCPNoSession}
	case b.Network != Host && p.TTL <= 1:
		return Result{Reason: DroppedTTL}
	}
	return n.inbound(b, p)
}

// isMartian: nothing from outside has such an address.
func (n *NAT) isMartian(src netip.Addr, b *Binding) bool {
	return neverRouted(src) || src == n.config.External || n.config.Networks[b.Network].contains(src)
}

// admits is filtering (RFC 4787 section 5) of a remote that has no session with the binding.
func (n *NAT) admits(b *Binding, remote netip.Addr) bool {
	if b.Static {
		return true
	}
	switch n.config.filtering(b.Network, b.Protocol) {
	case EndpointIndependent:
		return true
	case AddressDependent:
		return slices.ContainsFunc(n.sessions, func(s *Session) bool { return s.Binding == b && s.Remote.Addr() == remote })
	}
	return false
}

// inbound opens a session from outside.
func (n *NAT) inbound(b *Binding, p Packet) Result {
	if why := n.quota(b); why != "" {
		return Result{Reason: why}
	}
	s := &Session{Binding: b, Remote: p.Src}
	// The internal endpoint talks to that remote one already, by another binding: which way would its answers take?
	if _, ok := n.lookup(b.Network, p.Protocol, s.sent()); ok {
		return Result{Reason: DroppedConflict}
	}
	if why := n.open(s); why != "" {
		return Result{Reason: why}
	}
	// It is as old as the binding's last packet out, where inbound packets do not refresh.
	if b.Protocol == UDP && !b.Static && n.config.filtering(b.Network, UDP) == EndpointIndependent {
		s.inside.last = b.lastOut
	}
	return n.translate(s.fromOutside(), p)
}

// hairpin is a packet from inside to the external address (RFC 4787 REQ-9): within one network to any binding, from
// another to static ones alone.
func (n *NAT) hairpin(place Place, p Packet) Result {
	to := n.bindingAt(p.Protocol, p.Dst)
	switch {
	case p.Protocol == ICMP || to == nil:
		return Result{Reason: PassedLocal}
	case !n.reaches(place, to):
		return Result{Reason: DroppedIsolated}
	case !n.config.Networks[place].contains(p.Src.Addr()):
		return Result{Reason: DroppedSpoofed}
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
	s := &Session{Binding: b, Remote: p.Dst, Receiver: to}
	if why := n.open(s, newOnes(b, fresh)...); why != "" {
		return Result{Reason: why}
	}
	return n.first(s, p, choice)
}

func (n *NAT) reaches(place Place, to *Binding) bool {
	if to.Static {
		return to.Network != Host
	}
	return to.Network == place && !n.config.Networks[place].Isolated
}
