// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/conenat/conenat/tests/bench"
)

// The figures' names.
const (
	Packets     = "packets"
	Cost        = "cost"
	NewSessions = "new sessions"
	Teardown    = "teardown"
	Capacity    = "capacity"
	Memory      = "memory"
	AllSlabs    = "memory, all slabs"
	Bulk        = "TCP bulk"
	CPU         = "CPU"
	Expiry      = "expiry"
	ExpiryTime  = "expiry time"
)

// RoundTrip is a figure of round trips: of protocol, and of so many percent of them.
func RoundTrip(protocol, percentile string) string {
	return "round trip " + strings.ToUpper(protocol) + " " + percentile
}

// Published is the same from outside, to a published port.
func Published(protocol, percentile string) string {
	return "published port " + strings.ToUpper(protocol) + " " + percentile
}

// IdleSessions is the load of what expires.
func IdleSessions(n int) string { return fmt.Sprintf("%d idle sessions", n) }

// Table is all figures, with their ratios to nftables, to Docker's path and to plain forwarding in the same topology.
func (r Results) Table() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, figure := range r.figures() {
		for _, load := range r.loads(figure) {
			fmt.Fprintf(w, "%s\n", r.title(figure, load))
			fmt.Fprintf(w, "median\tleast\tmost\tof nftables\tof docker\tof forwarding\tlost\t  \n")
			for _, c := range r.contenders(figure, load) {
				fmt.Fprintf(w, "%s\t  %s\n", strings.Join(r.row(figure, load, c), "\t"), c)
			}
			w.Flush()
			text.WriteByte('\n')
		}
	}
	return text.String() + r.notes()
}

func (r Results) title(figure, load string) string {
	unit := ""
	for _, m := range r.Measurements {
		if m.Figure == figure && m.Load == load {
			unit = m.Unit
		}
	}
	if l, err := ParseLoad(load); err == nil {
		load = l.Words()
	}
	return fmt.Sprintf("%s (%s): %s", figure, unit, load)
}

// row is what the table has of a contender, without its name.
func (r Results) row(figure, load, contender string) []string {
	f, _ := r.Find(figure, load, contender)
	row := []string{number(f.Median()), number(slices.Min(f.Rounds)), number(slices.Max(f.Rounds))}
	for _, other := range []string{bench.NFTables, bench.Docker, bench.Forwarding} {
		text := "-"
		if ratio, ok := r.ratio(figure, load, contender, bench.Peer(contender, other)); ok {
			text = fmt.Sprintf("%.2f", ratio)
		}
		row = append(row, text)
	}
	lost := "-"
	if f.Sent > 0 {
		lost = fmt.Sprintf("%.1f %%", 100*f.Lost())
	}
	return append(row, lost)
}

// notes are what was said of figures: each once, with whom and what it is said of.
func (r Results) notes() string {
	var text strings.Builder
	said := r.distinct(func(m Measurement) (string, bool) { return m.Note, m.Note != "" })
	for _, note := range said {
		about := func(of func(Measurement) string) string {
			return strings.Join(r.distinct(func(m Measurement) (string, bool) { return of(m), m.Note == note }), ", ")
		}
		fmt.Fprintf(&text, "%s: %s (%s; %s)\n", about(func(m Measurement) string { return m.Contender }), note,
			about(func(m Measurement) string { return m.Figure }), about(func(m Measurement) string { return m.Load }))
	}
	return text.String()
}

// number has about four digits that say something.
func number(v float64) string {
	switch size := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case size >= 1000:
		return thousands(v)
	case size >= 100:
		return fmt.Sprintf("%.0f", v)
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	case size >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func thousands(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}
