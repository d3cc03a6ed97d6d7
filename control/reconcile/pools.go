// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
)

// maxAddresses is how many external addresses the dataplane has room for, of all outsides together.
const maxAddresses = 256

// everybody is the filtering of a container with an address of its own that says nothing else, as of a published port.
var everybody = [3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.EndpointIndependent, dataplane.EndpointIndependent}

// naming is somebody who has named external addresses for himself.
type naming struct {
	who    string
	ranges []config.Range
}

// named are the external addresses that networks and containers want for themselves.
func named(insides []inside) (list []naming) {
	for _, i := range insides {
		if len(i.external) > 0 {
			list = append(list, naming{"network " + i.shown(), i.external})
		}
		for _, e := range i.endpoints {
			if len(e.External) > 0 && !e.Excluded {
				list = append(list, naming{"container " + e.Name, e.External})
			}
		}
	}
	return list
}

func (i inside) shown() string {
	if i.label != "" {
		return i.label
	}
	return i.name
}

// isNamed says whether anybody has named an address.
func isNamed(list []naming, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(n naming) bool { return config.InRanges(n.ranges, a) })
}

// family is what differs between IPv4 and IPv6 here.
type family struct {
	name string
	is   func(netip.Addr) bool
}

func (f family) hasPrefix(p netip.Prefix) bool { return f.is(p.Addr()) }

var families = []family{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}}

// alikeTo is the family of an address.
func alikeTo(a netip.Addr) func(netip.Addr) bool {
	if a.Is4() {
		return netip.Addr.Is4
	}
	return netip.Addr.Is6
}

// addresses are the external ones behind an outside interface: its pool, and what others have named of what it has.
func (t *target) addresses(in inputs, l hostnet.Link, was []netip.Addr) (list []netip.Addr) {
	for _, f := range families {
		list = append(list, t.pool(in, l, f, was)...)
	}
	if len(list) == 0 && len(in.cfg.External) == 0 {
		t.problem("outside interface %s has no address: waiting for one", l.Name)
	}
	return inShownOrder(list, was)
}

// pool are those of a family. While nothing of it is there, what was there before stays, with its bindings.
func (t *target) pool(in inputs, l hostnet.Link, f family, was []netip.Addr) (list []netip.Addr) {
	other := func(a netip.Addr) bool { return !f.is(a) }
	was = slices.DeleteFunc(slices.Clone(was), other)
	wanted := slices.DeleteFunc(slices.Clone(in.cfg.External), func(r config.Range) bool { return other(r.First) })
	var has []netip.Addr
	for _, p := range l.Family(f.is) {
		has = append(has, p.Addr())
		if config.InRanges(wanted, p.Addr()) {
			list = append(list, p.Addr())
		}
	}
	mine := func(a netip.Addr) bool { return config.InRanges(wanted, a) }
	switch {
	case len(list) == 0 && len(wanted) > 0 && (len(in.cfg.Outside) <= 1 || slices.ContainsFunc(was, mine)):
		t.problem("outside interface %s does not have the external address %s: waiting for it", l.Name, wanted[0])
		return was
	case len(has) == 0 && len(was) > 0:
		t.problem("outside interface %s has no %s address: waiting for one", l.Name, f.name)
		return was
	case len(has) == 0:
		return nil
	case len(list) == 0:
		list = append(list, firstOf(has, was))
	}
	for _, a := range has {
		if !slices.Contains(list, a) && isNamed(t.named, a) {
			list = append(list, a)
		}
	}
	return list
}

// firstOf is an interface's first address, or the one that was: the bindings live on it, and another one that came first in
// the list is no reason.
func firstOf(has, was []netip.Addr) netip.Addr {
	if len(was) > 0 && slices.Contains(has, was[0]) {
		return was[0]
	}
	return has[0]
}

