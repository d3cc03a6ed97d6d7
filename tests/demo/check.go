// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/conenat/conenat/tests/topo"
)

// checked is a NAT as `conenat check` tells it.
type checked struct {
	Mapping   string `json:"mapping"`
	Filtering string `json:"filtering"`
	Stable    *bool  `json:"stable"`
	Hairpin   *bool  `json:"hairpin"`
	RFC3489   string `json:"rfc3489"`
	TCP       struct {
		Mapping string `json:"mapping"`
	} `json:"tcp"`
}

// The STUN server's second address, and ports beside the experiment's STUN server.
const (
	alternateAddr = "203.0.113.9"
	checkPort     = "3480"
	alternatePort = "3481"
)

// checks lets `conenat check` tell both NATs. It has a topology of its own: what it sends would fill the tables of the
// experiments.
func (s *show) checks(ctx context.Context) (docker, conenat checked, err error) {
	s.say("3. What `conenat check` says of both, asked from a container (RFC 5780, RFC 4787)")
	t, err := topo.New()
	if err != nil {
		return docker, conenat, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	f, err := topo.NewFigure3(t, topo.Figure3Config{Containers: 1})
	if err != nil {
		return docker, conenat, err
	}
	steps := []func() error{
		func() error { return topo.DockerRules(ctx, f.Host) },
		func() error { return s.stunServer(ctx, f) },
		func() (err error) { docker, err = s.check(ctx, f); return err },
		func() error { return (&daemon{screen: s.screen, binary: s.conenat}).run(ctx, f) },
		func() (err error) { conenat, err = s.check(ctx, f); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return docker, conenat, err
		}
	}
	s.say("%s", checkTable(docker, conenat))
	return docker, conenat, nil
}

// stunServer is `conenat stun-server` at peer 1.
func (s *show) stunServer(ctx context.Context, f *topo.Figure3) error {
	if err := f.Peer1.AddAddr("eth0", alternateAddr+"/24"); err != nil {
		return err
	}
	return ready(ctx, f, "conenat stun-server", f.Peer1.Command(context.Background(), s.conenat, "stun-server",
		"--primary", topo.Peer1Addr.String(), "--alternate", alternateAddr, "--primary-port", checkPort, "--alternate-port", alternatePort))
}

// check asks from the container. Nothing here is far away, so that a second is long enough to wait for an answer.
func (s *show) check(ctx context.Context, f *topo.Figure3) (checked, error) {
	out, err := f.Containers[0].Run(ctx, "", s.conenat, "check", "--server", topo.Peer1Addr.String()+":"+checkPort, "--timeout", "1s", "-o", "json")
	if err != nil {
		return checked{}, err
	}
	var list []checked
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
		return checked{}, fmt.Errorf("%w: %s", err, out)
	}
	return list[0], nil
}

// checkTable puts both beside each other.
func checkTable(docker, conenat checked) string {
	var out strings.Builder
	row := func(what, docker, conenat string) { fmt.Fprintf(&out, "  %-13s  %-26s  %s\n", what, docker, conenat) }
	row("", "DOCKER'S NAT", "CONENAT")
	row("mapping", docker.Mapping, conenat.Mapping)
	row("filtering", docker.Filtering, conenat.Filtering)
	row("stable", stable(docker), stable(conenat))
	row("hairpin", told(docker.Hairpin), told(conenat.Hairpin))
	row("TCP mapping", docker.TCP.Mapping, conenat.TCP.Mapping)
	row("RFC 3489 type", docker.RFC3489, conenat.RFC3489)
	out.WriteString("  (stable: mapping is the same after unsolicited packets; RFC 4787, REQ-11)")
	return out.String()
}

func stable(c checked) string {
	if c.Stable != nil && !*c.Stable {
		return "no, turns symmetric"
	}
	return told(c.Stable)
}

func told(b *bool) string {
	if b == nil {
		return "unknown"
	}
	return yes(*b)
}

// judgeChecks holds `conenat check` to what the experiments showed.
func judgeChecks(docker, conenat checked) error {
	is := func(b *bool) bool { return b != nil && *b }
	var errs []error
	if docker.Stable == nil || *docker.Stable || is(docker.Hairpin) {
		errs = append(errs, fmt.Errorf("check did not find that netfilter turns symmetric, or found a hairpin: %+v", docker))
	}
	if conenat.Mapping != "endpoint-independent" || !is(conenat.Stable) || !is(conenat.Hairpin) || conenat.TCP.Mapping != "endpoint-independent" {
		errs = append(errs, fmt.Errorf("check did not find a stable cone with hairpinning: %+v", conenat))
	}
	return errors.Join(errs...)
}
