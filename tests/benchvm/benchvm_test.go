// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/tests/bench"
)

func TestParseResult(t *testing.T) {
	text := "Params: count 1000  min_pkt_size: 60\nCurrent:\n     pkts-sofar: 1000\nResult: OK: 16250(c16149+d100) usec, 1000 (60byte,0frags)\n  61538pps 29Mb/sec\n"
	if took, err := parseResult(text, 1000); took != 16250*time.Microsecond || err != nil {
		t.Errorf("%v, %v", took, err)
	}
	for _, text := range []string{"", "Result: Idle\n", "Result: OK: 0(c0+d0) usec, 1000 (60byte,0frags)\n", "Result: OK: udp_dst_max=9\n",
		"Result: OK: 16250(c16149+d100) usec, 999 (60byte,0frags)\n"} {
		if took, err := parseResult(text, 1000); err == nil {
			t.Errorf("%q: %v, and no error", text, took)
		}
	}
}

func TestCommands(t *testing.T) {
	one, many := load{1, 60}.commands(bench.Port{}, "203.0.113.1", 5), load{1000, 1514}.commands(bench.Port{}, "203.0.113.1", 5)
	for _, want := range []string{"clone_skb 0", "burst 1", "pkt_size 60", "udp_src_max 20000", "count 5", "dst 203.0.113.1"} {
		if !slices.Contains(one, want) {
			t.Errorf("no %q in %q", want, one)
		}
	}
	for _, want := range []string{"pkt_size 1514", "udp_src_max 20999", "flag UDPSRC_RND"} {
		if slices.Contains(one, want) || !slices.Contains(many, want) {
			t.Errorf("%q for 1 flow: %v, for 1,000: %v", want, slices.Contains(one, want), slices.Contains(many, want))
		}
	}
}

var where = place{Kernel: "6.12.1", CPU: "a processor", CPUs: 2, Method: "how"}

func TestResultsAreReadBack(t *testing.T) {
	r := result{Contender: bench.Direct, Flows: 1, Bytes: 60, place: where}
	r.add(round{sent: 100, arrived: 90, took: time.Second})
	r.add(round{sent: 100, arrived: 100, took: 500 * time.Millisecond})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseResults(append(text, '\n'))
	if err != nil {
		t.Fatal(err)
	}
	want := []result{{Contender: bench.Direct, Flows: 1, Bytes: 60, Rounds: []float64{90, 200}, Sent: 200, Arrived: 190, place: where}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{}), cmpopts.EquateComparable(place{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, text := range []string{"", "{}", `{"contender":"a","rounds_pps":[0]}`, "panic"} {
		if got, err := parseResults([]byte(text)); err == nil {
			t.Errorf("%q: %+v, and no error", text, got)
		}
	}
}

func TestTable(t *testing.T) {
	of := func(name string, flows int, pps float64) result {
		return result{Contender: name, Flows: flows, Bytes: 60, Rounds: []float64{1, pps, pps * 2}, Sent: 1000, Arrived: 995, place: where}
	}
	got := table([]result{of(bench.Forwarding, 1, 200000), of(bench.NFTables, 1, 100000), of(bench.Direct, 1, 150000), of(bench.Direct, 1000, 1000)})
	want := `Linux 6.12.1, 2 CPUs, a processor
how

  flows  bytes  packets/s  of nftables  of forwarding   lost
      1     60     200000         2.00           1.00  0.5 %  forwarding
      1     60     100000         1.00           0.50  0.5 %  nftables
      1     60     150000         1.50           0.75  0.5 %  conenat-direct
   1000     60       1000            -              -  0.5 %  conenat-direct
`
	if diff := cmp.Diff(want, trimLines(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func trimLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}
