// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/topo"
)

// replay makes tables of an event stream: "protocol network internal external static sessions", and
// "protocol network internal external remote".
func replay(events []harness.Event) (bindings, sessions []string) {
	type binding struct {
		text     string
		sessions int
	}
	table := map[string]*binding{}
	live := map[string]bool{}
	for _, e := range events {
		key := fmt.Sprint(e.Protocol, " ", e.External)
		session := fmt.Sprint(e.Protocol, " ", e.Network, " ", e.Internal, " ", e.External, " ", e.Remote)
		switch e.Type {
		case "binding.created", "binding.changed":
			if table[key] == nil {
				table[key] = &binding{}
			}
			table[key].text = fmt.Sprint(e.Protocol, " ", e.Network, " ", e.Internal, " ", e.External, " ", e.Static)
		case "binding.expired":
			delete(table, key)
		case "session.created":
			live[session] = true
			if table[key] != nil {
				table[key].sessions++
			}
		case "session.closed":
			delete(live, session)
			if table[key] != nil {
				table[key].sessions--
			}
		}
	}
	for _, b := range table {
		bindings = append(bindings, fmt.Sprint(b.text, " ", b.sessions))
	}
	for s := range live {
		sessions = append(sessions, s)
	}
	slices.Sort(bindings)
	slices.Sort(sessions)
	return bindings, sessions
}

func tables(c *harness.Conenat) (bindings, sessions []string) {
	for _, b := range c.Bindings() {
		bindings = append(bindings, fmt.Sprint(b.Protocol, " ", b.Network, " ", b.Internal, " ", b.External, " ", b.Static, " ", b.Sessions))
	}
	for _, s := range c.Sessions() {
		sessions = append(sessions, fmt.Sprint(s.Protocol, " ", s.Network, " ", s.Internal, " ", s.External, " ", s.Remote))
	}
	slices.Sort(bindings)
	slices.Sort(sessions)
	return bindings, sessions
}

// checkReplay: the events since the daemon's start, replayed, are the tables. They come a moment after the
// tables change, so it looks until both agree.
func checkReplay(l *lab) {
	l.t.Helper()
	var diff string
	err := topo.Poll(l.t.Context(), 5*time.Second, "replayed events are the tables", func() (bool, error) {
		b, s := tables(l.Conenat)
		rb, rs := replay(l.Events())
		diff = cmp.Diff([][]string{b, s}, [][]string{rb, rs})
		return diff == "", nil
	})
	if err != nil {
		l.t.Errorf("%v (-tables +replayed):\n%s", err, diff)
	}
}

// TestReplay: bindings and sessions of every protocol that come and go, with short timeouts.
func TestReplay(t *testing.T) { family.Each(t, testReplay) }

func testReplay(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, quick)
	peer := l.udp(l.peer1, 3478)
	server := l.serve(l.peer2, 8080)
	l.Client("forward", "add", "198.51.100.1:8081", "172.17.0.2:80")
	for round := range 3 {
		for i, h := range l.containers {
			s := l.udp(h, uint16(21000+round))
			l.send(s, at(topo.Peer1Addr, 3478), "x")
			l.receives(peer, "x")
			l.send(s, at(topo.HostAddr, uint16(21000+round)), "hairpin or self")
			conn := l.dial(l.containers[i], at(topo.Peer2Addr, server.Port()))
			if err := conn.Echo("tcp"); err != nil {
				t.Error(err)
			}
			// An open one sends a keep-alive after 15 s, which on a slow machine opens anew what has expired.
			conn.Close()
		}
		checkReplay(l)
	}
	l.eventually("all but the static binding expire", func() bool { return len(l.Bindings()) == 1 })
	checkReplay(l)
	l.Client("forward", "remove", "tcp/198.51.100.1:8081")
	checkReplay(l)
	if b, s := replay(l.Events()); len(b) != 0 || len(s) != 0 {
		t.Errorf("at the end, replayed: %v, %v", b, s)
	}
}
