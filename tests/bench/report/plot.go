// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/conenat/conenat/tests/bench"
)

// Plots are SVG files by their names; what was not measured has none.
func (r Results) Plots() (map[string][]byte, error) {
	plots := map[string][]byte{}
	for name, draw := range map[string]func() (*plot.Plot, error){
		"sessions.svg":  r.bySessions,
		"sizes.svg":     r.bySize,
		"roundtrip.svg": r.byPercentile,
	} {
		p, err := draw()
		if err == nil && p != nil {
			plots[name], err = svg(p)
		}
		if err != nil {
			return nil, fmt.Errorf("draw %s: %w", name, err)
		}
	}
	return plots, nil
}

func svg(p *plot.Plot) ([]byte, error) {
	canvas := vgsvg.New(18*vg.Centimeter, 11*vg.Centimeter)
	p.Draw(draw.New(canvas))
	var out bytes.Buffer
	_, err := canvas.WriteTo(&out)
	return out.Bytes(), err
}

// bySessions is packets of 60 bytes from inside, over the number of sessions.
func (r Results) bySessions() (*plot.Plot, error) {
	p := newPlot("Packets of 60 bytes, outbound", "sessions", "packets/s of a core")
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, powers{}
	return r.lines(p, func(l Load) (float64, bool) {
		return float64(l.Sessions), l.Size == 60 && l.Direction == Outbound
	})
}

// bySize is packets of 1,000 sessions from inside, over their size.
func (r Results) bySize() (*plot.Plot, error) {
	p := newPlot("Packets of 1,000 sessions, outbound", "bytes", "packets/s of a core")
	return r.lines(p, func(l Load) (float64, bool) {
		return float64(l.Size), l.Sessions == 1000 && l.Direction == Outbound
	})
}

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Y.Min, p.Y.Tick.Marker = 0, inFull{}
	p.Legend.Top = true
	p.Legend.XOffs = vg.Points(-4)
	p.Add(plotter.NewGrid())
	return p
}

// lines has one of each contender, at what x says of a load; nil: nothing was measured at two places.
func (r Results) lines(p *plot.Plot, x func(Load) (float64, bool)) (*plot.Plot, error) {
	points := map[string]plotter.XYs{}
	var contenders []string
	most := 0
	for _, text := range r.loads(Packets) {
		load, err := ParseLoad(text)
		if err != nil {
			return nil, err
		}
		at, ok := x(load)
		if !ok {
			continue
		}
		for _, c := range r.contenders(Packets, text) {
			if c == bench.Generator || c == bench.GeneratorXDP {
				continue // the others would lie on the axis
			}
			if !slices.Contains(contenders, c) {
				contenders = append(contenders, c)
			}
			f, _ := r.Find(Packets, text, c)
			points[c] = append(points[c], plotter.XY{X: at, Y: f.Median()})
			most = max(most, len(points[c]))
		}
	}
	if most < 2 {
		return nil, nil
	}
	for i, c := range contenders {
		slices.SortFunc(points[c], func(a, b plotter.XY) int { return int(a.X - b.X) })
		line, dots, err := plotter.NewLinePoints(points[c])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c, err)
		}
		line.Color, dots.Color, dots.Shape = palette(i), palette(i), plotutil.Shape(i)
		p.Add(line, dots)
		p.Legend.Add(c, line, dots)
	}
	p.Y.Max *= 1.6 // room for the legend
	return p, nil
}

// palette has a colour for each contender: those of gonum are seven.
func palette(i int) color.Color {
	colors := []color.RGBA{{0x1f, 0x77, 0xb4, 0xff}, {0xff, 0x7f, 0x0e, 0xff}, {0x2c, 0xa0, 0x2c, 0xff}, {0x9a, 0x9a, 0x00, 0xff},
		{0xd6, 0x27, 0x28, 0xff}, {0x94, 0x67, 0xbd, 0xff}, {0x8c, 0x56, 0x4b, 0xff}, {0xe3, 0x77, 0xc2, 0xff},
		{0x17, 0xbe, 0xcf, 0xff}, {0x5f, 0x5f, 0x5f, 0xff}, {0x00, 0x33, 0x66, 0xff}, {0x66, 0x99, 0x00, 0xff}}
	return colors[i%len(colors)]
}

// inFull is plot's ticks with numbers that are not abbreviated.
type inFull struct{}

func (inFull) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = thousands(ticks[i].Value)
		}
	}
	return ticks
}

// powers ticks at powers of ten, in full.
type powers struct{}

func (powers) Ticks(low, high float64) (ticks []plot.Tick) {
	for v := 1.0; v <= high*1.01; v *= 10 {
		if v >= low*0.99 {
			ticks = append(ticks, plot.Tick{Value: v, Label: thousands(v)})
		}
	}
	return ticks
}

var percentiles = []string{"p50", "p99", "p99.9"}

// byPercentile is UDP round trips under load: a group of bars for each percentile, a bar for each contender.
func (r Results) byPercentile() (*plot.Plot, error) {
	contenders := r.contenders(RoundTrip("udp", percentiles[0]), UnderLoad)
	if len(contenders) == 0 {
		return nil, nil
	}
	p := newPlot("UDP round trip under load", "", "µs")
	width := vg.Points(400 / float64(len(percentiles)*(len(contenders)+1)))
	for i, c := range contenders {
		var values plotter.Values
		for _, percentile := range percentiles {
			f, ok := r.Find(RoundTrip("udp", percentile), UnderLoad, c)
			if !ok {
				return nil, fmt.Errorf("%s has no %s", c, percentile)
			}
			values = append(values, f.Median())
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c, err)
		}
		bars.Color, bars.Offset = palette(i), width*vg.Length(float64(i)-float64(len(contenders)-1)/2)
		bars.LineStyle.Width = 0
		p.Add(bars)
		p.Legend.Add(c+" (p50 "+strconv.FormatFloat(values[0], 'f', 1, 64)+")", bars)
	}
	p.Legend.Left = true
	p.Legend.XOffs = vg.Points(4)
	p.NominalX(percentiles...)
	p.X.Min, p.X.Max = -0.5, float64(len(percentiles))-0.5
	return p, nil
}
