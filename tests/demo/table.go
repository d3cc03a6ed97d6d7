// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// mapping is a line of a NAT's table.
type mapping struct {
	internal, external, remote netip.AddrPort
}

// table prints mappings in columns that are as wide in every table.
func table(mappings []mapping) string {
	slices.SortFunc(mappings, func(a, b mapping) int {
		return cmp.Or(a.internal.Compare(b.internal), a.remote.Compare(b.remote))
	})
	externals := map[netip.AddrPort][]netip.AddrPort{}
	for _, m := range mappings {
		if !slices.Contains(externals[m.internal], m.external) {
			externals[m.internal] = append(externals[m.internal], m.external)
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "  %-18s  %-19s  %s\n", "INTERNAL", "EXTERNAL", "REMOTE")
	for _, m := range mappings {
		note := ""
		if i := slices.Index(externals[m.internal], m.external); i > 0 {
			note = "  <- another endpoint for this peer"
		}
		line := fmt.Sprintf("  %-18v  %-19v  %-19v%s", m.internal, m.external, m.remote, note)
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return out.String()
}
