// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/bench/report"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

func TestParse(t *testing.T) {
	o, err := parse([]string{"-full"})
	if err != nil || len(o.loads) != 36 || len(o.figures) != len(figures) || o.docs != "docs" || !o.chosen(bench.Direct) {
		t.Errorf("%+v, %v", o, err)
	}
	o, err = parse([]string{"-contenders", "nftables,docker", "-loads", "1:60:both", "-figures", "packets", "-rounds", "9"})
	if err != nil || !o.chosen(bench.Docker) || o.chosen(bench.Direct) || o.wants("bulk") || o.rounds != 9 || o.docs != "" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range []string{"-contenders nfttables", "-figures speed", "-loads 1:60", "-rounds -1", "x", "-sessions 0"} {
		if o, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s: %+v, and no error", args, o)
		}
	}
}

func TestParseIperf(t *testing.T) {
	got, err := parseIperf([]byte(`{"start":{},"end":{"sum_sent":{"seconds":2.1,"bytes":9},"sum_received":{"seconds":2.0,"bytes":1e9,"bits_per_second":4e9}}}`))
	if err != nil || got.rate() != 4e9 {
		t.Errorf("%v bits in a second, %v", got.rate(), err)
	}
	got.busy = 4 * time.Second
	if got.perGigabit() != 500 {
		t.Errorf("%v ms of a gigabit, want 500", got.perGigabit())
	}
	for _, text := range []string{"", "{}", `{"error":"unable to connect","end":{}}`, `{"end":{"sum_received":{"seconds":1}}}`} {
		if got, err := parseIperf([]byte(text)); err == nil {
			t.Errorf("%q: %+v, and no error", text, got)
		}
	}
}

func TestParseStat(t *testing.T) {
	busy, err := parseStat("cpu  100 10 20 9999 50 3 4 77 0 0\ncpu0 1 1 1 1 1 1 1 1\n")
	if err != nil || busy != 137*tick {
		t.Errorf("%v, %v, want %v", busy, err, 137*tick)
	}
	for _, text := range []string{"", "cpu 1 2 3", "cpu a b c d e f g h"} {
		if busy, err := parseStat(text); err == nil {
			t.Errorf("%q: %v, and no error", text, busy)
		}
	}
}

func TestSlabs(t *testing.T) {
	const slabinfo = `slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
nf_conntrack_expect      0      0    208   39    2 : tunables    0    0    0 : slabdata      0      0      0
nf_conntrack          48    112    256   32    2 : tunables    0    0    0 : slabdata      6      7      0
`
	if got, err := conntrackSlab(slabinfo); got != 7*2*4096 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	if got, err := conntrackSlab("nf_conntrack_expect 0"); err == nil {
		t.Errorf("%d, and no error", got)
	}
	if got, err := unreclaimable("Slab:   9 kB\nSReclaimable:  5 kB\nSUnreclaim:   4 kB\n"); got != 4096 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	netfilter := memoryUse{slab: 3000, allSlabs: 5000}.perSession(memoryUse{slab: 1000, allSlabs: 1000}, 10)
	if diff := cmp.Diff(map[string]float64{report.Memory: 200, report.AllSlabs: 400}, netfilter); diff != "" {
		t.Error(diff)
	}
	ours := memoryUse{maps: 3000, capacity: 10}.perSession(memoryUse{maps: 3000, capacity: 10}, 5)
	if diff := cmp.Diff(map[string]float64{report.Memory: 300}, ours); diff != "" {
		t.Error(diff)
	}
}

func TestPercentile(t *testing.T) {
	var sorted []time.Duration
	for i := range 1000 {
		sorted = append(sorted, time.Duration(i+1))
	}
	for part, want := range map[float64]time.Duration{0.5: 500, 0.99: 990, 0.999: 999, 1: 1000, 0: 1} {
		if got := percentile(sorted, part); got != want {
			t.Errorf("%v: %d, want %d", part, got, want)
		}
	}
	if got := percentile(sorted[:1], 0.999); got != 1 {
		t.Errorf("of one: %d", got)
	}
}

func TestJudgeExpiry(t *testing.T) {
	windows := []one{{100, 1000}, {102, 1000}, {101, 1000}, {90, 500}, {80, 500}, {92, 100}, {99, 0}}
	got, err := judgeExpiry(windows)
	if err != nil || got.before != 101 || got.during != 92 || got.took != 3*window {
		t.Errorf("%+v, %v", got, err)
	}
	for name, windows := range map[string][]one{"None": nil, "Never": windows[:3], "AtOnce": windows[2:4]} {
		if got, err := judgeExpiry(windows); err == nil {
			t.Errorf("%s: %+v, and no error", name, got)
		}
	}
}

// TestRemotes: no round has another's sessions.
func TestRemotes(t *testing.T) {
	if a, b := remotesOf(0, 2048).String(), remotesOf(1, 2048).String(); a != "10.0.0.1" || b != "10.0.0.4" {
		t.Errorf("%s, %s", a, b)
	}
}

// TestAll measures everything, as shortly as can be, and judges no time.
func TestAll(t *testing.T) {
	require.Root(t)
	require.Long(t, "measures all contenders")
	require.Installed(t, "iperf3")
	topo.AssertClean(t)
	dir := t.TempDir()
	o, err := parse([]string{"-figures", "packets,sessions,bulk,roundtrip,published", "-loads", "1:60:out,1:60:in,1:1514:both", "-rounds", "1", "-time", "20ms",
		"-sessions", "100", "-o", filepath.Join(dir, "bench.jsonl"), "-docs", dir})
	if err != nil {
		t.Fatal(err)
	}
	results, err := measureAll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, results)
	again, err := readFile(o.out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(results, again); diff != "" {
		t.Errorf("what the file has (-measured +read):\n%s", diff)
	}
	if err := writeDocs(o.docs, results); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", results.Table())
}

