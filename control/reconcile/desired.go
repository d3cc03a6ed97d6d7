// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// maxPrefixes is the bound of dataplane.Network.Prefixes, in each family.
const maxPrefixes = 4

// inputs are all that the desired state depends on.
type inputs struct {
	cfg      config.Config
	host     hostnet.Snapshot
	docker   docker.Snapshot // zero without Docker
	actual   plan.State
	forwards []dataplane.Forward   // the operators'
	bound    func(netip.Addr) bool // whether dynamic bindings live on an external address
}

// target is what should be, and what is missing for more.
type target struct {
	plan.State
	problems  []string
	leftAlone []LeftAlone
	xdp       []XDP
	diverted  []reservation // endpoints that the host's nat rules take elsewhere
	named     []naming
	alone     map[netip.Addr]string // 1:1 addresses, and whose: docker.Endpoint.ID
}

// LeftAlone is a network of Docker's that is not translated.
type LeftAlone struct {
	Name, Interface, Driver string
	Reason                  string
}

func (t *target) problem(format string, args ...any) {
	t.problems = append(t.problems, fmt.Sprintf(format, args...))
}

// desire is a pure function: the state that the configuration and Docker ask for on a host. Of an interface that is
// away, what actual still holds is kept, so that its bindings live when it comes back.
func desire(in inputs) target {
	t := target{State: plan.State{Settings: in.cfg.Settings, Forwards: slices.Clone(in.forwards), Vouched: in.cfg.Docker}}
	insides := in.insides(&t)
	in.cfg.Inside = nil
	for _, n := range insides {
		in.cfg.Inside = append(in.cfg.Inside, n.name)
	}
	if !t.hasIPv6(in, insides) {
		in.host = withoutIPv6(in.host)
	}
	t.named = named(insides)
	for _, name := range outsideNames(&t, in) {
		t.outside(in, name)
	}
	t.checkAddresses(in)
	t.settleAlone(in, insides)
	for _, n := range insides {
		t.inside(in, n)
	}
	for i, f := range t.Forwards {
		t.Forwards[i].Network = networkOf(t.Networks, f.Network)
	}
	for _, n := range insides {
		t.publish(in, n)
	}
	return t
}

// networkOf is the name of a network that an operator may call by its name or as it is shown.
func networkOf(networks []dataplane.Network, called string) string {
	for _, n := range networks {
		if n.Name == called || n.Shown() == called {
			return n.Name
		}
	}
	return called
}

// outsideNames are the given outside interfaces, or those of the default routes and those that were in use and still
// have what lives on them, or, while there is no such route, those that were.
func outsideNames(t *target, in inputs) (names []string) {
	if len(in.cfg.Outside) > 0 {
		return in.cfg.Outside
	}
	for _, index := range slices.Concat(in.host.Default, in.host.Default6) {
		l, ok := in.host.LinkAt(index)
		switch {
		case !ok || l.Loopback || slices.Contains(names, l.Name):
		case slices.Contains(in.cfg.Inside, l.Name):
			t.problem("the default route leaves by the inside interface %s: name the outside interface by --outside", l.Name)
		default:
			names = append(names, l.Name)
		}
	}
	none := len(names) == 0
	if none {
		t.problem("no default route by an interface that can be outside: waiting for one")
	}
	for _, o := range in.actual.Outsides {
		if !slices.Contains(names, o.Name) && (none || staysOutside(in, o)) {
			names = append(names, o.Name)
		}
	}
	return names
}

// staysOutside: the default route has moved elsewhere, maybe for a moment only. Where the interface still has the
// address, or bindings wait on it for the interface to come back, and nobody else has the address, all of it stays.
func staysOutside(in inputs, o dataplane.Outside) bool {
	l, there := in.host.Link(o.Name)
	if there && slices.ContainsFunc(o.Addresses, l.Has) {
		return true
	}
	elsewhere := slices.ContainsFunc(in.host.Links, func(other hostnet.Link) bool { return slices.ContainsFunc(o.Addresses, other.Has) })
	return !elsewhere && in.bound != nil && slices.ContainsFunc(o.Addresses, in.bound)
}

