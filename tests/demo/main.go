// SPDX-License-Identifier: Apache-2.0

// Command demo shows what conenat is for, with real packets in network namespaces: Docker's NAT turns
// symmetric for a peer whose packet came first, conenat in its place does not, and a peer behind a symmetric
// NAT gets through. It needs root, iptables and nft, but no Docker, and leaves nothing behind.
//
// Its verdict is computed from what was seen on the wire; the exit code is 1 if it is not as promised, and
// 130 after Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/topo"
)

func main() {
	conenat := flag.String("conenat", "", "the conenat `binary` (default: the one beside this program, else it is built)")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	// Signals stay caught until everything is cleaned up, however often Ctrl-C is pressed.
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := demo(ctx, *conenat)
	err = errors.Join(err, topo.CloseProcess())
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted, and cleaned up")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, conenat string) error {
	binary, err := find(conenat)
	if err != nil {
		return err
	}
	return (&show{screen: &screen{out: os.Stdout}, conenat: binary}).run(ctx)
}

// find returns the conenat to run: the given one, bin/conenat beside bin/demo, or one built now.
func find(given string) (string, error) {
	if given != "" {
		path, err := filepath.Abs(given)
		if err == nil {
			_, err = os.Stat(path)
		}
		return path, err
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "conenat")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	return build.Binary("cmd/conenat")
}
