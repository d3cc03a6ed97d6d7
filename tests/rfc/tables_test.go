// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTables: every line says what it is, and no defect hides in one.
func TestTables(t *testing.T) {
	for _, d := range Documents() {
		for _, problem := range d.problems() {
			t.Error(problem)
		}
	}
}

// TestTableProblems: each is found.
func TestTableProblems(t *testing.T) {
	d := Document{Name: "RFC 0", Lines: []Requirement{
		{"1", Must, "a", Holds, ""}, {"1", Must, "a", Holds, ""},
		{"2", Must, "b", DoesNotHold, "why"}, {"3", MustNot, "b", Later, "some day"}, {"4", Should, "b", NotApplicable, ""},
		{"5", Should, "b", DoesNotHold, "why"}, {"6", Must, "b", Later, "issue 6"}, {"7", Must, "", Holds, ""},
	}}
	var items []string
	for _, problem := range d.problems() {
		head, _, _ := strings.Cut(problem, ":")
		items = append(items, strings.TrimPrefix(head, "RFC 0 "))
	}
	if diff := cmp.Diff([]string{"1", "2", "3", "4", "7"}, items); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestPage: what a reader gets of a run, and that a part of a run is none.
func TestPage(t *testing.T) {
	documents := []Document{{"RFC 0", "nothing", []Requirement{
		{"REQ-1", Must, "be", Holds, ""}, {"REQ-2", Should, "be good", DoesNotHold, "too hard"}}}}
	var r Results
	r.put(documents[0], "REQ-1", Result{Outcome: Holds, Shown: []string{"rig"}})
	if r.complete(documents) {
		t.Error("one of two is all")
	}
	r.put(documents[0], "REQ-2", Result{Outcome: DoesNotHold, Shown: []string{"namespaces", "rig"}})
	if !r.complete(documents) {
		t.Error("two of two is not all")
	}
	for _, want := range []string{"| MUST | 1 | 0 | 0 | 0 |\n| SHOULD | 0 | 1 | 0 | 0 |\n", "## RFC 0: nothing\n",
		"| REQ-1 | MUST | be | holds | rig |  |\n| REQ-2 | SHOULD | be good | does not hold | namespaces, rig | too hard |\n"} {
		if !strings.Contains(r.Page(documents), want) {
			t.Errorf("no %q in\n%s", want, r.Page(documents))
		}
	}
	var b strings.Builder
	r.put(documents[0], "REQ-1", Result{Outcome: Failed})
	r.Print(&b, documents)
	for _, want := range []string{"RFC 0  REQ-1  MUST    FAILED ", "MUST        held: 0 of 1, FAILED: 1\nSHOULD      held: 0 of 1, does not hold: 1\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// TestFamilies: what holds in one family alone has failed, and what is tested in one alone says so.
func TestFamilies(t *testing.T) {
	in := func(families ...string) Result {
		return Result{Outcome: Holds, Shown: []string{"rig"}, Families: families}
	}
	failed := in("IPv6")
	failed.Outcome = Failed
	for _, c := range []struct {
		of    []Result
		want  Outcome
		where string
	}{
		{[]Result{in("IPv4")}, Holds, "rig (IPv4)"}, {[]Result{in("IPv4"), in("IPv6")}, Holds, "rig"},
		{[]Result{in("IPv4"), failed}, Failed, "rig"}, {[]Result{in("IPv4"), {Outcome: Holds}}, Holds, "rig (IPv4)"},
	} {
		if got := merged(c.of); got.Outcome != c.want || got.where(2) != c.where {
			t.Errorf("%+v: %+v, shown on %q, want %v on %q", c.of, got, got.where(2), c.want, c.where)
		}
	}
	if got := in("IPv4").where(1); got != "rig" {
		t.Errorf("one family of one is shown on %q", got)
	}
}
