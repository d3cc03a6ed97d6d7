// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/api/client"
	"github.com/conenat/conenat/control/watch"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// backend answers from memory.
type backend struct {
	*dataplanetest.Dataplane
	*watch.Watcher
	forwards []api.Forward
}

func (b *backend) Status() (api.Status, error) { return api.Status{PID: 42, Warnings: []string{}}, nil }
func (b *backend) Networks() ([]api.Network, error) {
	return nil, errors.New("the dataplane is broken")
}
func (b *backend) Forwards() ([]api.Forward, error) { return b.forwards, nil }
func (b *backend) AddForward(f dataplane.Forward) (api.Forward, error) {
	switch f.External.Port() {
	case 1:
		return api.Forward{}, fmt.Errorf("forward: %w", dataplane.ErrPortTaken)
	case 2:
		return api.Forward{}, fmt.Errorf("forward: %w", dataplane.ErrNotFound)
	}
	return api.Forward{ID: f.Protocol.String() + "/" + f.External.String(), Network: f.Network, Active: f.OverHostSocket}, nil
}
func (b *backend) RemoveForward(p dataplane.Protocol, external netip.AddrPort) error {
	if p == dataplane.TCP && external.Port() == 8080 {
		return nil
	}
	return fmt.Errorf("remove forward: %w", dataplane.ErrNotFound)
}

func newBackend() *backend {
	d := dataplanetest.New()
	return &backend{Dataplane: d, Watcher: watch.New(d, 0, quiet)}
}

func TestStatusCodes(t *testing.T) {
	tests := []struct {
		name, method, path, body string
		status                   int
		want                     string // in the answer
	}{
		{"status", "GET", "/v1/status", "", 200, `[{"version":"","pid":42`},
		{"empty_list", "GET", "/v1/bindings", "", 200, `[]`},
		{"empty_forwards", "GET", "/v1/forwards", "", 200, `[]`},
		{"no_path", "GET", "/v2/status", "", 404, `{"error":"no such path: /v2/status"}`},
		{"no_method", "POST", "/v1/status", "", 405, `{"error":"POST is not possible`},
		{"no_method_on_a_forward", "GET", "/v1/forwards/tcp/198.51.100.1:8080", "", 405, `{"error":`},
		{"unknown_parameter", "GET", "/v1/bindings?netwrok=x", "", 400, `{"error":"unknown parameter \"netwrok\""}`},
		{"broken", "GET", "/v1/networks", "", 500, `{"error":"the dataplane is broken"}`},
		{"add", "POST", "/v1/forwards", `{"external":"198.51.100.1:80","internal":"172.17.0.2:80"}`, 201, `"id":"tcp/198.51.100.1:80"`},
		{"add_over", "POST", "/v1/forwards", `{"protocol":"udp","network":"br0","external":"198.51.100.1:80","internal":"172.17.0.2:80","over_host_socket":true}`, 201, `"active":true`},
		{"add_taken", "POST", "/v1/forwards", `{"external":"198.51.100.1:1","internal":"172.17.0.2:80"}`, 409, "bound already"},
		{"add_nowhere", "POST", "/v1/forwards", `{"external":"198.51.100.1:2","internal":"172.17.0.2:80"}`, 404, "not found"},
		{"add_IPv6", "POST", "/v1/forwards", `{"external":"[2001:db8::1]:80","internal":"[fd00::2]:80"}`, 201, `"id":"tcp/[2001:db8::1]:80"`},
		{"add_of_two_families", "POST", "/v1/forwards", `{"external":"198.51.100.1:80","internal":"[fd00::2]:80"}`, 400, "want both endpoints of IPv4"},
		{"add_of_a_link", "POST", "/v1/forwards", `{"external":"[fe80::1]:80","internal":"[fd00::2]:80"}`, 400, "one of a link alone"},
		{"add_mapped", "POST", "/v1/forwards", `{"external":"[::ffff:198.51.100.1]:80","internal":"172.17.0.2:80"}`, 400, "write 198.51.100.1:80"},
		{"add_nonsense", "POST", "/v1/forwards", `{"external":"198.51.100.1"}`, 400, "is no endpoint"},
		{"add_icmp", "POST", "/v1/forwards", `{"protocol":"icmp","external":"198.51.100.1:2","internal":"172.17.0.2:80"}`, 400, "want tcp or udp"},
		{"add_unknown_field", "POST", "/v1/forwards", `{"extrenal":"x"}`, 400, "unknown field"},
		{"add_trailing", "POST", "/v1/forwards", `{"external":"198.51.100.1:80","internal":"172.17.0.2:80"} x`, 400, "behind the JSON object"},
		{"add_nothing", "POST", "/v1/forwards", ``, 400, "read the body"},
		{"add_large", "POST", "/v1/forwards", `{"external":"` + strings.Repeat("x", 70000) + `"}`, 413, "larger than"},
		{"remove", "DELETE", "/v1/forwards/tcp/198.51.100.1:8080", "", 204, ""},
		{"remove_IPv6", "DELETE", "/v1/forwards/tcp/%5B2001:db8::1%5D:8080", "", 204, ""},
		{"remove_escaped", "DELETE", "/v1/forwards/tcp%2F198.51.100.1%3A8080", "", 204, ""},
		{"remove_unknown", "DELETE", "/v1/forwards/udp/198.51.100.1:8080", "", 404, "not found"},
		{"remove_nonsense", "DELETE", "/v1/forwards/8080", "", 400, "want PROTOCOL/ADDR:PORT"},
		{"events_type", "GET", "/v1/events?type=binding.craeted", "", 400, "unknown event type"},
		{"events_since", "GET", "/v1/events?since=yesterday", "", 400, "want a duration"},
		{"events_follow", "GET", "/v1/events?follow=maybe", "", 400, "want 1 or 0"},
		{"events", "GET", "/v1/events?since=5m&type=binding.created&type=binding.expired", "", 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			api.Handler(newBackend()).ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("%d %s, want %d %s", w.Code, w.Body, tt.status, tt.want)
			}
		})
	}
}

