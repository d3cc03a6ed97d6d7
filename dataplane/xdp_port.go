// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane/thread"
)

// A frame that XDP redirects to a veth is taken by the other end's NAPI, and lost without a word where there is none
// (veth_xdp_xmit). A container's end gets one by GRO (Linux 5.13), which new ones have off, or by an XDP program. It is GRO that is
// switched on: a program would take segmentation offload from the host's end (veth_xdp_set), and would have to be held by somebody.

// receiveXDP has the container's end of a port take frames of XDP. It is given and returns the port's flags.
func (d *Dataplane) receiveXDP(l Link, flags uint8) (uint8, error) {
	end, err := d.openContainerEnd(l.IfIndex)
	if err != nil {
		return flags, err
	}
	defer end.Close()
	switched, err := end.switchGRO(true)
	if err != nil {
		return flags, err
	}
	if switched {
		flags |= bpf.LinkGROSwitched
	}
	return flags | bpf.LinkXDPPeer, nil
}

// detachPort has a container's end as it was. One that is gone needs nothing.
func (d *Dataplane) detachPort(raw bpf.Link) error {
	switched := raw.Flags&bpf.LinkGROSwitched != 0
	raw.Flags &^= bpf.LinkXDPPeer | bpf.LinkGROSwitched
	if err := d.putLink(raw); err != nil || !switched {
		return err
	}
	return d.restoreGRO(int(raw.Ifindex))
}

func (d *Dataplane) restoreGRO(ifindex int) error {
	end, err := d.openContainerEnd(ifindex)
	if errors.Is(err, ErrNotFound) || errors.Is(err, errNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer end.Close()
	_, err = end.switchGRO(false)
	return err
}

// errNoNamespace: the other end's network namespace is no process's that can be seen here, and has no name.
var errNoNamespace = errors.New("the container's network namespace cannot be found")

// containerEnd is the other end of a veth pair, in another network namespace.
type containerEnd struct {
	netns *os.File
	index int
}

func (e containerEnd) Close() error { return e.netns.Close() }

// openContainerEnd looks for the namespace by its number. Errors: ErrNotFound, where the interface is gone; errNoNamespace.
func (d *Dataplane) openContainerEnd(ifindex int) (containerEnd, error) {
	dev, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return containerEnd{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return containerEnd{}, fmt.Errorf("look up interface %d: %w", ifindex, err)
	}
	a := dev.Attrs()
	if dev.Type() != "veth" || a.NetNsID < 0 {
		return containerEnd{}, fmt.Errorf("interface %s has no other end in a container", a.Name)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return containerEnd{}, fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	if d.netns == nil {
		d.netns = numbered{}
	}
	netns, err := d.netns.open(handle, a.NetNsID)
	return containerEnd{netns, a.ParentIndex}, err
}

// numbered is where network namespaces have been found, by the numbers that this one has for them: looking at all of them for each
// of a thousand containers would take long.
type numbered map[int]string

// open looks among the named namespaces and the processes' where one has not been found yet, or is there no more.
func (n numbered) open(handle *netlink.Handle, id int) (*os.File, error) {
	if f := openNumbered(handle, n[id], id); f != nil {
		return f, nil
	}
	n.search(handle)
	if f := openNumbered(handle, n[id], id); f != nil {
		return f, nil
	}
	return nil, fmt.Errorf("%w (number %d): run conenat in the host's PID namespace", errNoNamespace, id)
}

// search looks at each namespace once.
func (n numbered) search(handle *netlink.Handle) {
	clear(n)
	seen := map[uint64]bool{}
	for _, pattern := range []string{"/run/docker/netns/*", "/run/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, _ := filepath.Glob(pattern) // the error is for a bad pattern
		for _, path := range paths {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || seen[st.Ino] {
				continue
			}
			seen[st.Ino] = true
			if id, err := numberOf(handle, path); err == nil {
				n[id] = path
			}
		}
	}
}

func numberOf(handle *netlink.Handle, path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return handle.GetNetNsIdByFd(int(f.Fd()))
}

// openNumbered is nil unless the namespace has that number; the path may be another one's by now.
func openNumbered(handle *netlink.Handle, path string, id int) *os.File {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	if is, err := handle.GetNetNsIdByFd(int(f.Fd())); err != nil || is != id {
		f.Close()
		return nil
	}
	return f
}

// switchGRO says whether it was the other way.
func (e containerEnd) switchGRO(on bool) (switched bool, err error) {
	err = thread.Run(func() error {
		if err := unix.Setns(int(e.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the container's network namespace: %w", err)
		}
		dev, err := netlink.LinkByIndex(e.index)
		if err != nil {
			return fmt.Errorf("%w: the container's end: %w", ErrNotFound, err)
		}
		if x := dev.Attrs().Xdp; on && x != nil && x.Attached {
			return nil // it has NAPI
		}
		switched, err = setGRO(dev.Attrs().Name, on)
		return err
	})
	return switched, err
}

// setGRO is `ethtool -K NAME gro on`.
func setGRO(name string, on bool) (switched bool, err error) {
	want := map[bool]uint32{true: 1}[on]
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	value := ethtoolValue{command: unix.ETHTOOL_GGRO}
	ask := func() error {
		request := ifreqData{data: unsafe.Pointer(&value)}
		copy(request.name[:unix.IFNAMSIZ-1], name)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("GRO of %s in the container: %w", name, errno)
		}
		return nil
	}
	if err := ask(); err != nil || value.data == want {
		return false, err
	}
	value = ethtoolValue{command: unix.ETHTOOL_SGRO, data: want}
	return true, ask()
}

// ethtoolValue is struct ethtool_value (include/uapi/linux/ethtool.h).
type ethtoolValue struct{ command, data uint32 }

// ifreqData is struct ifreq (include/uapi/linux/if.h) with ifr_data.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}
