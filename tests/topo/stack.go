// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"errors"
	"fmt"
	"sync"
)

// Stack is what has to be undone, the last thing first. The zero Stack is empty and ready.
type Stack struct {
	mu    sync.Mutex
	items []undo
}

type undo struct {
	what string
	do   func() error
}

// Defer adds an undo; what names it in the error of Close ("remove namespace x").
func (s *Stack) Defer(what string, do func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = append(s.items, undo{what, do})
}

// Close undoes everything, goes on after an error, and returns all of them. A second Close has nothing to do.
func (s *Stack) Close() error {
	var errs []error
	for {
		u, ok := s.pop()
		if !ok {
			return errors.Join(errs...)
		}
		if err := u.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.what, err))
		}
	}
}

func (s *Stack) pop() (undo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.items) == 0 {
		return undo{}, false
	}
	last := s.items[len(s.items)-1]
	s.items = s.items[:len(s.items)-1]
	return last, true
}
