// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/api/client"
	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/watch"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

type fakeHost struct{ snapshot hostnet.Snapshot }

func (h fakeHost) Snapshot() (hostnet.Snapshot, error) { return h.snapshot, nil }
func (h fakeHost) Sockets() ([]hostnet.Socket, error)  { return nil, nil }
func (h fakeHost) Changes() <-chan struct{}            { return nil }
func (h fakeHost) Hops() <-chan struct{}               { return nil }
func (h fakeHost) WatchHops(ctx context.Context, ready chan<- struct{}, failed func(error)) error {
	return h.Watch(ctx, ready, failed)
}
func (h fakeHost) Watch(ctx context.Context, ready chan<- struct{}, _ func(error)) error {
	close(ready)
	<-ctx.Done()
	return ctx.Err()
}

type fakeExceptions struct{ removed bool }

func (e *fakeExceptions) Ensure([]exceptions.Pair) error { return nil }
func (e *fakeExceptions) Remove() (bool, error)          { e.removed = true; return true, nil }

type world struct {
	cfg     config.Config
	deps    Deps
	dp      *dataplanetest.Dataplane
	exc     *fakeExceptions
	opened  bool
	removed bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dp: dataplanetest.New(), exc: &fakeExceptions{}}
	w.cfg = config.Config{Inside: []string{"br0"}, Refusal: dataplane.RefuseAdminProhibited, MSSClamp: true, Settings: dataplane.DefaultSettings(),
		Socket: filepath.Join(t.TempDir(), "conenat.sock"), StateDir: "/sys/fs/bpf/test", Warnings: []string{"a short timeout"}}
	w.deps = Deps{
		Version: "v1", Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Exceptions: w.exc,
		Open:   func() (Dataplane, error) { w.opened = true; return w.dp, nil },
		Remove: func() error { w.removed = true; return nil },
		Host: fakeHost{hostnet.Snapshot{Default: []int{2}, Links: []hostnet.Link{
			{Index: 2, Name: "eth0", Kind: "device", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
			{Index: 3, Name: "br0", Kind: "bridge", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")}},
			{Index: 4, Name: "veth0", Kind: "veth", Master: 3, PeerNetns: true},
		}}},
	}
	return w
}

// run starts the daemon, waits until it answers, and gives a client and what stops it and returns its error.
func (w *world) run(t *testing.T) (*client.Client, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, w.cfg, w.deps) }()
	c := client.New(w.cfg.Socket)
	for range 200 {
		if _, err := c.Status(ctx); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	return c, stop
}

