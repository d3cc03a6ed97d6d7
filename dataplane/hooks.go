// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How a hook is attached.
const (
	mechanismTCX    = "tcx"
	mechanismClsact = "clsact"
)

// A clsact filter's handle and priority are fixed: a replace without them would add a second filter.
const (
	filterHandle   = 1
	filterPriority = 49278 // 0xc07e
	filterName     = "conenat"
)

// hook is a program at one of an interface's two places.
type hook struct {
	program *ebpf.Program
	attach  ebpf.AttachType
	parent  uint32 // clsact
	name    string // part of the pin's name
}

func (d *Dataplane) hooksOf(k LinkKind) []hook {
	ingress := hook{attach: ebpf.AttachTCXIngress, parent: netlink.HANDLE_MIN_INGRESS, name: "ingress"}
	switch k {
	case InsideDevice, InsidePort:
		ingress.program = d.objs.NatInside
		return []hook{ingress}
	case fragmentsLink:
		ingress.program = d.objs.NatFragments
		return []hook{ingress}
	}
	ingress.program = d.objs.NatOutsideIngress
	egress := hook{attach: ebpf.AttachTCXEgress, parent: netlink.HANDLE_MIN_EGRESS, name: "egress",
		program: d.objs.NatOutsideEgress}
	return []hook{egress, ingress}
}

func (d *Dataplane) hookPin(ifindex int, name string) string {
	return filepath.Join(d.pins, fmt.Sprintf("link_%d_%s", ifindex, name))
}

// attachHooks puts a link's programs in place, by TCX where the kernel has it, else by clsact. What the
// other mechanism has left is taken away once this one works.
func (d *Dataplane) attachHooks(l Link) error {
	for _, h := range d.hooksOf(l.Kind) {
		err := ebpf.ErrNotSupported
		if d.features.TCX {
			err = d.attachTCX(l, h)
		}
		switch {
		case err == nil:
			err = detachClsact(l.IfIndex, h.parent)
		case errors.Is(err, ebpf.ErrNotSupported):
			if err = attachClsact(l, h); err == nil {
				err = d.detachLink(l.IfIndex, h.name)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	return nil
}

func (d *Dataplane) attachTCX(l Link, h hook) error {
	return d.pinLink(l.IfIndex, h.name, h.program, func(i *link.Info) bool { return i.TCX() != nil && int(i.TCX().Ifindex) == l.IfIndex },
		func() (link.Link, error) {
			made, err := link.AttachTCX(link.TCXOptions{Interface: l.IfIndex, Program: h.program, Attach: h.attach})
			if err != nil {
				return nil, fmt.Errorf("attach by TCX: %w", err)
			}
			return made, nil
		})
}

// pinLink swaps the program in the pinned link, which is to be what is wanted, or makes a link and pins it.
func (d *Dataplane) pinLink(ifindex int, name string, program *ebpf.Program, wanted func(*link.Info) bool, attach func() (link.Link, error)) error {
	pin := d.hookPin(ifindex, name)
	switch pinned, err := link.LoadPinnedLink(pin, nil); {
	case err == nil:
		defer pinned.Close()
		if info, err := pinned.Info(); err == nil && wanted(info) {
			return pinned.Update(program)
		}
		if err := d.detachLink(ifindex, name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	made, err := attach()
	if err != nil {
		return err
	}
	defer made.Close()
	if err := made.Pin(pin); err != nil {
		return fmt.Errorf("pin link %s: %w", pin, err)
	}
	return nil
}

// detachLink removes a pin of a TCX link or XDP's; the link ends with it, since nobody else holds it.
func (d *Dataplane) detachLink(ifindex int, name string) error {
	pin := d.hookPin(ifindex, name)
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		// The kernel puts a pin's link off until after an RCU grace period: without this the hook would
		// translate for some 10 ms more.
		if err = l.Detach(); errors.Is(err, unix.ENOLINK) { // the interface is gone, and the hook with it
			err = nil
		}
		err = errors.Join(err, l.Close())
	}
	return errors.Join(err, os.Remove(pin))
}

func clsactQdisc(ifindex int) *netlink.GenericQdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

func attachClsact(l Link, h hook) error {
	if err := netlink.QdiscAdd(clsactQdisc(l.IfIndex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.IfIndex, Parent: h.parent, Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Fd:           h.program.FD(),
		Name:         filterName,
		DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("replace clsact filter: %w", err)
	}
	return nil
}

// ownFilters are conenat's filters at a place, and how many others there are.
func ownFilters(dev netlink.Link, parent uint32) (own []*netlink.BpfFilter, others int, err error) {
	filters, err := netlink.FilterList(dev, parent)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no qdisc
		return nil, 0, nil
	}
	for _, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if ok && b.Priority == filterPriority && strings.HasPrefix(b.Name, filterName) {
			own = append(own, b)
			continue
		}
		others++
	}
	return own, others, err
}

// detachClsact removes conenat's filter from a place, and the qdisc if nobody else has a filter there. An
// interface that is gone took its filters along.
func detachClsact(ifindex int, parent uint32) error {
	dev, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up interface %d: %w", ifindex, err)
	}
	own, _, err := ownFilters(dev, parent)
	if err != nil || len(own) == 0 {
		return err
	}
	for _, f := range own {
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove clsact filter: %w", err)
		}
	}
	left := 0
	for _, p := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		mine, others, err := ownFilters(dev, p)
		if err != nil {
			return err
		}
		left += len(mine) + others
	}
	if left > 0 {
		return nil
	}
	if err := netlink.QdiscDel(clsactQdisc(ifindex)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return nil
}

func (d *Dataplane) detachHooks(ifindex int) error {
	for _, h := range d.hooksOf(OutsideLink) { // both places, whatever it was
		if err := errors.Join(d.detachLink(ifindex, h.name), detachClsact(ifindex, h.parent)); err != nil {
			return err
		}
	}
	return nil
}

// mechanism says by what an interface's hooks are attached now; "" when one of them is not: somebody else took it
// away, or the interface is gone.
func (d *Dataplane) mechanism(l Link) (string, error) {
	by := ""
	for _, h := range d.hooksOf(l.Kind) {
		m, err := d.hookMechanism(l.IfIndex, h)
		if err != nil || m == "" {
			return "", err
		}
		by = m
	}
	return by, nil
}

func (d *Dataplane) hookMechanism(ifindex int, h hook) (string, error) {
	if pinned, err := link.LoadPinnedLink(d.hookPin(ifindex, h.name), nil); err == nil {
		defer pinned.Close()
		info, err := pinned.Info()
		if err == nil && info.TCX() != nil && int(info.TCX().Ifindex) == ifindex {
			return mechanismTCX, nil
		}
		return "", nil
	}
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return "", nil // it is gone, and its hooks with it
	}
	own, _, err := ownFilters(dev, h.parent)
	if err != nil || len(own) == 0 {
		return "", err
	}
	return mechanismClsact, nil
}

// queryHooks says whether this process's programs are attached to an interface by TCX; ids remembers theirs.
func (d *Dataplane) queryHooks(l Link, ids map[*ebpf.Program]ebpf.ProgramID) bool {
	for _, h := range d.hooksOf(l.Kind) {
		if ids[h.program] == 0 {
			info, err := h.program.Info()
			if err != nil {
				return false
			}
			ids[h.program], _ = info.ID()
		}
		there, err := link.QueryPrograms(link.QueryOptions{Target: l.IfIndex, Attach: h.attach})
		if err != nil || !slices.ContainsFunc(there.Programs, func(p link.AttachedProgram) bool { return p.ID == ids[h.program] }) {
			return false
		}
	}
	return true
}
