// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/conenat/conenat/tests/bench"
)

func main() { bench.Main("benchvm", run) }

func run(ctx context.Context, args []string) error {
	if len(args) == 2 && args[0] == "measure" {
		return measure(ctx, args[1], os.Stdout)
	}
	if len(args) != 0 {
		return errors.New("want no argument, or: measure CONENAT")
	}
	text, err := bench.Machine{Timeout: 20 * time.Minute}.Run(ctx, "tests/benchvm")
	if err != nil {
		return err
	}
	results, err := parseResults(text)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s", text, table(results))
	return nil
}
