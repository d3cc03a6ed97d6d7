// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"net/netip"
	"os"
	"path/filepath"

	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// lab is Figure 3 with a running conenat, for what takes a kernel's own packets to show. It has the rig's addresses.
type lab struct {
	*topo.Figure3
	*harness.Conenat
	probe.Tester
}

// lab starts one for the rest of the test; config is YAML, or nothing.
func (l *line) lab(cfg topo.Figure3Config, config string, args ...string) *lab {
	l.Helper()
	l.shown = append(l.shown, "namespaces")
	f := topo.Figure3ForTest(l.T, cfg)
	if err := topo.DockerRules(l.Context(), f.Host); err != nil {
		l.Fatal(err)
	}
	args = append([]string{"--inside", "docker0"}, args...)
	if config != "" {
		file := filepath.Join(f.Dir(), "conenat.yaml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			l.Fatal(err)
		}
		args = append(args, "--config", file)
	}
	return &lab{f, harness.Start(l.T, f.Topo, f.Host, args...), probe.Tester{T: l.T}}
}

// opened is a socket of the first container that has sent to one of peer1's, which is there too.
func (l *lab) opened(port uint16) (inside, peer probe.Socket) {
	l.T.Helper()
	inside, peer = l.UDP(probe.In(l.Containers[0]), port), l.UDP(probe.In(l.Peer1), port)
	l.Send(inside, netip.AddrPortFrom(topo.Peer1Addr, port), "open")
	l.Receives(peer, "open")
	return inside, peer
}
