// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// maxLabel is the bound of dataplane.Network.Label.
const maxLabel = 63

// inside is a network that is to be translated.
type inside struct {
	name      string // of the interface
	label     string
	mapping   [3]dataplane.Behavior
	filtering [3]dataplane.Behavior
	refusal   dataplane.Refusal
	mssClamp  bool
	limits    dataplane.Limits
	blockSize uint32
	exclude   []netip.Prefix
	external  []config.Range
	mode      dataplane.Mode
	prefix    netip.Prefix // mode's external one
	isolated  bool
	endpoints []docker.Endpoint
	partly    docker.Partly
	adopted   bool // Docker has not said yet whether it is there: it stays as it is
}

// insides are the networks that the operator has named, and Docker's.
func (in inputs) insides(t *target) (list []inside) {
	for _, name := range in.cfg.Inside {
		list = append(list, in.inside(name))
	}
	if !in.cfg.Docker {
		return list
	}
	t.problems = append(t.problems, in.docker.Problems...)
	if in.docker.Problem != "" {
		t.problem("%s", in.docker.Problem)
	}
	if in.docker.Engine == "" { // nothing was ever heard of it
		return append(list, in.adoptedInsides()...)
	}
	for _, n := range in.docker.Networks {
		named := slices.IndexFunc(list, func(i inside) bool { return i.name == n.Interface && n.Interface != "" })
		reason := in.leftAlone(n)
		if reason == "" {
			in.checkLabels(t, &n)
		}
		switch {
		case reason != "" && named < 0:
			t.leftAlone = append(t.leftAlone, LeftAlone{Name: n.Name, Interface: n.Interface, Driver: n.Driver, Reason: reason})
		case named >= 0:
			n.Partly = docker.Partly{} // the operator's word
			list[named] = in.insideOf(n, list)
		default:
			list = append(list, in.insideOf(n, list))
			t.leavePartly(n)
		}
	}
	return list
}

// noNAT6 is why Docker's IPv6 is left alone where dockerd makes no NAT of it.
const noNAT6 = "dockerd has no NAT for it (--ip6tables): its containers' addresses are routed as they are; name the bridge by --inside to translate them"

// withoutRouted leaves out the IPv6 of networks that Docker only routes: as with masquerade off, somebody else may know
// their containers by these addresses. What is translated stays so: rules that were flushed for a moment end nothing.
func (r *Reconciler) withoutRouted(s docker.Snapshot, actual plan.State) docker.Snapshot {
	routed := func(n docker.Network) bool {
		was, _ := findNetwork(actual, n.Interface)
		if asked := (inputs{cfg: r.cfg}).insideOf(n, nil); asked.mode != dataplane.ModeNAT {
			return false // Docker's NAT is none of its business
		}
		return n.LeftAlone == "" && n.Partly.IPv6 == "" && slices.ContainsFunc(n.Subnets, isIPv6) && !slices.ContainsFunc(was.Prefixes, isIPv6)
	}
	if r.firewall == nil || !slices.ContainsFunc(s.Networks, routed) {
		return s
	}
	translated, err := r.firewall.DockerIPv6()
	if err != nil {
		r.fail("find out whether dockerd translates IPv6", err, false)
	}
	if translated {
		return s
	}
	s.Networks = slices.Clone(s.Networks)
	for i := range s.Networks {
		if n := &s.Networks[i]; routed(*n) && slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return !isIPv6(p) }) {
			n.Partly.IPv6 = noNAT6
		} else if routed(*n) {
			n.LeftAlone = noNAT6
		}
	}
	return s
}

func isIPv6(p netip.Prefix) bool { return p.Addr().Is6() }

// leavePartly says which family of a network that is translated is not.
func (t *target) leavePartly(n docker.Network) {
	for family, reason := range map[string]string{"IPv4": n.Partly.IPv4, "IPv6": n.Partly.IPv6} {
		if reason != "" {
			t.leftAlone = append(t.leftAlone, LeftAlone{Name: n.Name, Interface: n.Interface, Driver: n.Driver, Reason: family + ": " + reason})
		}
	}
}

// checkLabels tells what a network's labels ask for and should not, and takes away what cannot be.
func (in inputs) checkLabels(t *target, n *docker.Network) {
	if n.Mapping != nil {
		t.problems = append(t.problems, config.MappingWarnings("network "+n.Name+": label conenat.mapping", *n.Mapping)...)
	}
	if n.BlockSize == nil {
		return
	}
	if err := config.CheckBlocks(*n.BlockSize, in.cfg.Settings); err != nil {
		t.problem("network %s: ignore label conenat.block-size=\"%d\": %v", n.Name, *n.BlockSize, err)
		n.BlockSize = nil
	}
}

