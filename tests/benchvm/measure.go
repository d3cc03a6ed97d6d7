// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// Each contender sends for about roundTime in each of the rounds, in turn, so that what else the machine does meets
// all of them.
const (
	rounds    = 5
	roundTime = time.Second / 2
	trialSize = 20000 // packets: enough to open all sessions, and to learn the rate
)

var loads = []load{{1, 60}, {1000, 60}, {1, 1514}, {1000, 1514}}

// course is a contender in its lab, or the generator alone.
type course struct {
	name string
	from bench.Port
	to   bench.Sink
	want bench.Want
}

// generatorAlone is the course that has nothing between its ends: what pktgen itself can do.
const generatorAlone = "generator"

func measure(ctx context.Context, conenat string, out io.Writer) (err error) {
	if err := loadPktgen(); err != nil {
		return err
	}
	courses, cleanup, err := prepare(ctx, conenat)
	defer func() { err = errors.Join(err, cleanup()) }()
	if err != nil {
		return err
	}
	where, err := thisMachine()
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	for _, l := range loads {
		results, err := l.measure(ctx, courses)
		if err != nil {
			return err
		}
		for _, r := range results {
			r.place = where
			if err := encoder.Encode(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare makes all courses, to be there at once. The cleanup is to be called after an error, too.
func prepare(ctx context.Context, conenat string) (courses []course, cleanup func() error, err error) {
	var made topo.Stack
	for _, c := range bench.Contenders(conenat) {
		t, err := topo.New()
		if err != nil {
			return nil, made.Close, err
		}
		made.Defer(c.Name, t.Close)
		l, err := bench.NewLab(ctx, t, family.V4)
		if err != nil {
			return nil, made.Close, err
		}
		if err := c.Start(ctx, l); err != nil {
			return nil, made.Close, fmt.Errorf("%s: %w", c.Name, err)
		}
		if len(courses) == 0 {
			alone := l.Generator
			alone.Addr = l.Inside.Addr
			courses = append(courses, newCourse(generatorAlone, alone, l.GeneratorEnd, alone.Addr))
		}
		courses = append(courses, newCourse(c.Name, l.Inside, l.Outside, l.Source(c, l.Inside.Addr)))
	}
	return courses, made.Close, nil
}

func newCourse(name string, from, to bench.Port, source netip.Addr) course {
	return course{name, from, bench.SinkAt(to), bench.Want{Protocol: "udp",
		Src: netip.AddrPortFrom(source, 0), Dst: netip.AddrPortFrom(topo.Peer1Addr, 0)}}
}

func (l load) measure(ctx context.Context, courses []course) ([]result, error) {
	results, counts := make([]result, len(courses)), make([]int, len(courses))
	for i, c := range courses {
		first, err := c.send(ctx, l, trialSize)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		results[i] = result{Contender: c.name, Flows: l.flows, Bytes: l.bytes}
		counts[i] = max(trialSize, int(first.rate()*roundTime.Seconds()))
	}
	for range rounds {
		for i, c := range courses {
			r, err := c.send(ctx, l, counts[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			results[i].add(r)
		}
	}
	return results, nil
}

// round is what was sent, what came out at the other end as it should be, and the time.
type round struct {
	sent, arrived int
	took          time.Duration
}

func (r round) rate() float64 { return float64(r.arrived) / r.took.Seconds() }

func (c course) send(ctx context.Context, l load, count int) (round, error) {
	if err := c.to.Aim(ctx, c.want); err != nil {
		return round{}, err
	}
	took, err := l.send(ctx, c.from, c.want.Dst.Addr().String(), count)
	if err != nil {
		return round{}, err
	}
	arrived, err := c.to.Count()
	if err == nil && arrived == 0 {
		err = fmt.Errorf("none of %d packets arrived as %+v", count, c.want)
	}
	return round{count, int(arrived), took}, err
}

var processor = regexp.MustCompile(`(?m)^model name\s*: (.*)$`)

func thisMachine() (p place, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return p, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return p, err
	}
	p = place{Kernel: unix.ByteSliceToString(name.Release[:]), CPU: "unknown", CPUs: runtime.NumCPU(),
		Method: fmt.Sprintf("pktgen, 1 thread, clone_skb 0, burst 1; median of %d rounds of about %v; counted at the receiver", rounds, roundTime)}
	if m := processor.FindSubmatch(text); m != nil {
		p.CPU = string(m[1])
	}
	return p, nil
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(values))[len(values)/2]
}
