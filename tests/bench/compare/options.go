// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/report"
)

// figures are the groups that can be chosen, in the order in which they are measured.
var figures = []struct {
	name    string
	measure func(context.Context, options, *recorder) error
}{
	{"packets", measurePackets},
	{"sessions", measureSessions},
	{"capacity", measureCapacity},
	{"bulk", measureBulk},
	{"roundtrip", measureRoundTrips},
	{"published", measurePublished},
	{"expiry", measureExpiry},
}

type options struct {
	full       bool
	contenders []string // none: all
	figures    []string
	loads      []report.Load
	rounds     int
	time       time.Duration // of a measurement
	streams    []int         // of TCP bulk
	sessions   int           // of new sessions, their memory and their end
	capacity   int           // sessions that are opened to see how many are kept
	idle       int           // sessions that expire
	idleFor    time.Duration // until they do
	rate       int           // of the load beside round trips, packets in a second
	out, docs  string
	merge      bool
	render     bool
	conenat    string
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	f.BoolVar(&o.full, "full", false, "all figures and loads, and docs/benchmarks.md")
	contenders := f.String("contenders", "", "these alone, by their names, separated by commas")
	chosen := f.String("figures", "", "these alone: "+strings.Join(groups(), ", "))
	loads := f.String("loads", "", "of packets, as SESSIONS:BYTES:out, in or both, separated by commas")
	f.IntVar(&o.rounds, "rounds", 0, "of each measurement (3; 5 with -full)")
	f.DurationVar(&o.time, "time", 0, "of each measurement (500ms)")
	f.IntVar(&o.sessions, "sessions", 100_000, "new sessions of a round, whose memory and end are measured")
	f.IntVar(&o.capacity, "capacity", 300_000, "sessions that are opened to see how many are kept")
	f.IntVar(&o.idle, "idle", 1_000_000, "sessions that expire")
	f.DurationVar(&o.idleFor, "idle-for", 40*time.Second, "until they do: longer than it takes to open them")
	f.IntVar(&o.rate, "rate", 200_000, "packets in a second beside round trips")
	f.StringVar(&o.out, "o", "bin/bench.jsonl", "the measurements, an object a line")
	f.StringVar(&o.docs, "docs", "", "write benchmarks.md and its plots to this directory (with -full: docs)")
	f.BoolVar(&o.merge, "merge", false, "keep what else the file has")
	f.BoolVar(&o.render, "render", false, "measure nothing, and show what the file has")
	f.StringVar(&o.conenat, "conenat", "", "the program (built, if empty)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("no argument is expected, and %q is one", f.Arg(0))
	}
	o.contenders, o.figures = list(*contenders), list(*chosen)
	return o, o.complete(*loads)
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func groups() (names []string) {
	for _, f := range figures {
		names = append(names, f.name)
	}
	return names
}

// complete puts in what was not said, and refuses what means nothing.
func (o *options) complete(loads string) error {
	few := options{rounds: 3, time: 500 * time.Millisecond, streams: []int{1}, figures: []string{"packets", "sessions", "bulk", "roundtrip", "published"}}
	fewLoads := "1:60:out,100000:60:out,100000:60:in"
	if o.full {
		few = options{rounds: 5, time: 500 * time.Millisecond, streams: []int{1, 8}, figures: groups(), docs: "docs"}
		fewLoads = strings.Join(allLoads(), ",")
	}
	o.streams = few.streams
	if o.rounds == 0 {
		o.rounds = few.rounds
	}
	if o.time == 0 {
		o.time = few.time
	}
	if o.figures == nil {
		o.figures = few.figures
	}
	if o.docs == "" {
		o.docs = few.docs
	}
	if loads == "" {
		loads = fewLoads
	}
	for _, text := range list(loads) {
		l, err := report.ParseLoad(text)
		if err != nil {
			return err
		}
		o.loads = append(o.loads, l)
	}
	return o.check()
}

func (o *options) check() error {
	for _, name := range o.figures {
		if !slices.Contains(groups(), name) {
			return fmt.Errorf("no figure %q: there are %s", name, strings.Join(groups(), ", "))
		}
	}
	var known []string
	for _, c := range bench.Compared("", bench.Scale{}) {
		known = append(known, c.Name)
	}
	for _, name := range o.contenders {
		if !slices.Contains(known, name) {
			return fmt.Errorf("no contender %q: there are %s", name, strings.Join(known, ", "))
		}
	}
	if o.rounds < 1 || o.time <= 0 || o.sessions < 1 || o.capacity < 1 || o.idle < 1 || o.idleFor < time.Second || o.rate < 1000 {
		return errors.New("rounds, times, sessions and rate (from 1000 on) have to be more")
	}
	return nil
}

// allLoads: every number of sessions with every size and direction.
func allLoads() (loads []string) {
	for _, sessions := range []int{1, 1000, 100_000, 1_000_000} {
		for _, size := range []int{60, 512, 1514} {
			for _, d := range []report.Direction{report.Outbound, report.Inbound, report.Both} {
				loads = append(loads, report.Load{Sessions: sessions, Size: size, Direction: d}.String())
			}
		}
	}
	return loads
}

func (o *options) wants(figure string) bool { return slices.Contains(o.figures, figure) }

// chosen is whether a contender is.
func (o *options) chosen(name string) bool {
	return len(o.contenders) == 0 || slices.Contains(o.contenders, name)
}