// checkAll: each contender has each figure that it is to have, and it is one.
func checkAll(t *testing.T, results report.Results) {
	t.Helper()
	for _, c := range bench.Compared("", bench.Scale{}) {
		want := map[string][]string{report.Published("tcp", "p50"): {report.Idle}, report.Published("udp", "p99.9"): {report.Idle}}
		if c.Routed {
			clear(want)
		}
		if !c.Proxy {
			want[report.Packets] = []string{"1:60:out", "1:60:in", "1:1514:both"}
			want[report.Cost] = []string{"1:60:out", "1:60:in"}
			want[report.Bulk] = []string{"1 stream"}
			want[report.RoundTrip("tcp", "p99")] = []string{report.Idle, report.UnderLoad}
			want[report.RoundTrip("udp", "p99")] = []string{report.Idle, report.UnderLoad}
		}
		if translating(c) {
			want[report.NewSessions], want[report.Memory] = []string{"100 sessions a round"}, []string{"100 sessions a round"}
			want[report.Teardown] = []string{"100 sessions"}
		}
		for figure, loads := range want {
			for _, load := range loads {
				checkFigure(t, results, figure, load, c.Name)
			}
		}
	}
	for _, name := range []string{bench.Generator, bench.GeneratorXDP} {
		checkFigure(t, results, report.Packets, "1:60:out", name)
	}
}

func checkFigure(t *testing.T, results report.Results, figure, load, contender string) {
	t.Helper()
	f, ok := results.Find(figure, load, contender)
	mayBeZero := slices.Contains([]string{report.Cost, report.Memory, report.CPU}, figure) // of so few packets and so short a time
	if !ok || len(f.Rounds) != 1 || f.Rounds[0] <= 0 && !mayBeZero {
		t.Errorf("%s, %s, %s: %v", contender, figure, load, f.Rounds)
	}
	if f.Arrived > f.Sent {
		t.Errorf("%s, %s, %s: %d packets of %d arrived", contender, figure, load, f.Arrived, f.Sent)
	}
}

// TestExpiry is measured apart: sessions have to live long enough for it to be seen.
func TestExpiry(t *testing.T) {
	require.Root(t)
	require.Long(t, "waits for sessions to expire")
	topo.AssertClean(t)
	o, err := parse([]string{"-figures", "expiry,capacity", "-contenders", bench.Direct, "-capacity", "2000", "-idle", "5000", "-idle-for", "4s",
		"-o", filepath.Join(t.TempDir(), "bench.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	results, err := measureAll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	checkFigure(t, results, report.Expiry, "5000 idle sessions", bench.Direct)
	checkFigure(t, results, report.Capacity, "2000 opened", bench.Direct)
	if f, _ := results.Find(report.Capacity, "2000 opened", bench.Direct); f.Median() != 2000 {
		t.Errorf("%v of 2,000 sessions live", f.Median())
	}
}

// TestMerge: a run of one contender keeps what the file has of the others, and -render measures nothing.
func TestMerge(t *testing.T) {
	require.Root(t)
	topo.AssertClean(t)
	file := filepath.Join(t.TempDir(), "bench.jsonl")
	measure := func(args ...string) report.Results {
		t.Helper()
		o, err := parse(append([]string{"-figures", "packets", "-loads", "1:60:out", "-rounds", "1", "-time", "1ms", "-conenat", "/bin/false", "-o", file}, args...))
		if err != nil {
			t.Fatal(err)
		}
		results, err := measureAll(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return results
	}
	first := measure("-contenders", bench.Forwarding)
	measure("-contenders", bench.Gateway+bench.Forwarding, "-merge")
	both, err := readFile(file)
	if err != nil {
		t.Fatal(err)
	}
	checkFigure(t, both, report.Packets, "1:60:out", bench.Gateway+bench.Forwarding)
	kept, _ := both.Find(report.Packets, "1:60:out", bench.Forwarding)
	if was, _ := first.Find(report.Packets, "1:60:out", bench.Forwarding); !slices.Equal(kept.Rounds, was.Rounds) {
		t.Errorf("%v was measured, and %v is kept", was.Rounds, kept.Rounds)
	}
	docs := t.TempDir()
	if err := run(t.Context(), []string{"-render", "-o", file, "-docs", docs}); err != nil {
		t.Fatal(err)
	}
	if page, err := os.ReadFile(filepath.Join(docs, "benchmarks.md")); err != nil || !strings.Contains(string(page), "| gateway-forwarding | ") {
		t.Errorf("%v, and the page is:\n%s", err, page)
	}
}

// TestFailureIsTold: a contender that does not start is named, and so is what it was to do.
func TestFailureIsTold(t *testing.T) {
	require.Root(t)
	topo.AssertClean(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o, err := parse([]string{"-figures", "packets", "-contenders", bench.Direct, "-loads", "1:60:out", "-conenat", "/nonexistent/conenat",
		"-o", filepath.Join(t.TempDir(), "bench.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	results, err := measureAll(ctx, o)
	if err == nil || !strings.Contains(err.Error(), "conenat-direct: packets of 1 sessions: ") || len(results.Measurements) != 0 {
		t.Errorf("%d measurements, and the error is: %v", len(results.Measurements), err)
	}
}
