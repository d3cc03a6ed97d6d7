// SPDX-License-Identifier: Apache-2.0

package watch

import "github.com/conenat/conenat/dataplane"

// history is the latest events, in a ring that grows up to a size and stays: nothing is copied or made for an event.
type history struct {
	size   int
	events []dataplane.Event
	oldest int // in a full ring
}

// add takes an event. Where the ring is full, its oldest one makes room, and is returned.
func (h *history) add(ev dataplane.Event) (old dataplane.Event, full bool) {
	if len(h.events) < h.size {
		h.events = append(h.events, ev)
		return old, false
	}
	old, h.events[h.oldest] = h.events[h.oldest], ev
	h.oldest = (h.oldest + 1) % h.size
	return old, true
}

// latest are the last n events, or all there are, oldest first.
func (h *history) latest(n int) []dataplane.Event {
	n = min(n, len(h.events))
	out := make([]dataplane.Event, 0, n)
	for i := len(h.events) - n; i < len(h.events); i++ {
		out = append(out, *h.at(i))
	}
	return out
}

// at is the event that i older ones come before.
func (h *history) at(i int) *dataplane.Event { return &h.events[(h.oldest+i)%len(h.events)] }

// last is the newest event; nil: there is none.
func (h *history) last() *dataplane.Event {
	if len(h.events) == 0 {
		return nil
	}
	return h.at(len(h.events) - 1)
}
