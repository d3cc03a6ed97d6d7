// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"github.com/conenat/conenat/tests/rig"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
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
func TestOwnerEndsOlder(t *testing.T) { family.Each(t, testOwnerEndsOlder) }

func testOwnerEndsOlder(t *testing.T, fam family.Family) {
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
			r := rig.New(t, rig.In(fam))
			if !tt.first {
				r.Owner(rig.C1, "p1", nil)
			}
			r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
			r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
			r.Inside(UDP(rig.C2+":2000", rig.Peer1+":53", "x"))
			r.Wait(4 * time.Second)
			r.Owner(rig.C1, "p1", func(o *dataplane.Owner) {
				if tt.age != 0 {
					o.Began = sinceBoot(t) - tt.age
				}
			})
			if ended := r.ExternalOf("udp", rig.C1+":2000") == ""; ended != tt.ends {
				t.Errorf("its dynamic binding ended: %t, want %t", ended, tt.ends)
			}
			if r.ExternalOf("tcp", rig.C1+":80") == "" || r.ExternalOf("udp", rig.C2+":2000") == "" {
				t.Errorf("bindings %q: an operator's and a neighbour's have to stay", r.Bindings())
			}
			r.Consistent()
		})
	}
}