// inShownOrder: the one that was shown first stays so, the others are sorted, as dataplane.Outside has them.
func inShownOrder(list, was []netip.Addr) []netip.Addr {
	if len(list) == 0 {
		return nil
	}
	first := list[0]
	if len(was) > 0 && slices.Contains(list, was[0]) {
		first = was[0]
	}
	rest := slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return a == first })
	slices.SortFunc(rest, netip.Addr.Compare)
	return append([]netip.Addr{first}, slices.Compact(rest)...)
}

// checkAddresses tells of addresses that are wanted and nowhere, and of more than there is room for.
func (t *target) checkAddresses(in inputs) {
	all := externalAddresses(t.Outsides)
	if len(all) > maxAddresses {
		t.problem("the outside interfaces have %d external addresses: %d are the most", len(all), maxAddresses)
	}
	if len(all) == 0 {
		return // waiting is told already
	}
	missing := func(n naming, consequence string) {
		for _, r := range n.ranges {
			if !slices.ContainsFunc(all, r.Contains) {
				t.problem("%s: no outside interface has the external address %s: %s", n.who, r, consequence)
			}
		}
	}
	if len(in.cfg.External) > 1 {
		missing(naming{"external", in.cfg.External}, "waiting for it")
	}
	for _, n := range t.named {
		missing(n, "what would leave from it is dropped until one does")
	}
	for _, o := range t.Outsides {
		if len(o.Addresses) > 0 && !slices.ContainsFunc(o.Addresses, func(a netip.Addr) bool { return !isNamed(t.named, a) }) {
			t.problem("outside interface %s: networks and containers have named all its external addresses: nobody else has one there", o.Name)
		}
	}
}

// expand are the addresses of ranges, as the dataplane has them: those that an outside has, and single ones in any case. Never
// none at all, which would be any.
func expand(ranges []config.Range, outsides []dataplane.Outside, is func(netip.Addr) bool) (list []netip.Addr) {
	for _, r := range ranges {
		if r.Single() && is(r.First) {
			list = append(list, r.First)
		}
	}
	for _, a := range externalAddresses(outsides) {
		if is(a) && config.InRanges(ranges, a) {
			list = append(list, a)
		}
	}
	for _, r := range ranges {
		if len(list) == 0 && is(r.First) {
			list = append(list, r.First)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// settleAlone gives 1:1 addresses to the containers that ask for them; who cannot have one is pinned to it all the same, and
// what others may not see does not leave.
func (t *target) settleAlone(in inputs, insides []inside) {
	t.alone = map[netip.Addr]string{}
	for _, i := range insides {
		for _, e := range i.endpoints {
			if !e.OneToOne || e.Excluded {
				continue
			}
			a := e.External[0].First
			if why := t.refuseAlone(in, e, a); why != "" {
				t.problem("container %s: no 1:1 with %s: %s", e.Name, a, why)
				continue
			}
			t.alone[a] = e.ID
		}
	}
}

func (t *target) refuseAlone(in inputs, e docker.Endpoint, a netip.Addr) string {
	for _, l := range in.host.Links {
		if i := slices.IndexFunc(l.Addresses, func(p netip.Prefix) bool { return alikeTo(a)(p.Addr()) }); i >= 0 && l.Addresses[i].Addr() == a {
			return fmt.Sprintf("it is the host's own, the first one of %s: give the interface another address for the container", l.Name)
		}
	}
	if t.alone[a] != "" {
		return "another container has it"
	}
	for _, n := range t.named {
		if n.who != "container "+e.Name && slices.ContainsFunc(n.ranges, func(r config.Range) bool { return r.Single() && r.First == a }) {
			return n.who + " has named it, too"
		}
	}
	return ""
}

// mayLeaveFrom says whether a container's new bindings may be at an external address: a port that is published on all
// addresses is on these.
func (i inside) mayLeaveFrom(e docker.Endpoint, list []naming, a netip.Addr) bool {
	switch {
	case len(e.External) > 0:
		return config.InRanges(e.External, a)
	case len(i.external) > 0:
		return config.InRanges(i.external, a)
	}
	return !isNamed(list, a)
}
