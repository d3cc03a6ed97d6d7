// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/figure3"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// show is the whole demonstration.
type show struct {
	*screen
	conenat string // path of the binary
}

// act is the same experiment under one NAT, and what was seen.
type act struct {
	results  []figure3.Result
	call     figure3.Call
	mappings []mapping // as the NAT itself tells them
}

// nat starts what an act is about in the host, and lists its mappings after the experiment.
type nat struct {
	start    func(context.Context, *topo.Figure3) error
	arrived  func(*topo.Figure3) func(context.Context, netip.AddrPort, netip.AddrPort) error
	settled  func(context.Context, *topo.Figure3) error // waits until the NAT has told what it did
	mappings func(context.Context, *topo.Figure3) ([]mapping, error)
}

func (s *show) run(ctx context.Context) error {
	began := time.Now()
	s.say("Real packets in network namespaces of their own; this machine's network is not touched.\n%s", picture)
	s.say("1. Docker's NAT: netfilter under the rules that dockerd writes")
	docker, err := s.act(ctx, s.netfilter())
	if err != nil {
		return fmt.Errorf("under Docker's NAT: %w", err)
	}
	s.say("\n2. conenat in its place: the same host and the same rules, with `conenat run --inside docker0 --outside eth0`")
	conenat, err := s.act(ctx, s.daemon())
	if err != nil {
		return fmt.Errorf("under conenat: %w", err)
	}
	s.say("\nMappings of Docker's NAT (conntrack)\n%s", table(docker.mappings))
	s.say("Mappings of conenat (conenat sessions)\n%s", table(conenat.mappings))
	dockerCheck, conenatCheck, err := s.checks(ctx)
	if err != nil {
		return fmt.Errorf("conenat check: %w", err)
	}
	s.say("\n%s", verdict(docker, conenat))
	s.say("The caller behind a symmetric NAT got through to the container: Docker's NAT: %s; conenat: %s",
		yes(docker.call.Connected()), yes(conenat.call.Connected()))
	s.say("Took %.1f s.", time.Since(began).Seconds())
	return errors.Join(judge(docker, conenat), judgeChecks(dockerCheck, conenatCheck))
}

// act builds the topology, makes the experiment, and takes the topology away.
func (s *show) act(ctx context.Context, n nat) (a act, err error) {
	t, err := topo.New()
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	f, err := topo.NewFigure3(t, topo.Figure3Config{Containers: 2, SymmetricPeer: true})
	if err != nil {
		return a, err
	}
	if err := topo.DockerRules(ctx, f.Host); err != nil {
		return a, err
	}
	if err := n.start(ctx, f); err != nil {
		return a, err
	}
	if err := s.experiment(ctx, f, n, &a); err != nil {
		return a, err
	}
	a.mappings, err = n.mappings(ctx, f)
	return a, err
}

// experiment makes figure 3's experiment in each order, then lets the caller call.
func (s *show) experiment(ctx context.Context, f *topo.Figure3, n nat, a *act) error {
	settled := func() error { return n.settled(ctx, f) }
	experiment, err := figure3.On(f, probe.In(f.Containers[0]))
	if err != nil {
		return err
	}
	if n.arrived != nil {
		experiment.Arrived = n.arrived(f)
	}
	for i, order := range figure3.Orders {
		ports := figure3.Ports{Container: uint16(20000 + i), Peer: uint16(40000 + i)}
		if err := s.once(ctx, experiment, "c1", order, ports, a, settled); err != nil {
			return err
		}
	}
	second := experiment
	second.Container = probe.In(f.Containers[1])
	if err := s.once(ctx, second, "c2", figure3.StunFirst, figure3.Ports{Container: 20000, Peer: 40009}, a, settled); err != nil {
		return err
	}
	return s.callIn(ctx, experiment, probe.In(f.Peer3), a, settled)
}

var headings = map[figure3.Order]string{
	figure3.StunFirst: "asks the STUN server, then the peer's packet comes first",
	figure3.PeerFirst: "has sent nothing yet when the peer's packet comes",
	figure3.ICEOrder:  "and the peer check each other as ICE does, the peer first",
}

