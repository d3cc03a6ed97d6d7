// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// readyWithin bounds a daemon's start, loading and verifying included, in a guest that is emulated.
const readyWithin = 2 * time.Minute

// daemon is conenat, as a user runs it.
type daemon struct{ binary, path, udpTimeout string }

const configuration = `
path: %s
inside: [docker0]
outside: [eth0]
timeouts: {udp: %s, sweep: 1m}
forwards:
  - {protocol: udp, network: docker0, external: "%[3]s:%[4]d", internal: "%[5]s:%[4]d"}
  - {protocol: tcp, network: docker0, external: "%[3]s:%[4]d", internal: "%[5]s:%[4]d"}
  - {protocol: udp, network: docker0, external: "%[3]s:%[6]d", internal: "%[7]s:%[6]d"}
  - {protocol: tcp, network: docker0, external: "%[3]s:%[6]d", internal: "%[7]s:%[6]d"}
`

func (d daemon) start(ctx context.Context, l *Lab) error {
	bpffs, err := l.BPFFS()
	if err != nil {
		return err
	}
	stateDir, file := filepath.Join(bpffs, "conenat"), filepath.Join(l.Dir(), "conenat.yaml")
	text := fmt.Sprintf(configuration, d.path, d.udpTimeout, External, ForwardedPort, l.Inside.Addr, ForwardedPort2, l.Inside2.Addr)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	l.Defer("conenat detach", func() error {
		_, err := l.Host.Run(context.Background(), "", d.binary, "detach", "--state-dir", stateDir)
		return err
	})
	cmd := l.Host.Command(context.Background(), d.binary, "run", "--config", file,
		"--socket", filepath.Join(l.Dir(), "conenat.sock"), "--state-dir", stateDir)
	log := &readyLog{ready: make(chan struct{})}
	cmd.Stderr = log
	process, err := l.Start("conenat run", cmd)
	if err != nil {
		return err
	}
	select {
	case <-log.ready:
		return nil
	case <-process.Done():
		return fmt.Errorf("conenat run ended before it was ready:\n%s", log)
	case <-time.After(readyWithin):
		return fmt.Errorf("conenat run is not ready within %v:\n%s", readyWithin, log)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// readyLog keeps what the daemon logs and sees the line that says it is ready.
type readyLog struct {
	mu    sync.Mutex
	text  bytes.Buffer
	ready chan struct{}
	told  bool
}

func (r *readyLog) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text.Write(b)
	if !r.told && bytes.Contains(r.text.Bytes(), []byte("msg=ready")) {
		r.told = true
		close(r.ready)
	}
	return len(b), nil
}

func (r *readyLog) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.TrimSpace(r.text.String())
}
