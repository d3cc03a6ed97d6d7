// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Shared is a prefix that several interfaces have addresses of.
type Shared struct {
	Prefix netip.Prefix // the narrowest, where one lies in the other
	Links  []int        // indices, in order
	Routed int          // index of the one by which the host's routing finds its addresses; 0: by none
}

// Elsewhere says by which other interface the host's routing finds addresses of an interface's; false: by that one alone.
func (s Snapshot) Elsewhere(index int) (Shared, bool) {
	i := slices.IndexFunc(s.Shared, func(sh Shared) bool { return sh.Routed != index && slices.Contains(sh.Links, index) })
	if i < 0 {
		return Shared{}, false
	}
	return s.Shared[i], true
}

// FindsElsewhere is Elsewhere of one address.
func (s Snapshot) FindsElsewhere(index int, a netip.Addr) bool {
	return slices.ContainsFunc(s.Shared, func(sh Shared) bool {
		return sh.Routed != index && slices.Contains(sh.Links, index) && sh.Prefix.Contains(a)
	})
}

// shared looks for them. Of prefixes in order, one that lies in another comes after it.
func shared(links []Link) (out []Shared) {
	type owned struct {
		prefix netip.Prefix
		link   int
	}
	var all, open []owned
	for _, l := range links {
		for _, p := range l.Prefixes() {
			all = append(all, owned{p, l.Index})
		}
	}
	slices.SortStableFunc(all, func(a, b owned) int { return a.prefix.Compare(b.prefix) })
	for _, one := range all {
		open = slices.DeleteFunc(open, func(o owned) bool { return !o.prefix.Contains(one.prefix.Addr()) })
		others := []int{one.link}
		for _, o := range open {
			others = append(others, o.link)
		}
		slices.Sort(others)
		if others = slices.Compact(others); len(others) > 1 {
			out = slices.DeleteFunc(out, func(s Shared) bool { return s.Prefix == one.prefix })
			out = append(out, Shared{Prefix: one.prefix, Links: others})
		}
		open = append(open, one)
	}
	return out
}

// routed asks the kernel where the addresses of a prefix are; 0: nowhere.
func routed(p netip.Prefix, links []Link) int {
	routes, err := netlink.RouteGet(net.IP(hostOf(p, links).AsSlice()))
	if err != nil || len(routes) == 0 {
		return 0
	}
	return routes[0].LinkIndex
}

// hostOf is an address of a prefix that is none of the host's own, if there is one.
func hostOf(p netip.Prefix, links []Link) netip.Addr {
	for a := p.Masked().Addr().Next(); p.Contains(a); a = a.Next() {
		if !slices.ContainsFunc(links, func(l Link) bool { return l.Has(a) }) {
			return a
		}
	}
	return p.Addr()
}

// strictSource reads whether packets by an IPv4 interface are dropped whose source the host's routing finds elsewhere: rp_filter
// is 1, and of the interface's and all interfaces' the greater one counts.
func strictSource(name string) (bool, error) {
	strict := "0"
	for _, of := range []string{"all", name} {
		text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + of + "/rp_filter")
		if err != nil {
			return false, fmt.Errorf("read rp_filter: %w", err)
		}
		strict = max(strict, strings.TrimSpace(string(text)))
	}
	return strict == "1", nil
}

// share finds prefixes that several interfaces have, and what the kernel makes of them.
func (s *Snapshot) share() {
	s.Shared = shared(s.Links)
	for i, sh := range s.Shared {
		s.Shared[i].Routed = routed(sh.Prefix, s.Links)
		for j, l := range s.Links {
			if slices.Contains(sh.Links, l.Index) {
				s.Links[j].StrictSource, _ = strictSource(l.Name) // of an interface that is gone meanwhile nobody asks
			}
		}
	}
}
