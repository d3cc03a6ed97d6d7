// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane/thread"
)

// mounts are those that a state directory belongs to: this process's own, or, where it has private ones, the
// host's. `ip netns exec`, a systemd unit with private mounts and their like give a process mounts of its own;
// a bpffs that is mounted there would end with the process, and the dataplane with it.
type mounts struct {
	pid int // of a process that has them; 0: this one
}

// hostMounts finds the host's mounts: those of the first ancestor whose can be seen.
func hostMounts() mounts {
	own, ok := mountNamespace("thread-self")
	host, pid := own, 0
	for ancestor := os.Getppid(); ok && ancestor > 0; ancestor = parentOf(ancestor) {
		ino, visible := mountNamespace(strconv.Itoa(ancestor))
		if !visible {
			break
		}
		host, pid = ino, ancestor
	}
	if host == own {
		return mounts{}
	}
	return mounts{pid: pid}
}

func mountNamespace(process string) (inode uint64, ok bool) {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join("/proc", process, "ns/mnt"), &st)
	return st.Ino, err == nil
}

// parentOf reads the fourth field of /proc/PID/stat (proc(5)); the second one may hold anything in brackets.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return parent
}

// path is a state directory as this process reaches it. One that this process sees on a bpffs stays: somebody
// has mounted it there on purpose.
func (m mounts) path(stateDir string) (string, error) {
	if m.pid == 0 {
		return stateDir, nil
	}
	for dir := stateDir; ; dir = filepath.Dir(dir) {
		there, err := exists(dir)
		if err != nil {
			return "", fmt.Errorf("look for state directory: %w", err)
		}
		if !there {
			continue
		}
		is, err := onBPFFS(dir)
		if err != nil || is {
			return stateDir, err
		}
		return m.root() + stateDir, nil
	}
}

func (m mounts) root() string { return fmt.Sprintf("/proc/%d/root", m.pid) }

// do runs f, which mounts or unmounts, where a path belongs; f is given the path as it is there.
func (m mounts) do(path string, f func(path string) error) error {
	inside, foreign := strings.CutPrefix(path, m.root()+"/")
	if m.pid == 0 || !foreign {
		return f(path)
	}
	return thread.Run(func() error { return m.enter(func() error { return f("/" + inside) }) })
}

func (m mounts) enter(f func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", m.pid))
	if err != nil {
		return fmt.Errorf("open the host's mount namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the other threads' root: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the host's mount namespace: %w", err)
	}
	return f()
}
