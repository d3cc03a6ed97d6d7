// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// parseGo returns the syntax of a Go file up to its imports, or a problem.
func parseGo(t tree, p string) (*token.FileSet, *ast.File, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, p, t[p], parser.ImportsOnly|parser.ParseComments)
	return fset, file, err
}

const (
	module     = "github.com/conenat/conenat"
	ciliumEBPF = "github.com/cilium/ebpf"
)

// importRules say which top-level directories alone may import a package and what is below it. They hold
// for a package's tests too.
var importRules = []struct {
	imported string
	allowed  []string
	why      string
}{
	{ciliumEBPF, []string{"bpf", "dataplane", "tests", "vmtest"}, "eBPF is dataplane's alone"},
	{module + "/bpf", []string{"bpf", "dataplane", "tests", "vmtest"}, "the layout is dataplane's alone; ask it in its own words"},
	{module + "/control", []string{"control", "cmd", "tests", "vmtest"}, "bpf and dataplane know no policy"},
	{module + "/cmd", []string{"cmd", "tests", "vmtest"}, "cmd is wiring only"},
}

// imports: the rooms' walls. Maps and programs stay behind dataplane, policy stays out of it.
func imports(t tree) (problems []string) {
	for p := range t {
		if path.Ext(p) != ".go" {
			continue
		}
		fset, file, err := parseGo(t, p)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		room, _, _ := strings.Cut(p, "/")
		for _, spec := range file.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if why := forbidden(room, imported); why != "" {
				problems = append(problems, fmt.Sprintf("%s:%d: %s must not import %s: %s",
					p, fset.Position(spec.Pos()).Line, room, imported, why))
			}
		}
	}
	return problems
}

func forbidden(room, imported string) (why string) {
rules:
	for _, r := range importRules {
		if imported != r.imported && !strings.HasPrefix(imported, r.imported+"/") {
			continue
		}
		for _, allowed := range r.allowed {
			if room == allowed {
				continue rules
			}
		}
		return r.why
	}
	return ""
}

// packageComments: every package says in a comment what it owns ("Package x …", "Command x …").
func packageComments(t tree) (problems []string) {
	described := map[string]bool{} // by directory
	for _, p := range t.source(".go") {
		_, file, err := parseGo(t, p)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		dir := path.Dir(p)
		described[dir] = described[dir] || packageComment.MatchString(file.Doc.Text())
	}
	for dir, ok := range described {
		if !ok {
			problems = append(problems, fmt.Sprintf("%s: no package comment; write a doc.go that says what the package owns", dir))
		}
	}
	return problems
}

var packageComment = regexp.MustCompile(`^(Package|Command) \w+ `)

// skips: tests/require alone may skip a test, for it says why, and fails instead where a skip would hide a break.
func skips(t tree) (problems []string) {
	for _, p := range t.source(".go") {
		if path.Dir(p) == "tests/require" {
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, p, t[p], parser.SkipObjectResolution)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		ast.Inspect(file, func(n ast.Node) bool {
			method, ok := n.(*ast.SelectorExpr)
			if ok && skipMethod.MatchString(method.Sel.Name) {
				problems = append(problems, fmt.Sprintf("%s:%d: %s: what a test needs is said by tests/require, which skips or fails",
					p, fset.Position(method.Pos()).Line, method.Sel.Name))
			}
			return true
		})
	}
	return problems
}

// skipMethod matches testing.TB's.
var skipMethod = regexp.MustCompile(`^Skip(f|Now)?$`)
