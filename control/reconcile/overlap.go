// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"slices"

	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
)

// apart looks at networks whose addresses the host's routing finds at another interface. The direct path tells networks apart
// by where a packet comes from; on the stack path the kernel would bring what is for one into the other, and the network is
// left alone (docs/decisions/0015-overlapping-zones.md).
func (t *target) apart(host hostnet.Snapshot, stack bool) {
	for _, n := range slices.Clone(t.Networks) {
		l, there := host.LinkAt(n.IfIndex)
		sh, elsewhere := host.Elsewhere(n.IfIndex)
		if !there || !elsewhere {
			continue
		}
		at := "nowhere"
		if other, ok := host.LinkAt(sh.Routed); ok {
			at = "at " + other.Name
		}
		if stack {
			t.leaveOut(n)
			t.leftAlone = append(t.leftAlone, LeftAlone{Name: n.Shown(), Interface: n.Name, Driver: l.Kind,
				Reason: "path stack, and the host's routing finds " + sh.Prefix.String() + " " + at})
			t.problem("network %s is not translated: on the stack path the host's routing leads to its addresses, and finds %s %s; "+
				"give it other addresses, or take the direct path", n.Shown(), sh.Prefix, at)
			continue
		}
		if l.StrictSource && sh.Prefix.Addr().Is4() {
			t.problem("network %s: the host answers no ARP at %s, as rp_filter is strict and its routing finds %s %s: sysctl -w net.ipv4.conf.%s.rp_filter=2",
				n.Shown(), n.Name, sh.Prefix, at, n.Name)
		}
	}
}

// leaveOut takes a network out, with all that is its.
func (t *target) leaveOut(n dataplane.Network) {
	t.Networks = slices.DeleteFunc(t.Networks, func(o dataplane.Network) bool { return o.Name == n.Name })
	t.Links = slices.DeleteFunc(t.Links, func(l dataplane.Link) bool { return l.Kind != dataplane.OutsideLink && l.Owner == n.Name })
	t.Owners = slices.DeleteFunc(t.Owners, func(o dataplane.Owner) bool { return o.Network == n.Name })
	t.Forwards = slices.DeleteFunc(t.Forwards, func(f dataplane.Forward) bool { return f.Network == n.Name })
}
