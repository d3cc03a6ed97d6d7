// SPDX-License-Identifier: Apache-2.0

// Package patience says how long tests wait for what has to come before they call it missing. A virtual machine in software
// emulation is that much slower than the machine it is on: all deadlines are multiplied there by one factor. How long a test
// waits for nothing to come is no deadline, and stays as it is.
package patience

import (
	"os"
	"time"
)

// inVM is the factor in vmtest's machines: Linux 6.1 in software emulation verifies conenat's programs in 11 to 25 s on a machine
// that is idle, and in more than 60 s beside two other machines and a test's own traffic.
const inVM = 4

// For is how long to wait, here, for what takes at most d on a machine that has time.
func For(d time.Duration) time.Duration {
	if os.Getenv("VMTEST_KERNEL") != "" {
		return inVM * d
	}
	return d
}
