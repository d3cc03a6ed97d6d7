// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/control/reconcile"
	"github.com/conenat/conenat/control/watch"
	"github.com/conenat/conenat/dataplane"
)

// nearlyFull is from when on a table's use is warned of, in percent.
const nearlyFull = 90

// Status answers GET /v1/status.
func (d *daemon) Status() (api.Status, error) {
	view := d.loop.View()
	outsides, err := d.outsides(view.Host)
	if err != nil {
		return api.Status{}, err
	}
	counters, err := d.dp.Counters()
	if err != nil {
		return api.Status{}, err
	}
	usage, err := d.dp.Usage()
	if err != nil {
		return api.Status{}, err
	}
	networks, err := d.networkUses()
	if err != nil {
		return api.Status{}, err
	}
	xdp, err := d.xdp(view)
	if err != nil {
		return api.Status{}, err
	}
	capacity := d.dp.Capacity()
	st := api.Status{
		Version: d.deps.Version, PID: os.Getpid(), UptimeS: time.Since(d.since).Seconds(),
		Kernel: d.dp.Features().KernelRelease, StateDir: d.cfg.StateDir, Adopted: d.dp.Adopted(),
		Path: view.Path.String(), PathReasons: nonNil(view.Path.Reasons), Docker: d.docker(view),
		Mechanism: d.mechanism(), Outsides: outsides, XDP: xdp,
		Capacity: api.Entries{Sessions: capacity.Sessions, Bindings: capacity.Bindings},
		Usage:    api.Entries{Sessions: usage.Sessions, Bindings: usage.Bindings}, UsageIPv6: api.Entries{Sessions: usage.Sessions6, Bindings: usage.Bindings6},
		Counters: []api.Counter{}, EventsLost: usage.EventsLost,
		Networks: networks, Settings: settingsOf(d.cfg.Settings), Warnings: append(d.warnings(view, capacity, usage), limitWarnings(networks)...),
	}
	for _, c := range counters {
		st.Counters = append(st.Counters, api.Counter{Name: c.Name, Verdict: c.Verdict, Packets: c.Packets, XDP: c.XDP})
	}
	return st, nil
}

func nonNil(list []string) []string { return append([]string{}, list...) }

// docker is nil where Docker is not followed.
func (d *daemon) docker(view reconcile.View) *api.Docker {
	if d.deps.Docker == nil {
		return nil
	}
	return &api.Docker{Connected: view.Docker.Connected, Engine: view.Docker.Engine, Problem: view.Docker.Problem}
}

func settingsOf(s dataplane.Settings) api.StatusSetting {
	return api.StatusSetting{
		UDPTimeoutS: s.UDPTimeout.Seconds(), TCPEstablishedTimeoutS: s.TCPEstablishedTimeout.Seconds(),
		TCPPartialOpenTimeoutS: s.TCPPartialOpenTimeout.Seconds(), TCPClosingTimeoutS: s.TCPClosingTimeout.Seconds(),
		ICMPTimeoutS: s.ICMPTimeout.Seconds(), Ports: fmt.Sprintf("%d-%d", s.PortLow, s.PortHigh), SessionsPerBinding: s.SessionsPerBinding,
	}
}

func (d *daemon) mechanism() string {
	if d.dp.Features().TCX {
		return "tcx"
	}
	return "clsact"
}

// warnings are what an operator should look at.
func (d *daemon) warnings(view reconcile.View, capacity dataplane.Capacity, usage dataplane.Usage) []string {
	out := append([]string{}, d.cfg.Warnings...)
	out = append(out, view.Problems...)
	for _, f := range view.Failures {
		out = append(out, fmt.Sprintf("%s: %v (tried %d times since %s)", f.Action, f.Err, f.Tries, f.Since.Format(time.RFC3339)))
	}
	if !view.Host.IPForward && d.translates(netip.Addr.Is4) {
		out = append(out, "net.ipv4.ip_forward is 0: the host routes no packets; set it: sysctl -w net.ipv4.ip_forward=1")
	}
	if !view.Host.IPv6Forward && d.translates(netip.Addr.Is6) {
		out = append(out, "net.ipv6.conf.all.forwarding is 0: the host routes no IPv6 packets; set it: sysctl -w net.ipv6.conf.all.forwarding=1 "+
			"(an uplink that has its addresses or routes from router advertisements needs accept_ra=2 then)")
	}
	for _, table := range []struct {
		name, raise string
		used, of    uint32
	}{
		{"sessions", "sessions", usage.Sessions, capacity.Sessions}, {"bindings", "bindings", usage.Bindings, capacity.Bindings},
		{"IPv6 sessions", "sessions", usage.Sessions6, capacity.Sessions}, {"IPv6 bindings", "bindings", usage.Bindings6, capacity.Bindings},
	} {
		if uint64(table.used)*100 >= uint64(table.of)*nearlyFull {
			out = append(out, fmt.Sprintf("%d of %d %s are in use: raise capacity.%s", table.used, table.of, table.name, table.raise))
		}
	}
	return out
}

