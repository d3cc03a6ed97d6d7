// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/load"
	"github.com/conenat/conenat/tests/bench/report"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// Sessions' endpoints: ports from firstPort on, and addresses from firstRemote on.
const (
	firstPort  = 20000
	portBits   = 10
	remotePort = 3478
)

var firstRemote = netip.MustParseAddr("10.0.0.1")

// course is a contender in a lab of its own.
type course struct {
	bench.Contender
	lab     *bench.Lab
	inside  bench.Port // where outbound packets begin, and inbound ones end
	outside bench.Port
	out, in *load.Sink
	alone   bool // nothing is between: what is sent as inbound ends where the other does
}

// courses are there at once, so that they can take turns.
type courses struct {
	topo.Stack
	list []*course
}

// prepare builds a lab for each contender that was chosen and is of the kind, and starts it there. Contenders that fail are
// missing.
func prepare(ctx context.Context, o options, r *recorder, what string, s bench.Scale, is func(bench.Contender) bool) *courses {
	all := new(courses)
	for _, c := range bench.Compared(o.conenat, s) {
		if !o.chosen(c.Name) || !is(c) || ctx.Err() != nil {
			continue
		}
		r.say("%s: %s starts", what, c.Name)
		made, err := all.start(ctx, c)
		if err != nil {
			r.fail(c.Name, what, err)
			continue
		}
		all.list = append(all.list, made)
	}
	return all
}

func (all *courses) start(ctx context.Context, contender bench.Contender) (*course, error) {
	t, err := topo.New()
	if err != nil {
		return nil, err
	}
	all.Defer(contender.Name, t.Close)
	l, err := contender.Lab(ctx, t, family.V4)
	if err != nil {
		return nil, err
	}
	if err := contender.Start(ctx, l); err != nil {
		return nil, err
	}
	return &course{Contender: contender, lab: l, inside: l.Inside, outside: l.Outside}, nil
}

// drop leaves a course out from now on.
func (all *courses) drop(c *course) {
	all.list = slices.DeleteFunc(all.list, func(other *course) bool { return other == c })
}

// each does something with each course, and leaves out those that it fails for.
func (all *courses) each(ctx context.Context, r *recorder, what string, do func(*course) error) {
	for _, c := range slices.Clone(all.list) {
		if ctx.Err() != nil {
			return
		}
		if err := do(c); err != nil {
			r.fail(c.Name, what, err)
			all.drop(c)
		}
	}
}

// finish takes all of it away.
func (all *courses) finish(r *recorder) {
	if err := all.Close(); err != nil {
		r.failed = append(r.failed, fmt.Errorf("take the labs away: %w", err))
	}
}

// addGenerators puts the generator alone before the others, with each kind of sink that these have, in a lab of theirs.
func (all *courses) addGenerators(r *recorder) {
	for name, xdp := range map[string]bool{bench.Generator: false, bench.GeneratorXDP: true} {
		i := slices.IndexFunc(all.list, func(c *course) bool { return c.XDP == xdp && !c.alone })
		if i < 0 {
			continue
		}
		l := all.list[i].lab
		alone := &course{Contender: bench.Contender{Name: name, XDP: xdp}, lab: l, inside: l.Generator, outside: l.GeneratorEnd, alone: true}
		all.list = append([]*course{alone}, all.list...)
		r.say("%s is measured beside the others", name)
	}
}

// receive gives the host's interfaces what they need to take packets from a generator, as network cards do.
func (c *course) receive() error {
	if c.alone {
		return c.outside.NS.SetGRO(c.outside.Name, true)
	}
	return errors.Join(
		c.lab.Host.SetGRO(c.lab.InsidePort, true),
		c.lab.Host.SetGRO(bench.OutsideDevice, true))
}

// source is the local address as it is seen outside.
func (c *course) source() netip.Addr { return c.lab.Source(c.Contender, c.lab.Inside.Addr) }

// addSinks counts what arrives at the ends, and drops it.
func (c *course) addSinks() (err error) {
	if err := c.receive(); err != nil {
		return err
	}
	remote := netip.AddrPortFrom(netip.Addr{}, remotePort)
	if c.alone {
		c.out, err = c.sink(c.outside, load.Want{})
		c.in = c.out
		return err
	}
	if c.out, err = c.sink(c.outside, load.Want{Src: netip.AddrPortFrom(c.source(), 0), Dst: remote}); err != nil {
		return err
	}
	c.in, err = c.sink(c.inside, load.Want{Src: remote, Dst: netip.AddrPortFrom(c.lab.Inside.Addr, 0)})
	return err
}

