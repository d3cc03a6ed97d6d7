// SPDX-License-Identifier: Apache-2.0

// Package build compiles the programs of this repository for tests, each once per process. Where a compiler is slow or missing,
// a virtual machine, the programs are built before, and CONENAT_BINARIES names their directory.
package build

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/conenat/conenat/tests/topo"
)

const module = "github.com/conenat/conenat"

// prebuilt is the variable of the environment that names the directory where every program is already, by its base name.
const prebuilt = "CONENAT_BINARIES"

var built struct {
	sync.Mutex
	paths map[string]string
}

// Binary compiles a main package, named by its directory in the repository ("cmd/conenat"), statically, into
// topo.ProcessDir; or it is where CONENAT_BINARIES says.
func Binary(pkg string) (string, error) { return binary(path.Join(module, pkg)) }

// Foreign is Binary for a main package of another module, one that go.mod has as a tool: by its whole path.
func Foreign(pkg string) (string, error) { return binary(pkg) }

func binary(pkg string) (string, error) {
	if dir := os.Getenv(prebuilt); dir != "" {
		return find(dir, pkg)
	}
	built.Lock()
	defer built.Unlock()
	if p, ok := built.paths[pkg]; ok {
		return p, nil
	}
	dir, err := topo.ProcessDir()
	if err != nil {
		return "", err
	}
	p := filepath.Join(dir, path.Base(pkg))
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", p, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, strings.TrimSpace(string(out)))
	}
	if built.paths == nil {
		built.paths = map[string]string{}
	}
	built.paths[pkg] = p
	return p, nil
}

// find never falls back on building: a program that is missing there would be one that nobody meant to test.
func find(dir, pkg string) (string, error) {
	p, err := filepath.Abs(filepath.Join(dir, path.Base(pkg)))
	if err == nil {
		_, err = os.Stat(p)
	}
	if err != nil {
		return "", fmt.Errorf("find the prebuilt %s (%s=%s; build it to there): %w", pkg, prebuilt, dir, err)
	}
	return p, nil
}
