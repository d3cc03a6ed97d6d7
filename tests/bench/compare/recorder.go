// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench/report"
)

// recorder keeps what was measured, writes it at once, and tells how far the run has come.
type recorder struct {
	results  report.Results
	failed   []error
	file     *os.File // nil: the file is written at the end
	progress io.Writer
	begin    time.Time
}

func newRecorder(ctx context.Context, o options, progress io.Writer) (*recorder, error) {
	where, err := thisMachine(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &recorder{results: report.Results{Machine: where}, progress: progress, begin: time.Now()}
	r.say("Linux %s, %d CPUs, load average %s: what else the machine does is in all figures", where.Kernel, where.CPUs, where.Busy)
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return nil, err
	}
	if o.merge {
		return r, nil
	}
	if r.file, err = os.Create(o.out); err != nil {
		return nil, err
	}
	return r, r.line(map[string]report.Machine{"machine": where})
}

func (r *recorder) line(v any) error {
	if r.file == nil {
		return nil
	}
	return json.NewEncoder(r.file).Encode(v)
}

// add keeps a measurement.
func (r *recorder) add(m report.Measurement) {
	r.results.Measurements = append(r.results.Measurements, m)
	r.say("%s, %s, round %d: %s %.4g %s", m.Figure, m.Load, m.Round, m.Contender, m.Value, m.Unit)
	if err := r.line(m); err != nil {
		r.failed = append(r.failed, err)
	}
}

// fail keeps what went wrong with a contender. The end of the whole run is nothing of the contender's.
func (r *recorder) fail(contender, what string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	err = fmt.Errorf("%s: %s: %w", contender, what, err)
	r.failed = append(r.failed, err)
	r.say("%v", err)
}

func (r *recorder) say(format string, args ...any) {
	fmt.Fprintf(r.progress, "%4.0fs  %s\n", time.Since(r.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (r *recorder) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

var (
	processor = regexp.MustCompile(`(?m)^model name\s*: (.*)$`)
	memory    = regexp.MustCompile(`(?m)^MemTotal:\s*(\d+) kB$`)
)

func thisMachine(ctx context.Context, o options) (m report.Machine, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	m = report.Machine{Kernel: unix.ByteSliceToString(name.Release[:]), CPU: "unknown", CPUs: runtime.NumCPU(), Memory: "unknown",
		Commit: "unknown", Started: time.Now().UTC().Format(time.RFC3339),
		Method: fmt.Sprintf("Medians of %d rounds of %v", o.rounds, o.time)}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	if found := processor.FindSubmatch(cpu); found != nil {
		m.CPU = string(found[1])
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	if found := memory.FindSubmatch(meminfo); found != nil {
		kilobytes, err := strconv.Atoi(string(found[1]))
		if err != nil {
			return m, fmt.Errorf("read /proc/meminfo: %w", err)
		}
		m.Memory = fmt.Sprintf("%.1f GiB", float64(kilobytes)/(1<<20))
	}
	average, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	m.Busy, _, _ = strings.Cut(string(average), " ")
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	return m, nil
}
