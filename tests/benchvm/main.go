// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/topo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err := errors.Join(err, topo.CloseProcess()); err != nil {
		fmt.Fprintf(os.Stderr, "benchvm: %v\n", err)
		os.Exit(1)
	}
}

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
