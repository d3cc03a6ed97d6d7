// SPDX-License-Identifier: Apache-2.0

package reorder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane/thread"
)

// Namespace is the private one. The host's is that of the thread that calls New, Open and Remove.
type Namespace struct {
	IfIndex int // of the veth's end on the host's side
	file    *os.File
	name    string // of that end
}

// inner is the veth's end in the namespace, the only interface but for loopback.
const inner = "fragments"

// New makes a namespace and a veth to it, whose end on the host's side gets a name and is down. What else has that name goes:
// a veth of a namespace that has ended may take the kernel a while.
func New(name string) (*Namespace, error) {
	if err := removeLink(name); err != nil {
		return nil, err
	}
	host, err := os.Open(currentNamespace)
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer host.Close()
	n := &Namespace{name: name}
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if n.file, err = os.Open(currentNamespace); err != nil {
			return fmt.Errorf("open the new network namespace: %w", err)
		}
		return addVeth(name, int(host.Fd()))
	})
	if err == nil {
		err = n.find()
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

const currentNamespace = "/proc/thread-self/ns/net"

// addVeth makes the pair: of the largest packet there is, since no link may split or refuse what passes here.
func addVeth(name string, host int) error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: inner, MTU: maxPacket, TxQLen: -1})
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU = name, netlink.NsFd(host), maxPacket
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the veth %s: %w", name, err)
	}
	return nil
}

const maxPacket = 65535

// Open opens the namespace that is mounted at path, if its veth's other end has that name here. Error: fs.ErrNotExist, where it is
// not, or has not.
func Open(path, name string) (*Namespace, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s holds no namespace: %w", path, fs.ErrNotExist)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	n := &Namespace{file: file, name: name}
	if err := n.find(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// find sets IfIndex: that of the link of the name, if it is the peer of the namespace's own.
func (n *Namespace) find() error {
	host, err := netlink.LinkByName(n.name)
	var own netlink.Link
	if err == nil {
		err = n.do(func() (err error) {
			own, err = netlink.LinkByName(inner)
			return err
		})
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("an end of %s: %w", n.name, fs.ErrNotExist)
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", n.name, err)
	}
	if own.Attrs().ParentIndex != host.Attrs().Index || host.Attrs().ParentIndex != own.Attrs().Index {
		return fmt.Errorf("%s is no end of this namespace's: %w", n.name, fs.ErrNotExist)
	}
	n.IfIndex = host.Attrs().Index
	return nil
}

// File is the namespace's: what a mount is made of.
func (n *Namespace) File() *os.File { return n.file }

// Close lets go of the namespace. It ends if nothing else holds it.
func (n *Namespace) Close() error {
	if n.file == nil {
		return nil
	}
	return n.file.Close()
}

// Up lets packets come back. Before, the hook has to be there that takes them.
func (n *Namespace) Up() error {
	noIPv6 := fmt.Sprintf("/proc/sys/net/ipv6/conf/%s/disable_ipv6", n.name)
	if err := os.WriteFile(noIPv6, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("switch IPv6 off on %s: %w", n.name, err)
	}
	link, err := netlink.LinkByIndex(n.IfIndex)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", n.name, err)
	}
	return nil
}

// Remove takes the veth away, and with it what ran on it. The namespace is empty then, and ends with its mount.
func Remove(name string) error { return removeLink(name) }

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// do runs f on a thread in the namespace.
func (n *Namespace) do(f func() error) error {
	return thread.Run(func() error {
		if err := netns.Set(netns.NsHandle(n.file.Fd())); err != nil {
			return fmt.Errorf("enter the namespace of %s: %w", n.name, err)
		}
		return f()
	})
}
