// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

var licences = map[string]string{
	".go": "Apache-2.0",
	".c":  "GPL-2.0-only OR BSD-2-Clause",
	".h":  "GPL-2.0-only OR BSD-2-Clause",
}

var spdxLine = regexp.MustCompile(`^(?:// (.*)|/\* (.*) \*/)$`)

// licenceLine: the first line of every source file names its licence.
func licenceLine(t tree) (problems []string) {
	for _, p := range t.source(".go", ".c", ".h") {
		want := "SPDX-License-Identifier: " + licences[path.Ext(p)]
		first, _, _ := strings.Cut(t[p], "\n")
		m := spdxLine.FindStringSubmatch(first)
		if m == nil || m[1]+m[2] != want {
			problems = append(problems, fmt.Sprintf("%s:1: the first line must be a comment with %q", p, want))
		}
	}
	return problems
}

// The rooms of docs/architecture.md, and what every repository has.
var topLevel = strings.Fields(`
	bpf dataplane control cmd tests vmtest docs
	go.mod go.sum Makefile README.md CHANGELOG.md LICENSE LICENSES
	.ci .editorconfig .gitattributes .gitignore
`)

// topLevelEntries: nothing stands at the top of the repository but what is known to belong there.
func topLevelEntries(t tree) (problems []string) {
	allowed := map[string]bool{}
	for _, name := range topLevel {
		allowed[name] = true
	}
	for p := range t {
		name, _, _ := strings.Cut(p, "/")
		if !allowed[name] {
			allowed[name] = true // say it once
			problems = append(problems, fmt.Sprintf("%s: not a top-level entry of this repository", name))
		}
	}
	return problems
}

// Written in two halves, so that this file does not mention them.
var outsidePath = regexp.MustCompile(`\.\./sha` + `red\b|(^|[^\w.])/wor` + `k/`)

// outsidePaths: no file, and no object's debug information, refers to a path of the machine it was made on.
func outsidePaths(t tree) (problems []string) {
	for p, content := range t {
		if at := outsidePath.FindStringIndex(content); at != nil {
			problems = append(problems, fmt.Sprintf("%s:%d: mentions a path outside of the repository", p, lineOf(content, at[0])))
		}
	}
	return problems
}

// A line of seven and a blank, as git writes them; in two halves, so that this file has none.
var conflictMarker = regexp.MustCompile(`(?m)^(<<<` + `<<<< |>>>` + `>>>> )`)

// conflicts: nothing that a merge left undecided is committed.
func conflicts(t tree) (problems []string) {
	for p, content := range t {
		if at := conflictMarker.FindStringIndex(content); at != nil {
			problems = append(problems, fmt.Sprintf("%s:%d: a merge conflict that nobody has resolved", p, lineOf(content, at[0])))
		}
	}
	return problems
}

const makefileLines = 100

var (
	makeTarget     = regexp.MustCompile(`(?m)^([^\s#.:=][^:=\n]*):(?:[^=\n].*)?$`)
	documentedRule = regexp.MustCompile(`^[a-z-]+:.* ## \S`)
)

// makefile: it stays short, and `make help` can list every target.
func makefile(t tree) (problems []string) {
	content, ok := t["Makefile"]
	if !ok {
		return []string{"Makefile: missing"}
	}
	if n := strings.Count(content, "\n"); n > makefileLines {
		problems = append(problems, fmt.Sprintf("Makefile: %d lines, at most %d", n, makefileLines))
	}
	for _, at := range makeTarget.FindAllStringSubmatchIndex(content, -1) {
		if rule := content[at[0]:at[1]]; !documentedRule.MatchString(rule) {
			problems = append(problems, fmt.Sprintf("Makefile:%d: target %s has no \"## description\" for make help",
				lineOf(content, at[0]), content[at[2]:at[3]]))
		}
	}
	return problems
}
