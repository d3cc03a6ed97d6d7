// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

// Host reads the network namespace of the thread that calls it.
type Host struct {
	changes chan struct{}
}

// New is a Host that nobody watches yet.
func New() *Host { return &Host{changes: make(chan struct{}, 1)} }

// Snapshot reads everything anew.
func (h *Host) Snapshot() (Snapshot, error) {
	var s Snapshot
	links, err := retry(netlink.LinkList)
	if err != nil {
		return s, fmt.Errorf("list the host's interfaces: %w", err)
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return s, fmt.Errorf("list the host's IPv4 addresses: %w", err)
	}
	routes, err := retry(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return s, fmt.Errorf("list the host's IPv4 routes: %w", err)
	}
	s.Links = convert(links, addrs)
	s.Default = defaultRoute(routes)
	s.IPForward, err = ipForward()
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
	byIndex := map[int][]netip.Prefix{}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok && a.Scope == unix.RT_SCOPE_UNIVERSE {
			byIndex[a.LinkIndex] = append(byIndex[a.LinkIndex], p)
		}
	}
	out := make([]Link, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		out = append(out, Link{
			Index: a.Index, Name: a.Name, Kind: l.Type(), Master: a.MasterIndex, MAC: a.HardwareAddr, MTU: a.MTU,
			Loopback:  a.Flags&net.FlagLoopback != 0,
			PeerNetns: l.Type() == "veth" && a.NetNsID >= 0,
			Layer3:    a.EncapType != "ether" && a.EncapType != "loopback",
			Addresses: byIndex[a.Index],
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

func defaultRoute(routes []netlink.Route) (out []int) {
	best := math.MaxInt
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || (r.Dst != nil && !isDefault(r.Dst)) || r.Priority >= best {
			continue
		}
		best, out = r.Priority, nil
		for _, hop := range r.MultiPath {
			if !slices.Contains(out, hop.LinkIndex) {
				out = append(out, hop.LinkIndex)
			}
		}
		if len(out) == 0 && r.LinkIndex != 0 {
			out = []int{r.LinkIndex}
		}
	}
	return out
}

func isDefault(dst *net.IPNet) bool {
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

func ipForward() (bool, error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward") // of the thread's network namespace, as netlink's answers
	if err != nil {
		return false, fmt.Errorf("read net.ipv4.ip_forward: %w", err)
	}
	return strings.TrimSpace(string(text)) != "0", nil
}

// Sockets are the local endpoints of the host's connected TCP and UDP sockets, each once, without those that
// only the host itself can reach.
func (h *Host) Sockets() ([]Socket, error) {
	var out []Socket
	for _, q := range []struct {
		protocol dataplane.Protocol
		family   uint8
		list     func(family uint8) ([]*netlink.Socket, error)
	}{
		{dataplane.TCP, unix.AF_INET, netlink.SocketDiagTCP}, {dataplane.TCP, unix.AF_INET6, netlink.SocketDiagTCP},
		{dataplane.UDP, unix.AF_INET, netlink.SocketDiagUDP}, {dataplane.UDP, unix.AF_INET6, netlink.SocketDiagUDP},
	} {
		found, err := retry(func() ([]*netlink.Socket, error) { return q.list(q.family) })
		if err != nil && q.family == unix.AF_INET {
			return nil, fmt.Errorf("list the host's %s sockets: %w", q.protocol, err)
		}
		for _, s := range found { // an error for IPv6: a kernel without it has no such sockets
			if local, ok := reachable(s.ID.Source, s.ID.SourcePort); ok && s.ID.DestinationPort != 0 {
				out = append(out, Socket{q.protocol, local})
			}
		}
	}
	slices.SortFunc(out, func(a, b Socket) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Local.Compare(b.Local))
	})
	return slices.Compact(out), nil
}

func reachable(ip net.IP, port uint16) (netip.AddrPort, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	return netip.AddrPortFrom(addr, port), ok && addr.Is4() && !addr.IsLoopback() && !addr.IsUnspecified() && port != 0
}
