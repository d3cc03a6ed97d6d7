// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/dataplane"
)

// translatePrefix gives a network its mode. Where its prefix cannot become the external one, its IPv6 is left alone: whoever asked for
// that is not served by bindings.
func (t *target) translatePrefix(n *dataplane.Network, want inside) {
	if want.mode != dataplane.ModeNPTv6 {
		n.Mode = want.mode
		return
	}
	err := dataplane.CheckExternalPrefix(slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool { return !isIPv6(p) }), want.prefix)
	for _, other := range t.Networks {
		if err == nil && other.ExternalPrefix.IsValid() && other.ExternalPrefix.Overlaps(want.prefix) {
			err = fmt.Errorf("external prefix %s is network %s's, which has %s", want.prefix, other.Shown(), other.ExternalPrefix)
		}
	}
	if err == nil {
		n.Mode, n.ExternalPrefix = want.mode, want.prefix
		return
	}
	t.problem("network %s: %v: its IPv6 is not translated", n.Shown(), err)
	n.Prefixes = slices.DeleteFunc(slices.Clone(n.Prefixes), isIPv6)
}

// opened is what a published port is in a routed network: the container's own, at its own address.
func (i inside) opened(e docker.Endpoint, p docker.Published) (out []dataplane.Forward) {
	for _, address := range []netip.Addr{e.Address, e.Address6} {
		endpoint := netip.AddrPortFrom(address, p.ContainerPort)
		known := slices.ContainsFunc(out, func(f dataplane.Forward) bool { return f.External == endpoint })
		if address.IsValid() && address.Is4() == p.Host.Is4() && !p.Host.IsLoopback() && !known {
			out = append(out, dataplane.Forward{Protocol: p.Protocol, Network: i.name, External: endpoint, Internal: endpoint,
				OverHostSocket: true, Published: true})
		}
	}
	return out
}
