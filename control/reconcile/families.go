// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
)

// carried says whether the dataplane translates addresses of this one's family. What it does not is taken out of all that
// is known of the host, of Docker and of netfilter, here and nowhere else: the rest of the package knows both families.
func carried(a netip.Addr) bool { return a.Is4() }

// carriedHost is what a host has of the families that are carried.
func carriedHost(s hostnet.Snapshot) hostnet.Snapshot {
	s.Links = slices.Clone(s.Links)
	for i, l := range s.Links {
		s.Links[i].Addresses = carriedPrefixes(l.Addresses)
		s.Links[i].Tentative = carriedPrefixes(l.Tentative)
	}
	if !carried(netip.IPv6Unspecified()) {
		s.Default6 = nil
	}
	return s
}

// carriedDocker is what Docker has of the families that are carried. A network of which nothing is left is left alone.
func carriedDocker(s docker.Snapshot) docker.Snapshot {
	s.Networks = slices.Clone(s.Networks)
	for i := range s.Networks {
		n := &s.Networks[i]
		had := len(n.Subnets)
		n.Subnets = carriedPrefixes(n.Subnets)
		if had > 0 && len(n.Subnets) == 0 && n.LeftAlone == "" {
			n.LeftAlone = "no IPv4"
		}
		if !carried(netip.IPv6Unspecified()) {
			if n.Partly.IPv4 != "" { // what is translated of it is not carried
				n.LeftAlone = n.Partly.IPv4
			}
			n.Partly = docker.Partly{}
		}
		n.Endpoints = carriedEndpoints(n.Endpoints)
	}
	return s
}

func carriedEndpoints(list []docker.Endpoint) (out []docker.Endpoint) {
	for _, e := range list {
		if !carried(e.Address6) {
			e.Address6 = netip.Addr{}
		}
		if !e.Address.IsValid() && !e.Address6.IsValid() {
			continue
		}
		e.Published = slices.DeleteFunc(slices.Clone(e.Published), func(p docker.Published) bool { return !carried(p.Host) })
		out = append(out, e)
	}
	return out
}

// carriedFlows are the connections whose addresses are carried.
func carriedFlows(list []conntrack.Flow) []conntrack.Flow {
	return slices.DeleteFunc(list, func(f conntrack.Flow) bool { return !carried(f.Original.Src.Addr()) })
}

func carriedPrefixes(list []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return !carried(p.Addr()) })
}
