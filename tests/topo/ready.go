// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// readyLine is in the line by which conenat's programs say that they are ready.
const readyLine = "msg=ready"

// logLimit bounds what is kept of a program's log, bytes.
const logLimit = 1 << 20

// Log is what a program has logged, its first MiB.
type Log struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{} // closed by the line that says so
	told  bool
}

// Write is the program's.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < logLimit {
		l.text.Write(b)
	}
	if !l.told && bytes.Contains(l.text.Bytes(), []byte(readyLine)) {
		l.told = true
		close(l.ready)
	}
	return len(b), nil
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(l.text.String())
}

// StartReady is Start for a program of conenat's, and waits until it logs that it is ready. Process and log are there
// with an error, too, unless the program could not be started.
func (t *Topo) StartReady(ctx context.Context, name string, cmd *exec.Cmd, within time.Duration) (*Process, *Log, error) {
	log := &Log{ready: make(chan struct{})}
	cmd.Stderr = log
	p, err := t.Start(name, cmd)
	if err != nil {
		return nil, log, err
	}
	select {
	case <-log.ready:
	case <-p.Done():
		err = fmt.Errorf("%s ended before it was ready:\n%s", name, log)
	case <-time.After(within):
		err = fmt.Errorf("%s is not ready within %v:\n%s", name, within, log)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return p, log, err
}
