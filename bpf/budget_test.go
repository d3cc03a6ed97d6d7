// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"golang.org/x/sys/unix"
)

// The verifier gives up at a million instructions, and each of them is time at every start of conenat: what it looks at is
// written down for each kernel, and who lets it grow by more than a tenth changes the file in the same commit.
const (
	budgetFile   = "verifier-budget.yaml"
	kernelsFile  = "../vmtest/kernels.yaml"
	budgetMargin = 10 // of a hundred
)

var mergeBudget = flag.String("merge-budget", "", "write "+budgetFile+" from a `file` with what TestLoadsWithEveryConstant printed")

// counts are instructions verified by program: the most of any combination of constants.
type counts map[string]int

func (c counts) raise(other counts) {
	for program, n := range other {
		c[program] = max(c[program], n)
	}
}

// exceeds says what a kernel's measured counts have against its budget.
func (c counts) exceeds(budget counts) (problems []string) {
	for _, program := range slices.Sorted(maps.Keys(c)) {
		n, allowed := c[program], budget[program]
		switch {
		case allowed == 0:
			problems = append(problems, fmt.Sprintf("%s: not in the budget", program))
		case n > allowed+allowed*budgetMargin/100:
			problems = append(problems, fmt.Sprintf("%s: %d instructions verified, more than %d %% above the budget's %d",
				program, n, budgetMargin, allowed))
		}
	}
	return problems
}

// The lines by which a run on another kernel, in a machine that keeps nothing, tells its counts.
var budgetLine = regexp.MustCompile(`verifier-budget: (\S+) (\S+) (\d+)`)

func checkBudget(t *testing.T, measured counts) {
	t.Helper()
	kernel := runningKernel(t)
	for _, program := range slices.Sorted(maps.Keys(measured)) {
		t.Logf("verifier-budget: %s %s %d", kernel, program, measured[program])
	}
	budget, ok := readBudget(t)[kernel]
	if !ok {
		t.Logf("Linux %s has no budget: it is not one of %s", kernel, kernelsFile)
		return
	}
	for _, problem := range measured.exceeds(budget) {
		t.Errorf("Linux %s: %s; if that is worth it, `make verifier-budget`", kernel, problem)
	}
}

// runningKernel is the major and minor version.
func runningKernel(t *testing.T) string {
	t.Helper()
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(unix.ByteSliceToString(uname.Release[:]), ".", 3)
	if len(parts) < 2 {
		t.Fatalf("the kernel's release is %q", uname.Release)
	}
	minor, _, _ := strings.Cut(parts[1], "-")
	return parts[0] + "." + minor
}

func readBudget(t *testing.T) map[string]counts {
	t.Helper()
	budget := map[string]counts{}
	readYAML(t, budgetFile, &budget)
	return budget
}

func readYAML(t *testing.T, file string, to any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(content, to); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// supportedKernels are those of vmtest, in its order.
func supportedKernels(t *testing.T) (names []string) {
	t.Helper()
	var declared struct {
		Kernels []struct {
			Name        string
			Unsupported bool
		}
	}
	readYAML(t, kernelsFile, &declared)
	for _, k := range declared.Kernels {
		if !k.Unsupported {
			names = append(names, k.Name)
		}
	}
	return names
}

// TestBudgetIsWhole: each kernel that the tests run on, and each program of the object, and no other.
func TestBudgetIsWhole(t *testing.T) {
	if *mergeBudget != "" {
		writeBudget(t)
	}
	var programs []string
	for _, f := range families {
		spec, err := f.load()
		if err != nil {
			t.Fatal(err)
		}
		for name := range spec.Programs {
			programs = append(programs, name+f.suffix)
		}
	}
	slices.Sort(programs)
	budget := readBudget(t)
	for _, kernel := range supportedKernels(t) {
		if got := slices.Sorted(maps.Keys(budget[kernel])); !slices.Equal(got, programs) {
			t.Errorf("%s: Linux %s has the programs %q, the object has %q", budgetFile, kernel, got, programs)
		}
		delete(budget, kernel)
	}
	for kernel := range budget {
		t.Errorf("%s: Linux %s is not one of %s", budgetFile, kernel, kernelsFile)
	}
}

// writeBudget writes what was measured; a kernel that was not keeps what it has.
func writeBudget(t *testing.T) {
	t.Helper()
	output, err := os.ReadFile(*mergeBudget)
	if err != nil {
		t.Fatal(err)
	}
	budget, fresh := readBudget(t), map[string]bool{}
	for _, m := range budgetLine.FindAllStringSubmatch(string(output), -1) {
		kernel, program := m[1], m[2]
		if !fresh[kernel] {
			budget[kernel], fresh[kernel] = counts{}, true
		}
		if budget[kernel][program], err = strconv.Atoi(m[3]); err != nil {
			t.Fatal(err)
		}
	}
	if len(fresh) == 0 {
		t.Fatalf("%s has no line with the counts of a kernel", *mergeBudget)
	}
	var b strings.Builder
	b.WriteString(budgetHead)
	for _, kernel := range supportedKernels(t) {
		fmt.Fprintf(&b, "%q:\n", kernel)
		for _, program := range slices.Sorted(maps.Keys(budget[kernel])) {
			fmt.Fprintf(&b, "  %s: %d\n", program, budget[kernel][program])
		}
	}
	if err := os.WriteFile(budgetFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

const budgetHead = `# SPDX-License-Identifier: Apache-2.0
#
# Instructions that the verifier looks at, by kernel and program: the most of any combination of boolean constants. Written by
# "make verifier-budget"; TestLoadsWithEveryConstant fails on growth of more than 10 %.

`

func TestCountsExceed(t *testing.T) {
	budget := counts{"small": 100, "large": 1000}
	for name, test := range map[string]struct {
		measured counts
		want     []string
	}{
		"as it was":     {counts{"small": 100, "large": 1000}, nil},
		"by a tenth":    {counts{"small": 110, "large": 1100}, nil},
		"less":          {counts{"small": 1, "large": 1}, nil},
		"more":          {counts{"small": 111, "large": 1000}, []string{"small: 111 instructions verified, more than 10 % above the budget's 100"}},
		"a new program": {counts{"new": 1}, []string{"new: not in the budget"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if got := test.measured.exceeds(budget); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
