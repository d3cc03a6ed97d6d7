// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

// XDP is in front of the hooks, and does with some packets at once what these would do. It is native, or not there at all: what the
// kernel calls generic comes after the costs that XDP is to save, and is slower than the hooks.

// XDPUse is what is done at XDP on an interface.
type XDPUse uint8

// What there is to do.
const (
	XDPNone      XDPUse = iota
	XDPDrop             // OutsideLink: to drop what is unsolicited (Link.DropUnsolicited)
	XDPTranslate        // the same, and to translate; InsidePort: to have what is translated sent straight into the container
)

var xdpUseNames = [...]string{"none", "drop", "translate"}

// String names the use.
func (u XDPUse) String() string {
	if int(u) < len(xdpUseNames) {
		return xdpUseNames[u]
	}
	return fmt.Sprintf("xdp-use(%d)", uint8(u))
}

// xdpHook is the name of XDP's pins, beside those of the hooks.
const xdpHook = "xdp"

// AttachXDP puts the packet path at XDP of an interface whose hooks are on, for Link.XDP, or takes what an earlier daemon has put
// there over to this program. A port of a bridge gets no program: the other end of its veth pair is made ready. Where it fails,
// XDP is not used there, and the hooks do all. Error: ErrNotFound, where the interface is gone or has no hooks.
func (d *Dataplane) AttachXDP(l Link) error {
	defer d.writes.hold()()
	raw, known, err := d.lookupLink(uint32(l.IfIndex))
	switch {
	case err == nil && !known:
		err = ErrNotFound
	case err == nil:
		err = d.attachXDP(l, raw)
	}
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("XDP on %s (ifindex %d): %w", l.Name, l.IfIndex, err)
	}
	return nil
}

func (d *Dataplane) attachXDP(l Link, raw bpf.Link) (err error) {
	flags := raw.Flags &^ bpf.LinkXDP
	if l.Kind == InsidePort {
		flags, err = d.receiveXDP(l, flags)
	} else if err = d.loadXDP(l); l.XDP == XDPTranslate {
		flags |= bpf.LinkXDP
	}
	if err == nil && l.XDP == XDPTranslate {
		err = checkRedirects(l)
	}
	if err != nil {
		raw.Flags |= flags & bpf.LinkGROSwitched
		return errors.Join(err, d.detachXDP(raw))
	}
	raw.Flags, raw.Epoch = flags, nextEpoch(raw.Epoch)
	return d.putLink(raw)
}

// loadXDP puts the program on an interface that has none of somebody else's.
func (d *Dataplane) loadXDP(l Link) error {
	program := d.objs.NatXdpInside
	if l.Kind == OutsideLink {
		program = d.objs.NatXdpOutside
	}
	return d.pinLink(l.IfIndex, xdpHook, program, func(i *link.Info) bool { return xdpIsOn(i, l.IfIndex) }, func() (link.Link, error) {
		if err := refuseOtherXDP(l.IfIndex); err != nil {
			return nil, err
		}
		made, err := link.AttachXDP(link.XDPOptions{Interface: l.IfIndex, Program: program, Flags: link.XDPDriverMode})
		if err != nil {
			return nil, explainXDP(l.Name, driverOf(l.Name), err)
		}
		return made, nil
	})
}

func xdpIsOn(i *link.Info, ifindex int) bool {
	return i.XDP() != nil && int(i.XDP().Ifindex) == ifindex
}

// refuseOtherXDP leaves another's program where it is.
func refuseOtherXDP(ifindex int) error {
	dev, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("look up the interface: %w", err)
	}
	if x := dev.Attrs().Xdp; x != nil && x.Attached {
		return fmt.Errorf("%w (id %d): it stays; take it off (`bpftool net` shows whose it is) to have conenat's", ErrOtherXDP, x.ProgId)
	}
	return nil
}

