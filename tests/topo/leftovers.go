// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupDir = "/sys/fs/cgroup"

// AssertClean fails the test if, when all that was set up after this call is torn down, something of this
// process is left: namespaces, mounts (bpffs with pins is one), directories, cgroups, processes, goroutines.
func AssertClean(t TB) {
	t.Helper()
	before := goroutines()
	defaultPins := exists(defaultStateDir)
	t.Cleanup(func() {
		t.Helper()
		var left []string
		_ = Poll(context.Background(), 3*time.Second, "", func() (bool, error) { // goroutines and tasks take a moment to end
			left = append(Leftovers(), newGoroutines(before)...)
			return len(left) == 0, nil
		})
		if !defaultPins && exists(defaultStateDir) {
			left = append(left, "pins in "+defaultStateDir)
		}
		for _, what := range left {
			t.Errorf("left behind: %s", what)
		}
	})
}

const defaultStateDir = "/sys/fs/bpf/conenat"

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Leftovers names what this process has made with this package and not taken away yet, but for ProcessDir.
func Leftovers() []string {
	left := remains(os.Getpid(), processDirName())
	return append(left, children()...)
}

// Remains names what is there of all topologies that a process made, which may be gone.
func Remains(pid int) []string {
	left := remains(pid, "")
	mark := fmt.Sprintf("/cn-%d-", pid)
	for _, dir := range list("/proc") {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if other, notPID := strconv.Atoi(filepath.Base(dir)); err == nil && notPID == nil && bytes.Contains(cmdline, []byte(mark)) {
			left = append(left, describe(other))
		}
	}
	return left
}

// remains names namespaces, directories, cgroups and mounts, but for one directory.
func remains(pid int, except string) []string {
	prefix := dirPrefix(pid)
	its := func(name string) bool {
		dir, ok := isOurs(name)
		return ok && strings.HasPrefix(dir, prefix) && filepath.Join(os.TempDir(), dir) != except
	}
	var left []string
	for _, path := range slices.Concat(list(netnsDir), list(os.TempDir()), cgroups()) {
		if its(filepath.Base(path)) {
			left = append(left, path)
		}
	}
	for _, m := range mounts() {
		if rel, ok := strings.CutPrefix(m, os.TempDir()+"/"); ok && its(strings.Split(rel, "/")[0]) {
			left = append(left, "mount "+m)
		}
	}
	return left
}

func processDirName() string {
	processDir.Lock()
	defer processDir.Unlock()
	return processDir.dir
}

// sweep removes what processes that are gone left behind.
func sweep() error {
	var errs []error
	for _, dir := range list(os.TempDir()) {
		if name, ok := isOurs(filepath.Base(dir)); !ok || name != filepath.Base(dir) {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue // its process lives
		}
		errs = append(errs, sweepDir(dir))
		lock.Close()
	}
	return errors.Join(errs...)
}

// sweepDir takes away the remains of the topology whose directory is dir.
func sweepDir(dir string) error {
	name := filepath.Base(dir)
	var errs []error
	for _, cg := range cgroups() {
		if filepath.Base(cg) == name {
			errs = append(errs, RemoveCgroup(cg))
		}
	}
	for _, path := range list(netnsDir) {
		if strings.HasPrefix(filepath.Base(path), name+"-") {
			errs = append(errs, killInNetns(path), removeNetns(path))
		}
	}
	below := mounts()
	slices.Reverse(below) // the innermost last mounted
	for _, m := range below {
		if strings.HasPrefix(m, dir+"/") {
			errs = append(errs, unix.Unmount(m, unix.MNT_DETACH))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// RemoveCgroup kills what still runs in a cgroup and removes it and those below.
func RemoveCgroup(cg string) error {
	var dirs []string
	_ = filepath.WalkDir(cg, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, dir := range dirs {
		err := Poll(context.Background(), 5*time.Second, "remove cgroup "+dir, func() (bool, error) {
			for _, pid := range pidsIn(filepath.Join(dir, "cgroup.procs")) {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			err := os.Remove(dir)
			return err == nil || errors.Is(err, os.ErrNotExist), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func pidsIn(file string) []int {
	content, _ := os.ReadFile(file)
	var pids []int
	for _, field := range strings.Fields(string(content)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killInNetns kills the processes of a namespace that a dead topology made.
func killInNetns(path string) error {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return err
	}
	if own, err := netnsInode("self"); err != nil || own == want.Ino {
		return err // never kill in the namespace that we run in
	}
	for _, entry := range list("/proc") {
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			continue
		}
		if ino, err := netnsInode(strconv.Itoa(pid)); err == nil && ino == want.Ino {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}

func netnsInode(pid string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat("/proc/"+pid+"/ns/net", &st)
	return st.Ino, err
}

func list(dir string) []string {
	entries, _ := os.ReadDir(dir)
	paths := make([]string, len(entries))
	for i, e := range entries {
		paths[i] = filepath.Join(dir, e.Name())
	}
	return paths
}

// cgroups lists the cgroups at the top of each hierarchy, of version 1 or 2.
func cgroups() []string {
	var all []string
	for _, path := range list(cgroupDir) {
		if info, err := os.Lstat(path); err == nil && info.IsDir() {
			all = append(append(all, path), list(path)...)
		}
	}
	return all
}

// mounts lists the mount points of this process's mount namespace, in the order they were mounted.
func mounts() []string {
	content, _ := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, fields[4])
		}
	}
	return points
}

// children names the running children of this process.
func children() []string {
	var names []string
	for _, pid := range pidsIn(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid())) {
		names = append(names, describe(pid))
	}
	tasks := list("/proc/self/task")
	for _, task := range tasks {
		if filepath.Base(task) == strconv.Itoa(os.Getpid()) {
			continue
		}
		for _, pid := range pidsIn(filepath.Join(task, "children")) {
			names = append(names, describe(pid))
		}
	}
	return names
}

func describe(pid int) string {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '}))
}

// goroutines counts the goroutines that run this project's code, by where they were started.
func goroutines() map[string]int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	count := map[string]int{}
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		_, creator, ok := strings.Cut(stack, "created by ")
		if !ok || !strings.Contains(creator, "conenat/conenat/") {
			continue
		}
		creator, _, _ = strings.Cut(creator, " in goroutine")
		count[creator]++
	}
	return count
}

func newGoroutines(before map[string]int) []string {
	var left []string
	for creator, n := range goroutines() {
		if n > before[creator] {
			left = append(left, fmt.Sprintf("%d goroutine(s) started by %s", n-before[creator], creator))
		}
	}
	return left
}

// Alive says whether a process exists and is no zombie.
func Alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
