// SPDX-License-Identifier: Apache-2.0

// Command cnprobe is a test's hand inside a container: it does what it is told in lines of JSON on its
// standard input (see tests/probe). Built without cgo, it is all that an image needs.
package main

import (
	"fmt"
	"os"

	"github.com/conenat/conenat/tests/probe"
)

func main() {
	if err := probe.Serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cnprobe:", err)
		os.Exit(1)
	}
}
