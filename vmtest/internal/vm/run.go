// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/conenat/conenat/vmtest/internal/initramfs"
	"github.com/conenat/conenat/vmtest/internal/wire"
)

// Options are a run's limits and where its output goes.
type Options struct {
	BootTimeout  time.Duration // until the command runs
	Timeout      time.Duration // of the command
	Console      io.Writer     // the kernel's
	ConsoleLimit int64         // bytes
	Stdout       io.Writer     // the command's
	Stderr       io.Writer
	Progress     func(format string, args ...any) // one line at a time
}

// Result is a run's outcome and the last lines of its console.
type Result struct {
	Outcome
	Userspace bool // the guest's first process ran
	LastLines []string
	// StaleCode: the kernel panicked by a breakpoint that it sets where it patches itself (static keys) and had taken away:
	// software emulation with several CPUs has run what was there before. The kernel is not to blame.
	StaleCode bool
}

// A machine that has panicked or whose command has ended ends itself within this, or is ended.
const grace = 10 * time.Second

// How often a running command is mentioned.
const reminder = 30 * time.Second

// Run boots the machine and waits until it has ended. The error is of QEMU's start, or the context's; QEMU has ended
// then too.
func (m Machine) Run(ctx context.Context, o Options) (Result, error) {
	r := &run{Options: o, started: time.Now(), events: make(chan event)}
	r.console = console{file: o.Console, limit: o.ConsoleLimit}
	pipes, err := newPipes()
	if err != nil {
		return Result{}, err
	}
	defer pipes.close()
	wires, err := wire.Open(m.Wires)
	if err != nil {
		return Result{}, err
	}
	qemu, err := startQEMU(m.args(), slices.Concat(pipes.write, wires))
	wire.Close(wires) // QEMU has them, and they end with it
	if err != nil {
		return Result{}, err
	}
	pipes.closeWriters()

	var readers sync.WaitGroup
	readers.Go(func() { r.readConsole(pipes.read[fdConsole-3]) })
	readers.Go(func() { r.readStatus(pipes.read[fdStatus-3]) })
	readers.Go(func() { _, _ = io.Copy(o.Stdout, pipes.read[fdStdout-3]) })
	readers.Go(func() { _, _ = io.Copy(o.Stderr, pipes.read[fdStderr-3]) })
	ended := make(chan struct{})
	go func() { // the pipes end when QEMU does
		readers.Wait()
		close(ended)
	}()
	r.watch(ctx, ended, qemu.kill)
	qemu.kill()
	r.seen.qemu = qemu.wait()
	r.drain(ended)
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	r.seen.panic = r.console.panic
	result := Result{Outcome: r.seen.outcome(), Userspace: r.seen.userspace, LastLines: r.console.lines()}
	result.StaleCode = result.Kind == Panicked && r.console.int3 && m.Accel != KVM
	return result, nil
}

type run struct {
	Options
	started time.Time
	console console // the console reader's until all readers have ended
	seen    seen
	events  chan event
}

// event is one thing that a reader saw.
type event struct {
	said             string // a line of the status port
	panicked, full   bool
	consoleUnwritten error
}

func (r *run) readConsole(from io.Reader) {
	b := make([]byte, 1<<15)
	for {
		n, err := from.Read(b)
		if n > 0 {
			panicked, full, fileErr := r.console.write(b[:n])
			if panicked || full || fileErr != nil {
				r.events <- event{panicked: panicked, full: full, consoleUnwritten: fileErr}
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *run) readStatus(from io.Reader) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		r.events <- event{said: lines.Text()}
	}
}

// watch returns when the machine has ended, or must be.
func (r *run) watch(ctx context.Context, ended <-chan struct{}, kill func()) {
	limit, why := time.NewTimer(r.BootTimeout), fmt.Sprintf("nothing after %v", r.BootTimeout)
	defer limit.Stop()
	remind := time.NewTicker(reminder)
	defer remind.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended:
			return
		case <-limit.C:
			r.seen.expired = why
			return
		case <-remind.C:
			r.Progress("still at it after %v", r.since())
		case e := <-r.events:
			r.take(e)
			switch {
			case e.full || e.consoleUnwritten != nil:
				kill()
			case e.panicked || r.seen.exited || r.seen.failed != "":
				limit.Reset(grace)
			case r.seen.command && e.said == initramfs.SaysCommand:
				limit.Reset(r.Timeout)
				why = fmt.Sprintf("more than %v", r.Timeout)
			}
		}
	}
}

// drain takes what the readers still send, until they have ended.
func (r *run) drain(ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case e := <-r.events:
			r.take(e)
		}
	}
}

func (r *run) take(e event) {
	if e.consoleUnwritten != nil {
		r.seen.consoleFull, r.seen.expired = true, e.consoleUnwritten.Error()
	}
	if e.full {
		r.seen.consoleFull, r.seen.expired = true, fmt.Sprintf("more than %d bytes", r.ConsoleLimit)
	}
	word, rest, _ := strings.Cut(e.said, " ")
	switch word {
	case initramfs.SaysUserspace:
		r.seen.userspace = true
		r.Progress("userspace after %v", r.since())
	case initramfs.SaysCommand:
		r.seen.command = true
		r.Progress("running the command after %v", r.since())
	case initramfs.SaysFailed:
		r.seen.failed = rest
	case initramfs.SaysExit:
		status, err := strconv.Atoi(rest)
		r.seen.exited, r.seen.status = err == nil, status
	}
}

func (r *run) since() time.Duration { return time.Since(r.started).Round(100 * time.Millisecond) }

// pipes lead from QEMU to this process, one for each inherited descriptor.
type pipes struct{ read, write []*os.File }

func newPipes() (*pipes, error) {
	p := &pipes{}
	for range fdEnd - fdConsole {
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		p.read, p.write = append(p.read, r), append(p.write, w)
	}
	return p, nil
}

func (p *pipes) closeWriters() {
	for _, f := range p.write {
		f.Close()
	}
	p.write = nil
}

func (p *pipes) close() {
	p.closeWriters()
	for _, f := range p.read {
		f.Close()
	}
}

// qemu is a started process.
type qemu struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
}

// startQEMU starts it on a thread that is kept until it ends: the kernel kills it with its parent thread.
func startQEMU(args []string, files []*os.File) (*qemu, error) {
	q := &qemu{cmd: exec.Command(program, args...), ended: make(chan struct{})}
	q.cmd.Stderr = &q.stderr
	q.cmd.ExtraFiles = files
	// A group of its own: a terminal's Ctrl-C is for this process, which then ends QEMU.
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := q.cmd.Start()
		started <- err
		if err == nil {
			_ = q.cmd.Wait() // how the machine ended is told by what the guest said
			close(q.ended)
		}
	}()
	err := <-started
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("start the machine: install qemu-system-x86: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("start the machine: %w", err)
	}
	return q, nil
}

// kill ends it, and what it may have started; all of it may have ended.
func (q *qemu) kill() { _ = syscall.Kill(-q.cmd.Process.Pid, syscall.SIGKILL) }

// wait returns what it said on its way.
func (q *qemu) wait() string {
	<-q.ended
	return strings.TrimSpace(q.stderr.String())
}
