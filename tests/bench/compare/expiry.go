// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/conenat/conenat/control/api/client"
	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/load"
	"github.com/conenat/conenat/tests/bench/report"
)

// The sessions that live on, and their remote addresses, apart from the others'.
const living = 1000

var livingRemote = netip.MustParseAddr("10.200.0.1")

// window is of what throughput is told.
const window = 250 * time.Millisecond

// measureExpiry: the throughput of sessions that live while others expire, of before. Contenders do not take turns, for the clock
// runs for each.
func measureExpiry(ctx context.Context, o options, r *recorder) error {
	what := fmt.Sprintf("expiry of %d idle sessions", o.idle)
	scale := bench.Scale{Sessions: o.idle + 2*living, UDPTimeout: o.idleFor}
	for _, name := range []string{bench.NFTables, bench.Direct} {
		all := prepare(ctx, o, r, what, scale, func(c bench.Contender) bool { return c.Name == name })
		all.each(ctx, r, what, func(c *course) error {
			if err := c.addSinks(); err != nil {
				return err
			}
			return c.expire(ctx, o, r)
		})
		all.finish(r)
	}
	return ctx.Err()
}

func (c *course) expire(ctx context.Context, o options, r *recorder) error {
	begin := time.Now()
	missing, err := c.fill(o.idle, firstRemote)
	if err != nil {
		return err
	}
	if took := time.Since(begin); took > o.idleFor-4*window {
		return fmt.Errorf("%d sessions took %v to open, and the first of them end after %v: -idle-for has to be more", o.idle, took, o.idleFor)
	}
	if _, err := c.fill(living, livingRemote); err != nil {
		return err
	}
	windows, err := c.watchExpiry(ctx, o, begin)
	if err != nil {
		return err
	}
	e, err := judgeExpiry(windows)
	if err != nil {
		return err
	}
	m := report.Measurement{Contender: c.Name, Load: report.IdleSessions(o.idle), Round: 1}
	if missing > 0 {
		m.Note = fmt.Sprintf("%d of them did not open", missing)
	}
	m.Figure, m.Unit, m.Value = report.Expiry, "of before", e.during/e.before
	r.add(m)
	m.Figure, m.Unit, m.Value = report.ExpiryTime, "s", e.took.Seconds()
	r.add(m)
	return nil
}

// expiryPatience is how long after the last session's time netfilter's collector, which comes once in two minutes, may take.
const expiryPatience = 3 * time.Minute

// one is a window: what came in it, and how many sessions were left at its end.
type one struct {
	rate float64
	left int
}

// watchExpiry sends packets of the sessions that live until no others are left.
func (c *course) watchExpiry(ctx context.Context, o options, begin time.Time) (windows []one, err error) {
	w, err := c.way(report.Load{Sessions: living, Size: load.MinSize}, false, livingRemote)
	if err != nil {
		return nil, err
	}
	end := begin.Add(2*o.idleFor + expiryPatience)
	err = w.with(0, func(g *load.Generator) error {
		for time.Now().Before(end) && ctx.Err() == nil {
			if _, err := arrived(w.to); err != nil {
				return err
			}
			_, took, err := g.For(window)
			if err != nil {
				return err
			}
			came, err := arrived(w.to)
			if err != nil {
				return err
			}
			left, err := c.sessions(ctx)
			if err != nil {
				return err
			}
			windows = append(windows, one{float64(came) / took.Seconds(), left})
			if left <= 2*living {
				return nil
			}
		}
		return errors.Join(ctx.Err(), fmt.Errorf("after %v not all sessions have expired", time.Since(begin)))
	})
	return windows, err
}

// sessions is how many there are, told without walking through them.
func (c *course) sessions(ctx context.Context) (n int, err error) {
	if c.isNetfilter() {
		return c.conntrackCount()
	}
	networks, err := client.New(c.lab.Socket).Networks(ctx)
	for _, network := range networks {
		n += int(network.Usage.Sessions)
	}
	return n, err
}

func (c *course) conntrackCount() (n int, err error) {
	err = c.lab.Host.Do(func() error {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err == nil {
			n, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err
	})
	return n, err
}

// expiryOf is what the windows say.
type expiryOf struct {
	before, during float64 // packets in a second
	took           time.Duration
}

// judgeExpiry: sessions expire in the windows in which a thousandth of them or more went.
func judgeExpiry(windows []one) (e expiryOf, err error) {
	if len(windows) == 0 {
		return e, errors.New("nothing was seen")
	}
	most := windows[0].left
	var before, during []float64
	for i, w := range windows {
		switch gone := i > 0 && windows[i-1].left-w.left > most/1000; {
		case gone:
			during = append(during, w.rate)
		case len(during) == 0:
			before = append(before, w.rate)
		}
	}
	if len(before) < 2 || len(during) == 0 {
		return e, fmt.Errorf("%d windows before the expiry and %d of it: it began before it could be watched, or never", len(before), len(during))
	}
	return expiryOf{report.Median(before), report.Median(during), time.Duration(len(during)) * window}, nil
}
