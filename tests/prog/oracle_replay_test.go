// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/oracle"
)

// TestOracleSaysHowToReplay: an oracle that is wrong (it does not know the host's own addresses) is found out, and
// what is printed has a command line by which it fails again. (How short the sequence gets depends on the time for it.)
func TestOracleSaysHowToReplay(t *testing.T) {
	t.Chdir(t.TempDir()) // rapid leaves the sequence in testdata/rapid
	setFlag(t, "rapid.shrinktime", "3s")
	setFlag(t, "rapid.checks", fmt.Sprint(someSequences))
	w := newWorld(t, family.V4)
	lie := func(c *oracle.Config) { c.Local = nil }
	first := listen(t, func(l *listener) { w.play(l, lie) })
	found := regexp.MustCompile(`To reproduce, specify -run="(\S+)" -rapid.failfile="(\S+)" \(or -rapid.seed=(\d+)\)`).FindStringSubmatch(first)
	if found == nil || found[1] != t.Name() {
		t.Fatalf("nothing says how to replay it:\n%s", first)
	}
	setFlag(t, "rapid.failfile", found[2])
	again := listen(t, func(l *listener) { w.play(l, lie) })
	if !strings.Contains(again, "failed after 0 tests") || !strings.Contains(again, "dataplane: passed_local") {
		t.Errorf("-rapid.failfile does not fail again:\n%s", again)
	}
}

// listener is a test that may fail: it keeps what it was told.
type listener struct {
	testing.TB
	told   strings.Builder
	failed bool
}

// listen runs a test that may fail, and gives what it printed.
func listen(t *testing.T, test func(*listener)) string {
	l, done := &listener{TB: t}, make(chan struct{})
	go func() {
		defer close(done)
		test(l)
	}()
	<-done
	return l.told.String()
}

func (l *listener) Helper()      {}
func (l *listener) Failed() bool { return l.failed }
func (l *listener) Fail()        { l.failed = true }
func (l *listener) FailNow()     { l.failed = true; runtime.Goexit() }

func (l *listener) Log(args ...any)                 { fmt.Fprintln(&l.told, args...) }
func (l *listener) Logf(format string, args ...any) { fmt.Fprintf(&l.told, format+"\n", args...) }
func (l *listener) Error(args ...any)               { l.Log(args...); l.Fail() }
func (l *listener) Errorf(format string, args ...any) {
	l.Logf(format, args...)
	l.Fail()
}
func (l *listener) Fatal(args ...any) { l.Log(args...); l.FailNow() }
func (l *listener) Fatalf(format string, args ...any) {
	l.Logf(format, args...)
	l.FailNow()
}
