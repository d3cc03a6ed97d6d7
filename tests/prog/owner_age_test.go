// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// sinceBoot is CLOCK_BOOTTIME.
func sinceBoot(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// TestOwnerEndsOlder: bindings of an address that nobody was known to have end when it gets an owner that is younger. One
// that may be the owner's own stays, and so do those of an owner of whom something else has changed, and an operator's.
func TestOwnerEndsOlder(t *testing.T) {
	tests := []struct {
		name  string
		age   time.Duration // of the owner; 0: not known
		first bool          // it is the first one
		ends  bool
	}{
		{"younger", time.Second, true, true},
		{"older", 9 * time.Second, true, false},
		{"age unknown", 0, true, false},
		{"known before", time.Second, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			if !tt.first {
				r.owner(c1, "p1", nil)
			}
			r.forward("br0", dataplane.TCP, external+":80", c1+":80")
			r.inside(UDP(c1+":2000", peer1+":53", "x"))
			r.inside(UDP(c2+":2000", peer1+":53", "x"))
			r.wait(4 * time.Second)
			r.owner(c1, "p1", func(o *dataplane.Owner) {
				if tt.age != 0 {
					o.Began = sinceBoot(t) - tt.age
				}
			})
			if ended := r.externalOf("udp", c1+":2000") == ""; ended != tt.ends {
				t.Errorf("its dynamic binding ended: %t, want %t", ended, tt.ends)
			}
			if r.externalOf("tcp", c1+":80") == "" || r.externalOf("udp", c2+":2000") == "" {
				t.Errorf("bindings %q: an operator's and a neighbour's have to stay", r.bindings())
			}
			r.consistent()
		})
	}
}
