// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/load"
	"github.com/conenat/conenat/tests/bench/report"
)

// remotesOf is the first remote address of a round's sessions, which nothing is known of: those of other rounds begin at
// other addresses.
func remotesOf(round, sessions int) netip.Addr {
	b := firstRemote.As4()
	each := uint32(sessions>>portBits + 1)
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(round)*each)
	return netip.AddrFrom4(b)
}

// translating is whether a contender has sessions, and carries them.
func translating(c bench.Contender) bool { return c.Translates && !c.Proxy }

// measureSessions: how fast sessions open, what memory they take, and how fast all of them are taken away.
func measureSessions(ctx context.Context, o options, r *recorder) error {
	load := report.Load{Sessions: o.sessions, Size: load.MinSize, Direction: report.Outbound}
	what := fmt.Sprintf("new sessions, %d a round", o.sessions)
	all := prepare(ctx, o, r, what, bench.Scale{Sessions: 2 * o.rounds * o.sessions}, translating)
	defer all.finish(r)
	all.each(ctx, r, what, func(c *course) error { return c.addSinks() })
	for round := range o.rounds {
		all.each(ctx, r, what, func(c *course) error { return c.openAnew(load, r, round) })
	}
	words := fmt.Sprintf("%d sessions", o.rounds*o.sessions)
	all.each(ctx, r, "teardown of "+words, func(c *course) error {
		begin := time.Now()
		if err := c.End(ctx, c.lab); err != nil {
			return err
		}
		r.add(report.Measurement{Contender: c.Name, Figure: report.Teardown, Load: words, Round: 1,
			Value: float64(time.Since(begin).Microseconds()) / 1000, Unit: "ms"})
		return nil
	})
	return ctx.Err()
}

// openAnew opens a round's sessions, and adds what that took.
func (c *course) openAnew(l report.Load, r *recorder, round int) error {
	w, err := c.way(l, false, remotesOf(round, l.Sessions))
	if err != nil {
		return err
	}
	was, err := c.memory()
	if err != nil {
		return err
	}
	f, err := w.measured(0, 0, once(l.Sessions))
	if err != nil {
		return err
	}
	is, err := c.memory()
	if err != nil {
		return err
	}
	words := fmt.Sprintf("%d sessions a round", l.Sessions)
	r.add(report.Measurement{Contender: c.Name, Figure: report.NewSessions, Load: words, Round: round + 1, Value: f.rate(), Unit: "sessions/s",
		Sent: f.sent, Arrived: f.arrived})
	taken := is.perSession(was, f.arrived)
	for _, figure := range slices.Sorted(maps.Keys(taken)) {
		r.add(report.Measurement{Contender: c.Name, Figure: figure, Load: words, Round: round + 1, Value: taken[figure], Unit: "bytes/session"})
	}
	return nil
}

// measureCapacity: of more sessions than the tables hold as they come, how many live.
func measureCapacity(ctx context.Context, o options, r *recorder) error {
	what := fmt.Sprintf("%d opened", o.capacity)
	all := prepare(ctx, o, r, "capacity", bench.Scale{}, func(c bench.Contender) bool { return translating(c) && !c.Routed })
	defer all.finish(r)
	all.each(ctx, r, "capacity, "+what, func(c *course) error {
		if err := c.addSinks(); err != nil {
			return err
		}
		alive, err := c.alive(o.capacity)
		if err == nil {
			r.add(report.Measurement{Contender: c.Name, Figure: report.Capacity, Load: what, Round: 1, Value: float64(alive), Unit: "sessions"})
		}
		return err
	})
	return ctx.Err()
}

// alive opens sessions, and counts how many of their answers get in.
func (c *course) alive(sessions int) (int, error) {
	l := report.Load{Sessions: sessions, Size: load.MinSize}
	var answers flow
	for _, inbound := range []bool{false, true} {
		w, err := c.way(l, inbound, firstRemote)
		if err != nil {
			return 0, err
		}
		if answers, err = w.measured(0, 0, once(sessions)); err != nil {
			return 0, err
		}
	}
	return answers.arrived, nil
}

// isNetfilter is whether a contender's sessions are netfilter's.
func (c *course) isNetfilter() bool { return !strings.Contains(c.Name, "conenat") }
