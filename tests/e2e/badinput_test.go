// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

// runs starts `conenat run` where it must refuse, and returns what it said and its exit code.
func runs(t *testing.T, c *harness.Conenat, ns *topo.NS, args ...string) (string, int) {
	t.Helper()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience.For(time.Minute)) // one that does not refuse runs for ever
	defer cancel()
	out, err := ns.Command(ctx, binary, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	t.Fatalf("conenat %s did not refuse: %v: %s", strings.Join(args, " "), err, out)
	return "", 0
}

// TestRunRefuses: a clear error, the contract's exit code, nothing half done.
func TestRunRefuses(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	c := harness.Place(t, f.Topo, f.Host)
	base := []string{"run", "--state-dir", c.StateDir, "--socket", c.Socket}
	notSocket := filepath.Join(f.Dir(), "file")
	if err := os.WriteFile(notSocket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	badConfig := filepath.Join(f.Dir(), "bad.yaml")
	if err := os.WriteFile(badConfig, []byte("inside: [docker0]\ntimeouts:\n  udp: banana\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"UnknownInside":    {[]string{"--inside", "nosuch0"}, 1, "nosuch0"},
		"UnknownOutside":   {[]string{"--inside", "docker0", "--outside", "nosuch1"}, 1, "nosuch1"},
		"ForeignExternal":  {[]string{"--inside", "docker0", "--external", "192.0.2.9"}, 1, "192.0.2.9"},
		"SameBothSides":    {[]string{"--inside", "docker0", "--outside", "docker0"}, 2, "docker0"},
		"MissingFeature":   {[]string{"--inside", "docker0", "--disable-feature", "kernel"}, 1, "bpf_loop"},
		"SocketIsAFile":    {[]string{"--inside", "docker0", "--socket", notSocket}, 1, notSocket},
		"BadFiltering":     {[]string{"--inside", "docker0", "--filtering", "banana"}, 2, "banana"},
		"BadPorts":         {[]string{"--inside", "docker0", "--ports", "5000-4000"}, 2, "5000-4000"},
		"NoInside":         {nil, 2, "--inside"},
		"UnknownFlag":      {[]string{"--inside", "docker0", "--banana"}, 2, "--banana"},
		"BadMapping":       {[]string{"--inside", "docker0", "--mapping", "banana"}, 2, "banana"},
		"BadPath":          {[]string{"--inside", "docker0", "--path", "banana"}, 2, "banana"},
		"BadConfig":        {[]string{"--config", badConfig}, 2, "bad.yaml:3"},
		"ConfigNotThere":   {[]string{"--config", "/nonexistent.yaml"}, 1, "/nonexistent.yaml"},
		"StrayArgument":    {[]string{"--inside", "docker0", "stray"}, 2, "stray"},
		"FeatureIsUnknown": {[]string{"--inside", "docker0", "--disable-feature", "banana"}, 2, "banana"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := runs(t, c, f.Host, append(base, tc.args...)...)
			if code != tc.code || !strings.Contains(out, tc.says) {
				t.Errorf("exit code %d, want %d; says %q, want %q in it", code, tc.code, out, tc.says)
			}
			for _, path := range []string{c.StateDir, c.Socket} {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is there: %v", path, err)
				}
			}
			checkNoHooks(t, f.Host)
		})
	}
	if got, err := os.ReadFile(notSocket); err != nil || string(got) != "precious" {
		t.Errorf("the file in the socket's place: %q, %v", got, err)
	}
}

func checkNoHooks(t *testing.T, host *topo.NS) {
	t.Helper()
	qdiscs, err := host.Run(context.Background(), "", "tc", "qdisc", "show")
	if err != nil || strings.Contains(qdiscs, "clsact") {
		t.Errorf("qdiscs: %s, %v", qdiscs, err)
	}
	tables, err := host.Run(context.Background(), "", "nft", "list", "tables")
	if err != nil || strings.Contains(tables, "conenat") {
		t.Errorf("nft tables: %s, %v", tables, err)
	}
}

