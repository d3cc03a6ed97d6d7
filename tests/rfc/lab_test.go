// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"os"
	"path/filepath"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// lab is Figure 3 with a running conenat, for what takes a kernel's own packets to show. It has the rig's addresses.
type lab struct {
	*topo.Figure3
	*harness.Conenat
	probe.Tester
	family family.Family
}

// probe sends from a namespace.
func (l *lab) probe(ns *topo.NS) probe.Host { return probe.InFamily(l.family, ns) }

// lab starts one for the rest of the test; config is YAML, or nothing.
func (l *line) lab(cfg topo.Figure3Config, config string, args ...string) *lab {
	l.Helper()
	l.shown = append(l.shown, "namespaces")
	cfg.IPv6 = l.family == family.V6
	f := topo.Figure3ForTest(l.T, cfg)
	if err := topo.DockerRules(l.Context(), f.Host); err != nil {
		l.Fatal(err)
	}
	args = append([]string{"--inside", "docker0"}, args...)
	if config != "" {
		file := filepath.Join(f.Dir(), "conenat.yaml")
		if err := os.WriteFile(file, []byte(l.family.Text(config)), 0o600); err != nil {
			l.Fatal(err)
		}
		args = append(args, "--config", file)
	}
	return &lab{f, harness.StartIn(l.family, l.T, f.Topo, f.Host, args...), probe.Tester{T: l.T}, l.family}
}

// opened is a socket of the first container that has sent to one of peer1's, which is there too.
func (l *lab) opened(port uint16) (inside, peer probe.Socket) {
	l.T.Helper()
	inside, peer = l.UDP(l.probe(l.Containers[0]), port), l.UDP(l.probe(l.Peer1), port)
	l.Send(inside, l.family.At(topo.Peer1Addr, port), "open")
	l.Receives(peer, "open")
	return inside, peer
}
