// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/dataplane"
)

// networkUses are what the networks have of what they may have, by name.
func (d *daemon) networkUses() ([]api.NetworkUse, error) {
	list, err := d.dp.Networks()
	if err != nil {
		return nil, err
	}
	usages, err := d.dp.NetworkUsages()
	if err != nil {
		return nil, err
	}
	out := []api.NetworkUse{}
	for _, n := range list {
		u := usages[n.Name]
		use := api.NetworkUse{Name: n.Shown(), Mode: n.Mode.String(), Limits: limitsOf(n.Limits), Usage: usageOf(u), Hosts: len(u.Hosts), Busiest: api.HostUse{Blocks: []string{}}}
		if len(u.Hosts) > 0 {
			use.Busiest = hostOf(busiest(u.Hosts, n.Limits))
		}
		out = append(out, use)
	}
	slices.SortFunc(out, func(a, b api.NetworkUse) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// busiest is the host that is nearest to one of its limits, and of those that are as near the one with most ports.
func busiest(hosts []dataplane.HostUsage, l dataplane.Limits) dataplane.HostUsage {
	near := func(h dataplane.HostUsage) float64 {
		return max(share(h.Ports, l.HostPorts), share(h.Sessions, l.HostSessions))
	}
	return slices.MaxFunc(hosts, func(a, b dataplane.HostUsage) int {
		return cmp.Or(cmp.Compare(near(a), near(b)), cmp.Compare(a.Ports, b.Ports), cmp.Compare(a.Sessions, b.Sessions))
	})
}

func share(has, limit uint32) float64 {
	if limit == 0 {
		return 0
	}
	return float64(has) / float64(limit)
}

// limitWarnings name the networks, and of each the busiest host, that will soon get no more.
func limitWarnings(networks []api.NetworkUse) (out []string) {
	warn := func(who, what, setting string, has, limit uint32) {
		if limit > 0 && uint64(has)*100 >= uint64(limit)*nearlyFull {
			out = append(out, fmt.Sprintf("%s has %d of %d %s: look at what it does, or raise limits.%s (or the network's label conenat.max-%s)",
				who, has, limit, what, setting, what))
		}
	}
	for _, n := range networks {
		network, host := "network "+n.Name, fmt.Sprintf("host %s of network %s", n.Busiest.Address, n.Name)
		warn(network, "ports", "ports_per_network", n.Usage.Ports, n.Limits.PortsPerNetwork)
		warn(network, "sessions", "sessions_per_network", n.Usage.Sessions, n.Limits.SessionsPerNetwork)
		warn(host, "ports", "ports_per_host", n.Busiest.Ports, n.Limits.PortsPerHost)
		warn(host, "sessions", "sessions_per_host", n.Busiest.Sessions, n.Limits.SessionsPerHost)
	}
	return out
}

func limitsOf(l dataplane.Limits) api.Limits {
	return api.Limits{PortsPerHost: l.HostPorts, SessionsPerHost: l.HostSessions, PortsPerNetwork: l.NetworkPorts, SessionsPerNetwork: l.NetworkSessions}
}

func usageOf(u dataplane.NetworkUsage) api.Usage {
	return api.Usage{Ports: u.Ports, Sessions: u.Sessions}
}

func hostsOf(u dataplane.NetworkUsage) []api.HostUse {
	out := []api.HostUse{}
	for _, h := range u.Hosts {
		out = append(out, hostOf(h))
	}
	return out
}

func hostOf(h dataplane.HostUsage) api.HostUse {
	out := api.HostUse{Address: h.Address.String(), Ports: h.Ports, Sessions: h.Sessions, Blocks: []string{}}
	for _, b := range h.Blocks {
		out.Blocks = append(out.Blocks, fmt.Sprintf("%s:%d-%d", b.External, b.First, b.Last))
	}
	return out
}
