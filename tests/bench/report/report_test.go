// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/bench"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{7}, 7}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{1, 1, 1, 100}, 1},
	} {
		if got := Median(tt.values); got != tt.want {
			t.Errorf("median of %v: %v, want %v", tt.values, got, tt.want)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing: %v", got)
	}
}

func TestLoads(t *testing.T) {
	for _, s := range []string{"1:60:out", "100000:512:in", "1000000:1514:both"} {
		if l, err := ParseLoad(s); err != nil || l.String() != s {
			t.Errorf("%q is read as %v, %v", s, l, err)
		}
	}
	for _, s := range []string{"", "1:60", "0:60:out", "1:x:out", "1:60:up", "1:60:out:1", "-1:60:in"} {
		if l, err := ParseLoad(s); err == nil {
			t.Errorf("%q is read as %v", s, l)
		}
	}
	if got := (Load{100000, 60, Both}).Words(); got != "100,000 sessions, 60 bytes, both ways" {
		t.Error(got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{1234567: "1,234,567", 999.4: "999", 12.34: "12.3", 1.234: "1.23", 0.0123: "0.012",
		-12345: "-12,345", 100000: "100,000", 0: "0.000"} {
		if got := number(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func rounds(contender, figure, load, unit string, values ...float64) (list []Measurement) {
	for i, v := range values {
		list = append(list, Measurement{Contender: contender, Figure: figure, Load: load, Round: i + 1, Value: v, Unit: unit})
	}
	return list
}

// sample is a run in which targets are met, not met and not measured.
func sample() Results {
	r := Results{Machine: Machine{Kernel: "6.18.1", CPU: "a processor", CPUs: 2, Memory: "4 GB", Commit: "abc", Started: "2026-01-01T00:00:00Z", Busy: "0.01", Method: "3 rounds"}}
	add := func(list []Measurement) { r.Measurements = append(r.Measurements, list...) }
	for _, load := range []string{oneSession, "1000:60:out", "1000:512:out"} {
		add(rounds(bench.Forwarding, Packets, load, "packets/s", 1000, 1100, 1050))
		add(rounds(bench.NFTables, Packets, load, "packets/s", 500, 510, 490))
		add(rounds(bench.Docker, Packets, load, "packets/s", 400, 400, 400))
		add(rounds(bench.Direct, Packets, load, "packets/s", 1000, 10, 1000))
		add(rounds(bench.Gateway+bench.NFTables, Packets, load, "packets/s", 2000))
		add(rounds(bench.Gateway+bench.Direct, Packets, load, "packets/s", 3000))
	}
	for _, percentile := range percentiles {
		add(rounds(bench.Docker, RoundTrip("udp", percentile), UnderLoad, "µs", 40))
		add(rounds(bench.Direct, RoundTrip("udp", percentile), UnderLoad, "µs", 20))
	}
	add(rounds(bench.Forwarding, Published("tcp", "p50"), Idle, "µs", 10))
	add(rounds(bench.Direct, Published("tcp", "p50"), Idle, "µs", 11))
	add(rounds(bench.DockerProxy, Published("tcp", "p50"), Idle, "µs", 30))
	add(rounds(bench.Direct, Expiry, IdleSessions(1_000_000), "of before", 0.94))
	add(rounds(bench.Direct, Memory, "100,000 sessions", "bytes", 300))
	last := &r.Measurements[len(r.Measurements)-1]
	last.Sent, last.Arrived, last.Note = 1000, 990, "10 of 1,000 sessions did not open"
	return r
}

func TestReadBack(t *testing.T) {
	var text bytes.Buffer
	if err := sample().Write(&text); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, text := range []string{"", "{}", `{"machine":{}}`, `{"contender":"a","figure":"b","value":1}`, "panic"} {
		if got, err := Read(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %+v, and no error", text, got)
		}
	}
}

// TestMerge: what was measured anew replaces all its older rounds, and nothing else.
func TestMerge(t *testing.T) {
	anew := Results{Machine: Machine{Kernel: "anew"}, Measurements: rounds(bench.Direct, Packets, oneSession, "packets/s", 7)}
	got := anew.Merge(sample())
	if f, _ := got.Find(Packets, oneSession, bench.Direct); len(f.Rounds) != 1 || f.Median() != 7 {
		t.Errorf("rounds %v, want 7 alone", f.Rounds)
	}
	if len(got.Measurements) != len(sample().Measurements)-2 || got.Machine.Kernel != "anew" {
		t.Errorf("%d measurements of %q", len(got.Measurements), got.Machine.Kernel)
	}
}

func TestTable(t *testing.T) {
	table := sample().Table()
	for _, want := range []string{
		"packets (packets/s): 1 session, 60 bytes, outbound\n",
		"   1,000   10.0  1,000         2.00       2.50           0.95     -  conenat-direct\n",
		"   1,050  1,000  1,100         2.10       2.62           1.00     -  forwarding\n",
		"   3,000  3,000  3,000         1.50          -              -     -  gateway-conenat-direct\n", // of gateway-nftables
		"1.0 %  conenat-direct\n",
		"conenat-direct: 10 of 1,000 sessions did not open (memory; 100,000 sessions)\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
}

func TestTargets(t *testing.T) {
	got := map[string][2]string{}
	for _, target := range Targets() {
		measured, verdict := target.Judge(sample())
		got[target.What] = [2]string{measured, verdict}
	}
	for what, want := range map[string][2]string{
		"direct, 1 session, of nftables":                                                {"2.00", "met"},
		"direct, 1 session, of Docker's path":                                           {"2.50", "**not met**"},
		"direct, 100,000 sessions, of nftables":                                         {"-", "not measured"},
		"direct, added latency of a published port, of the userland proxy's (TCP, p50)": {"0.050", "met"},
		"direct, round trip under load, of Docker's path (UDP, p50)":                    {"0.500", "met"},
		"kernel memory of an IPv4 session, bytes":                                       {"300", "met"},
		"throughput while 1,000,000 idle sessions expire, of before":                    {"0.940", "**not met**"},
		"direct, 1 session, of kernel routing without NAT":                              {"0.952", "**not met**"},
	} {
		if got[what] != want {
			t.Errorf("%s: %q, want %q", what, got[what], want)
		}
	}
}

// TestPlots: they are well-formed, name their contenders, and are not drawn of nothing.
func TestPlots(t *testing.T) {
	plots, err := sample().Plots()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sessions.svg", "sizes.svg", "roundtrip.svg"} {
		svg := plots[name]
		d := xml.NewDecoder(bytes.NewReader(svg))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, want := range []string{"<svg", bench.Docker, bench.Direct, "<path"} {
			if !bytes.Contains(svg, []byte(want)) {
				t.Errorf("%s has no %q", name, want)
			}
		}
	}
	none, err := Results{Measurements: rounds(bench.Direct, Packets, oneSession, "packets/s", 7)}.Plots()
	if err != nil || len(none) != 0 {
		t.Errorf("%d plots of one point, %v", len(none), err)
	}
}

func TestPage(t *testing.T) {
	page := sample().Page(map[string][]byte{"sessions.svg": nil})
	for _, want := range []string{
		"Linux 6.18.1, 2 CPUs (a processor), 4 GB of memory; commit abc",
		"| direct, 1 session, of Docker's path | ≥ 2.8 | 2.50 | **not met** |\n",
		"| direct, 1 session, of kernel routing without NAT | ≥ 0.97 (worked towards) | 0.952 | **not met** |\n",
		"![sessions](benchmarks/sessions.svg)\n",
		"### Packets\n| packets/s | forwarding | nftables | docker | conenat-direct | gateway-nftables | gateway-conenat-direct | spread | lost |\n",
		"| 1 session, 60 bytes, outbound | 1,050 ×2.10 | 500 | 400 ×0.80 | 1,000 ×2.00 | 2,000 | 3,000 ×1.50 | 99.0 % (conenat-direct) | 0 |\n",
		"| 100,000 sessions | 300 | 0 | 1.0 % (conenat-direct) |\n",
		"- conenat-direct: 10 of 1,000 sessions did not open (memory; 100,000 sessions)\n",
		"## What it does not show\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}