// TestSecondDaemon: neither the state directory nor the socket can be had twice; the first one goes on.
func TestSecondDaemon(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 1}, "")
	other := filepath.Join(l.Dir(), "other.sock")
	if out, code := runs(t, l.Conenat, l.Host, "run", "--inside", "docker0", "--state-dir", l.StateDir, "--socket", other); code != 1 || !strings.Contains(out, l.StateDir) {
		t.Errorf("same state directory: exit code %d: %s", code, out)
	}
	if out, code := runs(t, l.Conenat, l.Host, "run", "--inside", "docker0", "--state-dir", l.StateDir+"2", "--socket", l.Socket); code != 1 || !strings.Contains(out, l.Socket) {
		t.Errorf("same socket: exit code %d: %s", code, out)
	}
	if out, code := l.Try("detach", "--state-dir", l.StateDir); code != 1 || !strings.Contains(out, "in use") {
		t.Errorf("detach under a running daemon: exit code %d: %s", code, out)
	}
	c, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	l.send(c, at(topo.Peer1Addr, 3478), "still here")
	l.receives(peer, "still here")
	if l.Counter("translated_outbound") == 0 {
		t.Error("the first daemon's dataplane translates no more")
	}
}

// TestForwardRefuses: a clear error and nothing changed.
func TestForwardRefuses(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 2}, "")
	l.serve(l.host, 8000)
	c, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	l.send(c, at(topo.Peer1Addr, 3478), "x")
	l.receives(peer, "x")
	l.Client("forward", "add", "198.51.100.1:8080", "172.17.0.2:80")
	before := withoutTimes(l.Bindings())
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"TakenByStatic":    {[]string{"add", "198.51.100.1:8080", "172.17.0.3:80"}, 1, "8080"},
		"TakenByDynamic":   {[]string{"add", "--protocol", "udp", "198.51.100.1:20000", "172.17.0.3:80"}, 1, "20000"},
		"HostListens":      {[]string{"add", "198.51.100.1:8000", "172.17.0.3:80"}, 1, "socket"},
		"NotExternal":      {[]string{"add", "192.0.2.1:8081", "172.17.0.3:80"}, 1, "192.0.2.1"},
		"InternalOutside":  {[]string{"add", "198.51.100.1:8081", "10.0.0.1:80"}, 1, "10.0.0.1"},
		"UnknownNetwork":   {[]string{"add", "--network", "nosuch", "198.51.100.1:8081", "172.17.0.3:80"}, 1, "nosuch"},
		"NoPort":           {[]string{"add", "198.51.100.1", "172.17.0.3:80"}, 2, "198.51.100.1"},
		"BadProtocol":      {[]string{"add", "--protocol", "sctp", "198.51.100.1:8081", "172.17.0.3:80"}, 2, "sctp"},
		"OneArgument":      {[]string{"add", "198.51.100.1:8081"}, 2, "arg"},
		"RemoveUnknown":    {[]string{"remove", "tcp/198.51.100.1:9999"}, 1, "9999"},
		"RemoveNonsense":   {[]string{"remove", "banana"}, 2, "banana"},
		"UnknownOperation": {[]string{"banana"}, 2, "banana"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := l.Try(append(append([]string{"forward"}, tc.args...), "--socket", l.Socket)...)
			if code != tc.code || !strings.Contains(out, tc.says) {
				t.Errorf("exit code %d, want %d; says %q, want %q in it", code, tc.code, out, tc.says)
			}
		})
	}
	if after := withoutTimes(l.Bindings()); len(after) != len(before) {
		t.Errorf("bindings changed from %+v to %+v", before, after)
	}
}

// TestNoDaemon: every client command says what it could not reach.
func TestNoDaemon(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{})
	c := harness.Place(t, f.Topo, f.Host)
	for _, command := range [][]string{{"status"}, {"bindings"}, {"sessions"}, {"networks"}, {"events"}, {"forward", "list"}} {
		out, code := c.Try(append(command, "--socket", c.Socket)...)
		if code != 1 || !strings.Contains(out, c.Socket) {
			t.Errorf("%v: exit code %d: %s", command, code, out)
		}
	}
}

// TestStaleSocket: the socket of a daemon that was killed is no obstacle; its mode keeps others out.
func TestStaleSocket(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 1}, "")
	l.Kill()
	if _, err := net.Dial("unix", l.Socket); err == nil {
		t.Fatal("somebody answers on the socket of a daemon that was killed")
	}
	l.Run()
	info, err := os.Stat(l.Socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: mode %v, %v; want 0660", info.Mode(), err)
	}
}
