// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplainXDP: who reads it knows which driver it is and what to do.
func TestExplainXDP(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EOPNOTSUPP: "driver e1000e has no native XDP",
		524:             "driver e1000e has no native XDP",
		unix.EINVAL:     "lower its MTU (to 1500), and switch LRO and hardware GRO off (`ethtool -K eth0 lro off rx-gro-hw off`)",
		unix.ERANGE:     "lower its MTU",
		unix.ENOSPC:     "`ethtool -L eth0 combined N`",
		unix.ENOMEM:     "too few queues, or too little memory",
		unix.EBUSY:      ErrOtherXDP.Error(),
		unix.EEXIST:     ErrOtherXDP.Error(),
		unix.EIO:        "attach to driver e1000e",
	} {
		err := explainXDP("eth0", "e1000e", fmt.Errorf("create link: %w", errno))
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want one that says %q", errno, err, want)
		}
		if is := errno == unix.EBUSY || errno == unix.EEXIST; errors.Is(err, ErrOtherXDP) != is {
			t.Errorf("%v: %v is another's program: %v", errno, err, !is)
		}
	}
}
