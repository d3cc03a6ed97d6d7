// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// readyWithin bounds a daemon's start, loading and verifying included, in a guest that is emulated.
const readyWithin = 2 * time.Minute

// stopWithin bounds its end.
const stopWithin = 10 * time.Second

// daemon is conenat, as a user runs it.
type daemon struct {
	binary, path, udpTimeout string
	sweep                    string // how often; empty: so seldom that it meets no measurement
	more                     string // lines of the configuration
}

const configuration = `
path: %[1]s
inside: [%[7]s]
outside: [eth0]
timeouts: {udp: %[2]s, sweep: %[9]s}
forwards:
  - {protocol: udp, network: %[7]s, external: "%[3]s", internal: "%[4]s"}
  - {protocol: tcp, network: %[7]s, external: "%[3]s", internal: "%[4]s"}
  - {protocol: udp, network: %[7]s, external: "%[5]s", internal: "%[6]s"}
  - {protocol: tcp, network: %[7]s, external: "%[5]s", internal: "%[6]s"}
%[8]s`

func (d daemon) start(ctx context.Context, l *Lab) error {
	bpffs, err := l.BPFFS()
	if err != nil {
		return err
	}
	file := filepath.Join(l.Dir(), "conenat.yaml")
	l.StateDir, l.Socket = filepath.Join(bpffs, "conenat"), filepath.Join(l.Dir(), "conenat.sock")
	at := netip.AddrPortFrom
	text := fmt.Sprintf(configuration, d.path, d.udpTimeout, at(l.External(), ForwardedPort), at(l.Inside.Addr, ForwardedPort),
		at(l.External(), ForwardedPort2), at(l.Inside2.Addr, ForwardedPort2), l.InsideDevice, d.more, cmp.Or(d.sweep, "1m"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	l.Defer("conenat detach", func() error { return d.runDetach(context.Background(), l) })
	cmd := l.Host.Command(context.Background(), d.binary, "run", "--config", file, "--socket", l.Socket, "--state-dir", l.StateDir)
	l.process, _, err = l.StartReady(ctx, "conenat run", cmd, readyWithin)
	return err
}

// detach ends the daemon first, which would have its hooks back.
func (d daemon) detach(ctx context.Context, l *Lab) error {
	if err := l.process.Stop(stopWithin); err != nil {
		return err
	}
	return d.runDetach(ctx, l)
}

func (d daemon) runDetach(ctx context.Context, l *Lab) error {
	_, err := l.Host.Run(ctx, "", d.binary, "detach", "--state-dir", l.StateDir)
	return err
}
