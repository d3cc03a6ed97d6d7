// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/conenat/conenat/tests/figure3"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

var containers = netip.MustParsePrefix("172.17.0.0/16")

// netfilter needs no start: the rules are there already.
func (s *show) netfilter() nat {
	return nat{
		start: func(context.Context, *topo.Figure3) error { return nil },
		arrived: func(f *topo.Figure3) func(context.Context, netip.AddrPort, netip.AddrPort) error {
			return figure3.ConntrackEntry(f.Host)
		},
		mappings: func(_ context.Context, f *topo.Figure3) (all []mapping, err error) {
			flows, err := f.Host.Conntrack()
			for _, flow := range flows {
				if containers.Contains(flow.Src.Addr()) {
					all = append(all, mapping{flow.Src, flow.ReplyDst, flow.Dst})
				}
			}
			return all, err
		},
		settled: func(context.Context, *topo.Figure3) error { return nil },
	}
}

// daemon is conenat, as a user runs it.
func (s *show) daemon() nat {
	d := &daemon{screen: s.screen, binary: s.conenat}
	settled := func(ctx context.Context, f *topo.Figure3) error {
		_, err := d.mappings(ctx, f)
		return err
	}
	return nat{start: d.start, mappings: d.mappings, settled: settled}
}

type daemon struct {
	*screen
	binary   string
	stateDir string
	socket   string
	sessions atomic.Int64 // session.created events so far
}

var readyWithin = patience.For(30 * time.Second)

// start starts the daemon and, once it is ready, follows its events.
func (d *daemon) start(ctx context.Context, f *topo.Figure3) error {
	if err := d.run(ctx, f); err != nil {
		return err
	}
	return d.follow(f)
}

// run starts the daemon and waits until it is ready.
func (d *daemon) run(ctx context.Context, f *topo.Figure3) error {
	bpffs, err := f.BPFFS()
	if err != nil {
		return err
	}
	d.stateDir, d.socket = filepath.Join(bpffs, "conenat"), filepath.Join(f.Dir(), "conenat.sock")
	f.Defer("conenat detach", func() error {
		_, err := f.Host.Run(context.Background(), "", d.binary, "detach", "--state-dir", d.stateDir)
		return err
	})
	// Not bound to ctx: an interrupted demo stops the daemon by SIGTERM, as a user would.
	cmd := f.Host.Command(context.Background(), d.binary, "run", "--inside", "docker0", "--outside", "eth0",
		"--socket", d.socket, "--state-dir", d.stateDir)
	return ready(ctx, f, "conenat run", cmd)
}

// ready starts a program and waits until it logs that it is ready.
func ready(ctx context.Context, f *topo.Figure3, name string, cmd *exec.Cmd) error {
	_, _, err := f.StartReady(ctx, name, cmd, readyWithin)
	return err
}

// follow prints the events as they come.
func (d *daemon) follow(f *topo.Figure3) error {
	cmd := f.Host.Command(context.Background(), d.binary, "events", "--follow", "--since", "all", "-o", "json", "--socket", d.socket)
	reader, writer := io.Pipe()
	cmd.Stdout = writer
	process, err := f.Start("conenat events", cmd)
	if err != nil {
		return err
	}
	go func() {
		<-process.Done()
		writer.Close()
	}()
	go d.print(reader)
	return nil
}

func (d *daemon) print(events io.Reader) {
	for lines := bufio.NewScanner(events); lines.Scan(); {
		var e struct {
			Time                               time.Time
			Type, Protocol, Internal, External string
			Remote                             string
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			d.say("      event that is no JSON: %s", lines.Text())
			continue
		}
		line := fmt.Sprintf("      event %s %-15s %s %s -> %s", e.Time.Local().Format("15:04:05.000"), e.Type, e.Protocol, e.Internal, e.External)
		if e.Remote != "" {
			line += " with " + e.Remote
		}
		d.say("%s", line)
		if e.Type == "session.created" {
			d.sessions.Add(1)
		}
	}
}

// mappings asks for the sessions, and waits until every one of them has been told by an event too.
func (d *daemon) mappings(ctx context.Context, f *topo.Figure3) (all []mapping, err error) {
	var sessions []struct{ Internal, External, Remote netip.AddrPort }
	out, err := f.Host.Run(ctx, "", d.binary, "sessions", "-o", "json", "--socket", d.socket)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(out), &sessions); err != nil {
		return nil, fmt.Errorf("conenat sessions: %w: %s", err, out)
	}
	for _, s := range sessions {
		all = append(all, mapping{s.Internal, s.External, s.Remote})
	}
	return all, topo.Poll(ctx, 2*time.Second, "wait for the events of all sessions", func() (bool, error) {
		n := d.sessions.Load()
		return n >= int64(len(sessions)), fmt.Errorf("%d events of %d sessions", n, len(sessions))
	})
}
