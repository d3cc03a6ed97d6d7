// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
)

// ErrNotRoot says that network namespaces need root.
var ErrNotRoot = errors.New("network namespaces need root")

// Topo owns namespaces, processes, mounts and a directory. Close takes them away.
type Topo struct {
	Stack
	name string // cn-PID-N: the prefix of all that this Topo makes
	dir  string
	ipv6 bool // of the namespaces that it makes
}

// EnableIPv6 gives the namespaces that are made from now on IPv6 beside IPv4: see NS.AddAddr.
func (t *Topo) EnableIPv6() { t.ipv6 = true }

var sweepOnce = sync.OnceValue(sweep)

// New makes an empty topology. The caller must Close it.
func New() (*Topo, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := sweepOnce(); err != nil {
		return nil, fmt.Errorf("sweep what earlier runs left: %w", err)
	}
	t := &Topo{}
	var err error
	if t.dir, err = claimDir(&t.Stack); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.name = filepath.Base(t.dir)
	return t, nil
}

// Name is the prefix of what this topology makes (namespaces, cgroups): "cn-PID-N".
func (t *Topo) Name() string { return t.name }

// Dir is a directory that lives as long as the topology.
func (t *Topo) Dir() string { return t.dir }

// BPFFS mounts a bpffs of its own on a new directory, for a --state-dir in it; what is pinned there dies with
// the topology.
func (t *Topo) BPFFS() (string, error) {
	dir, err := os.MkdirTemp(t.dir, "bpffs-")
	if err != nil {
		return "", fmt.Errorf("make a directory for bpffs: %w", err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return "", fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	t.Defer("unmount "+dir, func() error { return unmount(dir) })
	return dir, nil
}

// unmount waits a little for a process that is still on its way out of the mount.
func unmount(dir string) error {
	err := unix.Unmount(dir, 0)
	for deadline := time.Now().Add(patience.For(2 * time.Second)); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // no event tells that a mount fell idle
		err = unix.Unmount(dir, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		return errors.Join(fmt.Errorf("still in use, detached: %w", err), unix.Unmount(dir, unix.MNT_DETACH))
	}
	return err
}

var dirCounter atomic.Int32

// dirPrefix is common to all directories and namespaces of a process.
func dirPrefix(pid int) string { return fmt.Sprintf("cn-%d-", pid) }

// claimDir makes the next free directory cn-PID-N, locks it against the sweep of other processes and defers
// its removal.
func claimDir(s *Stack) (string, error) {
	for {
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("%s%d", dirPrefix(os.Getpid()), dirCounter.Add(1)))
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue // of an earlier process with this PID, or of one in another PID namespace
		}
		if err != nil {
			return "", fmt.Errorf("make directory %s: %w", dir, err)
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue // a sweep was faster
		}
		s.Defer("remove "+dir, func() error {
			defer lock.Close()
			return os.RemoveAll(dir)
		})
		return dir, nil
	}
}

// lockDir takes the lock on dir or fails at once.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil { // swept between open and lock
		f.Close()
		return nil, err
	}
	return f, nil
}

var processDir struct {
	sync.Mutex
	Stack
	dir string
}

// ProcessDir is a directory that lives as long as the process, for what many topologies share (binaries).
// CloseProcess removes it; the next sweep does if nobody calls that.
func ProcessDir() (string, error) {
	processDir.Lock()
	defer processDir.Unlock()
	if processDir.dir != "" {
		return processDir.dir, nil
	}
	dir, err := claimDir(&processDir.Stack)
	processDir.dir = dir
	return dir, err
}

// CloseProcess removes what ProcessDir made.
func CloseProcess() error {
	processDir.Lock()
	defer processDir.Unlock()
	processDir.dir = ""
	return processDir.Stack.Close()
}

// Main is TestMain's body for packages whose tests use ProcessDir: it runs the tests, removes the directory, and
// returns the exit code.
func Main(m interface{ Run() int }) int {
	code := m.Run()
	if err := CloseProcess(); err != nil {
		fmt.Fprintln(os.Stderr, "remove what the tests shared:", err)
		code = max(code, 1)
	}
	return code
}

// Poll tries cond until it is true, every few milliseconds: for conditions that announce themselves by no event. The timeout
// is one of a machine that has time (tests/patience).
func Poll(ctx context.Context, timeout time.Duration, what string, cond func() (bool, error)) error {
	timeout = patience.For(timeout)
	deadline := time.Now().Add(timeout)
	for {
		ok, err := cond()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("%s: not within %v", what, timeout), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// ForTest is New for a test: it requires root, closes the topology at the end, and fails the test if
// anything is left then.
func ForTest(t TB) *Topo {
	t.Helper()
	require.Root(t)
	AssertClean(t)
	topology, err := New()
	if err != nil {
		t.Fatalf("make a topology: %v", err)
	}
	t.Cleanup(func() {
		if err := topology.Close(); err != nil {
			t.Errorf("take the topology away: %v", err)
		}
	})
	return topology
}

// isOurs says whether a name is cn-PID-N, with or without what follows.
func isOurs(name string) (dir string, ok bool) {
	parts := strings.SplitN(name, "-", 4)
	if len(parts) < 3 || parts[0] != "cn" || !digits(parts[1]) || !digits(parts[2]) {
		return "", false
	}
	return strings.Join(parts[:3], "-"), true
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