// explainXDP says what to do about an answer of the kernel's, which is a number and no more (bpf_xdp_link_attach).
func explainXDP(name, driver string, err error) error {
	why := ""
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST): // since refuseOtherXDP has looked
		return fmt.Errorf("%w: it stays: %w", ErrOtherXDP, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, errNotSupp):
		why = "has no native XDP (or not in this kernel)"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		why = "refuses native XDP as the interface is set up: lower its MTU (to 1500), and switch LRO and hardware GRO off (`ethtool -K " + name + " lro off rx-gro-hw off`)"
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
		why = "has too few queues, or too little memory, for native XDP: give it a pair of queues for each CPU, and one more (`ethtool -L " + name + " combined N`)"
	default:
		return fmt.Errorf("attach to driver %s: %w", driver, err)
	}
	return fmt.Errorf("driver %s %s: %w", driver, why, err)
}

// errNotSupp is ENOTSUPP of the kernel's linux/errno.h, which should not come to user space, and does.
const errNotSupp = unix.Errno(524)

// driverOf is an interface's driver; "unknown" where it says none.
func driverOf(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "unknown"
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// DetachXDP leaves an interface, which may be gone already, to its hooks. Error: ErrNotFound.
func (d *Dataplane) DetachXDP(ifindex int) error {
	defer d.writes.hold()()
	raw, known, err := d.lookupLink(uint32(ifindex))
	if err == nil && !known {
		err = ErrNotFound
	}
	if err == nil {
		err = d.detachXDP(raw)
	}
	if err != nil {
		return fmt.Errorf("take XDP off interface %d: %w", ifindex, err)
	}
	return nil
}

// detachXDP: first nobody sends there any more.
func (d *Dataplane) detachXDP(raw bpf.Link) error {
	if raw.Kind == bpf.LinkInsidePort {
		return d.detachPort(raw)
	}
	if raw.Flags&bpf.LinkXDP != 0 {
		raw.Flags &^= bpf.LinkXDP
		if err := d.putLink(raw); err != nil {
			return err
		}
	}
	return d.detachLink(int(raw.Ifindex), xdpHook)
}

// xdpUse is what is done at XDP of an interface now: nothing where somebody else took the program away.
func (d *Dataplane) xdpUse(raw bpf.Link) XDPUse {
	switch {
	case raw.Kind == bpf.LinkInsidePort && raw.Flags&bpf.LinkXDPPeer != 0:
		return XDPTranslate
	case raw.Kind != bpf.LinkOutside && raw.Kind != bpf.LinkInsideDevice:
		return XDPNone
	}
	pinned, err := link.LoadPinnedLink(d.hookPin(int(raw.Ifindex), xdpHook), nil)
	if err != nil {
		return XDPNone
	}
	defer pinned.Close()
	info, err := pinned.Info()
	switch {
	case err != nil, !xdpIsOn(info, int(raw.Ifindex)):
		return XDPNone
	case raw.Flags&bpf.LinkXDP != 0:
		return XDPTranslate
	}
	return XDPDrop
}

// lostXDP says whether others are told to redirect to an interface that is not ready for it any more.
func (d *Dataplane) lostXDP(raw bpf.Link) bool {
	return raw.Flags&bpf.LinkXDP != 0 && d.xdpUse(raw) != XDPTranslate
}

// ForgetHops has the next hops looked up anew that sessions remember for XDP: a route or a neighbour may be another one now. Without
// it they are, after a second.
func (d *Dataplane) ForgetHops() error {
	defer d.writes.hold()()
	raw, err := d.rawLinks()
	if err != nil {
		return err
	}
	for _, l := range raw {
		if l.Flags&(bpf.LinkXDP|bpf.LinkXDPPeer) == 0 {
			continue
		}
		l.Epoch = nextEpoch(l.Epoch)
		if err := d.putLink(l); err != nil {
			return fmt.Errorf("forget next hops by interface %d: %w", l.Ifindex, err)
		}
	}
	return nil
}

// nextEpoch leaves out 0, which no hop is remembered under.
func nextEpoch(e uint8) uint8 { return max(1, e+1) }
