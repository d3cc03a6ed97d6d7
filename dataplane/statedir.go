// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

// standardBPFFS is where hosts have their bpffs; systemd mounts it, and so does Open where nobody has.
const standardBPFFS = "/sys/fs/bpf"

// pinPrefix starts the name of a directory of pins; the ABI version follows.
const pinPrefix = "abi-"

func pinDir(stateDir string) string {
	return filepath.Join(stateDir, fmt.Sprintf("%s%d", pinPrefix, bpf.ABIVersion))
}

// unfinishedPinDir is where new pins are made, before they get their name. (A bpffs allows no dots.)
func unfinishedPinDir(stateDir string) string { return filepath.Join(stateDir, "unfinished") }

// checkPins says whether there are pins of this ABI version; those of another one are an error.
func checkPins(stateDir string) (bool, error) {
	entries, err := os.ReadDir(stateDir)
	if err != nil {
		return false, fmt.Errorf("read state directory: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, pinPrefix) && name != filepath.Base(pinDir(stateDir)) {
			return false, fmt.Errorf("%w: %s, this is %s%d; run `conenat detach` with the version that made it",
				ErrABI, name, pinPrefix, bpf.ABIVersion)
		}
	}
	return exists(pinDir(stateDir))
}

// ensureBPFFS makes sure that the state directory exists and lies on a bpffs. dir is its path by way of m.
func (m mounts) ensureBPFFS(dir string) error {
	if standard := filepath.Dir(dir); strings.TrimPrefix(standard, m.root()) == standardBPFFS {
		if err := m.mountBPFFS(standard); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	return m.mountBPFFS(dir)
}

func onBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("look at the filesystem of %s: %w", dir, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

func (m mounts) mountBPFFS(dir string) error {
	is, err := onBPFFS(dir)
	if err != nil || is {
		return err
	}
	err = m.do(dir, func(path string) error { return unix.Mount("bpf", path, "bpf", 0, "mode=0700") })
	if err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", dir, err)
	}
	return nil
}

// lockStateDir makes the state directory and takes it for this process; the lock ends with the process.
func lockStateDir(stateDir string) (*os.File, error) {
	m := hostMounts()
	dir, err := m.path(stateDir)
	if err != nil {
		return nil, err
	}
	if err := m.ensureBPFFS(dir); err != nil {
		return nil, err
	}
	if err := checkOwner(dir); err != nil {
		return nil, err
	}
	return flock(dir)
}

func flock(stateDir string) (*os.File, error) {
	f, err := os.Open(stateDir)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w: stop it, or give another --state-dir", stateDir, ErrInUse)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", stateDir, err)
	}
	return f, nil
}

// removeStateDir takes away an empty state directory, and the bpffs on it where there is one of its own. What
// others have pinned there stays. dir is its path by way of m.
func (m mounts) removeStateDir(dir string) error {
	own, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	empty, err := isEmpty(dir)
	if err != nil || !empty || strings.TrimPrefix(filepath.Clean(dir), m.root()) == standardBPFFS {
		return err
	}
	if own {
		if err := m.do(dir, func(path string) error { return unix.Unmount(path, 0) }); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

func isMountPoint(path string) (bool, error) {
	var dir, parent unix.Stat_t
	if err := unix.Stat(path, &dir); err != nil {
		return false, fmt.Errorf("stat state directory: %w", err)
	}
	if err := unix.Stat(filepath.Dir(path), &parent); err != nil {
		return false, fmt.Errorf("stat state directory's parent: %w", err)
	}
	return dir.Dev != parent.Dev, nil
}

// isEmpty does not count the two files that the root of each bpffs has.
func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("read state directory: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") {
			return false, nil
		}
	}
	return true, nil
}

// checkOwner refuses a state directory that somebody else could change.
func checkOwner(stateDir string) error {
	var st unix.Stat_t
	if err := unix.Stat(stateDir, &st); err != nil {
		return fmt.Errorf("stat state directory: %w", err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("state directory %s: %w: it belongs to uid %d with mode %04o; want one of uid %d's own that nobody else may write to",
			stateDir, ErrPermission, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	return nil
}
