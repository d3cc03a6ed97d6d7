// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// How often to read again what changed while it was read.
const attempts = 20

// retry is for lists that the kernel says changed on the way.
func retry[T any](list func() (T, error)) (out T, err error) {
	for range attempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, fmt.Errorf("it changes faster than it can be read: %w", err)
}

// readLinks names the interfaces that rules may mean, and the networks that are reached by them.
func (f *family) readLinks() ([]link, error) {
	links, err := retry(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the host's interfaces: %w", err)
	}
	addresses, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, f.af) })
	if err != nil {
		return nil, fmt.Errorf("list the host's %s addresses: %w", f.name, err)
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	out := make([]link, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		entry := link{index: a.Index, name: a.Name, master: byIndex[a.MasterIndex]}
		for _, addr := range addresses {
			if addr.LinkIndex == a.Index {
				entry.addresses = append(entry.addresses, f.prefix(addr.IPNet))
			}
		}
		out = append(out, entry)
	}
	return out, nil
}

func (f *family) prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return f.every()
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