// inside is a network that has what the configuration says for all.
func (in inputs) inside(name string) inside {
	c := in.cfg
	i := inside{name: name, mapping: c.Mapping, filtering: c.Filtering, refusal: c.Refusal, mssClamp: c.MSSClamp,
		limits: c.Limits, blockSize: c.BlockSize, exclude: c.Exclude}
	i.configure(c.Networks[name])
	return i
}

// configure gives it what the configuration says of it alone.
func (i *inside) configure(own config.Network) {
	if own.Exclude != nil {
		i.exclude = own.Exclude
	}
	if own.External != nil {
		i.external = own.External
	}
	if own.Mode != dataplane.ModeNAT {
		i.mode, i.prefix = own.Mode, own.ExternalPrefix
	}
}

// leftAlone is why a network of Docker's is not translated; empty: it is.
func (in inputs) leftAlone(n docker.Network) string {
	if n.LeftAlone != "" {
		return n.LeftAlone
	}
	_, there := in.host.Link(n.Interface)
	if _, known := findNetwork(in.actual, n.Interface); !there && !known {
		return "its bridge " + n.Interface + " is not in this network namespace: rootless Docker, or a network that is being made"
	}
	return ""
}

func (in inputs) insideOf(n docker.Network, others []inside) inside {
	i := in.inside(n.Interface)
	i.configure(in.cfg.Networks[n.Name])
	i.label, i.isolated, i.endpoints, i.partly = n.Name, !n.ICC, translated(in.alive(n), n.Partly), n.Partly
	i.limits = n.Limits.Over(in.cfg.Limits)
	taken := slices.ContainsFunc(others, func(o inside) bool { return o.name != i.name && (o.label == n.Name || o.name == n.Name) })
	if len(n.Name) > maxLabel || taken || n.Name == dataplane.HostNetwork {
		i.label = "" // called by its interface's name
	}
	if n.Mapping != nil {
		i.mapping = *n.Mapping
	}
	if n.BlockSize != nil {
		i.blockSize = *n.BlockSize
	}
	if n.Filtering != nil {
		i.filtering = *n.Filtering
	}
	if n.Refusal != nil {
		i.refusal = *n.Refusal
	}
	if n.MSSClamp != nil {
		i.mssClamp = *n.MSSClamp
	}
	if n.Exclude != nil {
		i.exclude = n.Exclude
	}
	if n.External != nil {
		i.external = n.External
	}
	if n.Mode != nil {
		i.mode, i.prefix = *n.Mode, n.ExternalPrefix
	}
	return i
}

// alive are the network's containers. While Docker is gone, so are those whose bridge port is: without live-restore
// Docker takes its containers along, and its last picture still names them.
func (in inputs) alive(n docker.Network) []docker.Endpoint {
	bridge, there := in.host.Link(n.Interface)
	if in.docker.Connected || !there {
		return n.Endpoints
	}
	return slices.DeleteFunc(slices.Clone(n.Endpoints), func(e docker.Endpoint) bool {
		return e.NetNSID >= 0 && portOf(in.host, bridge, e.NetNSID) == 0
	})
}

// translated are a network's containers without the addresses of a family that is left alone.
func translated(list []docker.Endpoint, leftAlone docker.Partly) []docker.Endpoint {
	list = slices.Clone(list)
	for i := range list {
		if leftAlone.IPv4 != "" {
			list[i].Address = netip.Addr{}
		}
		if leftAlone.IPv6 != "" {
			list[i].Address6 = netip.Addr{}
		}
	}
	return list
}

// adoptedInsides are what an earlier daemon had of Docker, until Docker can be asked.
func (in inputs) adoptedInsides() (list []inside) {
	for _, n := range in.actual.Networks {
		if !slices.Contains(in.cfg.Inside, n.Name) {
			list = append(list, inside{name: n.Name, label: n.Label, mapping: n.Mapping, filtering: n.Filtering, refusal: n.Refusal,
				mssClamp: n.MSSClamp, limits: n.Limits, blockSize: n.BlockSize, exclude: n.Exclude, external: ranges(n.External), isolated: n.Isolated,
				mode: n.Mode, prefix: n.ExternalPrefix, adopted: true, partly: asBefore(n)})
		}
	}
	return list
}

// ranges are single addresses.
func ranges(list []netip.Addr) (out []config.Range) {
	for _, a := range list {
		out = append(out, config.Range{First: a, Last: a})
	}
	return out
}

// asBefore leaves alone the family that a network was not translated in.
func asBefore(n dataplane.Network) (p docker.Partly) {
	const unknown = "Docker has not said yet what it is"
	for _, f := range families {
		if slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return f.is(p.Addr()) }) {
			continue
		}
		if f.name == "IPv6" {
			p.IPv6 = unknown
		} else {
			p.IPv4 = unknown
		}
	}
	return p
}