func (t *target) outside(in inputs, name string) {
	was, known := findOutside(in.actual, name)
	l, ok := in.host.Link(name)
	if !ok {
		t.problem("outside interface %s is away: waiting for it", name)
		if known {
			was.IfIndex = 0
			t.Outsides = append(t.Outsides, was)
		}
		return
	}
	if err := refuseRole(in.cfg, in.host, l); err != nil {
		t.problem("%v", err)
		return
	}
	t.Outsides = append(t.Outsides, dataplane.Outside{Name: name, IfIndex: l.Index, Addresses: t.addresses(in, l, was.Addresses)})
	t.Links = append(t.Links, dataplane.Link{IfIndex: l.Index, Name: l.Name, Kind: dataplane.OutsideLink, Owner: name, Layer3: l.Layer3,
		MAC: gateway(l), DropUnsolicited: in.cfg.DropUnsolicited})
}

func (t *target) inside(in inputs, want inside) {
	was, known := findNetwork(in.actual, want.name)
	l, ok := in.host.Link(want.name)
	if !ok {
		t.problem("inside interface %s is away: waiting for it", want.name)
		if known {
			t.Networks = append(t.Networks, was)
		}
		return
	}
	if err := refuseRole(in.cfg, in.host, l); err != nil {
		t.problem("%v", err)
		return
	}
	n := dataplane.Network{Name: want.name, Label: want.label, IfIndex: l.Index, Gateway: gateway(l), Prefixes: t.prefixes(want, l),
		Mapping: want.mapping, Filtering: want.filtering, Limits: want.limits, BlockSize: want.blockSize, Isolated: want.isolated,
		Refusal: want.refusal, MSSClamp: want.mssClamp}
	if len(n.Prefixes) == 0 {
		t.problem("inside interface %s has no address: waiting for one", want.name)
		if !known {
			return
		}
		n.Prefixes = was.Prefixes
	}
	if t.translatePrefix(&n, want); len(n.Prefixes) == 0 {
		return
	}
	for _, f := range families {
		if slices.ContainsFunc(n.Prefixes, f.hasPrefix) {
			t.addFamily(&n, f, want, l)
		}
	}
	t.Networks = append(t.Networks, n)
	t.insideLinks(in.host, l)
	t.Owners = append(t.Owners, t.owners(in, want, l)...)
}

// addFamily sets what of a network is of one family, in which it is translated.
func (t *target) addFamily(n *dataplane.Network, f family, want inside, l hostnet.Link) {
	own, address := l.Family(f.is), &n.Address
	if f.is(netip.IPv6Unspecified()) {
		own, address = slices.Concat(own, l.Tentative), &n.Address6
	}
	*address = hostAddress(own)
	for _, p := range want.exclude {
		if f.hasPrefix(p) {
			n.Exclude = append(n.Exclude, p)
		}
	}
	n.External = append(n.External, expand(want.external, t.Outsides, f.is)...)
}

// prefixes are those of an inside interface that are translated, the ones of IPv4 first.
func (t *target) prefixes(want inside, l hostnet.Link) (out []netip.Prefix) {
	leftAlone := map[string]string{"IPv4": want.partly.IPv4, "IPv6": want.partly.IPv6}
	for _, f := range families {
		list := slices.DeleteFunc(l.Prefixes(), func(p netip.Prefix) bool { return leftAlone[f.name] != "" || !f.is(p.Addr()) })
		if len(list) > maxPrefixes {
			t.problem("inside interface %s has %d %s prefixes: only %v are translated", want.name, len(list), f.name, list[:maxPrefixes])
			list = list[:maxPrefixes]
		}
		out = append(out, list...)
	}
	return out
}

func (t *target) insideLinks(host hostnet.Snapshot, l hostnet.Link) {
	t.Links = append(t.Links, dataplane.Link{IfIndex: l.Index, Name: l.Name, Kind: dataplane.InsideDevice, Owner: l.Name, Layer3: l.Layer3})
	if l.Kind != "bridge" {
		return
	}
	for _, port := range host.Ports(l.Index) {
		t.Links = append(t.Links, dataplane.Link{IfIndex: port.Index, Name: port.Name, Kind: dataplane.InsidePort, Owner: l.Name,
			Peer: port.PeerNetns, Layer3: port.Layer3})
	}
}

