// SPDX-License-Identifier: Apache-2.0

package patience

import (
	"testing"
	"time"
)

func TestFor(t *testing.T) {
	t.Setenv("VMTEST_KERNEL", "")
	if d, n := For(time.Second), Load(100); d != time.Second || n != 100 {
		t.Errorf("%v, %d", d, n)
	}
	t.Setenv("VMTEST_KERNEL", "6.1")
	if d, n := For(time.Second), Load(100); d != 4*time.Second || n != 20 {
		t.Errorf("%v, %d in a virtual machine", d, n)
	}
}
