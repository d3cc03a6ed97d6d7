// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane/thread"
)

// mtu is what the largest jumbo frames of QEMU's Intel cards need; virtio's would take more.
const mtu = 9216

// Open makes the wires and returns the descriptors of their cards: of each wire the one end's queues, then the other's.
// They are the wires: all of it is gone when the last of them is closed.
func Open(specs []Spec) (files []*os.File, err error) {
	if len(specs) == 0 {
		return nil, nil
	}
	err = thread.Run(func() (err error) {
		files, err = openHere(specs)
		return err
	})
	if err != nil {
		Close(files)
		return nil, err
	}
	return files, nil
}

// Close closes descriptors that Open returned.
func Close(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// openHere takes this thread into a namespace of its own. What it made is returned with an error too.
func openHere(specs []Spec) (files []*os.File, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("make a network namespace for the wires: run vmtest as root, or by `unshare --map-root-user`: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("make a network namespace for the wires: %w", err)
	}
	if err := quiet(); err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the wires' namespace: %w", err)
	}
	defer nl.Close()
	for i, s := range specs {
		bridge, err := addBridge(nl, fmt.Sprintf("wire%d", i))
		if err != nil {
			return files, err
		}
		for end := range 2 {
			name := fmt.Sprintf("tap%d%c", i, 'a'+end)
			queues, err := openTap(name, s.Queues)
			files = append(files, queues...)
			if err != nil {
				return files, err
			}
			if err := join(nl, name, bridge); err != nil {
				return files, err
			}
		}
	}
	return files, nil
}

// quiet keeps this namespace's kernel from saying anything on the wires, and from looking at what is said there.
func quiet() error {
	for _, s := range []struct{ path, value string }{
		{"/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"},
		{"/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"},
		{"/proc/sys/net/bridge/bridge-nf-call-iptables", "0"},
		{"/proc/sys/net/bridge/bridge-nf-call-ip6tables", "0"},
		{"/proc/sys/net/bridge/bridge-nf-call-arptables", "0"},
	} {
		err := os.WriteFile(s.path, []byte(s.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6, or without br_netfilter
			return fmt.Errorf("set up the wires' namespace: %w", err)
		}
	}
	return nil
}

// addBridge makes one without multicast snooping; STP is off in a new one.
func addBridge(nl *netlink.Handle, name string) (netlink.Link, error) {
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &snooping}
	err := nl.LinkAdd(bridge)
	if err == nil {
		err = nl.LinkSetUp(bridge)
	}
	if err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	return bridge, nil
}

// openTap makes the device in this thread's namespace, with a descriptor for each queue.
func openTap(name string, queues int) (files []*os.File, err error) {
	flags := unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("make TAP device %s: %w", name, err)
	}
	request.SetUint16(uint16(flags))
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return files, fmt.Errorf("make TAP device %s: %w", name, os.NewSyscallError("open /dev/net/tun", err))
		}
		files = append(files, os.NewFile(uintptr(fd), name))
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return files, fmt.Errorf("make TAP device %s: %w", name, err)
		}
	}
	return files, nil
}

func join(nl *netlink.Handle, name string, bridge netlink.Link) error {
	tap, err := nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find TAP device %s: %w", name, err)
	}
	err = errors.Join(nl.LinkSetMTU(tap, mtu), nl.LinkSetMaster(tap, bridge), nl.LinkSetUp(tap))
	if err != nil {
		return fmt.Errorf("put TAP device %s on bridge %s: %w", name, bridge.Attrs().Name, err)
	}
	return nil
}
