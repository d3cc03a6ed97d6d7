// SPDX-License-Identifier: Apache-2.0

package require

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWires(t *testing.T) {
	Root(t)
	const one, two = "igb 1 02:00:00:00:00:00 02:00:00:00:00:01", "igb 1 02:00:00:00:01:00 02:00:00:00:01:01"
	for name, tt := range map[string]struct {
		said            string
		want            []string
		skipped, failed string // how it begins
	}{
		"None": {"", nil, "needs 2 wires", ""},
		"Few":  {one, nil, "", "VMTEST_WIRES="},
		"Two":  {one + "," + two, []string{one, two}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("VMTEST_WIRES", tt.said)
			got := recorder{TB: t}
			if diff := cmp.Diff(tt.want, Wires(&got, 2)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			begins := func(said, want string) bool { return strings.HasPrefix(said, want) && (said == "") == (want == "") }
			if !begins(got.skipped, tt.skipped) || !begins(got.failed, tt.failed) {
				t.Errorf("skipped with %q, failed with %q", got.skipped, got.failed)
			}
		})
	}
}
