// SPDX-License-Identifier: Apache-2.0

// Package patience says how long tests wait for what has to come before they call it missing. A virtual machine in software
// emulation is that much slower than the machine it is on: all deadlines are multiplied there by one factor, and loads divided. How long a test
// waits for nothing to come is no deadline, and stays as it is.
package patience

import (
	"os"
	"time"
)

// inVM is the factor in vmtest's machines: Linux 6.1 in software emulation verifies conenat's programs in 11 to 25 s on a machine
// that is idle, and in more than 60 s beside two other machines and a test's own traffic.
const inVM = 4

// loadInVM is the part of a load that vmtest's machines carry beside what is tested: 200 TCP streams and as many of datagrams stand still
// there for minutes, with plain Docker, too.
const loadInVM = 5

// Load is how many of something that goes on all the time a test starts, here, where it starts n on a machine that has time.
func Load(n int) int {
	if slow() {
		return n / loadInVM
	}
	return n
}

func slow() bool { return os.Getenv("VMTEST_KERNEL") != "" }

// For is how long to wait, here, for what takes at most d on a machine that has time.
func For(d time.Duration) time.Duration {
	if slow() {
		return inVM * d
	}
	return d
}
