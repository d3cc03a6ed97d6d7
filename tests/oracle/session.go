// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"time"
)

// Session is a binding and one remote endpoint; through a hairpin the remote endpoint is another binding's external one.
type Session struct {
	Binding  *Binding
	Remote   netip.AddrPort
	Receiver *Binding // hairpin: whose external endpoint Remote is

	inside, outside end  // the binding's end, and the other one
	permits         bool // opened under address-dependent filtering: its remote address may send to the binding
}

// end is one of a session's two: what it has sent so far.
type end struct {
	last time.Duration // of the last packet that refreshes
	seen flags
	port string // of the bridge, that its last packet came by; empty: none
}

// flags are the kinds of TCP segments that an end has sent.
type flags struct{ syn, fin, rst, other bool }

func (f flags) any() bool { return f.syn || f.fin || f.rst || f.other }

// sent is what the binding's end sends; received is what it gets: the answer to what the NAT makes of that.
func (s *Session) sent() flow { return flow{s.Binding.Internal, s.Remote} }

// answers is what the other end sends.
func (s *Session) answers() flow {
	if s.Receiver != nil {
		return flow{s.Receiver.Internal, s.Binding.External}
	}
	return flow{s.Remote, s.Binding.External}
}

// isSelf: sender and receiver are one endpoint, and both ends one.
func (s *Session) isSelf() bool { return s.Receiver == s.Binding }

func (s *Session) otherPlace() Place {
	if s.Receiver != nil {
		return s.Receiver.Network
	}
	return Outside
}

// side is one way through a session: from one of its ends to the other.
type side struct {
	session   *Session
	from      *end
	in, out   flow // as the packet comes, and as it leaves
	isInside  bool // it comes from the binding's end
	direction Reason
}

func (s *Session) fromInside() side {
	d := side{session: s, from: &s.inside, in: s.sent(), out: s.answers().reversed(), isInside: true, direction: TranslatedOutbound}
	switch {
	case s.Receiver != nil:
		d.direction = TranslatedHairpin
	case s.Binding.Network == Host:
		d.direction = TranslatedHost
	}
	return d
}

func (s *Session) fromOutside() side {
	d := side{session: s, from: &s.outside, in: s.answers(), out: s.sent().reversed(), direction: TranslatedInbound}
	switch {
	case s.Receiver != nil:
		d.direction = TranslatedHairpin
	case s.Binding.Network == Host:
		d.direction = TranslatedHost
	}
	return d
}

// lookup finds the session that a packet of that flow from that place belongs to.
func (n *NAT) lookup(place Place, p Protocol, f flow) (side, bool) {
	for _, s := range n.sessions {
		if s.Binding.Protocol != p {
			continue
		}
		if s.Binding.Network == place && s.sent() == f {
			return s.fromInside(), true
		}
		if s.otherPlace() == place && s.answers() == f {
			return s.fromOutside(), true
		}
	}
	return side{}, false
}

// translate is what becomes of a packet of a known session.
func (n *NAT) translate(d side, p Packet) Result {
	if d.direction == TranslatedOutbound {
		if why := leavesByTheHost(p); why != "" {
			if why == PassedStack { // which brings it to the egress, where it is of this session
				d.touch(n.now, p.Kind)
			}
			return Result{Reason: n.config.answered(d.place(), why)}
		}
	}
	if place := d.place(); place != Outside && place != Host && d.from.port != p.Port {
		if n.config.steals(place, p) {
			return Result{Reason: DroppedSpoofed}
		}
		d.from.port = p.Port
	}
	d.touch(n.now, p.Kind)
	return n.rewrite(d, p)
}

// leavesByTheHost is why a packet to the outside is the host's to send.
func leavesByTheHost(p Packet) Reason {
	switch {
	case p.TTL <= 1:
		return PassedTTL // it answers
	case p.Options:
		return PassedStack
	}
	return ""
}

