// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
)

func TestHistory(t *testing.T) {
	h := history{size: 3}
	counts := func(events []dataplane.Event) (out []uint64) {
		for _, ev := range events {
			out = append(out, ev.Count)
		}
		return out
	}
	if h.last() != nil || len(h.latest(2)) != 0 {
		t.Error("there are events before the first one")
	}
	var gone []uint64
	for i := range uint64(8) {
		if old, full := h.add(dataplane.Event{Count: i}); full {
			gone = append(gone, old.Count)
		}
		if got := h.last().Count; got != i {
			t.Errorf("the last event is %d, want %d", got, i)
		}
	}
	for want, got := range map[string][]uint64{"gone": gone, "all": counts(h.latest(9)), "two": counts(h.latest(2))} {
		if diff := cmp.Diff(map[string][]uint64{"gone": {0, 1, 2, 3, 4}, "all": {5, 6, 7}, "two": {6, 7}}[want], got); diff != "" {
			t.Errorf("%s: %s", want, diff)
		}
	}
}
