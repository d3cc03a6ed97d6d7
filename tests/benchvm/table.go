// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/conenat/conenat/tests/bench"
)

// place is where and how something was measured.
type place struct {
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Method string `json:"method"`
}

// result is one contender under one load: a line of JSON.
type result struct {
	Contender string    `json:"contender"`
	Flows     int       `json:"flows"`
	Bytes     int       `json:"bytes"`
	Rounds    []float64 `json:"rounds_pps"` // packets in a second, at the receiver
	Sent      int       `json:"sent"`       // in all rounds
	Arrived   int       `json:"arrived"`
	place
}

func (r *result) add(one round) {
	r.Rounds = append(r.Rounds, one.rate())
	r.Sent += one.sent
	r.Arrived += one.arrived
}

// parseResults reads the lines; none is an error, for a table without figures would look like a success.
func parseResults(text []byte) (results []result, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	for {
		var r result
		err := d.Decode(&r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("parse the results: %w", err)
		}
		if median(r.Rounds) <= 0 {
			return nil, fmt.Errorf("%s, %d flows, %d bytes: no packets", r.Contender, r.Flows, r.Bytes)
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		return nil, errors.New("no results")
	}
	return results, nil
}

// table is the results with their ratios to nftables and to plain routing under the same load.
func table(results []result) string {
	rates := map[string]float64{}
	for _, r := range results {
		rates[key(r.Contender, r)] = median(r.Rounds)
	}
	first := results[0].place
	var text strings.Builder
	fmt.Fprintf(&text, "Linux %s, %d CPUs, %s\n%s\n\n", first.Kernel, first.CPUs, first.CPU, first.Method)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "flows\tbytes\tpackets/s\tof nftables\tof forwarding\tlost\t  \n")
	for _, r := range results {
		fmt.Fprintf(w, "%d\t%d\t%.0f\t%s\t%s\t%.1f %%\t  %s\n", r.Flows, r.Bytes, median(r.Rounds),
			ratio(median(r.Rounds), rates[key(bench.NFTables, r)]), ratio(median(r.Rounds), rates[key(bench.Forwarding, r)]),
			100*(1-float64(r.Arrived)/float64(r.Sent)), r.Contender)
	}
	w.Flush()
	return text.String()
}

func key(contender string, r result) string { return fmt.Sprint(contender, r.Flows, r.Bytes) }

func ratio(own, other float64) string {
	if other == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", own/other)
}
