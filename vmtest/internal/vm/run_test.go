// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeQEMU puts a shell script in QEMU's place: what a guest would have QEMU write to the descriptors, without a guest.
// It returns the path of the script's PID.
func fakeQEMU(t *testing.T, script string) (pidFile string) {
	t.Helper()
	dir := t.TempDir()
	pidFile = filepath.Join(dir, "pid")
	text := "#!/bin/sh\necho $$ >" + pidFile + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, program), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return pidFile
}

// assertGone fails if the process still is there.
func assertGone(t *testing.T, pidFile string) {
	t.Helper()
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", pid, err)
	}
}

const (
	boots   = "echo userspace >&4; echo command >&4; "
	forever = "exec sleep 1000"
)

func TestRun(t *testing.T) {
	for name, test := range map[string]struct {
		script         string
		boot, timeout  time.Duration
		want           Outcome
		stdout, stderr string
	}{
		"exits": {
			script: boots + "echo out >&5; echo err >&6; echo exit 7 >&4",
			want:   Outcome{Kind: Exited, Status: 7}, stdout: "out\n", stderr: "err\n",
		},
		"much_output": {
			script: boots + "head -c 3000000 /dev/zero | tr '\\0' x >&5; echo exit 0 >&4",
			want:   Outcome{Kind: Exited}, stdout: strings.Repeat("x", 3000000),
		},
		"panics":       {script: boots + "echo Kernel panic - not syncing: so >&3", want: Outcome{Kind: Panicked, Detail: "Kernel panic - not syncing: so"}},
		"vanishes":     {script: boots + "echo oops >&2; exit 1", want: Outcome{Kind: Vanished, Detail: "oops"}},
		"refused":      {script: "echo no such device >&2; exit 1", want: Outcome{Kind: NeverReached, Detail: "no such device"}},
		"fails":        {script: "echo userspace >&4; echo failed no root >&4", want: Outcome{Kind: NeverReached, Detail: "no root"}},
		"times_out":    {script: boots + forever, timeout: 50 * time.Millisecond, want: Outcome{Kind: TimedOut, Detail: "more than 50ms"}},
		"never_boots":  {script: forever, boot: 50 * time.Millisecond, want: Outcome{Kind: NeverReached, Detail: "nothing after 50ms"}},
		"console_full": {script: boots + "yes >&3", want: Outcome{Kind: ConsoleFull, Detail: "more than 1000 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			pid := fakeQEMU(t, test.script)
			if test.boot == 0 {
				test.boot = time.Minute
			}
			if test.timeout == 0 {
				test.timeout = time.Minute
			}
			var stdout, stderr bytes.Buffer
			got, err := Machine{}.Run(t.Context(), Options{
				BootTimeout: test.boot, Timeout: test.timeout, Console: &bytes.Buffer{}, ConsoleLimit: 1000,
				Stdout: &stdout, Stderr: &stderr, Progress: t.Logf,
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.Outcome); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if stdout.String() != test.stdout || stderr.String() != test.stderr {
				t.Errorf("%d bytes of stdout, want %d; stderr %q, want %q",
					stdout.Len(), len(test.stdout), stderr.String(), test.stderr)
			}
			assertGone(t, pid)
		})
	}
}

// TestStaleCode: an oops by a breakpoint is the emulation's, another one is the kernel's.
func TestStaleCode(t *testing.T) {
	const panics = "echo Kernel panic - not syncing: Fatal exception in interrupt >&3"
	for _, test := range []struct {
		oops  string
		accel Accel
		want  bool
	}{
		{"[  294.484525] Oops: int3: 0000 [#1] SMP NOPTI", TCG, true},
		{"[  294.484525] int3: 0000 [#1] PREEMPT SMP NOPTI", TCG, true},
		{"[  294.484525] int3: 0000 [#1] PREEMPT SMP NOPTI", KVM, false},
		{"[  294.484525] Oops: 0002 [#1] PREEMPT SMP NOPTI", TCG, false},
	} {
		fakeQEMU(t, boots+"echo '"+test.oops+"' >&3; "+panics)
		got, err := Machine{Accel: test.accel}.Run(t.Context(), Options{
			BootTimeout: time.Minute, Timeout: time.Minute, Console: &bytes.Buffer{}, ConsoleLimit: 1000,
			Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Progress: t.Logf,
		})
		if err != nil || got.Kind != Panicked || got.StaleCode != test.want {
			t.Errorf("%s under %s: %+v, %v; want StaleCode %v", test.oops, test.accel, got, err, test.want)
		}
	}
}

func TestRunIsInterrupted(t *testing.T) {
	pid := fakeQEMU(t, boots+forever)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Machine{}.Run(ctx, Options{
		BootTimeout: time.Minute, Timeout: time.Minute, Console: &bytes.Buffer{}, ConsoleLimit: 1000,
		Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{},
		Progress: func(format string, _ ...any) {
			if strings.HasPrefix(format, "running") {
				cancel()
			}
		},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	assertGone(t, pid)
}

func TestNoQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Machine{}.Run(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "install qemu-system-x86") {
		t.Errorf("error %v", err)
	}
}

// TestProbe has a KVM that reaches userspace, and one that does not.
func TestProbe(t *testing.T) {
	for script, want := range map[string]Accel{
		`case "$*" in *"accel kvm"*vmtest.probe*) echo userspace >&4 ;; esac`: KVM,
		"echo failed to set MSR 0x10a >&2; exit 1":                            TCG,
	} {
		fakeQEMU(t, script)
		got, err := Machine{Accel: Auto}.probe(t.Context())
		if err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", script, got, err, want)
		}
	}
}
