// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
)

// watchHere runs Watch on a thread in the namespace of the test's own, until the test ends.
func watchHere(t *testing.T, f *Firewall) {
	t.Helper()
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			ended <- err
			return
		}
		ended <- f.Watch(ctx, ready, func(err error) { t.Errorf("watch: %v", err) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
		namespace.Close()
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
}

func awaitChange(t *testing.T, f *Firewall, what string) {
	t.Helper()
	select {
	case <-f.Changes():
	case <-time.After(patience.For(10 * time.Second)):
		t.Fatalf("%s: no change heard", what)
	}
}

func TestWatchHears(t *testing.T) {
	inNamespace(t)
	run(t, forwarding(""), "iptables-nft-restore") // with all its tables, before
	f := New()
	watchHere(t, f)
	for _, step := range []struct {
		what    string
		command []string
	}{
		{"a rule of iptables-nft", []string{"iptables-nft", "-A", "FORWARD", "-j", "DROP"}},
		{"a rule that goes", []string{"iptables-nft", "-D", "FORWARD", "-j", "DROP"}},
		{"a table of nft", []string{"nft", "add", "table", "inet", "t"}},
		{"an xfrm policy", []string{"ip", "xfrm", "policy", "add", "src", "172.17.0.0/16", "dst", "10.0.0.0/8", "dir", "out", "action", "block"}},
		{"an xfrm policy that goes", []string{"ip", "xfrm", "policy", "delete", "src", "172.17.0.0/16", "dst", "10.0.0.0/8", "dir", "out"}},
	} {
		run(t, "", step.command[0], step.command[1:]...)
		awaitChange(t, f, step.what)
	}
}

// Legacy iptables is looked at, as it announces nothing.
func TestWatchSeesLegacyRules(t *testing.T) {
	inNamespace(t)
	raw := make(chan struct{}, 1)
	w := legacyWatch{raw: raw, failed: func(err error) { t.Errorf("look: %v", err) }}
	changed := func() bool {
		w.look()
		select {
		case <-raw:
			return true
		default:
			return false
		}
	}
	if changed() {
		t.Error("a change without any tables")
	}
	for _, args := range [][]string{{"-A", "FORWARD", "-j", "DROP"}, {"-D", "FORWARD", "-j", "DROP"}, {"-P", "FORWARD", "DROP"}} {
		run(t, "", "iptables-legacy", args...)
		if !changed() {
			t.Errorf("iptables-legacy %v: no change", args)
		}
		if changed() {
			t.Errorf("iptables-legacy %v: a second change", args)
		}
	}
}

// Without the tool, legacy rules are an error that is told once, and never "no rules".
func TestLegacyRulesWithoutTheTool(t *testing.T) {
	inNamespace(t)
	run(t, "", "iptables-legacy", "-A", "FORWARD", "-j", "DROP")
	old := searched
	searched = []string{t.TempDir() + "/"}
	t.Cleanup(func() { searched = old })
	_, err := New().Inspect(onHost)
	const want = "cannot read the host's legacy iptables rules: install iptables-legacy-save (Debian: package iptables)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	raw := make(chan struct{}, 1)
	told := 0
	w := legacyWatch{raw: raw, failed: func(error) { told++ }}
	w.look()
	w.look()
	if told != 1 || len(raw) != 1 {
		t.Errorf("told %d times, %d changes", told, len(raw))
	}
}
