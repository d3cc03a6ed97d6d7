// SPDX-License-Identifier: Apache-2.0

// Package build compiles the programs of this repository for tests, each once per process.
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

var built struct {
	sync.Mutex
	paths map[string]string
}

// Binary compiles a main package, named by its directory in the repository ("cmd/conenat"), statically, into
// topo.ProcessDir.
func Binary(pkg string) (string, error) {
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
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", p, path.Join(module, pkg))
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
