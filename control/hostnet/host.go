// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host reads the network namespace of the thread that calls it.
type Host struct {
	changes chan struct{}
	hops    chan struct{}
}

// New is a Host that nobody watches yet.
func New() *Host { return &Host{changes: make(chan struct{}, 1), hops: make(chan struct{}, 1)} }

// Snapshot reads everything anew.
func (h *Host) Snapshot() (Snapshot, error) {
	var s Snapshot
	links, err := retry(netlink.LinkList)
	if err != nil {
		return s, fmt.Errorf("list the host's interfaces: %w", err)
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("list the host's addresses: %w", err)
	}
	s.Links = convert(links, addrs)
	s.share()
	if s.Default, err = defaults(unix.AF_INET, s.Links); err != nil {
		return s, err
	}
	if s.Default6, err = defaults(unix.AF_INET6, s.Links); err != nil {
		return s, err
	}
	if s.IPForward, err = forwards("ipv4/ip_forward"); err != nil {
		return s, err
	}
	s.IPv6Forward, err = forwards("ipv6/conf/all/forwarding")
	if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return s, nil
	}
	return s, err
}

// retry reads again when the kernel says that the list changed while it was read. A list that never holds
// still is an error: half of it taken for the whole would detach hooks.
func retry[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, fmt.Errorf("list changes faster than it can be read: %w", err)
}

func convert(links []netlink.Link, addrs []netlink.Addr) []Link {
	usable, tentative := sortAddresses(addrs)
	out := make([]Link, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		out = append(out, Link{
			Index: a.Index, Name: a.Name, Kind: l.Type(), Master: a.MasterIndex, MAC: a.HardwareAddr, MTU: a.MTU,
			Loopback:  a.Flags&net.FlagLoopback != 0,
			Up:        a.Flags&net.FlagUp != 0,
			PeerNetns: l.Type() == "veth" && a.NetNsID >= 0,
			PeerNSID:  a.NetNsID,
			Layer3:    a.EncapType != "ether" && a.EncapType != "loopback",
			Addresses: usable[a.Index],
			Tentative: tentative[a.Index],
		})
	}
	slices.SortFunc(out, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return out
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

// forwards reads a switch below /proc/sys/net, of the thread's network namespace, as netlink's answers.
func forwards(name string) (bool, error) {
	text, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil {
		return false, fmt.Errorf("read whether the host forwards: %w", err)
	}
	return strings.TrimSpace(string(text)) != "0", nil
}
