// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/daemon"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/firewall"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

type fakeHost struct{}

func (fakeHost) Snapshot() (hostnet.Snapshot, error) {
	return hostnet.Snapshot{IPForward: true, Default: []int{2}, Links: []hostnet.Link{
		{Index: 2, Name: "eth0", Kind: "device", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
		{Index: 3, Name: "br0", Kind: "bridge", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")}},
		{Index: 4, Name: "veth0", Kind: "veth", Master: 3, PeerNetns: true},
	}}, nil
}
func (fakeHost) Sockets() ([]hostnet.Socket, error) { return nil, nil }
func (fakeHost) Changes() <-chan struct{}           { return nil }
func (fakeHost) Hops() <-chan struct{}              { return nil }
func (h fakeHost) WatchHops(ctx context.Context, ready chan<- struct{}, failed func(error)) error {
	return h.Watch(ctx, ready, failed)
}
func (fakeHost) Watch(ctx context.Context, ready chan<- struct{}, _ func(error)) error {
	close(ready)
	<-ctx.Done()
	return ctx.Err()
}

type fakeTable struct{ there bool }

func (t *fakeTable) Ensure([]exceptions.Pair) error { return nil }
func (t *fakeTable) Remove() (bool, error)          { was := t.there; t.there = false; return was, nil }

// fakeFirewall has the rules that a test wants.
type fakeFirewall struct{ rules []firewall.Finding }

func (f *fakeFirewall) Inspect(firewall.Traffic) (firewall.Report, error) {
	return firewall.Report{Bypassed: f.rules}, nil
}
func (f *fakeFirewall) DockerIPv6() (bool, error) { return false, nil }
func (f *fakeFirewall) Changes() <-chan struct{}  { return nil }
func (f *fakeFirewall) Watch(ctx context.Context, ready chan<- struct{}, _ func(error)) error {
	close(ready)
	<-ctx.Done()
	return ctx.Err()
}

// fakeDocker is a picture that does not change.
type fakeDocker struct{ picture docker.Snapshot }

func (d fakeDocker) Snapshot() docker.Snapshot { return d.picture }
func (d fakeDocker) Changes() <-chan struct{}  { return nil }
func (d fakeDocker) Watch(ctx context.Context, ready chan<- struct{}) error {
	close(ready)
	<-ctx.Done()
	return ctx.Err()
}

// locked is a buffer for a command that runs while the test reads.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *locked) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

type world struct {
	dp       *dataplanetest.Dataplane
	openErr  error
	opened   dataplane.Options
	purgeErr error
	table    fakeTable
	firewall fakeFirewall
	docker   fakeDocker
	socket   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{dp: dataplanetest.New(), socket: filepath.Join(t.TempDir(), "conenat.sock")}
}

// run is one command in the world: its exit code and what it printed.
func (w *world) run(ctx context.Context, args ...string) (int, string, string) {
	var stdout, stderr locked
	code := w.start(ctx, &stdout, &stderr, args...)
	return code, stdout.String(), stderr.String()
}

func (w *world) start(ctx context.Context, stdout, stderr *locked, args ...string) int {
	return execute(ctx, env{args: args, stdout: stdout, stderr: stderr,
		open: func(o dataplane.Options) (daemon.Dataplane, error) {
			w.opened = o
			if w.openErr != nil {
				return nil, w.openErr
			}
			return w.dp, nil
		},
		purge: func(_ string, before ...func() error) (dataplane.RemoveReport, error) {
			for _, f := range before {
				if w.purgeErr == nil {
					if err := f(); err != nil {
						return dataplane.RemoveReport{}, err
					}
				}
			}
			return dataplane.RemoveReport{Links: 3, Pins: 9}, w.purgeErr
		},
		table:    func(string) daemon.Exceptions { return &w.table },
		host:     func() daemon.Host { return fakeHost{} },
		firewall: func() daemon.Firewall { return &w.firewall },
		docker:   func(_, _ [3]dataplane.Behavior) (daemon.Docker, error) { return w.docker, nil },
	})
}

// daemon runs `conenat run` until the test ends; the extra arguments are the daemon's.
func (w *world) daemon(t *testing.T, args ...string) *locked {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var stdout, stderr locked
	done := make(chan int, 1)
	go func() {
		done <- w.start(ctx, &stdout, &stderr, append([]string{"run", "--inside", "br0", "--socket", w.socket}, args...)...)
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != exitDone {
			t.Errorf("run: exit code %d: %s", code, stderr.String())
		}
	})
	for range 500 {
		if strings.Contains(stderr.String(), "msg=ready") {
			return &stderr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not ready: %s", stderr.String())
	return nil
}

func (w *world) client(args ...string) (int, string, string) {
	return w.run(context.Background(), append(args, "--socket", w.socket)...)
}

func TestWrongUsage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("inside: [br0]\ninsdie: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		want string // in stderr
	}{
		{"bogus", `unknown command "bogus"`},
		{"run extra --inside br0", "unknown command"},
		{"run --inside br0 --bogus", "unknown flag: --bogus"},
		{"run", "no inside interface: follow Docker's networks by --docker"},
		{"run --inside br0 --mapping symmetric", "--mapping: unknown behaviour"},
		{"run --inside br0 --path sideways", "want auto, direct or stack"},
		{"run --inside br0 --xdp generic", "--xdp: xdp \"generic\": want auto, off or gateway"},
		{"run --inside br0 --unsolicited reject", "--unsolicited: unsolicited \"reject\": want pass or drop"},
		{"run --inside br0 --external 198.51.100.1 --external 198.51.100.1", "external address 198.51.100.1 is given twice"},
		{"run --inside br0 --external host", "--external: \"host\" are no external addresses"},
		{"run --inside br0 --filtering full-cone", "--filtering: unknown behaviour"},
		{"run --inside br0 --ports 5-1", "--ports: "},
		{"run --inside br0 --outside br0", "cannot be inside and outside"},
		{"run --inside br0 --socket rel.sock", "want an absolute path"},
		{"run --inside br0 --disable-feature warp", "unknown feature \"warp\""},
		{"run --config " + bad, bad + `:2:1: unknown field "insdie"`},
		{"status extra", "unknown command"},
		{"status -o yaml", "want table or json"},
		{"events -o table", "want text or json"},
		{"events --since yesterday", "--since: "},
		{"events --type binding.craeted", "--type: unknown event type"},
		{"forward", "add, list or remove"},
		{"forward bogus", "unknown command"},
		{"forward add 198.51.100.1:80", "accepts 2 arg(s)"},
		{"forward add 2001:db8::1:80 [fd00::2]:80", "is no endpoint"},
		{"forward add [2001:db8::1]:80 172.17.0.2:80", "want both endpoints of IPv4, or both of IPv6"},
		{"forward add 198.51.100.1 172.17.0.2:80", "is no endpoint"},
		{"forward add --protocol icmp 198.51.100.1:80 172.17.0.2:80", "want tcp or udp"},
		{"forward remove", "accepts 1 arg(s)"},
		{"forward remove 8080", "want PROTOCOL/ADDR:PORT"},
		{"detach --state-dir rel", "want an absolute path"},
		{"lab up", "conenat lab arrives with a later version"},
	}
	for _, tt := range tests {
		t.Run(strings.NewReplacer(" ", "_", "/", "_").Replace(tt.args), func(t *testing.T) {
			code, stdout, stderr := newWorld(t).run(t.Context(), strings.Fields(tt.args)...)
			if code != exitUsage || !strings.Contains(stderr, tt.want) || stdout != "" {
				t.Errorf("exit code %d\nstdout %q\nstderr %q\nwant %q", code, stdout, stderr, tt.want)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	tests := []struct {
		name, args string
		world      func(w *world)
		want       string
	}{
		{"unknown_interface", "run --inside br9", nil, "inside interface br9 does not exist"},
		{"no_config", "run --config /none.yaml", nil, "read the configuration: "},
		{"no_privilege", "run --inside br0", func(w *world) { w.openErr = dataplane.ErrPermission }, "permission denied"},
		{"state_in_use", "run --inside br0", func(w *world) { w.openErr = dataplane.ErrInUse }, "in use by another conenat"},
		{"no_daemon", "bindings", nil, "is `conenat run` active?"},
		{"no_daemon_for_events", "events --follow", nil, "is `conenat run` active?"},
		{"detach_in_use", "detach", func(w *world) { w.purgeErr = dataplane.ErrInUse }, "stop the daemon first"},
		{"detach_fails", "detach", func(w *world) { w.purgeErr = errors.New("broken") }, "broken"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.world != nil {
				tt.world(w)
			}
			code, stdout, stderr := w.client(strings.Fields(tt.args)...)
			if code != exitFailed || !strings.Contains(stderr, tt.want) || stdout != "" {
				t.Errorf("exit code %d\nstdout %q\nstderr %q\nwant %q", code, stdout, stderr, tt.want)
			}
			if _, err := os.Stat(w.socket); !os.IsNotExist(err) {
				t.Error("a socket is left")
			}
		})
	}
}

func TestDetach(t *testing.T) {
	tests := []struct {
		name  string
		err   error
		table bool
		want  string
	}{
		{"everything", nil, true, "detached: 3 interfaces and 9 pins\n"},
		{"table_alone", dataplane.ErrNotFound, true, "detached: a left-over nftables table\n"},
		{"nothing", dataplane.ErrNotFound, false, "nothing to detach\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.purgeErr, w.table.there = tt.err, tt.table
			if code, stdout, stderr := w.client("detach"); code != exitDone || stdout != tt.want || w.table.there {
				t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
			}
		})
	}
}

// fakePinned is what a daemon has left; replaced is what the host's connection tracking was given for it.
type fakePinned struct {
	sessions []dataplane.Session
	yielded  bool
	replaced []conntrack.Flow
	refuses  int
}

func (p *fakePinned) Sessions() ([]dataplane.Session, error) { return p.sessions, nil }
func (p *fakePinned) Yield() error                           { p.yielded = true; return nil }
func (p *fakePinned) Close() error                           { return nil }
func (p *fakePinned) Forget([]conntrack.Flow) error          { return nil }

func (p *fakePinned) List() ([]conntrack.Flow, error) { return nil, nil }
func (p *fakePinned) Replace(flows []conntrack.Flow) (int, error) {
	if !p.yielded {
		return 0, errors.New("sessions are not marked")
	}
	p.replaced = flows
	if p.refuses > 0 {
		return len(flows) - p.refuses, errors.New("a conflict")
	}
	return len(flows), nil
}

// TestHandBack: what is handed back, as what, and what detach says of the rest.
func TestHandBack(t *testing.T) {
	internal, external, remote := netip.MustParseAddrPort("172.17.0.2:1000"), netip.MustParseAddrPort("198.51.100.1:2000"), netip.MustParseAddrPort("203.0.113.1:80")
	session := func(p dataplane.Protocol, network, state string) dataplane.Session {
		return dataplane.Session{Protocol: p, Network: network, Internal: internal, External: external, Remote: remote, State: state, ExpiresIn: time.Minute}
	}
	hairpin := session(dataplane.UDP, "bridge", "active")
	hairpin.Hairpin = true
	all := []dataplane.Session{
		session(dataplane.TCP, "bridge", "established"), session(dataplane.TCP, "bridge", "fin-inside"), session(dataplane.UDP, "bridge", "active"),
		session(dataplane.ICMP, "bridge", "active"), session(dataplane.TCP, dataplane.HostNetwork, "established"), hairpin, hairpin,
		session(dataplane.TCP, "bridge", "init-inside"), session(dataplane.TCP, "bridge", "trans"), session(dataplane.TCP, "bridge", "fin-both"),
		session(unix.IPPROTO_ICMPV6, "bridge", "active"), session(dataplane.GRE, "bridge", "active"),
	}
	tests := []struct {
		name     string
		sessions []dataplane.Session
		refuses  int
		want     string
	}{
		{"none", nil, 0, ""},
		{"all", all[:3], 0, "handed back to the host's NAT: 3 connections"},
		{"some", all, 0, "handed back to the host's NAT: 3 connections; not handed back: 1 half open, 1 of the host's own, 1 without ports, 2 hairpins, 2 pings"},
		{"refused", all[:3], 1, "handed back to the host's NAT: 2 connections; not handed back: 1 refused by the host's NAT; connections may end: a conflict"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state := &fakePinned{sessions: tt.sessions, refuses: tt.refuses}
			e := env{conntrack: state, pinned: func(string) (pinned, error) { return state, nil }}
			if got := e.handBack("/state").String(); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			for _, f := range state.replaced {
				want := conntrack.Flow{Protocol: f.Protocol, SourceNAT: true, Timeout: time.Minute,
					Original: conntrack.Tuple{Src: internal, Dst: remote}, Reply: conntrack.Tuple{Src: remote, Dst: external}}
				if f != want {
					t.Errorf("%+v, want %+v", f, want)
				}
			}
		})
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	root := rootCommand(env{})
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			visit(sub)
		}
		if c.Example == "" && !strings.Contains(c.Short, "later version") && c.Name() != "help" && c.Name() != "completion" {
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
	visit(root)
}

func TestVersion(t *testing.T) {
	code, stdout, _ := newWorld(t).run(t.Context(), "version")
	if code != exitDone || !strings.HasPrefix(stdout, "conenat ") {
		t.Errorf("%d %q", code, stdout)
	}
}

func TestRunHandsItsFlagsDown(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "conenat.yaml")
	yaml := "mapping: {tcp: address-dependent}\nfiltering: endpoint-independent\nports: 2000-3000\ncapacity: {sessions: 100, bindings: 64}\ntimeouts: {udp: 2s}\n"
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	log := w.daemon(t, "--config", file, "--state-dir", "/sys/fs/bpf/x", "--ports", "4000-5000", "--verifier-log", "--disable-feature", "tcx")
	w.opened.Logger = nil
	want := dataplane.Options{StateDir: "/sys/fs/bpf/x", Capacity: dataplane.Capacity{Sessions: 100, Bindings: 64}, VerifierLog: true, DisableFeatures: []string{"tcx"}}
	if diff := cmp.Diff(want, w.opened); diff != "" {
		t.Error(diff)
	}
	settings, _ := w.dp.Settings()
	networks, _ := w.dp.Networks()
	if settings.PortLow != 4000 || settings.PortHigh != 5000 || networks[0].Filtering != [3]dataplane.Behavior{} ||
		networks[0].Mapping != [3]dataplane.Behavior{dataplane.BehaviorTCP: dataplane.AddressDependent} {
		t.Errorf("%+v %+v", settings, networks)
	}
	for _, want := range []string{"2s is shorter than the 2m0s that RFC 4787 REQ-5 demands",
		"1:16: address-dependent mapping of tcp is not the endpoint-independent one that RFC 5382 REQ-1 demands"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no warning %q: %s", want, log)
		}
	}
}

// traffic is a binding with a session, and a forward.
func traffic(t *testing.T, w *world) {
	t.Helper()
	in, out := netip.MustParseAddrPort("172.17.0.2:5000"), netip.MustParseAddrPort("198.51.100.1:5000")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w.dp.OpenBinding(dataplane.Binding{Protocol: dataplane.UDP, Network: "br0", Internal: in, External: out, Created: at, ExpiresIn: 5 * time.Minute})
	w.dp.OpenSession(dataplane.Session{Protocol: dataplane.UDP, Network: "br0", Internal: in, External: out, Created: at,
		Remote: netip.MustParseAddrPort("203.0.113.1:9"), State: "active", ExpiresIn: 299 * time.Second})
	if code, id, stderr := w.client("forward", "add", "198.51.100.1:80", "172.17.0.2:80"); code != exitDone || id != "tcp/198.51.100.1:80\n" {
		t.Fatalf("forward add: %d %q %q", code, id, stderr)
	}
}

func TestTables(t *testing.T) {
	w := newWorld(t)
	w.dp.SetCounters(dataplane.Counter{Name: "translated_outbound", Verdict: "translated", Packets: 7}, dataplane.Counter{Name: "spoofed", Verdict: "dropped"})
	w.daemon(t)
	traffic(t, w)
	w.dp.OpenBinding(dataplane.Binding{Protocol: dataplane.UDP, Network: "br0", Internal: netip.MustParseAddrPort("172.17.0.2:5001"),
		External: netip.MustParseAddrPort("198.51.100.1:7777"), Remote: netip.MustParseAddrPort("203.0.113.1:0"), ExpiresIn: 5 * time.Minute})
	tests := []struct{ args, want string }{
		{"bindings", `NETWORK  PROTOCOL  INTERNAL         EXTERNAL           REMOTE       KIND     SESSIONS  EXPIRES IN
br0      tcp       172.17.0.2:80    198.51.100.1:80    any          static   0         never
br0      udp       172.17.0.2:5000  198.51.100.1:5000  any          dynamic  1         5m0s
br0      udp       172.17.0.2:5001  198.51.100.1:7777  203.0.113.1  dynamic  0         5m0s
`},
		{"sessions", `NETWORK  PROTOCOL  INTERNAL         EXTERNAL           REMOTE         STATE   EXPIRES IN
br0      udp       172.17.0.2:5000  198.51.100.1:5000  203.0.113.1:9  active  4m59s
`},
		{"networks", `NAME  INTERFACE  DRIVER  STATE   PREFIXES       PORTS  OUTSIDE  MAPPING               FILTERING          USED PORTS  SESSIONS  PER HOST
br0   br0        bridge  active  172.17.0.0/16  veth0  eth0     endpoint-independent  address-dependent  2           1         16384 ports, 65536 sessions
`},
		{"forward list", `ID                   NETWORK  INTERNAL       STATE
tcp/198.51.100.1:80  br0      172.17.0.2:80  active
`},
	}
	for _, tt := range tests {
		code, stdout, stderr := w.client(strings.Fields(tt.args)...)
		if diff := cmp.Diff(tt.want, stdout); code != exitDone || diff != "" {
			t.Errorf("%s: %d %s%s", tt.args, code, stderr, diff)
		}
	}
	_, status, _ := w.client("status")
	for _, want := range []string{"outside      eth0 (index 2), external address 198.51.100.1, active\n", "bindings     3 of 512\n", "translated  translated_outbound  7\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("status without %q:\n%s", want, status)
		}
	}
	if strings.Contains(status, "spoofed") || strings.Contains(status, "WARNINGS") {
		t.Errorf("status:\n%s", status)
	}
}

func TestJSON(t *testing.T) {
	w := newWorld(t)
	w.daemon(t)
	for _, args := range []string{"bindings", "forward list"} {
		if _, stdout, _ := w.client(append(strings.Fields(args), "-o", "json")...); stdout != "[]\n" {
			t.Errorf("%s of nothing: %q", args, stdout)
		}
	}
	traffic(t, w)
	for args, n := range map[string]int{"status": 1, "bindings": 2, "sessions": 1, "networks": 1, "forward list": 1} {
		_, stdout, _ := w.client(append(strings.Fields(args), "-o", "json")...)
		var list []map[string]any
		if err := json.Unmarshal([]byte(stdout), &list); err != nil || len(list) != n {
			t.Errorf("%s: %v: %s", args, err, stdout)
		}
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	w.daemon(t)
	traffic(t, w)
	time.Sleep(50 * time.Millisecond) // for the watcher to read what was emitted
	_, text, _ := w.client("events")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines:\n%s", len(lines), text)
	}
	for i, want := range []string{
		"  binding.created   udp   br0              172.17.0.2:5000       -> 198.51.100.1:5000      sessions 0",
		"  session.created   udp   br0              172.17.0.2:5000       -> 198.51.100.1:5000      remote 203.0.113.1:9          active, expires in 0s",
		"  binding.created   tcp   br0              172.17.0.2:80         -> 198.51.100.1:80        static, sessions 0",
	} {
		if !strings.HasSuffix(lines[i], want) {
			t.Errorf("line %d is\n%s\nnot\n%s", i, lines[i], want)
		}
	}
	_, stdout, _ := w.client("events", "-o", "json", "--type", "session.created")
	var ev api.Event
	if err := json.Unmarshal([]byte(stdout), &ev); err != nil || ev.Remote != "203.0.113.1:9" || strings.Count(stdout, "\n") != 1 {
		t.Errorf("%v: %s", err, stdout)
	}
}

func TestAnInterruptedFollowIsDone(t *testing.T) {
	w := newWorld(t)
	w.daemon(t)
	traffic(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	var stdout, stderr locked
	done := make(chan int)
	go func() {
		done <- w.start(ctx, &stdout, &stderr, "events", "--follow", "--since", "all", "--socket", w.socket)
	}()
	for range 500 {
		if strings.Count(stdout.String(), "\n") == 3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != exitDone || strings.Count(stdout.String(), "\n") != 3 || stderr.String() != "" {
		t.Errorf("exit code %d\n%s\n%s", code, stdout.String(), stderr.String())
	}
}

func TestRefusalsOfTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.daemon(t)
	traffic(t, w)
	tests := []struct{ args, want string }{
		{"forward add 198.51.100.1:80 172.17.0.3:80", "external endpoint is bound already, by the forward to 172.17.0.2:80"},
		{"forward add 192.0.2.1:80 172.17.0.3:80", "not found"},
		{"forward remove udp/198.51.100.1:80", "not found"},
		{"run --inside br0", "in use by a running conenat"},
	}
	for _, tt := range tests {
		if code, _, stderr := w.client(strings.Fields(tt.args)...); code != exitFailed || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: %d %q, want %q", tt.args, code, stderr, tt.want)
		}
	}
	w.purgeErr = dataplane.ErrInUse
	if code, _, stderr := w.client("detach"); code != exitFailed || !strings.Contains(stderr, "(pid ") {
		t.Errorf("detach: %d %q", code, stderr)
	}
	if code, _, stderr := w.client("forward", "remove", "tcp/198.51.100.1:80"); code != exitDone {
		t.Errorf("forward remove: %d %q", code, stderr)
	}
}
