// SPDX-License-Identifier: Apache-2.0

// Package harness runs the real conenat binary for tests: built once, started in a network namespace with a
// state directory and a socket of its own, asked through its own command line, and taken away again. It
// knows what the command line promises (design's CLI contract), and nothing of the insides.
package harness

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

// readyWithin bounds a daemon's start, loading and verifying included, on a machine that is busy.
var readyWithin = patience.For(60 * time.Second)

// Binary is the conenat that is tested.
func Binary() (string, error) { return build.Binary("cmd/conenat") }

// Conenat is a daemon's place: namespace, state directory and socket. The daemon may be stopped and started.
type Conenat struct {
	t        testing.TB
	topo     *topo.Topo
	host     *topo.NS
	binary   string
	StateDir string
	Socket   string
	args     []string
	process  *topo.Process
	log      *topo.Log
	// Family is that of addresses in the arguments of commands, which are given in IPv4: tests/family.
	Family family.Family
	// PrivateMounts starts everything by `ip netns exec`, which gives it mounts of its own.
	PrivateMounts bool
}

// Place prepares a place for a daemon in host; args are those of `run` beyond state directory and socket.
// The test's end detaches what is there then.
func Place(t testing.TB, top *topo.Topo, host *topo.NS, args ...string) *Conenat {
	t.Helper()
	binary, err := Binary()
	if err != nil {
		t.Fatal(err)
	}
	bpffs, err := top.BPFFS()
	if err != nil {
		t.Fatal(err)
	}
	c := &Conenat{t: t, topo: top, host: host, binary: binary, args: args,
		StateDir: filepath.Join(bpffs, "conenat"), Socket: filepath.Join(top.Dir(), filepath.Base(bpffs)+".sock")}
	t.Cleanup(func() {
		if t.Failed() {
			c.tellOfDrops()
		}
		c.Kill()
		if out, code := c.Try("detach", "--state-dir", c.StateDir); code != 0 {
			t.Errorf("detach at the test's end: exit code %d: %s", code, out)
		}
		if t.Failed() {
			t.Logf("the daemon's last lines:\n%s", c.Log())
		}
	})
	return c
}

// StartIn is Start with arguments of a family.
func StartIn(f family.Family, t testing.TB, top *topo.Topo, host *topo.NS, args ...string) *Conenat {
	t.Helper()
	c := Place(t, top, host, args...)
	c.Family = f
	c.Run()
	return c
}

// Start is Place and Run.
func Start(t testing.TB, top *topo.Topo, host *topo.NS, args ...string) *Conenat {
	t.Helper()
	c := Place(t, top, host, args...)
	c.Run()
	return c
}

// RunArgs are the arguments of `conenat run` in this place.
func (c *Conenat) RunArgs() []string {
	return append([]string{"run", "--state-dir", c.StateDir, "--socket", c.Socket}, c.args...)
}

// Run starts the daemon and waits for the line that says it is ready.
func (c *Conenat) Run() {
	c.t.Helper()
	var err error
	c.process, c.log, err = c.topo.StartReady(context.Background(), "conenat run", c.command(c.RunArgs()), readyWithin)
	if err != nil {
		c.t.Fatal(err)
	}
}

// RunWith is Run with other arguments of `run`, from now on.
func (c *Conenat) RunWith(args ...string) {
	c.t.Helper()
	c.args = args
	c.Run()
}

func (c *Conenat) command(args []string) *exec.Cmd {
	args = c.Family.Texts(args...)
	if c.PrivateMounts {
		return exec.Command("ip", append([]string{"netns", "exec", c.host.Name, c.binary}, args...)...)
	}
	return c.host.Command(context.Background(), c.binary, args...)
}

// Kill is kill -9: what is pinned stays. It may be called when no daemon runs.
func (c *Conenat) Kill() {
	c.t.Helper()
	if c.process == nil {
		return
	}
	if err := c.process.Kill(); err != nil {
		c.t.Error(err)
	}
	c.process = nil
}