func TestEventOf(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	in, out, remote := netip.MustParseAddrPort("172.17.0.2:5000"), netip.MustParseAddrPort("198.51.100.1:5000"), netip.MustParseAddrPort("203.0.113.1:1")
	ev := dataplane.Event{Time: at, Protocol: dataplane.UDP, Network: "br0", Internal: in, External: out, Remote: remote, State: "active", OldState: "new",
		Lifetime: 300 * time.Second, Count: 3}
	const prefix = `{"time":"2026-01-02T03:04:05.000006Z","type":`
	const common = `"protocol":"udp","network":"br0","internal":"172.17.0.2:5000","external":"198.51.100.1:5000"`
	tests := map[dataplane.EventType]string{
		dataplane.BindingCreated:  prefix + `"binding.created",` + common + `,"remote":"203.0.113.1:1","static":false,"sessions":0}`,
		dataplane.SessionCreated:  prefix + `"session.created",` + common + `,"remote":"203.0.113.1:1","hairpin":false,"state":"active","old_state":"new","expires_in_s":300}`,
		dataplane.SessionClosed:   prefix + `"session.closed",` + common + `,"remote":"203.0.113.1:1","hairpin":false,"state":"active","old_state":"new"}`,
		dataplane.InboundFiltered: prefix + `"inbound.filtered",` + common + `,"remote":"203.0.113.1:1","count":3}`,
		dataplane.EventsLost:      prefix + `"events.lost","count":3}`,
	}
	for typ, want := range tests {
		ev.Type = typ
		got, _ := json.Marshal(api.EventOf(ev))
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Error(diff)
		}
	}
}

// TestBindingRemote: what a mapping depends on is shown where there is something.
func TestBindingRemote(t *testing.T) {
	for want, remote := range map[string]netip.AddrPort{
		"": {}, "203.0.113.1": netip.MustParseAddrPort("203.0.113.1:0"), "203.0.113.1:1": netip.MustParseAddrPort("203.0.113.1:1"),
	} {
		b, ev := api.BindingOf(dataplane.Binding{Remote: remote}), api.EventOf(dataplane.Event{Type: dataplane.BindingExpired, Remote: remote})
		if b.Remote != want || ev.Remote != want {
			t.Errorf("remote %v: binding %q, event %q, want %q", remote, b.Remote, ev.Remote, want)
		}
		if text, _ := json.Marshal(b); strings.Contains(string(text), "remote") != (want != "") {
			t.Errorf("remote %v: %s", remote, text)
		}
	}
}

