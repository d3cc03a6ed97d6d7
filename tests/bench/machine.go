// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/conenat/conenat/tests/build"
)

// Kernel is the one of vmtest's that is measured on: of those that Debian's stable releases run, the one that has
// TCX. Figures of another one differ.
const Kernel = "6.12"

// Machine is where a program measures.
type Machine struct {
	Flags   []string // of `vmtest run`
	Timeout time.Duration
}

// Run builds a program of this repository, vmtest and conenat, runs `PROGRAM measure CONENAT MORE...` in the
// machine, and returns what that printed.
func (m Machine) Run(ctx context.Context, program string, more ...string) ([]byte, error) {
	paths := map[string]string{"vmtest": "", "cmd/conenat": "", program: ""}
	for pkg := range paths {
		var err error
		if paths[pkg], err = build.Binary(pkg); err != nil {
			return nil, err
		}
	}
	args := append([]string{"run", "--kernel", Kernel, "--timeout", m.Timeout.String()}, m.Flags...)
	args = append(append(args, "--", paths[program], "measure", paths["cmd/conenat"]), more...)
	cmd := exec.CommandContext(ctx, paths["vmtest"], args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // vmtest ends the machine
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("measure in the machine: %w", err)
	}
	return out.Bytes(), nil
}
