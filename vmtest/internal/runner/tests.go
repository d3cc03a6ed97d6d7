// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/conenat/conenat/vmtest/internal/kernel"
	"github.com/conenat/conenat/vmtest/internal/vm"
)

// Test builds the tests of Go packages on the host, which compiles many times faster than a guest in software emulation, and
// runs them on each kernel, one package after the other, in the package's directory. Flags are those of `go test`
// that the test itself takes: -v, -run, -short and so on. Returns an exit code, as Run does.
func (r *Runner) Test(ctx context.Context, kernels []kernel.Kernel, packages, flags []string) int {
	dir := filepath.Join(r.Cache, "runs", strconv.Itoa(os.Getpid())+"-tests")
	defer os.RemoveAll(dir)
	script, err := r.buildTests(ctx, dir, packages, testFlags(flags))
	if ctx.Err() != nil {
		return vm.CodeInterrupted
	}
	if err != nil {
		fmt.Fprintf(r.Stderr, "vmtest: %v\n", err)
		return vm.CodePrepare
	}
	return r.Run(ctx, kernels, Command{Args: []string{"sh", script}, Dir: dir})
}

// buildTests returns the path of a script that runs every test and fails if one does.
func (r *Runner) buildTests(ctx context.Context, dir string, packages, flags []string) (script string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-f",
		"{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}\t{{.Dir}}{{end}}"}, packages...)...)
	list.Stderr = r.Stderr
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("list the packages: %w", err)
	}
	text := "status=0\n" + testFunction
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		importPath, pkgDir, ok := strings.Cut(line, "\t")
		if !ok {
			return "", errors.New("list the packages: none of them has tests")
		}
		fmt.Fprintf(r.Stderr, "vmtest: building the tests of %s\n", importPath)
		binary := filepath.Join(dir, fmt.Sprintf("%02d.test", i))
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, importPath)
		build.Stdout, build.Stderr = r.Stderr, r.Stderr
		if err := build.Run(); err != nil {
			return "", fmt.Errorf("build the tests of %s: %w", importPath, err)
		}
		text += testLine(importPath, pkgDir, binary, flags)
	}
	script = filepath.Join(dir, "run.sh")
	return script, os.WriteFile(script, []byte(text+"exit $status\n"), 0o644)
}

// testFunction is what `go test` says of a package.
const testFunction = `run() {
	package=$1 && shift && cd "$1" && shift
	began=$(date +%s)
	if "$@"; then word='ok  '; else word=FAIL && status=1; fi
	echo "$word	$package	$(($(date +%s) - began))s"
}
`

func testLine(importPath, pkgDir, binary string, flags []string) string {
	words := append([]string{"run", importPath, pkgDir, binary}, flags...)
	for i, w := range words[1:] {
		words[i+1] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ") + "\n"
}

// testFlags gives the flags the names that a test binary knows: "-run" is "-test.run" there. The word after a flag
// may be its value, and is left alone.
func testFlags(flags []string) (named []string) {
	for _, f := range flags {
		name := strings.TrimLeft(f, "-")
		if name != f && !strings.HasPrefix(name, "test.") {
			f = "-test." + name
		}
		named = append(named, f)
	}
	return named
}
