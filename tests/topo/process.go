// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/conenat/conenat/tests/patience"
)

// Command is exec.CommandContext for a program inside the namespace. Only its network namespace differs:
// mounts are the caller's (`ip netns exec` would give it mounts of its own, without cgroups). The program has
// a process group of its own, so a terminal's Ctrl-C does not reach it, and dies with the caller.
func (ns *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns.Path, "--", name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Run runs a program in the namespace with the given standard input and returns what it printed; an error
// has its standard error.
func (ns *NS) Run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := ns.Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %s %s in namespace %s: %w: %s",
			name, strings.Join(args, " "), ns.Name, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Process is a program that was started and is waited for.
type Process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; valid once done is closed
}

// Start starts cmd; Close of the topology stops it if it still runs then.
func (t *Topo) Start(name string, cmd *exec.Cmd) (*Process, error) {
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Defer("stop "+name, func() error { return p.Stop(10 * time.Second) })
	return p, nil
}

// PID is the program's; with NS.Command it is that of the program itself, for nsenter execs it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns what exec.Cmd.Wait did.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", p.name, ctx.Err())
	}
}

// Signal sends a signal; it is no error if the program has ended.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// Kill is kill -9, and waits.
func (p *Process) Kill() error {
	err := p.Signal(os.Kill)
	<-p.done
	return err
}

// Stop ends the program by SIGTERM and, when grace is over (see tests/patience), by SIGKILL, which is an error.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	grace = patience.For(grace)
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
		return errors.Join(fmt.Errorf("%s ignored SIGTERM for %v, killed", p.name, grace), p.Kill())
	}
}
