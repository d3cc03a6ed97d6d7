// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"fmt"
	"regexp"
	"strings"
)

const functionLines = 60

var (
	conditional = regexp.MustCompile(`^\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b`)
	// The name before the parameters; a call of SEC or __attribute__ stands alone or before a type.
	functionName = regexp.MustCompile(`\b([a-zA-Z_]\w*)\([^"]*\)\s*$`)
)

// functionLength: a C function is readable at a glance.
func functionLength(t tree) (problems []string) {
	for _, f := range cFunctions(t) {
		if n := len(f.body); n > functionLines {
			problems = append(problems, fmt.Sprintf("%s:%d: %s has %d lines, at most %d", f.path, f.line, f.name, n, functionLines))
		}
	}
	return problems
}

// conditionals: no #if inside of a function; a helper with two definitions says the same and can be read.
func conditionals(t tree) (problems []string) {
	for _, f := range cFunctions(t) {
		for i, line := range f.body {
			if conditional.MatchString(line) {
				problems = append(problems, fmt.Sprintf("%s:%d: %s: preprocessor conditional in a function",
					f.path, f.line+i, f.name))
				break
			}
		}
	}
	return problems
}

type cFunction struct {
	path, name string
	line       int      // of the opening brace
	body       []string // from the opening to the closing brace
}

// cFunctions finds functions by the style that clang-format holds: the braces of a function's body, and no
// others, are the first character of a line.
func cFunctions(t tree) (functions []cFunction) {
	for _, p := range t.source(".c", ".h") {
		lines := strings.Split(t[p], "\n")
		open := -1
		for i, line := range lines {
			switch {
			case line == "{":
				open = i
			case strings.HasPrefix(line, "}") && open >= 0:
				functions = append(functions, cFunction{p, nameBefore(lines[:open]), open + 1, lines[open : i+1]})
				open = -1
			}
		}
	}
	return functions
}

// nameBefore returns the name of the function whose signature ends the lines.
func nameBefore(lines []string) string {
	for n := 1; n <= 8 && n <= len(lines); n++ {
		signature := strings.Join(lines[len(lines)-n:], " ")
		if m := functionName.FindStringSubmatch(signature); m != nil {
			return m[1]
		}
	}
	return "function"
}
