// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
)

// both is for what needs nothing of conenat's.
func both(t *testing.T, test func(t *testing.T, fam family.Family)) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) { test(t, fam) })
	}
}

func TestFigure3Routes(t *testing.T) { both(t, testFigure3Routes) }

func testFigure3Routes(t *testing.T, fam family.Family) {
	f := Figure3ForTest(t, Figure3Config{Containers: 2, Net2Containers: 1, UplinkMTU: 1400, SymmetricPeer: true, IPv6: fam == family.V6})
	if err := DockerRules(t.Context(), f.Host); err != nil {
		t.Fatal(err)
	}
	// Who sends, and as whom it is seen by peer 1: the address, and whether the port stays.
	for name, tc := range map[string]struct {
		from *NS
		seen netip.Addr
	}{
		"host":      {f.Host, HostAddr},
		"peer2":     {f.Peer2, Peer2Addr},
		"container": {f.Containers[1], HostAddr},
		"symmetric": {f.Peer3, SymmetricAddr},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := f.Peer1.ListenUDP(netip.AddrPortFrom(fam.Any(), 3478))
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			client, err := tc.from.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(fam.Addr(Peer1Addr), 3478))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := client.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			_ = server.SetReadDeadline(time.Now().Add(patience.For(2 * time.Second)))
			_, from, err := server.ReadFromUDPAddrPort(make([]byte, 10))
			if err != nil {
				t.Fatal(err)
			}
			if got := from.Addr().Unmap(); got != fam.Addr(tc.seen) {
				t.Errorf("peer 1 saw %v, want %v", got, fam.Addr(tc.seen))
			}
		})
	}
	if mtu, err := f.Host.Run(t.Context(), "", "cat", "/proc/net/dev"); err != nil || !strings.Contains(mtu, "eth0") {
		t.Errorf("command in the host's namespace does not see eth0: %v\n%s", err, mtu)
	}
	flows, err := f.Host.Conntrack()
	if err != nil {
		t.Fatal(err)
	}
	translated := false
	for _, flow := range flows {
		translated = translated || flow.Src.Addr() == fam.Addr(netip.MustParseAddr("172.17.0.3")) && flow.ReplyDst.Addr() == fam.Addr(HostAddr)
	}
	if !translated {
		t.Errorf("no conntrack entry of the container's translation: %v", flows)
	}
}

func TestDoReturnsThread(t *testing.T) {
	topology := ForTest(t)
	ns, err := topology.NewNS("a")
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { return errors.New("inside") }); err == nil || err.Error() != "inside" {
		t.Errorf("Do returned %v", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do returned nil after Goexit")
	}
	for _, task := range list("/proc/self/task") {
		if got, err := os.Readlink(filepath.Join(task, "ns/net")); err == nil && got != home {
			t.Errorf("thread %s stayed in %s", task, got)
		}
	}
}

func TestProcesses(t *testing.T) {
	topology := ForTest(t)
	ns, err := topology.NewNS("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := topology.Start("sleep", ns.Command(context.Background(), "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	if !Alive(p.PID()) {
		t.Error("not running")
	}
	if err := p.Stop(time.Second); err != nil {
		t.Error(err)
	}
	if Alive(p.PID()) {
		t.Error("still running")
	}
	stubborn, err := topology.Start("stubborn", ns.Command(context.Background(), "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stubborn.Kill(); err != nil {
		t.Error(err)
	}
	if _, err := ns.Run(t.Context(), "", "sh", "-c", "echo broken >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error without standard error: %v", err)
	}
}

func TestBPFFSIsItsOwn(t *testing.T) {
	topology := ForTest(t)
	dir, err := topology.BPFFS()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "conenat"), 0o700); err != nil {
		t.Fatal(err)
	}
	again, err := topology.BPFFS()
	if err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(again, "conenat")) {
		t.Error("two bpffs mounts share their pins")
	}
}

// fakeTB records what AssertClean says.
type fakeTB struct {
	*testing.T
	cleanups []func()
	errors   []string
}

func (f *fakeTB) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }
func (f *fakeTB) Errorf(format string, args ...any) {
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}

func TestAssertCleanFindsLeftovers(t *testing.T) {
	topology := ForTest(t)
	fake := &fakeTB{T: t}
	AssertClean(fake)
	ns, err := topology.NewNS("left")
	if err != nil {
		t.Fatal(err)
	}
	bpffs, err := topology.BPFFS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topology.Start("sleep", ns.Command(context.Background(), "sleep", "999")); err != nil {
		t.Fatal(err)
	}
	for _, fn := range fake.cleanups {
		fn()
	}
	all := strings.Join(fake.errors, "\n")
	for _, want := range []string{ns.Path, "mount " + bpffs, "sleep 999", "goroutine(s) started by"} {
		if !strings.Contains(all, want) {
			t.Errorf("AssertClean does not mention %q:\n%s", want, all)
		}
	}
}

// A process that is killed cannot clean up; the next New does.
func TestSweep(t *testing.T) {
	if os.Getenv("TOPO_TEST_DIE") != "" {
		dieWithEverything(t)
	}
	AssertClean(t)
	require.Root(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSweep$")
	cmd.Env = append(os.Environ(), "TOPO_TEST_DIE=1")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("the victim did not die by a signal: %v\n%s", err, out)
	}
	if left := Remains(cmd.Process.Pid); len(left) < 3 {
		t.Errorf("the victim left %v, want a namespace, a directory and a mount", left)
	}
	if err := sweep(); err != nil {
		t.Error(err)
	}
	if left := Remains(cmd.Process.Pid); len(left) > 0 {
		t.Errorf("after the sweep: %v", left)
	}
}

func dieWithEverything(t *testing.T) {
	topology, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topology.NewNS("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := topology.BPFFS(); err != nil {
		t.Fatal(err)
	}
	_ = exec.Command("kill", "-9", fmt.Sprint(os.Getpid())).Run()
	t.Fatal("survived")
}
