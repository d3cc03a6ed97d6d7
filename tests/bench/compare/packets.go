// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/report"
)

// warmUp is how many packets of a measurement do not count.
const warmUp = 2048

// measurePackets: for each number of sessions, labs that have them, in which the loads take turns.
func measurePackets(ctx context.Context, o options, r *recorder) error {
	var counts []int
	for _, l := range o.loads {
		if !slices.Contains(counts, l.Sessions) {
			counts = append(counts, l.Sessions)
		}
	}
	for _, sessions := range counts {
		if err := packetsOf(ctx, o, r, sessions); err != nil {
			return err
		}
	}
	return nil
}

func packetsOf(ctx context.Context, o options, r *recorder, sessions int) error {
	what := fmt.Sprintf("packets of %d sessions", sessions)
	all := prepare(ctx, o, r, what, bench.Scale{Sessions: sessions}, func(c bench.Contender) bool { return !c.Proxy })
	defer all.finish(r)
	all.addGenerators(r)
	notes := map[string]string{}
	all.each(ctx, r, what, func(c *course) error {
		if err := c.addSinks(); err != nil {
			return err
		}
		begin := time.Now()
		missing, err := c.fill(sessions, firstRemote)
		r.say("%s: %s has its sessions after %v", what, c.Name, time.Since(begin).Round(time.Millisecond))
		if missing > 0 {
			notes[c.Name] = fmt.Sprintf("%d of %d sessions did not open", missing, sessions)
		}
		return err
	})
	for round := range o.rounds {
		for _, l := range o.loads {
			if l.Sessions == sessions {
				all.roundOf(ctx, o, r, l, round+1, notes)
			}
		}
	}
	return ctx.Err()
}

// roundOf measures a load of all courses once.
func (all *courses) roundOf(ctx context.Context, o options, r *recorder, l report.Load, round int, notes map[string]string) {
	alone := map[string]float64{}
	all.each(ctx, r, "packets, "+l.String(), func(c *course) error {
		if c.alone && l.Direction == report.Both {
			return nil // both of its ways would end in one sink
		}
		f, cores, err := c.packets(o, l)
		if err != nil {
			return err
		}
		m := report.Measurement{Contender: c.Name, Figure: report.Packets, Load: l.String(), Round: round, Value: f.rate() / float64(cores),
			Unit: "packets/s of a core", Sent: f.sent, Arrived: f.arrived, Note: notes[c.Name]}
		r.add(m)
		if c.alone {
			alone[c.Name] = 1e9 / m.Value
			return nil
		}
		base := bench.Generator
		if c.XDP {
			base = bench.GeneratorXDP
		}
		if nothing, ok := alone[base]; ok && cores == 1 {
			m.Figure, m.Value, m.Unit, m.Sent, m.Arrived = report.Cost, 1e9/m.Value-nothing, "ns/packet", 0, 0
			r.add(m)
		}
		return nil
	})
}

// packets is phase 2. With both directions each has a core.
func (c *course) packets(o options, l report.Load) (total flow, cores int, err error) {
	directions := map[report.Direction][]bool{report.Outbound: {false}, report.Inbound: {true}, report.Both: {false, true}}[l.Direction]
	if cores = len(directions); cores > runtime.NumCPU() {
		return total, cores, fmt.Errorf("%d CPUs, and both directions need %d", runtime.NumCPU(), cores)
	}
	ways := make([]way, cores)
	for i, inbound := range directions {
		if ways[i], err = c.way(l, inbound, firstRemote); err != nil {
			return total, cores, err
		}
	}
	flows := make([]flow, cores)
	var group errgroup.Group
	for cpu, w := range ways {
		group.Go(func() (err error) {
			flows[cpu], err = w.measured(cpu, warmUp, forTime(o.time))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return total, cores, err
	}
	for _, f := range flows {
		total.sent, total.arrived = total.sent+f.sent, total.arrived+f.arrived
		total.took = max(total.took, f.took)
	}
	return total, cores, nil
}
