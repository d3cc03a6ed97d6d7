// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/rig"
	"github.com/conenat/conenat/tests/topo"
)

var (
	update = flag.Bool("update", false, "write docs/rfc-compliance.md from what the tests show")
	table  = flag.Bool("table", false, "print every requirement with its outcome")
)

const page = "../../docs/rfc-compliance.md"

var results Results

// run is the tests, and what is to be said of them all.
type run struct{ tests *testing.M }

func (r run) Run() int {
	results.Families = len(family.Tested)
	code := topo.Main(r.tests)
	if *table {
		results.Print(os.Stdout, Documents())
	}
	if code == 0 && results.complete(Documents()) {
		code = judge()
	}
	return code
}

// judge compares the page with what the run has shown, or writes it.
func judge() int {
	want := results.Page(Documents())
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	got, err := os.ReadFile(page)
	if diff := cmp.Diff(string(got), want); err != nil || diff != "" {
		fmt.Fprintf(os.Stderr, "docs/rfc-compliance.md is not what this run has shown (go test ./tests/rfc -update writes it): %v (-page +run)\n%s", err, diff)
		return 1
	}
	return 0
}

func TestMain(m *testing.M) { rig.Main(run{m}) }
