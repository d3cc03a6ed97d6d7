// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"
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
  - {protocol: udp, network: docker0, external: "%[3]s", internal: "%[4]s"}
  - {protocol: tcp, network: docker0, external: "%[3]s", internal: "%[4]s"}
  - {protocol: udp, network: docker0, external: "%[5]s", internal: "%[6]s"}
  - {protocol: tcp, network: docker0, external: "%[5]s", internal: "%[6]s"}
`

func (d daemon) start(ctx context.Context, l *Lab) error {
	bpffs, err := l.BPFFS()
	if err != nil {
		return err
	}
	stateDir, file := filepath.Join(bpffs, "conenat"), filepath.Join(l.Dir(), "conenat.yaml")
	at := netip.AddrPortFrom
	text := fmt.Sprintf(configuration, d.path, d.udpTimeout, at(l.External(), ForwardedPort), at(l.Inside.Addr, ForwardedPort),
		at(l.External(), ForwardedPort2), at(l.Inside2.Addr, ForwardedPort2))
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
