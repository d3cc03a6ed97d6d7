// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/build"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

// binaries builds what `make demo` runs.
func binaries(t *testing.T) (demo, conenat string) {
	t.Helper()
	require.Root(t)
	topo.AssertClean(t)
	conenat, err := build.Binary("cmd/conenat")
	if err != nil {
		t.Fatal(err)
	}
	if demo, err = build.Binary("tests/demo"); err != nil {
		t.Fatal(err)
	}
	return demo, conenat
}

func TestDemo(t *testing.T) {
	demo, conenat := binaries(t)
	cmd := exec.Command(demo, "--conenat", conenat)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("demo: %v", err)
	}
	const verdict = "\nDocker's NAT: symmetric for 203.0.113.2; conenat: one endpoint for every peer\n"
	for _, want := range []string{verdict, "through to the container: Docker's NAT: no; conenat: yes\n", "event ", "INTERNAL",
		"  stable         no, turns symmetric         yes\n", "  hairpin        no                          yes\n",
		"  RFC 3489 type  port-restricted cone        restricted cone\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if took := time.Since(began); took > patience.For(time.Minute) {
		t.Errorf("took %v, at most a minute", took)
	}
	if left := topo.Remains(cmd.Process.Pid); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// Without conenat's help the demo must not claim anything: a daemon that fails is a failure.
func TestDemoFails(t *testing.T) {
	demo, _ := binaries(t)
	cmd := exec.Command(demo, "--conenat", "/bin/false")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d, want 1", cmd.ProcessState.ExitCode())
	}
	if strings.Contains(string(out), "one endpoint for every peer") {
		t.Errorf("a verdict without an experiment:\n%s", out)
	}
	if left := topo.Remains(cmd.Process.Pid); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Ctrl-C leaves nothing behind, at whatever moment and however often.
func TestInterrupt(t *testing.T) {
	demo, conenat := binaries(t)
	for _, tc := range []struct {
		name, after string // a piece of the line after which the signal comes
		signal      os.Signal
		times       int
	}{
		{"Start", "Real packets", os.Interrupt, 1},
		{"UnderDocker", "1. Docker's NAT", os.Interrupt, 1},
		{"UnderDockerCall", "a caller behind", os.Interrupt, 1},
		{"DaemonStarts", "2. conenat in its place", os.Interrupt, 1},
		{"DaemonStartsTwice", "2. conenat in its place", os.Interrupt, 3},
		{"DaemonRuns", "binding.created", os.Interrupt, 1},
		{"Terminated", "binding.created", syscall.SIGTERM, 1},
		{"Check", "3. What `conenat check`", os.Interrupt, 1},
		{"CallComes", "and the answer gets back", os.Interrupt, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(demo, "--conenat", conenat)
			out, err := interrupt(cmd, tc.after, tc.signal, tc.times)
			if err == nil || cmd.ProcessState.ExitCode() != 130 {
				t.Errorf("exit code %d, want 130:\n%s", cmd.ProcessState.ExitCode(), out)
			}
			if left := topo.Remains(cmd.Process.Pid); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// interrupt runs cmd and signals it after a line.
func interrupt(cmd *exec.Cmd, after string, signal os.Signal, times int) (string, error) {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var seen strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fmt.Fprintln(&seen, lines.Text())
		if times > 0 && strings.Contains(lines.Text(), after) {
			for ; times > 0; times-- {
				_ = cmd.Process.Signal(signal)
			}
		}
	}
	err = cmd.Wait()
	return seen.String() + out.String(), err
}
