// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// TestKillAndAdopt: traffic does not need the daemon, nor does a new one disturb it.
func TestKillAndAdopt(t *testing.T) { family.Each(t, testKillAndAdopt) }

func testKillAndAdopt(t *testing.T, fam family.Family) {
	for name, args := range both(fam, map[string][]string{"TCX": nil, "Clsact": {"--disable-feature", "tcx"}}, "TCX") {
		t.Run(name, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, "", args...)
			killAndAdopt(l)
		})
	}
}

func killAndAdopt(l *lab) {
	at := l.family.At
	server := l.serve(l.peer1, 8080)
	conn := l.dial(l.containers[0], at(topo.Peer1Addr, server.Port()))
	udp, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	l.send(udp, at(topo.Peer1Addr, 3478), "before")
	mapped := l.receives(peer, "before")
	ping, err := l.containers[1].Ping(probe.PingSpec{To: l.family.Addr(topo.Peer2Addr), Interval: 5 * time.Millisecond})
	if err != nil {
		l.t.Fatal(err)
	}
	l.Client("forward", "add", "--protocol", "udp", "198.51.100.1:5353", "172.17.0.3:53")
	before := withoutTimes(l.Bindings())

	l.Kill()
	if err := conn.Echo("the daemon is dead"); err != nil {
		l.t.Errorf("established connection: %v", err)
	}
	l.send(udp, at(topo.Peer1Addr, 3478), "dead")
	if from := l.receives(peer, "dead"); from != mapped {
		l.t.Errorf("mapping changed from %s to %s", mapped, from)
	}
	fresh := l.udp(l.containers[1], 20001)
	l.send(fresh, at(topo.Peer1Addr, 3478), "new flow")
	if from := l.receives(peer, "new flow"); from != at(topo.HostAddr, 20001) {
		l.t.Errorf("a new flow while no daemon lives leaves as %s", from)
	}

	l.Run()
	after := withoutTimes(l.Bindings())
	var kept []harness.Binding
	for _, b := range after {
		if !strings.HasSuffix(b.Internal, ":20001") {
			kept = append(kept, b)
		}
	}
	if diff := cmp.Diff(before, kept); diff != "" {
		l.t.Errorf("bindings after adoption (-before +after):\n%s", diff)
	}
	if len(kept) == len(after) {
		l.t.Error("the new daemon does not know the flow that began while none lived")
	}
	if err := conn.Echo("adopted"); err != nil {
		l.t.Errorf("established connection: %v", err)
	}
	report, err := ping.Stop(false)
	if err != nil || report.Sent < 20 || len(report.Lost) > 0 || report.Duplicates > 0 {
		l.t.Errorf("ping at 5 ms through kill and adoption: %+v, %v", report, err)
	}
	checkReplay(l)
}

// withoutTimes are bindings that a second later are the same.
func withoutTimes(bindings []harness.Binding) []harness.Binding {
	for i := range bindings {
		bindings[i].ExpiresIn = 0
	}
	return bindings
}

// TestPrivateMounts: a daemon that `ip netns exec` gave mounts of its own leaves its state with the host, on a
// bpffs that it mounts there, and detach takes both away; from another network namespace it does not.
func TestPrivateMounts(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	c := harness.Place(t, f.Topo, f.Host, "--inside", "docker0")
	c.StateDir, c.PrivateMounts = filepath.Join(f.Dir(), "state"), true
	c.Run()
	l := &lab{Figure3: f, Conenat: c, t: t, containers: []probe.Host{probe.In(f.Containers[0])}, peer1: probe.In(f.Peer1)}
	c.Kill()
	peer, socket := l.udp(l.peer1, 3478), l.udp(l.containers[0], 20000)
	l.send(socket, at(topo.Peer1Addr, 3478), "the daemon is dead")
	if from := l.receives(peer, "the daemon is dead"); from != at(topo.HostAddr, 20000) {
		t.Errorf("seen as %s", from)
	}
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Router.Command(t.Context(), binary, "detach", "--state-dir", c.StateDir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "nsenter --net=") {
		t.Errorf("detach in another network namespace: %v: %s", err, out)
	}
	c.Detach()
	if _, err := os.Stat(c.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", c.StateDir, err)
	}
	var host unix.Stat_t
	if err := unix.Stat(f.Host.Path, &host); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(fmt.Sprintf("/run/conenat/fragments-%d-*", host.Ino)); len(left) > 0 {
		t.Errorf("%v are still there", left)
	}
}