// translates says whether a network's addresses of a family are translated.
func (d *daemon) translates(of func(netip.Addr) bool) bool {
	list, _ := d.dp.Networks() // for a warning
	return slices.ContainsFunc(list, func(n dataplane.Network) bool {
		return slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return of(p.Addr()) })
	})
}

func (d *daemon) outsides(host hostnet.Snapshot) ([]api.Outside, error) {
	list, err := d.dp.Outsides()
	if err != nil {
		return nil, err
	}
	links, err := d.dp.Links()
	if err != nil {
		return nil, err
	}
	named, err := d.named()
	if err != nil {
		return nil, err
	}
	out := []api.Outside{}
	for _, o := range list {
		free := slices.DeleteFunc(slices.Clone(o.Addresses), func(a netip.Addr) bool { return named[a] })
		shown := api.Outside{Name: o.Name, IfIndex: o.IfIndex, State: "active", Addresses: texts(o.Addresses), Pool: texts(free)}
		if first := o.Address(); first.IsValid() {
			shown.Address = first.String()
		}
		l, there := host.LinkAt(o.IfIndex)
		switch {
		case !there:
			shown.State = "away"
		case !hasHooks(links, dataplane.OutsideLink, o.Name):
			shown.State = "no-hooks"
		case !l.Has(o.Address()):
			shown.State = "no-address"
		}
		out = append(out, shown)
	}
	slices.SortFunc(out, func(a, b api.Outside) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// named are the external addresses that networks and containers have for themselves.
func (d *daemon) named() (map[netip.Addr]bool, error) {
	networks, err := d.dp.Networks()
	if err != nil {
		return nil, err
	}
	owners, err := d.dp.Owners()
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]bool{}
	for _, n := range networks {
		for _, a := range n.External {
			out[a] = true
		}
	}
	for _, o := range owners {
		for _, a := range o.External {
			out[a] = true
		}
	}
	return out, nil
}

func texts(list []netip.Addr) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// namedOf are a network's hosts that have external addresses of their own.
func namedOf(owners []dataplane.Owner, network string) []api.Named {
	out := []api.Named{}
	for _, o := range slices.SortedFunc(slices.Values(owners), func(a, b dataplane.Owner) int { return a.Address.Compare(b.Address) }) {
		if o.Network == network && len(o.External) > 0 {
			out = append(out, api.Named{Address: o.Address.String(), External: texts(o.External), OneToOne: o.OneToOne})
		}
	}
	return out
}

func hasHooks(links []dataplane.Link, kind dataplane.LinkKind, owner string) bool {
	return slices.ContainsFunc(links, func(l dataplane.Link) bool { return l.Kind == kind && l.Owner == owner })
}

func (d *daemon) outsideNames() (names []string) {
	list, _ := d.dp.Outsides() // for a log line
	for _, o := range list {
		names = append(names, o.Name)
	}
	slices.Sort(names)
	return names
}

func (d *daemon) insideNames() (names []string) {
	list, _ := d.dp.Networks() // for a log line
	for _, n := range list {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

// Networks answers GET /v1/networks.
func (d *daemon) Networks() ([]api.Network, error) {
	list, err := d.dp.Networks()
	if err != nil {
		return nil, err
	}
	links, err := d.dp.Links()
	if err != nil {
		return nil, err
	}
	usages, err := d.dp.NetworkUsages()
	if err != nil {
		return nil, err
	}
	owners, err := d.dp.Owners()
	if err != nil {
		return nil, err
	}
	host, outside := d.loop.View().Host, d.outsideNames()
	out := []api.Network{}
	for _, n := range list {
		shown := networkOf(n, links, host, outside)
		u := usages[n.Name]
		shown.Usage, shown.Hosts, shown.Named = usageOf(u), hostsOf(u), namedOf(owners, n.Name)
		out = append(out, shown)
	}
	for _, n := range d.loop.View().LeftAlone {
		out = append(out, api.Network{Name: n.Name, Interface: n.Interface, Driver: n.Driver, State: "left-alone", Reason: n.Reason,
			Prefixes: []string{}, Exclude: []string{}, External: []string{}, Named: []api.Named{}, Ports: []string{}, Hosts: []api.HostUse{}, Outside: []string{}})
	}
	slices.SortFunc(out, func(a, b api.Network) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func networkOf(n dataplane.Network, links []dataplane.Link, host hostnet.Snapshot, outside []string) api.Network {
	shown := api.Network{Name: n.Shown(), Interface: n.Name, IfIndex: n.IfIndex, GatewayMAC: n.Gateway.String(), State: "active",
		Prefixes: []string{}, Exclude: []string{}, External: texts(n.External), Ports: []string{}, Mapping: behaviorsOf(n.Mapping), Filtering: behaviorsOf(n.Filtering),
		Limits: limitsOf(n.Limits), BlockSize: n.BlockSize, Refusal: n.Refusal.String(), MSS: "keep", Mode: n.Mode.String(), Outside: outside}
	if n.ExternalPrefix.IsValid() {
		shown.ExternalPrefix = n.ExternalPrefix.String()
	}
	if n.MSSClamp {
		shown.MSS = "clamp"
	}
	l, there := host.LinkAt(n.IfIndex)
	switch {
	case !there:
		shown.State = "away"
	case !hasHooks(links, dataplane.InsideDevice, n.Name):
		shown.State = "no-hooks"
	}
	shown.Driver = l.Kind
	for _, p := range n.Prefixes {
		shown.Prefixes = append(shown.Prefixes, p.String())
	}
	for _, p := range n.Exclude {
		shown.Exclude = append(shown.Exclude, p.String())
	}
	for _, p := range links {
		if p.Kind == dataplane.InsidePort && p.Owner == n.Name {
			shown.Ports = append(shown.Ports, p.Name)
		}
	}
	slices.Sort(shown.Ports)
	return shown
}

func behaviorsOf(b [3]dataplane.Behavior) api.Behaviors {
	return api.Behaviors{UDP: b[dataplane.BehaviorUDP].String(), TCP: b[dataplane.BehaviorTCP].String(), ICMP: b[dataplane.BehaviorICMP].String()}
}

// Bindings answers GET /v1/bindings.
func (d *daemon) Bindings() ([]dataplane.Binding, error) { return d.dp.Bindings() }

// Sessions answers GET /v1/sessions.
func (d *daemon) Sessions() ([]dataplane.Session, error) { return d.dp.Sessions() }

// History answers GET /v1/events.
func (d *daemon) History(since time.Time) []dataplane.Event { return d.watcher.History(since) }

// Subscribe answers GET /v1/events?follow=1.
func (d *daemon) Subscribe(since time.Time) ([]dataplane.Event, *watch.Subscription) {
	return d.watcher.Subscribe(since)
}

// Forwards answers GET /v1/forwards.
func (d *daemon) Forwards() ([]api.Forward, error) {
	list, err := d.loop.Forwards()
	if err != nil {
		return nil, err
	}
	out := []api.Forward{}
	for _, f := range list {
		out = append(out, forwardOf(f))
	}
	return out, nil
}

func forwardOf(f reconcile.Forward) api.Forward {
	return api.Forward{ID: plan.ForwardID(f.Protocol, f.External), Protocol: f.Protocol.String(), Network: f.Network,
		External: f.External.String(), Internal: f.Internal.String(), Published: f.Published,
		Active: f.Active, Problem: f.Problem}
}

// AddForward answers POST /v1/forwards.
func (d *daemon) AddForward(f dataplane.Forward) (api.Forward, error) {
	b, err := d.loop.AddForward(f)
	if err != nil {
		return api.Forward{}, err
	}
	f.Network = b.Network
	return forwardOf(reconcile.Forward{Forward: f, Active: true}), nil
}

// RemoveForward answers DELETE /v1/forwards/{id}.
func (d *daemon) RemoveForward(p dataplane.Protocol, external netip.AddrPort) error {
	return d.loop.RemoveForward(p, external)
}
