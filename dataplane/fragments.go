// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane/reorder"
)

// runDir is where the namespaces are mounted in which fragments are put in order.
const runDir = "/run/conenat"

// reordering is what a process has found or made.
type reordering struct {
	ifindex int // 0: nothing yet
	mtu     int
}

// place is where a state directory's namespace is: two daemons share none, nor do two namespaces that have the same paths.
type place struct {
	mounts mounts
	path   string // of the mount, as this process reaches it
	link   string // name of the interface to it
}

func placeOf(stateDir string, netns uint64) place {
	p := place{mounts: hostMounts()}
	own := sha256.Sum256([]byte(filepath.Clean(stateDir)))
	p.path = filepath.Join(runDir, fmt.Sprintf("fragments-%d-%.4x", netns, own))
	p.link = fmt.Sprintf("cnfrag%.4x", sha256.Sum256([]byte(p.path)))
	if p.mounts.pid != 0 {
		p.path = p.mounts.root() + p.path
	}
	return p
}

// EnsureReordering has the kernel put fragments in order that come otherwise, in a network namespace that outlives this process: it adopts
// what an earlier daemon has left, or makes it, and puts its hook on. What comes from outside and is larger than mtu, and may be
// fragmented, is cut to it there. It may be called at any time, and costs little where all is well. Without it such fragments are
// dropped and counted.
func (d *Dataplane) EnsureReordering(mtu int) error {
	defer d.writes.hold()()
	cfg, err := d.config()
	if err != nil {
		return err
	}
	p := placeOf(d.opts.StateDir, cfg.Netns)
	if d.reordering.mtu == mtu && d.reorders(p) {
		return nil
	}
	if err := d.reorder(p, mtu); err != nil {
		return fmt.Errorf("put fragments in order: %w", err)
	}
	return nil
}

// reorders says whether what this process has made is still there.
func (d *Dataplane) reorders(p place) bool {
	if d.reordering.ifindex == 0 {
		return false
	}
	link, err := netlink.LinkByName(p.link)
	if err != nil || link.Attrs().Index != d.reordering.ifindex {
		return false
	}
	by, err := d.mechanism(Link{IfIndex: d.reordering.ifindex, Kind: fragmentsLink})
	return err == nil && by != ""
}

func (d *Dataplane) reorder(p place, mtu int) error {
	d.reordering = reordering{}
	ns, err := reorder.Open(p.path, p.link)
	made := errors.Is(err, fs.ErrNotExist)
	if made {
		if err := errors.Join(d.setReorderLink(0), p.remove()); err != nil {
			return err
		}
		ns, err = reorder.New(p.link)
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	if err = d.commence(ns, mtu); err == nil && made {
		err = p.mount(ns.File())
	}
	if err == nil {
		err = d.setReorderLink(ns.IfIndex)
	}
	if err != nil {
		return errors.Join(err, d.setReorderLink(0), d.detachHooks(ns.IfIndex), p.remove())
	}
	d.reordering = reordering{ns.IfIndex, mtu}
	return nil
}

// commence has the hook on before anything can come back. The namespace's own end is set up last: with the other one up it sends at
// once; else it would drop what it sends until the kernel gets to tell it of its carrier, up to a second later.
func (d *Dataplane) commence(ns *reorder.Namespace, mtu int) error {
	if err := d.attachHooks(Link{IfIndex: ns.IfIndex, Kind: fragmentsLink}); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := ns.Up(); err != nil {
		return err
	}
	return ns.Configure(mtu)
}

// setReorderLink tells the packet path where to send fragments; 0: nowhere. The hook of the interface before goes with it.
func (d *Dataplane) setReorderLink(ifindex int) error {
	cfg, err := d.config()
	if err != nil || cfg.ReorderIfindex == uint32(ifindex) {
		return err
	}
	before := int(cfg.ReorderIfindex)
	cfg.ReorderIfindex = uint32(ifindex)
	err = d.putConfig(cfg)
	if err == nil && before != 0 {
		err = d.detachHooks(before)
	}
	return err
}

// mount makes a namespace last, where the host's mounts are.
func (p place) mount(namespace *os.File) error {
	if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	file, err := os.OpenFile(p.path, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("make a place for the namespace: %w", err)
	}
	file.Close()
	source := fmt.Sprintf("/proc/self/fd/%d", namespace.Fd())
	err = p.mounts.do(p.path, func(path string) error { return unix.Mount(source, path, "", unix.MS_BIND, "") })
	if err != nil {
		return fmt.Errorf("mount the namespace on %s: %w", p.path, err)
	}
	return nil
}

// remove takes everything away, in whatever state it is; fragments that are in the namespace are lost.
func (p place) remove() error {
	if err := reorder.Remove(p.link); err != nil {
		return err
	}
	err := p.mounts.do(p.path, func(path string) error {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // no mount
			return fmt.Errorf("unmount: %w", err)
		}
		return os.Remove(path) // here, too: private mounts may still have the namespace mounted there, and find it busy
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the place of the fragments' namespace, %s: %w", p.path, err)
	}
	_ = os.Remove(filepath.Dir(p.path)) // if nothing else is there
	return nil
}
