// SPDX-License-Identifier: Apache-2.0

package thread

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRunLeavesTheFirstThread: as a goroutine that has the process's first thread for itself, it runs elsewhere.
func TestRunLeavesTheFirstThread(t *testing.T) {
	// With one processor the goroutine that blocks last lends its thread to the next: often the first one.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for range 1000 {
		if err := Run(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("runs on the process's first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
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