// Stop is SIGTERM.
func (c *Conenat) Stop() {
	c.t.Helper()
	if err := c.process.Stop(10 * time.Second); err != nil {
		c.t.Error(err)
	}
	c.process = nil
}

// PID is the daemon's.
func (c *Conenat) PID() int { return c.process.PID() }

// Log is the daemon's last lines.
func (c *Conenat) Log() string {
	if c.log == nil {
		return ""
	}
	return c.log.String()
}

// Try runs a client command as given and returns what it printed and its exit code.
func (c *Conenat) Try(args ...string) (string, int) {
	c.t.Helper()
	out, err := c.command(args).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return string(out), exit.ExitCode()
	case err != nil:
		c.t.Fatalf("conenat %s: %v", strings.Join(args, " "), err)
	}
	return string(out), 0
}

// Client runs a client command against the daemon; it has to succeed.
func (c *Conenat) Client(args ...string) string {
	c.t.Helper()
	out, code := c.Try(append(args, "--socket", c.Socket)...)
	if code != 0 {
		c.t.Fatalf("conenat %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// Detach stops the daemon and takes everything away.
func (c *Conenat) Detach() string {
	c.t.Helper()
	if c.process != nil {
		c.Stop()
	}
	out, code := c.Try("detach", "--state-dir", c.StateDir)
	if code != 0 {
		c.t.Fatalf("conenat detach: exit code %d: %s", code, out)
	}
	return out
}

// Binding is a row of `conenat bindings -o json`; like Session and Event it is the contract's JSON.
type Binding struct {
	Protocol  string  `json:"protocol"`
	Network   string  `json:"network"`
	Internal  string  `json:"internal"`
	External  string  `json:"external"`
	Remote    string  `json:"remote"`
	Static    bool    `json:"static"`
	Sessions  int     `json:"sessions"`
	ExpiresIn float64 `json:"expires_in_s"`
}

// Session is a binding and one remote endpoint.
type Session struct {
	Protocol string `json:"protocol"`
	Network  string `json:"network"`
	Internal string `json:"internal"`
	External string `json:"external"`
	Remote   string `json:"remote"`
	State    string `json:"state"`
}

// Event is a line of `conenat events -o json`.
type Event struct {
	Time     time.Time `json:"time"`
	Type     string    `json:"type"`
	Protocol string    `json:"protocol"`
	Network  string    `json:"network"`
	Internal string    `json:"internal"`
	External string    `json:"external"`
	Remote   string    `json:"remote"`
	Static   bool      `json:"static"`
	Sessions int       `json:"sessions"`
	State    string    `json:"state"`
	Count    uint64    `json:"count"`
}

// Bindings is `conenat bindings -o json`.
func (c *Conenat) Bindings() []Binding { return list[Binding](c, "bindings", "-o", "json") }

// Sessions is `conenat sessions -o json`.
func (c *Conenat) Sessions() []Session { return list[Session](c, "sessions", "-o", "json") }

// Events is `conenat events -o json` since the daemon's start.
func (c *Conenat) Events() (events []Event) {
	c.t.Helper()
	d := json.NewDecoder(strings.NewReader(c.Client("events", "--since", "24h", "-o", "json")))
	for {
		var e Event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return events
		} else if err != nil {
			c.t.Fatalf("events: %v", err)
		}
		events = append(events, e)
	}
}

func list[T any](c *Conenat, args ...string) (out []T) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.Client(args...)), &out); err != nil {
		c.t.Fatalf("conenat %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// Counter is one of the status' counters.
func (c *Conenat) Counter(name string) uint64 {
	c.t.Helper()
	type status struct {
		Counters []struct {
			Name    string `json:"name"`
			Packets uint64 `json:"packets"`
		} `json:"counters"`
	}
	for _, s := range list[status](c, "status", "-o", "json") {
		for _, counter := range s.Counters {
			if counter.Name == name {
				return counter.Packets
			}
		}
	}
	c.t.Fatalf("status has no counter %s", name)
	return 0
}
