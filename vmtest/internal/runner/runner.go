// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/conenat/conenat/vmtest/internal/initramfs"
	"github.com/conenat/conenat/vmtest/internal/kernel"
	"github.com/conenat/conenat/vmtest/internal/vm"
	"github.com/conenat/conenat/vmtest/internal/wire"
)

// Runner runs commands in machines.
type Runner struct {
	Kernels        *kernel.File
	Cache          string // directory, on the host's root file system; see DefaultCache
	Stdout, Stderr io.Writer

	Accel        vm.Accel // Auto: KVM where it is real
	CPUs         int
	MemoryMB     int
	BootTimeout  time.Duration
	Timeout      time.Duration // of the command
	ConsoleLimit int64         // bytes
	Wires        []wire.Spec   // between the machine's own network cards
	Append       string        // more of the kernel's command line
	QEMU         []string      // more arguments
	Env          []string      // "NAME=value", more of the command's environment
}

// Command is what to run, and where.
type Command struct {
	Args []string
	Dir  string // of the host
}

// DefaultCache returns $VMTEST_CACHE, or conenat-vmtest in the user's cache directory.
func DefaultCache() (string, error) {
	if dir := os.Getenv("VMTEST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: set VMTEST_CACHE: %w", err)
	}
	return filepath.Join(dir, "conenat-vmtest"), nil
}

// Run runs the command on each of the kernels, one after the other, and returns the exit code: of the first that
// failed, or 0. Errors are reported on Stderr and are an exit code too.
func (r *Runner) Run(ctx context.Context, kernels []kernel.Kernel, c Command) int {
	code := 0
	var summary []string
	for _, k := range kernels {
		s := session{Runner: r, kernel: k, started: time.Now()}
		said, got := s.run(ctx, c)
		s.progress("%s", said)
		summary = append(summary, fmt.Sprintf("%s\t%s", k.Name, said))
		if code == 0 {
			code = got
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(kernels) > 1 {
		fmt.Fprintf(r.Stderr, "vmtest:\n  %s\n", strings.Join(summary, "\n  "))
	}
	return code
}

// session is one command on one kernel.
type session struct {
	*Runner
	kernel  kernel.Kernel
	started time.Time
}

func (s *session) progress(format string, args ...any) {
	fmt.Fprintf(s.Stderr, "vmtest: linux %s: %s\n", s.kernel.Name, fmt.Sprintf(format, args...))
}

// run returns what to say of the run, and the exit code.
func (s *session) run(ctx context.Context, c Command) (string, int) {
	result, console, err := s.boot(ctx, c)
	if err == nil && result.StaleCode {
		s.progress("%v: QEMU ran code that the kernel had patched; once more from the start", result.Outcome)
		result, console, err = s.boot(ctx, c)
	}
	switch {
	case ctx.Err() != nil:
		return "interrupted", vm.CodeInterrupted
	case err != nil:
		return err.Error(), vm.CodePrepare
	}
	if result.Kind != vm.Exited {
		fmt.Fprintf(s.Stderr, "--- last lines of %s\n%s\n---\n", console, strings.Join(result.LastLines, "\n"))
	}
	return fmt.Sprintf("%v, after %v", result.Outcome, time.Since(s.started).Round(100*time.Millisecond)), result.Code()
}

// boot prepares what the run needs, and runs it. Console is the path of what the kernel said.
func (s *session) boot(ctx context.Context, c Command) (result vm.Result, console string, err error) {
	tree, err := kernel.Prepare(ctx, s.Cache, s.Kernels.Mirror, s.kernel, s.progress)
	if err != nil {
		return result, "", err
	}
	modules, err := tree.Modules(ctx, slices.Concat(s.Kernels.Modules...))
	if err != nil {
		return result, "", err
	}
	dir, err := s.runDir()
	if err != nil {
		return result, "", err
	}
	defer os.RemoveAll(dir)
	m := vm.Machine{
		Image: tree.Image, Initramfs: filepath.Join(dir, "initramfs"), Accel: s.Accel,
		CPUs: s.CPUs, MemoryMB: s.MemoryMB, Wires: s.Wires, Append: s.Append, QEMU: s.QEMU,
	}
	if m.Accel == vm.ICount {
		m.CPUs = 1 // two would share the count
	}
	command := initramfs.Command{Args: c.Args, Dir: c.Dir, Env: s.environment(), ModulesDir: tree.ModulesDir}
	if err := initramfs.Write(m.Initramfs, modules, command); err != nil {
		return result, "", err
	}
	if m.Accel == vm.Auto {
		if m.Accel, err = m.ChooseAccel(ctx, s.Cache, s.progress); err != nil {
			return result, "", err
		}
	}
	s.progress("booting %s: %s, %d CPUs, %d MB", tree.Release, m.Accel, m.CPUs, m.MemoryMB)
	return s.start(ctx, m)
}

func (s *session) start(ctx context.Context, m vm.Machine) (result vm.Result, console string, err error) {
	console = filepath.Join(s.Cache, "console-"+s.kernel.Name+".log")
	f, err := os.Create(console)
	if err != nil {
		return result, "", fmt.Errorf("make the console's file: %w", err)
	}
	defer f.Close()
	result, err = m.Run(ctx, vm.Options{
		BootTimeout: s.BootTimeout, Timeout: s.Timeout, Console: f, ConsoleLimit: s.ConsoleLimit,
		Stdout: s.Stdout, Stderr: s.Stderr, Progress: s.progress,
	})
	return result, console, err
}

// runDir makes a directory for this process, and removes those of processes that were killed.
func (s *session) runDir() (string, error) {
	runs := filepath.Join(s.Cache, "runs")
	entries, err := os.ReadDir(runs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		owner, _, _ := strings.Cut(e.Name(), "-")
		pid, err := strconv.Atoi(owner)
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(filepath.Join(runs, e.Name())) // the next run tries again
		}
	}
	dir := filepath.Join(runs, strconv.Itoa(os.Getpid()))
	return dir, os.MkdirAll(dir, 0o755)
}

// Variables of the host's that mean the same in the guest.
var inherited = strings.Fields("PATH HOME USER LANG LC_ALL TERM TZ GOFLAGS GOPATH GOCACHE GOPROXY GOTOOLCHAIN")

// environment is the command's. The root is an overlay, and TMPDIR is not: dockerd's own overlays cannot lie on one.
func (s *session) environment() []string {
	env := []string{"TMPDIR=/run/tmp", "VMTEST_KERNEL=" + s.kernel.Name}
	if len(s.Wires) > 0 {
		env = append(env, wire.Variable+"="+wire.Environment(s.Wires))
	}
	for _, name := range inherited {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, s.Env...)
}
