// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// ensureExceptions covers networks and outsides. What leaves is exempted only where both do have hooks: without them, the
// host's own NAT must stay in charge. The rules of what arrives are about marked packets alone, and stand before the hooks.
func (r *Reconciler) ensureExceptions() {
	const action = "keep the host's NAT off packets that take the stack"
	s, err := r.hooked()
	if err == nil {
		s.Owners, err = r.dp.Owners()
	}
	if err == nil {
		err = r.exceptions.Ensure(pairs(s, r.seen))
	}
	if err != nil {
		r.fail(action, err, false)
	}
}

func pairs(s plan.State, host hostnet.Snapshot) (out []exceptions.Pair) {
	hooked := func(kind dataplane.LinkKind, owner string) bool {
		return slices.ContainsFunc(s.Links, func(l dataplane.Link) bool { return l.Kind == kind && l.Owner == owner })
	}
	for _, n := range s.Networks {
		for _, o := range s.Outsides {
			if o.IfIndex == 0 { // away: nothing arrives, and nothing is to leave by it when it comes back
				o.Addresses = nil
			}
			leaves := o.IfIndex != 0 && hooked(dataplane.InsideDevice, n.Name) && hooked(dataplane.OutsideLink, o.Name)
			for _, p := range n.Prefixes {
				out = append(out, exceptions.Pair{Inside: p, Outside: o.IfIndex, Name: o.Name, External: alike(o.Addresses, p), Unhooked: !leaves,
					Exclude: n.Exclude, From: cameBy(n, p, host),
					Except: append(excluded(s, n, p), ownAddresses(host, n, p)...)})
			}
		}
	}
	return out
}

// cameBy is the network's interface, if another one has addresses of the prefix; else 0: any.
func cameBy(n dataplane.Network, p netip.Prefix, host hostnet.Snapshot) int {
	for _, l := range host.Links {
		if l.Index != n.IfIndex && slices.ContainsFunc(l.Prefixes(), p.Overlaps) {
			return n.IfIndex
		}
	}
	return 0
}

// alike are the external addresses of a prefix's family.
func alike(list []netip.Addr, p netip.Prefix) (out []netip.Addr) {
	for _, a := range list {
		if a.Is4() == p.Addr().Is4() {
			out = append(out, a)
		}
	}
	return out
}

// ownAddresses are the host's on the inside interface: what a process of the host sends from there is the host's NAT's.
func ownAddresses(host hostnet.Snapshot, n dataplane.Network, in netip.Prefix) (out []netip.Addr) {
	l, _ := host.LinkAt(n.IfIndex)
	for _, a := range l.Addresses {
		if in.Contains(a.Addr()) {
			out = append(out, a.Addr())
		}
	}
	return out
}

// excluded are the addresses of a network that the host's NAT has.
func excluded(s plan.State, n dataplane.Network, in netip.Prefix) (out []netip.Addr) {
	for _, o := range s.Owners {
		if o.Excluded && o.Network == n.Name && in.Contains(o.Address) {
			out = append(out, o.Address)
		}
	}
	return out
}
