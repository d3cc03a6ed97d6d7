// SPDX-License-Identifier: Apache-2.0

// Command iceagent is one of pion's ICE agents in a network namespace (see tests/ice). Its argument are the
// options, in JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/conenat/conenat/tests/ice"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "iceagent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want the options, and not %d arguments", len(args))
	}
	var o ice.Options
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return fmt.Errorf("read the options: %w", err)
	}
	return ice.Serve(o, os.Stdin, os.Stdout)
}