// rewrite gives a packet its session's endpoints; a later fragment has addresses alone.
func (n *NAT) rewrite(d side, p Packet) Result {
	if d.session.Binding.Network == Host { // the host's own: no router between
		return Result{Reason: d.direction, Packet: p.between(d.out), ByHost: true}
	}
	if n.entersTheHost(d) {
		out := p.between(d.out)
		out.Dst = netip.AddrPortFrom(p.Dst.Addr(), out.Dst.Port()) // the host's own rules set it
		return Result{Reason: TranslatedStack, Packet: out, Inside: d.out.dst.Addr(), ByHost: true}
	}
	if p.TTL <= 1 {
		return Result{Reason: DroppedTTL}
	}
	p.TTL--
	return Result{Reason: d.direction, Packet: p.between(d.out)}
}

// entersTheHost: from outside to an inside host by the host's own routing and rules.
func (n *NAT) entersTheHost(d side) bool { return n.config.Stack && d.direction == TranslatedInbound }

func (p Packet) between(f flow) Packet {
	if p.Piece == Later {
		f = flow{netip.AddrPortFrom(f.src.Addr(), 0), netip.AddrPortFrom(f.dst.Addr(), 0)}
	}
	p.Src, p.Dst = f.src, f.dst
	return p
}

// place is where packets of that side come from.
func (d side) place() Place {
	if d.isInside {
		return d.session.Binding.Network
	}
	return d.session.otherPlace()
}

// touch is what a packet leaves behind. A RST that follows a RST does not refresh (RFC 7857 section 7.1), nor does what
// follows both sides' FIN (RFC 6146 section 3.5.2.2), but a SYN, which begins anew.
func (d side) touch(now time.Duration, k Kind) {
	state := d.session.State()
	if k == Syn && (state == "fin-both" || state == "trans") {
		d.session.inside.seen, d.session.outside.seen = flags{}, flags{}
		state = ""
	}
	if state != "fin-both" && (k != Rst || !d.from.seen.rst) {
		d.from.last = now
		if d.isInside && d.session.Binding.Protocol == UDP {
			d.session.Binding.lastOut = now
		}
	}
	if d.session.Binding.Protocol != TCP {
		return
	}
	d.from.seen = d.from.seen.with(k)
	if k != Rst { // RFC 6146 section 3.5.2.2, TRANS: it was not the end, whoever has sent the RST
		d.session.inside.seen.rst, d.session.outside.seen.rst = false, false
	}
}

// with is what a segment adds; a SYN after a FIN uses the endpoints again.
func (f flags) with(k Kind) flags {
	switch k {
	case Rst:
		f.rst = true
	case Syn, SynAck:
		f.syn, f.fin = true, false
	case Fin:
		f.fin = true
	default:
		f.other = true
	}
	return f
}

// State is the session's, by RFC 6146's words with inside for V6 and outside for V4; "active" where it is not TCP.
func (s *Session) State() string {
	a, b := s.inside.seen, s.outside.seen
	if s.isSelf() {
		b = a
	}
	switch {
	case s.Binding.Protocol != TCP:
		return "active"
	case a.fin && b.fin:
		return "fin-both"
	case a.rst || b.rst:
		return "trans"
	case a.fin:
		return "fin-inside"
	case b.fin:
		return "fin-outside"
	case a.any() && b.any() && a.syn == b.syn: // both SYNs, or picked up in its middle on both sides
		return "established"
	case a.any():
		return "init-inside"
	}
	return "init-outside"
}

func (n *NAT) lifetime(s *Session) time.Duration {
	switch s.Binding.Protocol {
	case UDP, GRE:
		return n.config.UDPTimeout
	case ICMP:
		return n.config.ICMPTimeout
	}
	switch s.State() {
	case "established", "fin-inside", "fin-outside":
		return n.config.TCPEstablishedTimeout
	case "fin-both", "trans":
		return n.config.TCPClosingTimeout
	}
	return n.config.TCPPartialOpenTimeout
}

// refreshed is when the session was last kept alive: by packets of either end, but of UDP under endpoint-independent
// filtering by those that leave (RFC 7857 section 7), or anybody outside could keep the port open.
func (n *NAT) refreshed(s *Session) time.Duration {
	b := s.Binding
	if s.isSelf() || (b.Protocol == UDP && s.Receiver == nil && n.config.filtering(b) == EndpointIndependent) {
		return s.inside.last
	}
	return max(s.inside.last, s.outside.last)
}