func gateway(l hostnet.Link) net.HardwareAddr {
	if l.Layer3 {
		return nil
	}
	return l.MAC
}

// hostAddress is the one of a family's that the network's hosts know their router by.
func hostAddress(list []netip.Prefix) netip.Addr {
	if len(list) == 0 {
		return netip.Addr{}
	}
	return list[0].Addr()
}

// refuseRole: an interface has one role, and a port of an inside bridge has it already.
func refuseRole(cfg config.Config, host hostnet.Snapshot, l hostnet.Link) error {
	if l.Loopback {
		return fmt.Errorf("interface %s is the loopback: it cannot be inside or outside", l.Name)
	}
	master, ok := host.LinkAt(l.Master)
	if l.Master == 0 || !ok {
		return nil
	}
	switch {
	case slices.Contains(cfg.Inside, master.Name):
		return fmt.Errorf("interface %s is a port of the inside interface %s: it cannot have a role of its own", l.Name, master.Name)
	case slices.Contains(cfg.Outside, master.Name):
		return fmt.Errorf("interface %s is a port of the outside interface %s: it cannot have a role of its own", l.Name, master.Name)
	}
	return nil
}

// Check says what of a configuration does not fit the host. At the daemon's start this is an error; later
// on, an interface that goes away is waited for.
func Check(cfg config.Config, host hostnet.Snapshot) error {
	var errs []error
	for _, name := range cfg.Inside {
		errs = append(errs, checkInterface(cfg, host, "inside", name))
	}
	var t target
	outsides := outsideNames(&t, inputs{cfg: cfg, host: host})
	if len(outsides) == 0 {
		errs = append(errs, fmt.Errorf("no outside interface: there is no default route to find it by: name it by --outside"))
	}
	for _, name := range outsides {
		errs = append(errs, checkInterface(cfg, host, "outside", name))
	}
	errs = append(errs, checkExternal(cfg, host, outsides))
	return errors.Join(errs...)
}

func checkInterface(cfg config.Config, host hostnet.Snapshot, side, name string) error {
	l, ok := host.Link(name)
	if !ok {
		return fmt.Errorf("%s interface %s does not exist here: see `ip link`", side, name)
	}
	return refuseRole(cfg, host, l)
}

// checkExternal: each external address, and one of each range, is an outside interface's.
func checkExternal(cfg config.Config, host hostnet.Snapshot, outsides []string) error {
	var has []netip.Addr
	var shown []string
	for _, name := range outsides {
		l, _ := host.Link(name)
		for _, a := range l.Addresses {
			has = append(has, a.Addr())
			shown = append(shown, fmt.Sprintf("%s (%s)", a.Addr(), name))
		}
	}
	if len(shown) == 0 {
		shown = []string{"none"}
	}
	wanted := slices.Clone(cfg.External)
	for _, name := range slices.Sorted(maps.Keys(cfg.Networks)) {
		wanted = append(wanted, cfg.Networks[name].External...)
	}
	var errs []error
	for _, r := range wanted {
		if !slices.ContainsFunc(has, r.Contains) {
			errs = append(errs, fmt.Errorf("external address %s is no address of the outside interface %s: it has %s",
				r, strings.Join(outsides, ", "), strings.Join(shown, ", ")))
		}
	}
	return errors.Join(errs...)
}

func findOutside(s plan.State, name string) (dataplane.Outside, bool) {
	i := slices.IndexFunc(s.Outsides, func(o dataplane.Outside) bool { return o.Name == name })
	if i < 0 {
		return dataplane.Outside{}, false
	}
	return s.Outsides[i], true
}

func findNetwork(s plan.State, name string) (dataplane.Network, bool) {
	i := slices.IndexFunc(s.Networks, func(n dataplane.Network) bool { return n.Name == name })
	if i < 0 {
		return dataplane.Network{}, false
	}
	return s.Networks[i], true
}
