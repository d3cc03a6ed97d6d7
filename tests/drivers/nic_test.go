// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// nic is a network card at one end of a wire, in a namespace of the test's.
type nic struct {
	model  string // QEMU's name
	mac    net.HardwareAddr
	name   string // unlike any other card's, so that it has it in every namespace
	device string // its directory below /sys/devices; the driver's is "driver" in it
	ns     *topo.NS
}

// wires returns the ends of the first two wires: the peer's and the host's of the inside, the host's and the peer's of the outside.
func wires(t *testing.T) (cards [4]*nic) {
	t.Helper()
	names := [4]string{"card-a", "port0", "uplink0", "card-b"}
	for i, wire := range require.Wires(t, 2)[:2] {
		fields := strings.Fields(wire)
		if len(fields) != 4 {
			t.Fatalf("wire %q: want model, queues, and two MACs", wire)
		}
		for end, text := range fields[2:] {
			mac, err := net.ParseMAC(text)
			if err != nil {
				t.Fatalf("wire %q: %v", wire, err)
			}
			cards[2*i+end] = &nic{model: fields[0], mac: mac, name: names[2*i+end]}
		}
	}
	return cards
}

func (n *nic) virtio() bool { return strings.HasPrefix(n.model, "virtio-") }

// move puts the card into a namespace, until the topology is taken away.
func (n *nic) move(top *topo.Topo, to *topo.NS) error {
	if err := n.enter(to); err != nil {
		return err
	}
	top.Defer("give back card "+n.name, n.leave)
	return nil
}

// enter finds the card in the machine's own namespace, where its driver puts it.
func (n *nic) enter(to *topo.NS) error {
	var link netlink.Link
	err := topo.Poll(context.Background(), patience.For(10*time.Second), "card "+n.mac.String()+" in the machine's namespace", func() (found bool, err error) {
		link, err = n.find()
		return link != nil, err
	})
	if err != nil {
		return err
	}
	if n.device, err = filepath.EvalSymlinks("/sys/class/net/" + link.Attrs().Name + "/device"); err != nil {
		return fmt.Errorf("find the device of %s: %w", link.Attrs().Name, err)
	}
	fd, err := os.Open(to.Path)
	if err != nil {
		return err
	}
	defer fd.Close()
	for _, step := range []error{
		netlink.LinkSetDown(link), netlink.LinkSetName(link, n.name), netlink.LinkSetMTU(link, 1500), netlink.LinkSetNsFd(link, int(fd.Fd())),
	} {
		if step != nil {
			return fmt.Errorf("move card %s to namespace %s: %w", n.name, to.Name, step)
		}
	}
	n.ns = to
	return nil
}

func (n *nic) find() (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if bytes.Equal(l.Attrs().HardwareAddr, n.mac) {
			return l, nil
		}
	}
	return nil, nil
}

// carrier waits until the card has one, and the kernel has taken note of it.
func (n *nic) carrier() error {
	return topo.Poll(context.Background(), patience.For(10*time.Second), "carrier of "+n.name, func() (bool, error) {
		link, err := n.ns.Netlink().LinkByName(n.name)
		if err != nil {
			return false, err
		}
		return link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 && link.Attrs().OperState == netlink.OperUp, nil
	})
}

// leave gives the card back to the machine's namespace; it may be there already.
func (n *nic) leave() error {
	link, err := n.ns.Netlink().LinkByName(n.name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) { // a test has unbound it
		return nil
	}
	if err != nil {
		return err
	}
	return n.ns.Netlink().LinkSetNsPid(link, os.Getpid())
}

// unbind takes the card from its driver: the interface is gone. The function returned gives it back, and the interface
// appears in the machine's own namespace.
func (n *nic) unbind() (bind func() error, err error) {
	driver, err := filepath.EvalSymlinks(filepath.Join(n.device, "driver"))
	if err != nil {
		return nil, fmt.Errorf("find the driver of %s: %w", n.name, err)
	}
	tell := func(file string) error {
		return os.WriteFile(filepath.Join(driver, file), []byte(filepath.Base(n.device)), 0)
	}
	return func() error { return tell("bind") }, tell("unbind")
}
