// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Machine is where and how was measured: the first line.
type Machine struct {
	Kernel  string `json:"kernel"`
	CPU     string `json:"cpu"`
	CPUs    int    `json:"cpus"`
	Memory  string `json:"memory"`
	Commit  string `json:"commit"`
	Started string `json:"started"` // RFC 3339
	Method  string `json:"method"`  // rounds and times
	Busy    string `json:"busy"`    // the load average of the minute before
}

// Measurement is one figure of a contender under a load in a round: a line.
type Measurement struct {
	Contender string  `json:"contender"`
	Figure    string  `json:"figure"`
	Load      string  `json:"load"`
	Round     int     `json:"round"` // from 1
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Sent      int     `json:"sent,omitempty"`    // of what is counted at the end of the way
	Arrived   int     `json:"arrived,omitempty"` // the value is of these
	Note      string  `json:"note,omitempty"`    // what to know of it
}

type key struct{ figure, load, contender string }

func (m Measurement) key() key { return key{m.Figure, m.Load, m.Contender} }

// Results are a run's. Figures, loads and contenders are in the order in which they came.
type Results struct {
	Machine      Machine
	Measurements []Measurement
}

type line struct {
	Machine *Machine `json:"machine,omitempty"`
	*Measurement
}

// Read reads lines of JSON. None is an error, for a table without figures would look like a success.
func Read(in io.Reader) (r Results, err error) {
	d := json.NewDecoder(in)
	for {
		l := line{Measurement: new(Measurement)}
		err := d.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r, fmt.Errorf("read the measurements: %w", err)
		}
		switch {
		case l.Machine != nil:
			r.Machine = *l.Machine
		case l.Contender == "" || l.Figure == "" || l.Unit == "" || math.IsNaN(l.Value):
			return r, fmt.Errorf("read the measurements: %+v says not what it is of", *l.Measurement)
		default:
			r.Measurements = append(r.Measurements, *l.Measurement)
		}
	}
	if len(r.Measurements) == 0 {
		return r, errors.New("read the measurements: there are none")
	}
	return r, nil
}

// Write writes what Read reads.
func (r Results) Write(out io.Writer) error {
	e := json.NewEncoder(out)
	err := e.Encode(struct {
		Machine Machine `json:"machine"`
	}{r.Machine})
	for _, m := range r.Measurements {
		err = errors.Join(err, e.Encode(m))
	}
	return err
}

// Merge has what was measured anew in place of what older has of the same contender, figure and load.
func (r Results) Merge(older Results) Results {
	anew := map[key]bool{}
	for _, m := range r.Measurements {
		anew[m.key()] = true
	}
	kept := slices.DeleteFunc(slices.Clone(older.Measurements), func(m Measurement) bool { return anew[m.key()] })
	return Results{r.Machine, append(kept, r.Measurements...)}
}

// Figure is the rounds of a contender's figure under a load.
type Figure struct {
	Rounds        []float64
	Unit          string
	Sent, Arrived int
}

// Find is a contender's figure, and whether it was measured.
func (r Results) Find(figure, load, contender string) (f Figure, ok bool) {
	for _, m := range r.Measurements {
		if m.key() != (key{figure, load, contender}) {
			continue
		}
		ok = true
		f.Rounds, f.Unit = append(f.Rounds, m.Value), m.Unit
		f.Sent, f.Arrived = f.Sent+m.Sent, f.Arrived+m.Arrived
	}
	return f, ok
}

// Median is the figure's.
func (f Figure) Median() float64 { return Median(f.Rounds) }

// Spread is from the least to the most round, of the median.
func (f Figure) Spread() float64 {
	if f.Median() == 0 {
		return 0
	}
	return math.Abs((slices.Max(f.Rounds) - slices.Min(f.Rounds)) / f.Median())
}

// Lost is the part that did not arrive, of what was counted.
func (f Figure) Lost() float64 {
	if f.Sent == 0 {
		return 0
	}
	return 1 - float64(f.Arrived)/float64(f.Sent)
}

// Median is the middle, or the mean of the two in the middle; of none it is not a number.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// ratio is that of two contenders' medians, and whether both were measured and the second is a measure.
func (r Results) ratio(figure, load, contender, of string) (float64, bool) {
	own, ownOK := r.Find(figure, load, contender)
	other, otherOK := r.Find(figure, load, of)
	if !ownOK || !otherOK || other.Median() == 0 {
		return 0, false
	}
	return own.Median() / other.Median(), true
}

// distinct is what the measurements have of something, in the order in which it came.
func (r Results) distinct(of func(Measurement) (string, bool)) (list []string) {
	for _, m := range r.Measurements {
		if s, ok := of(m); ok && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func (r Results) figures() []string {
	return r.distinct(func(m Measurement) (string, bool) { return m.Figure, true })
}

func (r Results) loads(figure string) []string {
	return r.distinct(func(m Measurement) (string, bool) { return m.Load, m.Figure == figure })
}

func (r Results) contenders(figure, load string) []string {
	return r.distinct(func(m Measurement) (string, bool) { return m.Contender, m.Figure == figure && m.Load == load })
}
