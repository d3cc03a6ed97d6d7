// SPDX-License-Identifier: Apache-2.0

package require

import (
	"os"
	"os/exec"
	"testing"
)

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Root skips a test that needs root; on a machine that is meant to be complete the test fails.
func Root(t TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, os.Getenv, "needs root")
	}
}

// Program skips a test that runs a program which this machine has not; on a machine that is meant to be complete it fails.
func Program(t TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, os.Getenv, "needs the program "+name)
	}
}

// Installed fails a test that runs a program which `.ci/install-packages test` brings, and which this machine has not: a judge
// that was not asked has not agreed.
func Installed(t TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("needs the program %s: run .ci/install-packages test", name)
	}
}

// Long skips a test that takes long, saying what it does all that time, under -short.
func Long(t TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("-short is set, and the test %s", what)
	}
}

func missing(t TB, getenv func(string) string, what string) {
	t.Helper()
	if why := complete(getenv); why != "" {
		t.Fatalf("%s, and %s: here it must not be missing", what, why)
		return
	}
	t.Skipf("%s", what)
}

// complete says why everything has to be there, or nothing if it need not.
func complete(getenv func(string) string) (why string) {
	for _, name := range []string{"CI", "VMTEST_KERNEL"} {
		if getenv(name) != "" {
			return name + " is set"
		}
	}
	return ""
}
