// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
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
	_, _, err = l.StartReady(ctx, "conenat run", cmd, readyWithin)
	return err
}