func TestStatusAndNetworks(t *testing.T) {
	w := newWorld(t)
	w.dp.SetCounters(dataplane.Counter{Name: "translated_outbound", Verdict: "translated", Packets: 7})
	c, stop := w.run(t)
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st[0].UptimeS = 0
	want := []api.Status{{Version: "v1", PID: os.Getpid(), Kernel: "6.18.0", StateDir: "/sys/fs/bpf/test", Path: "direct", PathReasons: []string{}, Mechanism: "tcx",
		Outsides: []api.Outside{{Name: "eth0", IfIndex: 2, Address: "198.51.100.1", State: "active", Addresses: []string{"198.51.100.1"}, Pool: []string{"198.51.100.1"}}}, XDP: []api.XDP{},
		Capacity: api.Entries{Sessions: 1024, Bindings: 512}, Counters: []api.Counter{{Name: "translated_outbound", Verdict: "translated", Packets: 7}},
		Networks: []api.NetworkUse{{Name: "br0", Mode: "nat", Busiest: api.HostUse{Blocks: []string{}}}},
		Settings: api.StatusSetting{UDPTimeoutS: 300, TCPEstablishedTimeoutS: 7440, TCPPartialOpenTimeoutS: 240, TCPClosingTimeoutS: 240, ICMPTimeoutS: 60,
			Ports: "1024-65535", SessionsPerBinding: 32768},
		Warnings: []string{"a short timeout", "net.ipv4.ip_forward is 0: the host routes no packets; set it: sysctl -w net.ipv4.ip_forward=1"}}}
	if diff := cmp.Diff(want, st); diff != "" {
		t.Error(diff)
	}
	networks, err := c.Networks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const name = "endpoint-independent"
	ei := api.Behaviors{UDP: name, TCP: name, ICMP: name}
	wantNetworks := []api.Network{{Name: "br0", Interface: "br0", IfIndex: 3, Driver: "bridge", State: "active", Prefixes: []string{"172.17.0.0/16"},
		GatewayMAC: "02:00:00:00:00:01", Ports: []string{"veth0"}, Mapping: ei, Filtering: ei, Hosts: []api.HostUse{}, Outside: []string{"eth0"},
		Refusal: "admin-prohibited", MSS: "clamp", Exclude: []string{}, External: []string{}, Mode: "nat", Named: []api.Named{}}}
	if diff := cmp.Diff(wantNetworks, networks); diff != "" {
		t.Error(diff)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if links, _ := w.dp.Links(); len(links) != 3 || !w.dp.Closed() || w.removed || w.exc.removed {
		t.Errorf("after the stop: links %v, closed %v, removed %v %v", links, w.dp.Closed(), w.removed, w.exc.removed)
	}
	if _, err := os.Stat(w.cfg.Socket); !os.IsNotExist(err) {
		t.Error("the socket is still there")
	}
}

func TestEventsReplayToBindingsOverARestart(t *testing.T) {
	w := newWorld(t)
	c, stop := w.run(t)
	in, out := netip.MustParseAddrPort("172.17.0.2:5000"), netip.MustParseAddrPort("198.51.100.1:5000")
	b := dataplane.Binding{Protocol: dataplane.UDP, Network: "br0", Internal: in, External: out}
	w.dp.OpenBinding(b)
	w.dp.OpenSession(dataplane.Session{Protocol: dataplane.UDP, Network: "br0", Internal: in, External: out, Remote: netip.MustParseAddrPort("203.0.113.1:9"), State: "active"})
	if _, err := c.AddForward(t.Context(), api.ForwardRequest{External: "198.51.100.1:80", Internal: "172.17.0.2:80"}); err != nil {
		t.Fatal(err)
	}
	compare := func() {
		t.Helper()
		time.Sleep(50 * time.Millisecond) // for the watcher to read what was emitted
		bindings, err := c.Bindings(t.Context())
		if err != nil || len(bindings) != 2 {
			t.Fatalf("bindings: %+v %v", bindings, err)
		}
		if diff := cmp.Diff(lines(bindings), replay(t, c)); diff != "" {
			t.Error(diff)
		}
	}
	compare()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.dp = w.dp.Reopen()
	c, _ = w.run(t)
	compare()
	if f, err := c.Forwards(t.Context()); err != nil || len(f) != 1 || f[0].ID != "tcp/198.51.100.1:80" || !f[0].Active {
		t.Errorf("forwards: %+v %v", f, err)
	}
	if err := c.RemoveForward(t.Context(), "tcp/198.51.100.1:80"); err != nil {
		t.Error(err)
	}
}

func lines(bindings []api.Binding) (out []string) {
	for _, b := range bindings {
		out = append(out, b.Protocol+" "+b.Network+" "+b.Internal+" "+b.External)
	}
	slices.Sort(out)
	return out
}

// replay is what a client makes of the events, by the API's words alone.
func replay(t *testing.T, c *client.Client) (out []string) {
	t.Helper()
	live := map[string]string{}
	err := c.Events(t.Context(), client.EventQuery{}, func(_ []byte, ev api.Event) error {
		switch ev.Type {
		case "binding.created":
			live[ev.Protocol+ev.External] = ev.Protocol + " " + ev.Network + " " + ev.Internal + " " + ev.External
		case "binding.expired":
			delete(live, ev.Protocol+ev.External)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range live {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}

func TestAStartThatFailsLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name   string
		change func(t *testing.T, w *world)
		want   string
		opened bool
		table  bool // its nftables table was made, and goes; any other is a running daemon's
	}{
		{"unknown_interface", func(_ *testing.T, w *world) { w.cfg.Inside = []string{"br9"} }, "br9 does not exist", false, false},
		{"no_privilege", func(_ *testing.T, w *world) {
			w.deps.Open = func() (Dataplane, error) { return nil, dataplane.ErrPermission }
		}, "permission denied", false, false},
		{"attach_fails", func(_ *testing.T, w *world) {
			w.dp.Fail = func(op string) error {
				if strings.HasPrefix(op, "attach inside-device") {
					return broken
				}
				return nil
			}
		}, "broken", true, true},
		{"socket_in_use", func(t *testing.T, w *world) {
			l, err := api.Listen(w.cfg.Socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "in use by a running conenat", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(t, w)
			err := Run(t.Context(), w.cfg, w.deps)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if w.opened != tt.opened || w.removed != tt.opened || w.exc.removed != tt.table || w.dp.Closed() != tt.opened {
				t.Errorf("opened %v, removed %v %v, closed %v", w.opened, w.removed, w.exc.removed, w.dp.Closed())
			}
		})
	}
}

func TestAFailedRestartLeavesTheOldDataplaneAtWork(t *testing.T) {
	w := newWorld(t)
	_, stop := w.run(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	w.dp = w.dp.Reopen()
	w.dp.Fail = func(op string) error {
		if op == "configure" {
			return errors.New("broken")
		}
		return nil
	}
	if err := Run(t.Context(), w.cfg, w.deps); err == nil || w.removed {
		t.Errorf("got %v, removed %v", err, w.removed)
	}
}

type brokenEvents struct{ *dataplanetest.Dataplane }

func (brokenEvents) ReadEvent(context.Context) (dataplane.Event, error) {
	return dataplane.Event{}, errors.New("the ring is broken")
}

func TestAPartThatFailsEndsTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.deps.Open = func() (Dataplane, error) { return brokenEvents{w.dp}, nil }
	err := Run(t.Context(), w.cfg, w.deps)
	if !errors.Is(err, errFailed) || !strings.Contains(err.Error(), "the ring is broken") || !w.dp.Closed() {
		t.Errorf("got %v", err)
	}
}

var _ watch.Source = brokenEvents{}