func (c *course) sink(at bench.Port, want load.Want) (sink *load.Sink, err error) {
	index, err := at.IfIndex()
	if err != nil {
		return nil, err
	}
	make := load.NewSink
	if c.XDP {
		make = load.NewXDPSink
	}
	err = at.NS.Do(func() (err error) {
		sink, err = make(index, want)
		return err
	})
	if err == nil {
		c.lab.Defer("end the sink", sink.Close)
	}
	return sink, err
}

// way is one direction of a course.
type way struct {
	stream load.Stream
	from   *topo.NS
	to     *load.Sink
}

// way is that of a load's packets, with sessions whose remote addresses begin at first.
func (c *course) way(l report.Load, inbound bool, first netip.Addr) (w way, err error) {
	from := c.inside
	w = way{to: c.out, stream: load.Stream{Inbound: inbound, Size: l.Size, Sessions: l.Sessions, PortBits: portBits,
		Local: netip.AddrPortFrom(c.lab.Inside.Addr, firstPort), Remote: netip.AddrPortFrom(first, remotePort)}}
	if inbound {
		w.to = c.in
		if !c.alone {
			from, w.stream.Local = c.outside, netip.AddrPortFrom(c.source(), firstPort)
		}
	}
	if l.Sessions == 1 {
		w.stream.PortBits = 0
	}
	w.from, w.stream.SrcMAC, w.stream.DstMAC = from.NS, from.MAC, from.Gateway
	w.stream.Interface, err = from.IfIndex()
	return w, err
}

// flow is what went by a way.
type flow struct {
	sent, arrived int
	took          time.Duration
}

func (f flow) rate() float64 { return float64(f.arrived) / f.took.Seconds() }

// with runs a generator on a CPU, in the namespace that it sends from.
func (w way) with(cpu int, do func(*load.Generator) error) error {
	g, err := load.NewGenerator(w.stream)
	if err != nil {
		return err
	}
	err = w.from.Do(func() error { return load.OnCPU(cpu, func() error { return do(g) }) })
	return errors.Join(err, g.Close())
}

// measured counts what is sent, after some packets that do not count.
func (w way) measured(cpu, before int, send func(*load.Generator) (int, time.Duration, error)) (f flow, err error) {
	err = w.with(cpu, func(g *load.Generator) (err error) {
		if before > 0 {
			if _, _, err := g.Send(before); err != nil {
				return err
			}
		}
		if _, err := arrived(w.to); err != nil {
			return err
		}
		if f.sent, f.took, err = send(g); err == nil {
			f.arrived, err = arrived(w.to)
		}
		return err
	})
	if err == nil && f.arrived == 0 {
		err = fmt.Errorf("none of %d packets arrived", f.sent)
	}
	return f, err
}

// arrived waits until no packet is on its way: ksoftirqd may have been left some, which no event tells of.
func arrived(sink *load.Sink) (total int, err error) {
	for {
		n, others, err := sink.Count()
		total += int(n)
		if err != nil || n+others == 0 {
			return total, err
		}
		time.Sleep(time.Millisecond)
	}
}

// forTime sends for a time.
func forTime(d time.Duration) func(*load.Generator) (int, time.Duration, error) {
	return func(g *load.Generator) (int, time.Duration, error) { return g.For(d) }
}

// once sends each session's packet once, or as many packets.
func once(n int) func(*load.Generator) (int, time.Duration, error) {
	return func(g *load.Generator) (int, time.Duration, error) { return g.Send(n) }
}

// fillPasses is how often a session's first packet is sent at the most.
const fillPasses = 3

// fill is phase 1: each session's first packet goes through, out and back. It says how many sessions did not open.
func (c *course) fill(sessions int, first netip.Addr) (missing int, err error) {
	if c.alone {
		return 0, nil
	}
	l := report.Load{Sessions: sessions, Size: load.MinSize}
	for _, inbound := range []bool{false, true} {
		w, err := c.way(l, inbound, first)
		if err != nil {
			return 0, err
		}
		for range fillPasses {
			f, err := w.measured(0, 0, once(sessions))
			if err != nil {
				return 0, fmt.Errorf("open %d sessions, inbound %v: %w", sessions, inbound, err)
			}
			if missing = sessions - f.arrived; missing <= 0 {
				break
			}
		}
		if missing > 0 {
			return missing, nil
		}
	}
	return 0, nil
}