// once makes the experiment in one order and says what was seen.
func (s *show) once(ctx context.Context, e figure3.Experiment, who string, order figure3.Order, ports figure3.Ports, a *act, settled func() error) error {
	s.say("   %s's port %d %s", who, ports.Container, headings[order])
	r, err := e.Run(ctx, order, ports)
	if err != nil {
		return err
	}
	a.results = append(a.results, r)
	if err := settled(); err != nil {
		return err
	}
	s.say("      %v sees %v, %v sees %v: %s", e.STUN.Addr(), r.SeenBySTUN, r.Peer, r.SeenByPeer, outcome(r))
	return nil
}

func outcome(r figure3.Result) string {
	text := "one endpoint"
	if r.Symmetric() {
		text = "symmetric"
	}
	if !r.Reached {
		text += fmt.Sprintf("; what the peer sends to %v is lost", r.SeenBySTUN)
	}
	return text
}

func (s *show) callIn(ctx context.Context, e figure3.Experiment, caller probe.Host, a *act, settled func() error) (err error) {
	const port = 21000
	s.say("   a caller behind a symmetric NAT calls c1's port %d", port)
	if a.call, err = e.Call(ctx, caller, port); err != nil {
		return err
	}
	if err := settled(); err != nil {
		return err
	}
	c := a.call
	if !c.CameFrom.IsValid() {
		s.say("      announced as %v, calls %v from another port: nothing arrives", c.Announced, c.External)
		return nil
	}
	s.say("      announced as %v, calls %v: arrives from %v, and the answer gets back: %s", c.Announced, c.External, c.CameFrom, yes(c.Answered))
	return nil
}

// verdict is one line, of what was seen.
func verdict(docker, conenat act) string {
	return fmt.Sprintf("Docker's NAT: %s; conenat: %s", docker.behaviour(), conenat.behaviour())
}

// behaviour names the peers that saw another endpoint than the STUN server did.
func (a act) behaviour() string {
	var peers []string
	for _, r := range a.results {
		if peer := r.Peer.Addr().String(); r.Symmetric() && !slices.Contains(peers, peer) {
			peers = append(peers, peer)
		}
	}
	if len(peers) == 0 {
		return "one endpoint for every peer"
	}
	return "symmetric for " + strings.Join(peers, ", ")
}

// judge says in which point the demonstration failed.
func judge(docker, conenat act) error {
	var errs []error
	for _, r := range docker.results {
		if !r.Symmetric() {
			errs = append(errs, fmt.Errorf("netfilter did not turn symmetric: %v", r))
		}
	}
	for _, r := range conenat.results {
		if r.Symmetric() || !r.Reached {
			errs = append(errs, fmt.Errorf("conenat was no cone: %v", r))
		}
	}
	if c := conenat.call; c.CameFrom == c.Announced {
		errs = append(errs, fmt.Errorf("the caller's NAT was not symmetric: %+v", c))
	}
	if docker.call.CameFrom.IsValid() {
		errs = append(errs, fmt.Errorf("netfilter let the call in: %+v", docker.call))
	}
	if !conenat.call.Connected() {
		errs = append(errs, fmt.Errorf("the call did not get through conenat: %+v", conenat.call))
	}
	return errors.Join(append(errs, consistent(conenat))...)
}

// consistent holds conenat's own table to what was seen on the wire.
func consistent(a act) error {
	external := map[netip.AddrPort]netip.AddrPort{}
	for _, m := range a.mappings {
		if other, ok := external[m.internal]; ok && other != m.external {
			return fmt.Errorf("conenat lists %v as %v and as %v", m.internal, other, m.external)
		}
		external[m.internal] = m.external
	}
	listed := func(seen netip.AddrPort) bool {
		return slices.ContainsFunc(a.mappings, func(m mapping) bool { return m.external == seen })
	}
	for _, r := range a.results {
		if !listed(r.SeenByPeer) {
			return fmt.Errorf("conenat does not list %v, which %v saw", r.SeenByPeer, r.Peer)
		}
	}
	return nil
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
