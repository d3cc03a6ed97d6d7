// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Forget deletes the entries of connections that live elsewhere from now on. One that is gone already is no error.
// Errors: ErrUnavailable.
func Forget(flows []Flow) error {
	if len(flows) == 0 {
		return nil
	}
	s, err := newWriter()
	if err != nil {
		return fmt.Errorf("forget tracked connections: %w", unavailable(err))
	}
	defer s.socket.Close()
	s.forgets = true
	for some := range slices.Chunk(flows, batchSize) {
		if err := s.batch(some, (*message).forget); err != nil {
			return fmt.Errorf("forget tracked connections: %w", err)
		}
	}
	if s.failed > 0 {
		return fmt.Errorf("forget %d of %d tracked connections: %w", s.failed, len(flows), s.first)
	}
	return nil
}

// gone: an entry that was to be forgotten is not there, or the kernel does not track at all.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) }

// forget appends a request to delete an entry.
func (m *message) forget(f Flow, sequence uint32) {
	m.start(typeDelete, 0, sequence, f.Original.family(), func() { m.nest(attrOriginal, func() { m.tuple(f.Original, f.Protocol) }) })
}
