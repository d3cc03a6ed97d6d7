// SPDX-License-Identifier: Apache-2.0

package patience

import (
	"testing"
	"time"
)

func TestFor(t *testing.T) {
	t.Setenv("VMTEST_KERNEL", "")
	if d := For(time.Second); d != time.Second {
		t.Errorf("%v", d)
	}
	t.Setenv("VMTEST_KERNEL", "6.1")
	if d := For(time.Second); d != 4*time.Second {
		t.Errorf("%v in a virtual machine", d)
	}
}
