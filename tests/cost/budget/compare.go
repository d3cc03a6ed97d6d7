// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// Tolerance is how much a row may grow unsaid.
const Tolerance = 0.03

// Verdict is what has become of a row.
type Verdict string

// The verdicts. Grown, Missing and New fail the check.
const (
	Same    Verdict = ""
	Shrunk  Verdict = "less: lower the budget"
	Others  Verdict = "more, and not conenat's"
	Grown   Verdict = "GROWN"
	Missing Verdict = "NOT MEASURED"
	New     Verdict = "NOT IN THE BUDGET"
)

// Change is a row of both; 0 is none.
type Change struct {
	Name     string
	Old, New int64
	Verdict
}

// Report is a comparison.
type Report struct {
	Changes []Change
	Problem string // why the two cannot be compared at all
}

// Compare holds a measurement against the budget.
func Compare(budget, measured Budget) Report {
	if err := measured.check(); err != nil {
		return Report{Problem: "the measurement: " + err.Error()}
	}
	if err := budget.check(); err != nil {
		return Report{Problem: "the budget: " + err.Error()}
	}
	var r Report
	if budget.Kernel != measured.Kernel {
		r.Problem = fmt.Sprintf("the budget is for Linux %s, measured was %s", budget.Kernel, measured.Kernel)
	}
	now := map[string]int64{}
	for _, row := range measured.Rows {
		now[row.Name] = row.Instructions
	}
	known := map[string]bool{}
	for _, row := range budget.Rows {
		known[row.Name] = true
		r.Changes = append(r.Changes, judge(Change{Name: row.Name, Old: row.Instructions, New: now[row.Name]}))
	}
	for _, row := range measured.Rows {
		if !known[row.Name] {
			r.Changes = append(r.Changes, judge(Change{Name: row.Name, New: row.Instructions}))
		}
	}
	return r
}

func judge(c Change) Change {
	switch {
	case c.New == 0:
		c.Verdict = Missing
	case c.Old == 0:
		c.Verdict = New
	case float64(c.New) > float64(c.Old)*(1+Tolerance) && isOthers(c.Name):
		c.Verdict = Others
	case float64(c.New) > float64(c.Old)*(1+Tolerance):
		c.Verdict = Grown
	case float64(c.New) < float64(c.Old)*(1-Tolerance):
		c.Verdict = Shrunk
	}
	return c
}

// isOthers: a row of what conenat is compared with. No commit here makes it grow.
func isOthers(name string) bool {
	contender, _, _ := strings.Cut(name, "/")
	return slices.Contains(references, contender) || slices.Contains(gatewayReferences, contender)
}

// Least is the smaller figure of each row: what disturbs a measurement only adds to it.
func Least(a, b Budget) Budget {
	other := map[string]int64{}
	for _, row := range b.Rows {
		other[row.Name] = row.Instructions
	}
	least := Budget{Kernel: a.Kernel}
	for _, row := range a.Rows {
		if n, known := other[row.Name]; known {
			row.Instructions = min(row.Instructions, n)
		}
		least.Rows = append(least.Rows, row)
	}
	return least
}

// Failed says whether the measurement does not agree with the budget.
func (r Report) Failed() bool {
	for _, c := range r.Changes {
		switch c.Verdict {
		case Grown, Missing, New:
			return true
		}
	}
	return r.Problem != "" || len(r.Changes) == 0
}

// String is a table of old, new and change.
func (r Report) String() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "budget\tmeasured\tchange\t  instructions per packet\n")
	for _, c := range r.Changes {
		change := "-"
		if c.Old != 0 && c.New != 0 {
			change = fmt.Sprintf("%+.1f %%", 100*(float64(c.New)/float64(c.Old)-1))
		}
		fmt.Fprintf(w, "%d\t%d\t%s\t  %s\n", c.Old, c.New, change, strings.TrimSpace(c.Name+"  "+string(c.Verdict)))
	}
	w.Flush()
	if r.Problem != "" {
		text.WriteString(r.Problem + "\n")
	}
	return text.String()
}
