// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The lines of docs/cost.md between which the figures stand.
const (
	pageBegin = "<!-- figures: written by make cost -->\n"
	pageEnd   = "<!-- end of the figures -->\n"
)

// Page puts the figures into the page's text.
func (b Budget) Page(text string) (string, error) {
	before, rest, found := strings.Cut(text, pageBegin)
	_, after, ended := strings.Cut(rest, pageEnd)
	if !found || !ended {
		return "", errors.New("the page has no place for the figures: " + strings.TrimSpace(pageBegin))
	}
	return before + pageBegin + b.figures() + pageEnd + after, nil
}

// figures is two tables, of those with a bridge and of the gateways.
func (b Budget) figures() string {
	text := fmt.Sprintf("Linux %s, instructions per packet.\n", b.Kernel)
	bridged, gateways := b, b
	bridged.Rows, gateways.Rows = nil, nil
	for _, r := range b.Rows {
		if strings.HasPrefix(r.Name, gateway) {
			gateways.Rows = append(gateways.Rows, r)
		} else {
			bridged.Rows = append(bridged.Rows, r)
		}
	}
	if len(bridged.Rows) > 0 {
		text += "\n" + bridged.table(references)
	}
	if len(gateways.Rows) > 0 {
		text += "\nBetween two plain interfaces, frames as a network card's driver has them; in parentheses: of nftables, and of XDP that forwards.\n\n" +
			gateways.table(gatewayReferences)
	}
	return text
}

// table has a line for each kind of packet, a column for each contender, in the order of the rows.
func (b Budget) table(references []string) string {
	var contenders, kinds []string
	cost := map[[2]string]int64{}
	for _, r := range b.Rows {
		contender, kind, _ := strings.Cut(r.Name, "/")
		if !slices.Contains(contenders, contender) {
			contenders = append(contenders, contender)
		}
		if !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
		cost[[2]string{contender, kind}] = r.Instructions
	}
	text := "| packet |"
	for _, c := range contenders {
		text += fmt.Sprintf(" %s |", c)
	}
	text += "\n| --- |" + strings.Repeat(" --- |", len(contenders)) + "\n"
	for _, k := range kinds {
		text += "| " + strings.ReplaceAll(k, "/", " ") + " |"
		for _, c := range contenders {
			text += " " + cell(c, k, references, cost) + " |"
		}
		text += "\n"
	}
	return text
}

// The contenders that the others are divided by: those with a bridge, and the gateways, whose names begin as theirs do.
const gateway = "gateway-"

var (
	references        = []string{"nftables", "forwarding"}
	gatewayReferences = []string{gateway + "nftables", gateway + "xdp-forwarding"}
)

// cell is "1234", and for what is no reference itself "1234 (0.56, 0.78)".
func cell(contender, kind string, references []string, cost map[[2]string]int64) string {
	own := cost[[2]string{contender, kind}]
	if own == 0 {
		return ""
	}
	text := fmt.Sprint(own)
	if slices.Contains(references, contender) {
		return text
	}
	var ratios []string
	for _, r := range references {
		ratio := "-"
		if other := cost[[2]string{r, kind}]; other != 0 {
			ratio = fmt.Sprintf("%.2f", float64(own)/float64(other))
		}
		ratios = append(ratios, ratio)
	}
	return fmt.Sprintf("%s (%s)", text, strings.Join(ratios, ", "))
}
