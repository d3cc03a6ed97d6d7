// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"sync"
)

// screen prints whole lines, from several goroutines.
type screen struct {
	mu  sync.Mutex
	out io.Writer
}

func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

const picture = `
  c1 172.17.0.2 ─┬─ docker0 ─ host ─────── router ─┬─ 203.0.113.1  STUN server
  c2 172.17.0.3 ─┘     198.51.100.1                ├─ 203.0.113.2  peer
                                                   └─ 203.0.113.3  symmetric NAT ─ caller 10.99.0.2
`