func TestListsAreInOrder(t *testing.T) {
	b := func(network string, p dataplane.Protocol, internal string) dataplane.Binding {
		return dataplane.Binding{Network: network, Protocol: p, Internal: netip.MustParseAddrPort(internal)}
	}
	got := api.BindingsOf([]dataplane.Binding{
		b("b", dataplane.TCP, "10.0.0.1:1"), b("a", dataplane.UDP, "10.0.0.1:1"), b("a", dataplane.TCP, "10.0.0.10:1"), b("a", dataplane.TCP, "10.0.0.9:1"),
	})
	var order []string
	for _, b := range got {
		order = append(order, b.Network+b.Protocol+b.Internal)
	}
	if diff := cmp.Diff([]string{"atcp10.0.0.9:1", "atcp10.0.0.10:1", "audp10.0.0.1:1", "btcp10.0.0.1:1"}, order); diff != "" {
		t.Error(diff)
	}
}

// serving starts the API of a backend on a socket, and gives a client of it and what ends it.
func serving(t *testing.T, b *backend) (*client.Client, func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "conenat.sock")
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, b, quiet) }()
	stop := func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
		done <- context.Canceled
	}
	t.Cleanup(stop)
	return client.New(path), stop
}

func TestFollowingOverTheSocket(t *testing.T) {
	b := newBackend()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = b.Run(ctx) }()
	c, stop := serving(t, b)
	open := func(port uint16) {
		ep := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), port)
		b.OpenBinding(dataplane.Binding{Protocol: dataplane.UDP, Internal: ep, External: ep})
		b.OpenSession(dataplane.Session{Protocol: dataplane.UDP, Internal: ep, External: ep, Remote: ep})
	}
	open(1)
	next := uint16(1)
	err := c.Events(ctx, client.EventQuery{Follow: true, Since: "all", Types: []string{"binding.created"}}, func(line []byte, ev api.Event) error {
		if want := fmt.Sprintf("198.51.100.1:%d", next); ev.External != want || ev.Type != "binding.created" || !bytes.Contains(line, []byte(want)) {
			t.Errorf("got %s, want %s", line, want)
		}
		next++
		if next > 100 {
			go stop()
			return nil
		}
		open(next)
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "the daemon stopped") {
		t.Errorf("got %v", err)
	}
}

func TestClient(t *testing.T) {
	b := newBackend()
	c, _ := serving(t, b)
	ctx := t.Context()
	if st, err := c.Status(ctx); err != nil || len(st) != 1 || st[0].PID != 42 {
		t.Errorf("status: %+v %v", st, err)
	}
	if f, err := c.AddForward(ctx, api.ForwardRequest{External: "198.51.100.1:80", Internal: "172.17.0.2:80"}); err != nil || f.ID != "tcp/198.51.100.1:80" {
		t.Errorf("add: %+v %v", f, err)
	}
	if err := c.RemoveForward(ctx, "tcp/198.51.100.1:8080"); err != nil {
		t.Errorf("remove: %v", err)
	}
	var refusal *client.Error
	if err := c.RemoveForward(ctx, "tcp/198.51.100.1:81"); !errors.As(err, &refusal) || refusal.Status != http.StatusNotFound {
		t.Errorf("remove: %v", err)
	}
	nobody := client.New(filepath.Join(t.TempDir(), "none.sock"))
	if _, err := nobody.Bindings(ctx); !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "is `conenat run` active?") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "conenat.sock")
	first, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", info.Mode())
	}
	if _, err := api.Listen(path); !errors.Is(err, api.ErrSocketInUse) {
		t.Errorf("second daemon: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // killed
	first.Close()
	again, err := api.Listen(path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	again.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("the socket is still there")
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if content, _ := os.ReadFile(file); string(content) != "x" {
		t.Error("the file is gone")
	}
	if _, err := api.Listen(filepath.Join(dir, strings.Repeat("x", 120))); err == nil || !strings.Contains(err.Error(), "at most 107 bytes") {
		t.Errorf("a long path: %v", err)
	}
}
