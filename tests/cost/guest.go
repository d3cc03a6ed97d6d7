// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"regexp"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/cost/budget"
)

// inMachine runs `cost measure` in a machine whose clock counts instructions, for all contenders or those of these names.
func inMachine(ctx context.Context, only ...string) (budget.Budget, error) {
	m := bench.Machine{Flags: []string{"--accel", "icount"}, Timeout: 30 * time.Minute}
	text, err := m.Run(ctx, "tests/cost", only...)
	if err != nil {
		return budget.Budget{}, err
	}
	return budget.Parse(text)
}

// A clock that counts instructions is one of 1 GHz, to a few millionths; no processor's is.
var gigahertz = regexp.MustCompile(`(?m)^cpu MHz\s*: (1000\.0[01]|999\.99)`)

// counted refuses to measure where the clock is a clock.
func counted() error {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err == nil && len(gigahertz.FindAll(text, -1)) != 1 {
		err = errors.New("this machine's clock does not count instructions: use cost check or cost update")
	}
	return err
}
