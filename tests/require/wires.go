// SPDX-License-Identifier: Apache-2.0

package require

import (
	"os"
	"strings"
)

// Wires returns what `vmtest --wire` said of the machine's network cards: "MODEL QUEUES MAC MAC" for each wire. It skips a
// test where nothing was said, in virtual machines too; with fewer than count of them the test fails.
func Wires(t TB, count int) []string {
	t.Helper()
	Root(t)
	const variable = "VMTEST_WIRES"
	said := os.Getenv(variable)
	if said == "" {
		t.Skipf("needs %d wires between network cards, as `vmtest test --wire MODEL --wire MODEL` makes them", count)
		return nil
	}
	wires := strings.Split(said, ",")
	if len(wires) < count {
		t.Fatalf("%s=%q: the test needs %d wires", variable, said, count)
		return nil
	}
	return wires
}
