// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/hostnet"
)

// hasIPv6 says whether any inside network is translated in IPv6, or was before its interface went away. Without one nobody
// needs IPv6's external addresses, and the dataplane none of its maps.
func (t *target) hasIPv6(in inputs, insides []inside) bool {
	is6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	return slices.ContainsFunc(insides, func(want inside) bool {
		if l, there := in.host.Link(want.name); there && slices.ContainsFunc(new(target).prefixes(want, l), is6) {
			return true
		}
		was, _ := findNetwork(in.actual, want.name)
		return slices.ContainsFunc(was.Prefixes, is6)
	})
}

// withoutIPv6 is the host as one would see it who knows IPv4 alone.
func withoutIPv6(s hostnet.Snapshot) hostnet.Snapshot {
	s.Default6, s.Links = nil, slices.Clone(s.Links)
	for i, l := range s.Links {
		s.Links[i].Addresses, s.Links[i].Tentative = l.Family(netip.Addr.Is4), nil
	}
	return s
}
