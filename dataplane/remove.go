// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

// RemoveReport counts what Remove took away.
type RemoveReport struct {
	Links int // interfaces that had hooks
	Pins  int
}

// Remove takes away every hook, pin and map of a state directory; the packets go as they went before
// conenat. What before does is done once nothing refuses any more, and before the first hook goes.
//
// Errors: ErrNotFound when nothing is there, ErrInUse while a daemon lives on it, ErrOtherNamespace,
// ErrPermission.
func Remove(stateDir string, before ...func() error) (RemoveReport, error) {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	if err := checkPrivileges(); err != nil {
		return RemoveReport{}, err
	}
	m := hostMounts()
	lock, dir, err := m.lockExisting(stateDir)
	if errors.Is(err, ErrNotFound) { // somebody has removed the pins by hand
		if failed := removeReordering(stateDir, bpf.Config{}); failed != nil {
			err = fmt.Errorf("detach %s: %w", stateDir, failed)
		}
	}
	if err != nil {
		return RemoveReport{}, err
	}
	report, err := removeServed(stateDir, dir, before)
	lock.Close()
	if err != nil && !errors.Is(err, ErrNotFound) {
		return report, fmt.Errorf("detach %s: %w", stateDir, err)
	}
	if failed := m.removeStateDir(dir); failed != nil {
		return report, failed
	}
	return report, err
}

// lockExisting locks a state directory that is there already; dir is its path by way of m.
func (m mounts) lockExisting(stateDir string) (lock *os.File, dir string, err error) {
	if dir, err = m.path(stateDir); err != nil {
		return nil, "", err
	}
	there, err := exists(dir)
	if err == nil && there {
		there, err = onBPFFS(dir)
	}
	if err == nil && !there {
		err = fmt.Errorf("detach %s: %w", stateDir, ErrNotFound)
	}
	if err != nil {
		return nil, "", err
	}
	lock, err = flock(dir)
	return lock, dir, err
}

// removeServed is given the state directory's name and its path by way of the host's mounts.
func removeServed(stateDir, dir string, before []func() error) (RemoveReport, error) {
	cfg, err := checkServed(pinDir(dir))
	if err != nil {
		return RemoveReport{}, err
	}
	for _, f := range before {
		if err := f(); err != nil {
			return RemoveReport{}, err
		}
	}
	report, err := removeAll(dir)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return report, err
	}
	if failed := removeReordering(stateDir, cfg); failed != nil {
		return report, failed
	}
	return report, err
}

// removeReordering takes the namespace of the fragments away, last of all: until the hooks are off, fragments go there.
func removeReordering(stateDir string, cfg bpf.Config) (err error) {
	if cfg.Netns == 0 {
		if cfg.Netns, err = networkNamespace(); err != nil {
			return err
		}
	}
	return placeOf(stateDir, cfg.Netns).remove()
}

// checkServed refuses to take hooks off from another network namespace than theirs: clsact filters could not
// be found, nor the nft table. Of a namespace that is gone, only pins are left.
func checkServed(pins string) (bpf.Config, error) {
	cfg, err := pinnedConfig(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return bpf.Config{}, nil
	}
	if err != nil {
		return cfg, err
	}
	here, err := networkNamespace()
	if err != nil || cfg.Netns == here {
		return cfg, err
	}
	if path := findNetworkNamespace(cfg.Netns); path != "" {
		return cfg, fmt.Errorf("%w: run `nsenter --net=%s conenat detach …`", ErrOtherNamespace, path)
	}
	return cfg, nil
}

// findNetworkNamespace looks for a namespace by its inode among the named ones and the processes'; "" when it
// is nowhere.
func findNetworkNamespace(inode uint64) string {
	named, _ := filepath.Glob("/run/netns/*") // the error is for a bad pattern
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range append(named, processes...) {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == inode {
			return path
		}
	}
	return ""
}

// removeAll works for pins of any ABI version whose links map begins as this one's: hooks go first, so that
// a failure half-way leaves packets to the host's own NAT.
func removeAll(stateDir string) (RemoveReport, error) {
	var report RemoveReport
	entries, err := os.ReadDir(stateDir)
	if err != nil {
		return report, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), pinPrefix) && e.Name() != filepath.Base(unfinishedPinDir(stateDir)) {
			continue
		}
		dir := filepath.Join(stateDir, e.Name())
		if err := removeHooks(dir, &report); err != nil {
			return report, err
		}
		if err := removePins(dir, &report); err != nil {
			return report, err
		}
	}
	if report == (RemoveReport{}) {
		return report, ErrNotFound
	}
	return report, nil
}

// removeHooks detaches the interfaces that the links map names.
func removeHooks(dir string, report *RemoveReport) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "links"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned links: %w", err)
	}
	defer m.Close()
	d := &Dataplane{loaded: loaded{pins: dir}}
	d.objs.Links = m
	d.objs.LinksOverflow, err = ebpf.LoadPinnedMap(filepath.Join(dir, "links_overflow"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // never finished, so nothing is attached
	}
	if err != nil {
		return fmt.Errorf("open pinned links: %w", err)
	}
	defer d.objs.LinksOverflow.Close()
	links, err := d.rawLinks()
	if err != nil {
		return err
	}
	for _, l := range links { // of all of them first: nobody redirects to one that is not ready for it any more
		if err := d.detachXDP(l); err != nil {
			return fmt.Errorf("take XDP off interface %d: %w", l.Ifindex, err)
		}
	}
	for _, l := range links {
		if err := d.detachHooks(int(l.Ifindex)); err != nil {
			return fmt.Errorf("detach hooks of interface %d: %w", l.Ifindex, err)
		}
		report.Links++
	}
	return nil
}

// removePins removes a directory of pins, whatever is in it.
func removePins(dir string, report *RemoveReport) error {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, p := range pins {
		path := filepath.Join(dir, p.Name())
		if p.IsDir() { // of IPv6
			err = removePins(path, report)
		} else if err = os.Remove(path); err == nil {
			report.Pins++
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir)
}