// owners are whose the addresses of the network are.
func (t *target) owners(in inputs, i inside, bridge hostnet.Link) (list []dataplane.Owner) {
	if i.adopted {
		return i.kept(in)
	}
	for _, e := range i.endpoints {
		for _, address := range []netip.Addr{e.Address, e.Address6} {
			if address.IsValid() {
				list = append(list, t.owner(in, i, e, address, portOf(in.host, bridge, e.NetNSID)))
			}
		}
	}
	if in.docker.Incomplete {
		list = append(list, i.kept(in)...)
	}
	return list
}

func (t *target) owner(in inputs, i inside, e docker.Endpoint, address netip.Addr, port int) dataplane.Owner {
	o := dataplane.Owner{Network: i.name, Address: address, ID: identity(e.ID), Port: port, Excluded: e.Excluded, Filtering: e.Filtering,
		External: expand(e.External, t.Outsides, alikeTo(address)), Began: e.Began}
	o.OneToOne = len(o.External) == 1 && t.alone[o.External[0]] == e.ID
	if o.OneToOne && o.Filtering == nil {
		o.Filtering = &everybody
	}
	return o
}

// kept are the owners that were, but for addresses that somebody else has by now.
func (i inside) kept(in inputs) (list []dataplane.Owner) {
	for _, o := range in.actual.Owners {
		taken := slices.ContainsFunc(i.endpoints, func(e docker.Endpoint) bool { return e.Has(o.Address) })
		if o.Network == i.name && !taken {
			list = append(list, o)
		}
	}
	return list
}

// identity is the first 64 bits of one of Docker's identifiers.
func identity(hexID string) uint64 {
	id, _ := strconv.ParseUint(hexID[:min(16, len(hexID))], 16, 64) // what is no number is the same one for all
	return id
}

// portOf is the bridge port whose other end is in a network namespace; 0: it cannot be told.
func portOf(host hostnet.Snapshot, bridge hostnet.Link, nsid int) (index int) {
	if nsid < 0 {
		return 0
	}
	for _, port := range host.Ports(bridge.Index) {
		switch {
		case !port.PeerNetns || port.PeerNSID != nsid:
		case index != 0:
			return 0 // a container with two ports on one bridge
		default:
			index = port.Index
		}
	}
	return index
}

// publish makes forwards of the ports that a network's containers publish, on each external address that they are
// published on. Where an operator forwards the same endpoint, that stays.
func (t *target) publish(in inputs, i inside) {
	if i.adopted {
		t.keepPublished(in, i)
		return
	}
	if _, there := findNetwork(t.State, i.name); !there {
		return
	}
	operators := map[string]bool{}
	for _, f := range in.forwards {
		operators[plan.ForwardID(f.Protocol, f.External)] = true
	}
	for _, e := range i.endpoints {
		if e.Excluded {
			continue
		}
		for _, f := range i.forwards(t.Outsides, t.named, e) {
			if id := plan.ForwardID(f.Protocol, f.External); operators[id] {
				t.problem("container %s publishes %s, which an operator forwards elsewhere: the forward stays", e.Name, id)
				continue
			}
			t.Forwards = append(t.Forwards, f)
		}
	}
	if in.docker.Incomplete {
		t.keepPublished(in, i)
	}
}

// keepPublished keeps the network's published ports that are there, and that nobody else has by now.
func (t *target) keepPublished(in inputs, i inside) {
	taken := map[string]bool{}
	for _, f := range t.Forwards {
		taken[plan.ForwardID(f.Protocol, f.External)] = true
	}
	for _, f := range in.actual.Forwards {
		owned := slices.ContainsFunc(i.endpoints, func(e docker.Endpoint) bool { return e.Has(f.Internal.Addr()) })
		if f.Published && f.Network == i.name && !owned && !taken[plan.ForwardID(f.Protocol, f.External)] {
			t.Forwards = append(t.Forwards, f)
		}
	}
}

func (i inside) forwards(outsides []dataplane.Outside, list []naming, e docker.Endpoint) (out []dataplane.Forward) {
	for _, p := range e.Published {
		if i.mode == dataplane.ModeRouted {
			out = append(out, i.opened(e, p)...)
			continue
		}
		for _, o := range outsides {
			for _, external := range o.Addresses {
				internal := e.Like(external)
				if !internal.IsValid() || !p.On(external) || (p.Host.IsUnspecified() && !i.mayLeaveFrom(e, list, external)) {
					continue
				}
				out = append(out, dataplane.Forward{Protocol: p.Protocol, Network: i.name,
					External: netip.AddrPortFrom(external, p.HostPort), Internal: netip.AddrPortFrom(internal, p.ContainerPort),
					OverHostSocket: true, Published: true})
			}
		}
	}
	return out
}