// TestExpiryWithoutDaemon: sessions end and ports come free while no daemon lives.
func TestExpiryWithoutDaemon(t *testing.T) { family.Each(t, testExpiryWithoutDaemon) }

func testExpiryWithoutDaemon(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, quick)
	peer := l.udp(l.peer1, 3478)
	first, second := l.udp(l.containers[0], 20000), l.udp(l.containers[1], 20000)
	l.send(first, at(topo.Peer1Addr, 3478), "first")
	if from := l.receives(peer, "first"); from.Port() != 20000 {
		t.Fatalf("first is seen as %s", from)
	}
	l.send(second, at(topo.Peer1Addr, 3478), "second")
	if from := l.receives(peer, "second"); from.Port() == 20000 || from.Port()%2 != 0 {
		t.Errorf("second is seen as %s: want another even port", from)
	}
	l.Kill()
	// The second one stays in use, also while the new daemon starts; the first one does not.
	stop := keepSending(second, at(topo.Peer1Addr, 3478))
	l.receivesNothing(first, 3*time.Second)
	l.Run()
	defer stop()
	if _, there := l.bindingOf("udp", "172.17.0.2:20000"); there {
		t.Error("the first binding is still there, 3 s after its last packet, with a timeout of 2 s")
	}
	if b, there := l.bindingOf("udp", "172.17.0.3:20000"); !there || b.External == fam.Text("198.51.100.1:20000") {
		t.Errorf("the second binding, in use all the time, is %+v", b)
	}
	stop()
	l.send(first, at(topo.Peer1Addr, 3478), "back")
	for {
		p, err := peer.Receive(probe.Timeout)
		if err != nil {
			t.Fatal(err)
		}
		if p.Text != "back" {
			continue
		}
		if p.From.Port() != 20000 {
			t.Errorf("the port that came free is not given again: seen as %s", p.From)
		}
		return
	}
}

// keepSending sends "again" ten times a second until it is stopped, which may be more than once.
func keepSending(s probe.Socket, to netip.AddrPort) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil && s.Send(to, "again") == nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// TestDetach: nothing is left, and Docker's NAT translates as before.
func TestDetach(t *testing.T) { family.Each(t, testDetach) }

func testDetach(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "")
	peer, c := l.udp(l.peer1, 3478), l.udp(l.containers[0], 20000)
	l.send(c, at(topo.Peer1Addr, 3478), "conenat")
	l.receives(peer, "conenat")
	if flows := conntracked(l, 3478); flows != 0 {
		t.Errorf("under conenat, conntrack has %d entries of the flow", flows)
	}
	l.Detach()
	for what, out := range leftovers(l) {
		t.Errorf("%s: %s", what, out)
	}
	l.send(c, at(topo.Peer1Addr, 3478), "docker")
	if from := l.receives(peer, "docker"); from.Addr() != fam.Addr(topo.HostAddr) {
		t.Errorf("after detach the container is seen as %s", from)
	}
	if flows := conntracked(l, 3478); flows != 1 {
		t.Errorf("after detach, conntrack has %d entries of the flow, want Docker's one", flows)
	}
	if out := l.Detach(); !strings.Contains(out, "nothing to detach") {
		t.Errorf("detach again says %q", out)
	}
}

// leftovers looks for all that conenat makes.
func leftovers(l *lab) map[string]string {
	found := map[string]string{}
	for what, c := range map[string]struct {
		command []string
		bad     string
	}{
		"tc":        {[]string{"tc", "qdisc", "show"}, "clsact"},
		"nft":       {[]string{"nft", "list", "tables"}, "conenat"},
		"pins":      {[]string{"find", l.StateDir}, l.StateDir + "\n"},
		"namespace": {[]string{"ip", "netns", "list"}, "conenat"},
	} {
		out, err := l.Host.Run(l.t.Context(), "", c.command[0], c.command[1:]...)
		if strings.Contains(out, c.bad) {
			found[what] = out
		}
		if err != nil && what != "pins" {
			l.t.Error(err)
		}
	}
	return found
}

// conntracked counts netfilter's entries of flows to a port that are not the host's own.
func conntracked(l *lab, port uint16) (n int) {
	l.t.Helper()
	flows, err := l.Host.Conntrack()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range flows {
		if f.Dst.Port() == port && f.Src.Addr() != l.family.Addr(topo.HostAddr) {
			n++
		}
	}
	return n
}
