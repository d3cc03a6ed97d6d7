// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const kernel = "6.12.1-amd64"

func of(rows ...Row) Budget { return Budget{Kernel: kernel, Rows: rows} }

func TestCompare(t *testing.T) {
	budget := of(Row{"a", 1000}, Row{"b", 1000})
	for name, test := range map[string]struct {
		measured Budget
		a, b     Verdict
		failed   bool
	}{
		"same":           {of(Row{"a", 1000}, Row{"b", 1000}), Same, Same, false},
		"within":         {of(Row{"a", 1030}, Row{"b", 970}), Same, Same, false},
		"grown":          {of(Row{"a", 1031}, Row{"b", 1000}), Grown, Same, true},
		"shrunk":         {of(Row{"a", 1000}, Row{"b", 969}), Same, Shrunk, false},
		"grown_a_shrunk": {of(Row{"a", 900}, Row{"b", 1100}), Shrunk, Grown, true},
		"missing":        {of(Row{"a", 1000}), Same, Missing, true},
		"order":          {of(Row{"b", 1000}, Row{"a", 2000}), Grown, Same, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := Compare(budget, test.measured)
			want := []Verdict{test.a, test.b}
			if got := verdicts(r); cmp.Diff(want, got) != "" || r.Failed() != test.failed || r.Problem != "" {
				t.Errorf("%q, failed %v, problem %q, want %q, %v", got, r.Failed(), r.Problem, want, test.failed)
			}
		})
	}
}

func TestCompareTellsOthersGrowth(t *testing.T) {
	for contender, want := range map[string]Verdict{"nftables": Others, "forwarding": Others, "gateway-nftables": Others,
		"gateway-xdp-forwarding": Others, "conenat-direct": Grown, "gateway-conenat-xdp": Grown} {
		name := contender + "/ipv4/udp/established-outbound"
		r := Compare(of(Row{name, 1000}), of(Row{name, 1100}))
		if got := verdicts(r); got[0] != want || r.Failed() != (want == Grown) {
			t.Errorf("%s: %q, failed %v; want %q", contender, got, r.Failed(), want)
		}
	}
	const theirs = "nftables/ipv4/udp/established-outbound"
	if r := Compare(of(Row{theirs, 1000}), of(Row{"nftables/another", 1000})); !r.Failed() {
		t.Error("a row that is missing has to fail, whosever it is")
	}
}

func verdicts(r Report) (v []Verdict) {
	for _, c := range r.Changes {
		v = append(v, c.Verdict)
	}
	return v
}

func TestCompareFindsNewRows(t *testing.T) {
	r := Compare(of(Row{"a", 1000}), of(Row{"a", 1000}, Row{"b", 5}))
	want := []Change{{Name: "a", Old: 1000, New: 1000}, {Name: "b", New: 5, Verdict: New}}
	if diff := cmp.Diff(want, r.Changes); diff != "" || !r.Failed() {
		t.Errorf("failed %v (-want +got):\n%s", r.Failed(), diff)
	}
}

func TestCompareRefuses(t *testing.T) {
	good := of(Row{"a", 1000})
	other := of(Row{"a", 1000})
	other.Kernel = "6.1"
	for name, test := range map[string]struct{ budget, measured Budget }{
		"both_empty":        {Budget{}, Budget{}},
		"no_rows":           {of(), of()},
		"empty_measurement": {good, of()},
		"empty_budget":      {of(), good},
		"no_instructions":   {good, of(Row{"a", 0})},
		"negative":          {good, of(Row{"a", -5})},
		"twice":             {good, of(Row{"a", 1000}, Row{"a", 1000})},
		"no_name":           {good, of(Row{"", 1000})},
		"another_kernel":    {good, other},
	} {
		t.Run(name, func(t *testing.T) {
			if r := Compare(test.budget, test.measured); r.Problem == "" || !r.Failed() {
				t.Errorf("%+v: want a problem, and a failure", r)
			}
		})
	}
}

func TestLeast(t *testing.T) {
	got := Least(of(Row{"a", 1000}, Row{"b", 3000}, Row{"c", 5}), of(Row{"b", 2000}, Row{"a", 1001}))
	if diff := cmp.Diff(of(Row{"a", 1000}, Row{"b", 2000}, Row{"c", 5}), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReport(t *testing.T) {
	got := Compare(of(Row{"a", 1000}, Row{"b", 2000}, Row{"gone", 7}), of(Row{"a", 1000}, Row{"b", 2100}, Row{"new", 5})).String()
	want := `  budget  measured  change  instructions per packet
    1000      1000  +0.0 %  a
    2000      2100  +5.0 %  b  GROWN
       7         0       -  gone  NOT MEASURED
       0         5       -  new  NOT IN THE BUDGET
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFileIsReadBack(t *testing.T) {
	want := of(Row{"conenat-direct/ipv4/udp/established-outbound", 3210}, Row{"b", 1})
	got, err := Parse(want.File())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, text := range map[string]string{
		"empty": "", "comment": "# nothing\n", "no_rows": "kernel: k\nrows: []\n", "unknown": "kernel: k\nrows: [{name: a, instructions: 1, x: 2}]\n",
		"cut": "kernel: k\nrows:\n  - {name: a, instr",
	} {
		if b, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: parsed as %+v", name, b)
		}
	}
}

func TestPage(t *testing.T) {
	b := of(Row{"forwarding/ipv4/udp/out", 1000}, Row{"nftables/ipv4/udp/out", 2000}, Row{"nftables/ipv4/udp/first", 8000},
		Row{"direct/ipv4/udp/out", 500}, Row{"direct/ipv4/udp/first", 4000}, Row{"direct/ipv4/udp/expiry", 900},
		Row{"gateway-xdp-forwarding/ipv4/udp/out", 500}, Row{"gateway-nftables/ipv4/udp/out", 4000}, Row{"gateway-xdp/ipv4/udp/out", 1000})
	got, err := b.Page("# T\n" + pageBegin + "old\n" + pageEnd + "after\n")
	if err != nil {
		t.Fatal(err)
	}
	want := "# T\n" + pageBegin + `Linux 6.12.1-amd64, instructions per packet.

| packet | forwarding | nftables | direct |
| --- | --- | --- | --- |
| ipv4 udp out | 1000 | 2000 | 500 (0.25, 0.50) |
| ipv4 udp first |  | 8000 | 4000 (0.50, -) |
| ipv4 udp expiry |  |  | 900 (-, -) |

Between two plain interfaces, frames as a network card's driver has them; in parentheses: of nftables, and of XDP that forwards.

| packet | gateway-xdp-forwarding | gateway-nftables | gateway-xdp |
| --- | --- | --- | --- |
| ipv4 udp out | 500 | 4000 | 1000 (0.25, 2.00) |
` + pageEnd + "after\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, text := range []string{"", pageBegin, pageEnd + pageBegin, strings.TrimSpace(pageBegin)} {
		if _, err := b.Page(text); err == nil {
			t.Errorf("page %q: no error", text)
		}
	}
}
