// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/conenat/conenat/control/api/client"
	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/load"
)

// A gateway's packets come as a network card's do: frames, in the driver's batches.
const (
	warmBursts  = 6
	burstFrames = (warmBursts + batches + 1) * load.BurstBatch // the last batch's end is not told
)

// gateway measures frames that come to one plain interface and leave by another.
type gateway struct {
	lab       *bench.Lab
	contender bench.Contender
	ends      map[string]*load.End // by the namespace's name
}

// newGateway has the host's interfaces take frames, and ends what arrives behind them: frames at XDP, and what has become an
// sk_buff on its way at tc, where it is not made a frame again.
func newGateway(l *bench.Lab, c bench.Contender) (*gateway, error) {
	g := &gateway{lab: l, contender: c, ends: map[string]*load.End{}}
	if err := errors.Join(l.Host.SetGRO(l.InsidePort, true), l.Host.SetGRO(bench.OutsideDevice, true)); err != nil {
		return nil, err
	}
	return g, errors.Join(g.end(l.Inside, c.XDP), g.end(l.Outside, c.XDP), g.end(l.GeneratorEnd, true))
}

func (g *gateway) end(p bench.Port, xdp bool) error {
	index, err := p.IfIndex()
	if err != nil {
		return err
	}
	return p.NS.Do(func() error {
		end, err := load.NewEnd(index, xdp)
		if err == nil {
			g.ends[p.NS.Name] = end
			g.lab.Defer("end the frames' end in "+p.NS.Name, end.Close)
		}
		return err
	})
}

// send sends a packet's frame n times, and returns what each batch took.
func (g *gateway) send(from bench.Port, p packet, n int) (took []int64, err error) {
	index, err := from.IfIndex()
	if err != nil {
		return nil, err
	}
	burst, err := load.NewBurst(index, p.wire(from))
	if err != nil {
		return nil, err
	}
	othersTurn()
	err = from.NS.Do(func() error {
		took, err = burst.Send(n)
		return err
	})
	othersTurn()
	return took, errors.Join(err, burst.Close())
}

// dropped is what a frame takes whose other end drops it at XDP at once.
func (g *gateway) dropped(ctx context.Context, t trial) (float64, error) {
	t.steps, t.from, t.end, t.counter = nil, g.lab.Generator, g.lab.GeneratorEnd, ""
	sent := t.packet(0)
	t.want.Src, t.want.Dst = sent.src, sent.dst
	return g.perPacket(ctx, t)
}

// perPacket sends the steps and then all batches, and returns the median of what a packet takes. All of them have to arrive, or
// to be dropped where they are to be, and those of a contender at XDP there.
func (g *gateway) perPacket(ctx context.Context, t trial) (float64, error) {
	for _, s := range t.steps {
		if _, err := g.send(s.from, s.packet, 1); err != nil {
			return 0, err
		}
	}
	count, err := g.aim(ctx, t)
	if err != nil {
		return 0, err
	}
	counted, err := g.counted(ctx, t)
	if err != nil {
		return 0, err
	}
	took, err := g.send(t.from, t.packet(0), burstFrames)
	if err != nil {
		return 0, err
	}
	arrived, err := count()
	if err != nil {
		return 0, err
	}
	if arrived != burstFrames {
		return 0, fmt.Errorf("%d of %d frames came to their end, as %+v", arrived, burstFrames, t.want)
	}
	after, err := g.counted(ctx, t)
	if err != nil {
		return 0, err
	}
	if done := after - counted; g.conenats(t) && done < burstFrames-warmBursts*load.BurstBatch {
		return 0, fmt.Errorf("conenat counts %d of %d frames as %s", done, burstFrames, t.counter)
	}
	return float64(median(took[warmBursts:])) / load.BurstBatch, nil
}

// conenats: conenat counts the trial's packets.
func (g *gateway) conenats(t trial) bool { return t.counter != "" && g.lab.Socket != "" }

// counted is how many packets conenat has counted as the trial's, at XDP where it is to do it there.
func (g *gateway) counted(ctx context.Context, t trial) (uint64, error) {
	if !g.conenats(t) {
		return 0, nil
	}
	status, err := client.New(g.lab.Socket).Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range status {
		for _, c := range s.Counters {
			switch {
			case c.Name != t.counter:
			case g.contender.XDP:
				return c.XDP, nil
			default:
				return c.Packets, nil
			}
		}
	}
	return 0, fmt.Errorf("conenat has no counter %s", t.counter)
}

// aim has the trial's end count from 0, and returns what reads it.
func (g *gateway) aim(ctx context.Context, t trial) (count func() (uint64, error), err error) {
	if t.end.NS != nil {
		end := g.ends[t.end.NS.Name]
		return end.Count, end.Aim(t.packet(0).proto, t.want.Src.Addr(), t.want.Dst.Addr())
	}
	if g.conenats(t) { // which drops them
		before, err := g.counted(ctx, t)
		return func() (uint64, error) {
			after, err := g.counted(ctx, t)
			return after - before, err
		}, err
	}
	return t.to.Count, t.to.Aim(ctx, t.want)
}

// gateways measures a contender between two plain interfaces, less what a frame takes that is dropped as soon as it comes.
func (m *meter) gateways(ctx context.Context, l *bench.Lab, c bench.Contender) error {
	g, err := newGateway(l, c)
	if err != nil {
		return err
	}
	for _, t := range gatewayTrials(l, c) {
		dropped, err := g.dropped(ctx, t)
		if err != nil {
			return fmt.Errorf("%s: dropped at once: %w", t.name, err)
		}
		all, err := g.perPacket(ctx, t)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		fmt.Fprintf(m.progress, "cost: %7.0f  %s: dropped at once\n", dropped, t.name)
		m.add(c, t.name, all-dropped)
	}
	return nil
}
