// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/load"
	"github.com/conenat/conenat/tests/bench/report"
)

var protocols = []string{"udp", "tcp"}

// besideSessions are those of the packets beside round trips.
const besideSessions = 1000

// measureRoundTrips: from inside to outside, while nothing else happens, and beside packets of many sessions.
func measureRoundTrips(ctx context.Context, o options, r *recorder) error {
	all := prepare(ctx, o, r, "round trips", bench.Scale{}, func(c bench.Contender) bool { return !c.Proxy })
	defer all.finish(r)
	all.each(ctx, r, "round trips", func(c *course) error { return c.openForLoad(ctx) })
	for round := range o.rounds {
		for _, protocol := range protocols {
			for _, load := range []string{report.Idle, report.UnderLoad} {
				all.each(ctx, r, fmt.Sprintf("round trips, %s, %s", protocol, load), func(c *course) error {
					m := report.Measurement{Contender: c.Name, Load: load, Round: round + 1, Note: c.note()}
					samples, err := c.roundTrips(o, protocol, load, &m)
					if err == nil {
						addPercentiles(r, m, samples, func(p string) string { return report.RoundTrip(protocol, p) })
					}
					return err
				})
			}
		}
	}
	return ctx.Err()
}

// openForLoad lets sockets talk, and drops packets of the load alone.
func (c *course) openForLoad(ctx context.Context) (err error) {
	if err := c.lab.Open(ctx); err != nil {
		return err
	}
	c.out, err = c.sink(c.outside, load.Want{Dst: netip.AddrPortFrom(netip.Addr{}, remotePort), OthersPass: true})
	return err
}

func (c *course) roundTrips(o options, protocol, beside string, m *report.Measurement) (samples []time.Duration, err error) {
	server := netip.AddrPortFrom(c.outside.Addr, bench.ForwardedPort)
	talk := talk{protocol: protocol, client: c.inside.NS, server: c.outside.NS, at: server, to: server, time: o.time}
	if beside == report.Idle {
		return talk.samples()
	}
	if _, err := arrived(c.out); err != nil {
		return nil, err
	}
	p, err := c.startPaced(o.rate)
	if err != nil {
		return nil, err
	}
	samples, err = talk.samples()
	sent, took, paceErr := p.stop()
	if err := errors.Join(err, paceErr); err != nil {
		return nil, err
	}
	if m.Sent = sent; float64(sent)/took.Seconds() < 0.9*float64(o.rate) {
		m.Note = strings.TrimPrefix(m.Note+"; the load was less than it should be", "; ")
	}
	m.Arrived, err = arrived(c.out)
	return samples, err
}

// measurePublished: from outside to a port that the host's address has for the inside.
func measurePublished(ctx context.Context, o options, r *recorder) error {
	all := prepare(ctx, o, r, "published port", bench.Scale{}, func(c bench.Contender) bool { return !c.Routed })
	defer all.finish(r)
	all.each(ctx, r, "published port", func(c *course) error { return c.lab.Open(ctx) })
	for round := range o.rounds {
		for _, protocol := range protocols {
			all.each(ctx, r, "published port, "+protocol, func(c *course) error {
				samples, err := talk{protocol: protocol, client: c.outside.NS, server: c.inside.NS, time: o.time,
					at: netip.AddrPortFrom(c.lab.Inside.Addr, bench.ForwardedPort),
					to: netip.AddrPortFrom(c.source(), bench.ForwardedPort)}.samples()
				if err == nil {
					m := report.Measurement{Contender: c.Name, Load: report.Idle, Round: round + 1}
					addPercentiles(r, m, samples, func(p string) string { return report.Published(protocol, p) })
				}
				return err
			})
		}
	}
	return ctx.Err()
}

func addPercentiles(r *recorder, m report.Measurement, samples []time.Duration, figure func(percentile string) string) {
	slices.Sort(samples)
	for _, p := range []struct {
		name string
		part float64
	}{{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}} {
		m.Figure, m.Unit, m.Value = figure(p.name), "µs", float64(percentile(samples, p.part).Nanoseconds())/1000
		r.add(m)
	}
}

// percentile is by the nearest rank, of what is sorted.
func percentile(sorted []time.Duration, part float64) time.Duration {
	return sorted[max(0, int(math.Ceil(part*float64(len(sorted))))-1)]
}
