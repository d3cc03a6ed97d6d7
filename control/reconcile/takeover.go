// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// States of enum tcp_conntrack (linux/netfilter/nf_conntrack_tcp.h).
const (
	tcpSynSent  = 1
	tcpLastAck  = 6
	tcpTimeWait = 7
	tcpClose    = 8
)

// takeover is what conntrack knows, sorted by whose it is.
type takeover struct {
	sessions []dataplane.Session // of inside hosts: they go on in conenat
	flows    []conntrack.Flow    // whose sessions they are, in no order
	others   []reservation       // other NAT users' external endpoints: they stay theirs
}

type reservation struct {
	protocol  dataplane.Protocol
	external  netip.AddrPort
	forwarded bool // a connection of another NAT's: it may turn out to be of a network that is not known yet
}

// sortFlows is a pure function. Of the flows of one internal endpoint, those come first whose external port is the
// internal one: the endpoint's binding is the first one's, and masquerade gives another port only to what collides.
func sortFlows(flows []conntrack.Flow, s plan.State, host hostnet.Snapshot) (out takeover) {
	view := flowView{state: s, host: host, excluded: map[ownedAddress]bool{}, forwards: map[string]dataplane.Forward{}}
	for _, o := range s.Owners {
		view.excluded[ownedAddress{o.Network, o.Address}] = o.Excluded
	}
	for _, f := range s.Forwards {
		view.forwards[plan.ForwardID(f.Protocol, f.External)] = f
	}
	for _, f := range flows {
		if session, ours := view.session(f); ours {
			out.sessions, out.flows = append(out.sessions, session), append(out.flows, f)
		} else if f.SourceNAT && view.external(f.Reply.Dst.Addr()) && view.network(f.Original.Src.Addr()) == "" {
			out.others = append(out.others, reservation{f.Protocol, f.Reply.Dst, true})
		}
	}
	preserved := func(s dataplane.Session) int {
		if s.Internal.Port() == s.External.Port() {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out.sessions, func(a, b dataplane.Session) int { return cmp.Compare(preserved(a), preserved(b)) })
	return out
}

type flowView struct {
	state    plan.State
	host     hostnet.Snapshot
	excluded map[ownedAddress]bool
	forwards map[string]dataplane.Forward
}

type ownedAddress struct {
	network string
	address netip.Addr
}

func (v flowView) external(a netip.Addr) bool {
	return slices.ContainsFunc(v.state.Outsides, func(o dataplane.Outside) bool { return slices.Contains(o.Addresses, a) })
}

// network is the one that an address is translated in; empty: none. Of several that have it, conntrack means the one that the
// host's routing leads to.
func (v flowView) network(a netip.Addr) string {
	for _, n := range v.state.Networks {
		if v.host.FindsElsewhere(n.IfIndex, a) {
			continue
		}
		for _, p := range n.Prefixes {
			if p.Contains(a) && !v.excluded[ownedAddress{n.Name, a}] {
				return n.Name
			}
		}
	}
	return ""
}

// session is what a flow is in conenat: one that a container has opened under masquerade, or that has come in to a
// port that is published.
func (v flowView) session(f conntrack.Flow) (dataplane.Session, bool) {
	s := dataplane.Session{Protocol: f.Protocol, Internal: f.Original.Src, External: f.Reply.Dst, Remote: f.Original.Dst}
	inbound := f.DestinationNAT
	if inbound {
		s.Internal, s.External, s.Remote = f.Reply.Src, f.Original.Dst, f.Original.Src
		forward, there := v.forwards[plan.ForwardID(f.Protocol, s.External)]
		if f.SourceNAT || !there || forward.Internal != s.Internal {
			return s, false
		}
	} else if !f.SourceNAT {
		return s, false
	}
	s.Network = v.network(s.Internal.Addr())
	remote := s.Remote.Addr()
	if s.Network == "" || !v.external(s.External.Addr()) || v.external(remote) || v.network(remote) != "" || remote.IsLoopback() {
		return s, false
	}
	var alive bool
	s.State, alive = tcpState(f, inbound)
	return s, alive
}

// tcpState is RFC 6146's name of conntrack's state; not alive: the connection has ended.
func tcpState(f conntrack.Flow, inbound bool) (state string, alive bool) {
	switch {
	case f.Protocol != dataplane.TCP:
		return "active", true
	case f.TCPState == 0 || f.TCPState == tcpClose:
		return "", false
	case f.TCPState == tcpSynSent && inbound:
		return "init-outside", true
	case f.TCPState == tcpSynSent:
		return "init-inside", true
	case f.TCPState == tcpLastAck || f.TCPState == tcpTimeWait:
		return "fin-both", true
	}
	return "established", true // also half closed: conntrack does not say by whom, and the next FIN tells
}

// flows are conntrack's, nil where it cannot be asked: a host without conntrack has nothing to take over.
func (r *Reconciler) flows(s plan.State) takeover {
	if r.conntrack == nil {
		return takeover{}
	}
	flows, err := r.conntrack.List()
	if err != nil {
		r.fail("read conntrack", err, false)
	}
	return sortFlows(flows, s, r.seen)
}

// takesOver says whether a plan puts a network under conenat, or publishes a port, for which connections may live.
func takesOver(actions []plan.Action, actual plan.State) bool {
	return slices.ContainsFunc(actions, func(a plan.Action) bool {
		if a.Verb == plan.AddForward {
			return true
		}
		return a.Verb == plan.Attach && a.Link.Kind != dataplane.InsidePort &&
			!slices.ContainsFunc(actual.Links, func(l dataplane.Link) bool { return l.IfIndex == a.Link.IfIndex })
	})
}

// finishTakeover takes over what began until the hooks were on. On the direct path netfilter sees nothing of these
// connections from now on, not even their end: its entries would be taken for connections that live the next time.
func (r *Reconciler) finishTakeover(t *target) {
	over := r.flows(t.State)
	if !r.importSessions(over.sessions) || r.conntrack == nil {
		return
	}
	if r.guard.path.Stack {
		r.ensureExceptions()
		return
	}
	if err := r.conntrack.Forget(over.flows); err != nil {
		r.log.Warn("connections that were taken over stay in conntrack until they time out there", "error", err)
	}
}

// importSessions makes connections that live in netfilter's NAT go on here, with the same external endpoints; it says
// whether all of them do.
func (r *Reconciler) importSessions(sessions []dataplane.Session) bool {
	var failed []error
	for _, s := range sessions {
		if err := r.dp.ImportSession(s); err != nil {
			failed = append(failed, err)
		}
	}
	if n := len(sessions) - len(failed); n > 0 {
		r.log.Info("connections of netfilter's NAT taken over", "count", n)
	}
	if len(failed) > 0 {
		r.log.Warn("connections that cannot be taken over: they get another external endpoint, or end",
			"count", len(failed), "first", failed[0])
	}
	return len(failed) == 0
}

// reserve keeps bindings off endpoints that the host, or another NAT on it, uses.
func (r *Reconciler) reserve(list []reservation) bool {
	for _, one := range list {
		keep := r.dp.ReserveHost
		if one.forwarded {
			keep = r.dp.ReserveForwarded
		}
		err := keep(one.protocol, one.external)
		if err != nil && !errors.Is(err, dataplane.ErrNotFound) { // no external address any more
			r.fail("reserve the host's ports", err, false)
			return false
		}
	}
	return true
}

// hostReservations are the endpoints of the host's own sockets.
func (r *Reconciler) hostReservations(external []netip.Addr) (list []reservation) {
	sockets, err := r.host.Sockets()
	if err != nil {
		r.fail("list the host's sockets", err, false)
	}
	for _, s := range sockets {
		for _, a := range external {
			if s.On(a) {
				list = append(list, reservation{protocol: s.Protocol, external: netip.AddrPortFrom(a, s.Local.Port())})
			}
		}
	}
	return list
}

// maxDiverted bounds the ports of one nat rule that are reserved one by one.
const maxDiverted = 1024

// diverted are the endpoints whose packets nat rules of others take elsewhere.
func (r *Reconciler) diverted(t *target, external []netip.Addr) (list []reservation) {
	for _, d := range r.guard.report.Diverted {
		if int(d.High)-int(d.Low) >= maxDiverted {
			t.problem("%s takes the ports %d-%d: containers may get one of them as external port; narrow --ports", d.Where, d.Low, d.High)
			continue
		}
		for _, a := range external {
			for port := int(d.Low); port <= int(d.High); port++ {
				if to := netip.AddrPortFrom(a, uint16(port)); d.Covers(d.Protocol, to) {
					list = append(list, reservation{protocol: d.Protocol, external: to})
				}
			}
		}
	}
	return list
}

func externalAddresses(outsides []dataplane.Outside) (list []netip.Addr) {
	for _, o := range outsides {
		list = append(list, o.Addresses...)
	}
	return list
}

func only(list []reservation, p dataplane.Protocol) (out []reservation) {
	for _, one := range list {
		if one.protocol == p {
			out = append(out, one)
		}
	}
	return out
}
