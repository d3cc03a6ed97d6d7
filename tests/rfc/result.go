// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
)

// Result is what a requirement's test came to.
type Result struct {
	Outcome Outcome
	Shown   []string // "rig", "namespaces"
	// Families that it was shown in: "IPv4".
	Families []string
}

// merged is what tests in several families came to: what held in one and not in another has failed.
func merged(all []Result) (out Result) {
	for i, r := range all {
		if i == 0 || r.Outcome == Failed {
			out.Outcome = r.Outcome
		}
		out.Shown = append(out.Shown, r.Shown...)
		out.Families = append(out.Families, r.Families...)
	}
	slices.Sort(out.Shown)
	out.Shown = slices.Compact(out.Shown)
	return out
}

// where is what it was shown on; in which families, if several are tested and it was not all.
func (r Result) where(tested int) string {
	shown := strings.Join(r.Shown, ", ")
	if shown == "" || len(r.Families) == tested {
		return shown
	}
	return shown + " (" + strings.Join(r.Families, ", ") + ")"
}

// Results are those of one run.
type Results struct {
	Families int // that are tested
	mu       sync.Mutex
	of       map[string]Result // by "RFC 4787 REQ-1"
}

func (r *Results) put(d Document, item string, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]Result{}
	}
	r.of[d.Name+" "+item] = result
}

func (r *Results) get(d Document, item string) (Result, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	result, ok := r.of[d.Name+" "+item]
	return result, ok
}

// complete says whether every requirement was tested: a filtered run says nothing of the page.
func (r *Results) complete(documents []Document) bool {
	for _, d := range documents {
		for _, line := range d.Lines {
			if _, ok := r.get(d, line.Item); !ok {
				return false
			}
		}
	}
	return true
}

const pageHead = `<!-- Written by tests/rfc (go test ./tests/rfc -update) from what its tests have shown. A run that comes to another page fails. -->
# What the RFCs require, and what conenat does

Each line has a test of its name, such as ` + "`TestRFC4787/REQ-14`" + `: on the *rig* (the packet path in BPF_PROG_RUN, on a virtual clock),
or in *namespaces* (the real binary, real packets). ` + "`make conformance`" + ` runs them and prints this. *To come*: it does not hold, and
the issue that is named brings it. A MUST NOT or SHOULD NOT holds where what it names does not happen. Defaults are meant where nothing
else is said.

`

// Page is docs/rfc-compliance.md.
func (r *Results) Page(documents []Document) string {
	var b strings.Builder
	b.WriteString(pageHead)
	b.WriteString("| level | holds | does not hold | not applicable | to come |\n| --- | --- | --- | --- | --- |\n")
	for _, c := range r.counts(documents) {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", c.level, c.of[Holds], c.of[DoesNotHold], c.of[NotApplicable], c.of[Later])
	}
	for _, d := range documents {
		fmt.Fprintf(&b, "\n## %s: %s\n| item | level | behaviour | outcome | shown on | reason |\n| --- | --- | --- | --- | --- | --- |\n", d.Name, d.Title)
		for _, line := range d.Lines {
			result, _ := r.get(d, line.Item)
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", line.Item, line.Level, line.Behaviour, result.Outcome,
				result.where(r.Families), line.Reason)
		}
	}
	return b.String()
}

// Print is the page for a terminal: of what did not run, nothing.
func (r *Results) Print(w io.Writer, documents []Document) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, d := range documents {
		for _, line := range d.Lines {
			if result, ok := r.get(d, line.Item); ok {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", d.Name, line.Item, line.Level, result.Outcome, line.Behaviour)
			}
		}
	}
	t.Flush()
	fmt.Fprintln(w)
	for _, c := range r.counts(documents) {
		fmt.Fprintf(w, "%-11s held: %d of %d", c.level, c.of[Holds], c.all())
		for _, o := range []Outcome{DoesNotHold, NotApplicable, Later, Failed} {
			if c.of[o] > 0 {
				fmt.Fprintf(w, ", %s: %d", o, c.of[o])
			}
		}
		fmt.Fprintln(w)
	}
}

// count is how many requirements of a level came to each outcome.
type count struct {
	level Level
	of    map[Outcome]int
}

func (c count) all() (n int) {
	for _, some := range c.of {
		n += some
	}
	return n
}

// counts are in the order of the levels' weight.
func (r *Results) counts(documents []Document) (out []count) {
	weight := []Level{Must, MustNot, Should, ShouldNot, Recommended, May}
	by := map[Level]map[Outcome]int{}
	for _, d := range documents {
		for _, line := range d.Lines {
			result, ok := r.get(d, line.Item)
			if !ok {
				continue
			}
			if by[line.Level] == nil {
				by[line.Level] = map[Outcome]int{}
			}
			by[line.Level][result.Outcome]++
		}
	}
	for level, of := range by {
		out = append(out, count{level, of})
	}
	slices.SortFunc(out, func(a, b count) int {
		return cmp.Compare(slices.Index(weight, a.level), slices.Index(weight, b.level))
	})
	return out
}
