// SPDX-License-Identifier: Apache-2.0

package thread

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// onFirst is how often Run's function ran on the process's first thread, of how many times a plain goroutine would have.
var onFirst, wouldBe int

// TestMain is on that thread itself; with one processor, what it waits for runs where it was.
func TestMain(m *testing.M) {
	processors := runtime.GOMAXPROCS(1)
	count := func(n *int) func() error {
		return func() error {
			if unix.Gettid() == unix.Getpid() {
				*n++
			}
			return nil
		}
	}
	for range 100 {
		done := make(chan error)
		go func() { done <- count(&wouldBe)() }()
		<-done
		_ = Run(count(&onFirst))
	}
	runtime.GOMAXPROCS(processors)
	os.Exit(m.Run())
}

func TestRunLeavesTheFirstThread(t *testing.T) {
	if wouldBe == 0 {
		t.Error("no goroutine ran on the first thread: this test shows nothing")
	}
	if onFirst > 0 {
		t.Errorf("%d of 100 ran on the process's first thread, where %d plain goroutines did", onFirst, wouldBe)
	}
}

// TestRunTakesTheNamespaceAlong: what f has done to its thread is nobody else's.
func TestRunTakesTheNamespaceAlong(t *testing.T) {
	first, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	want := errors.New("f's")
	for range 100 {
		if err := Run(func() error {
			if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil && !errors.Is(err, unix.EPERM) {
				return err
			}
			return want
		}); !errors.Is(err, want) {
			t.Fatalf("error %v, want that of f", err)
		}
	}
	if now, err := os.Readlink("/proc/self/ns/uts"); err != nil || now != first {
		t.Errorf("the process's first thread is in %s (%v), was in %s", now, err, first)
	}
}
