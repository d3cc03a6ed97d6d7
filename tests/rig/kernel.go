// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelState is what the kernel has in the fixture's namespaces beside the maps, in lines: interfaces with their
// hooks and pins, addresses, neighbours, routes, rules, sockets. What the kernel changes late and by itself, as whether
// an interface has a carrier, is not among them.
func (f *fixture) kernelState() ([]string, error) {
	var lines []string
	for _, part := range []func() ([]string, error){interfaceLines, addressLines, neighbourLines, routeLines, ruleLines, socketLines,
		f.hookLines, pinLines} {
		more, err := part()
		if err != nil {
			return nil, err
		}
		slices.Sort(more)
		lines = append(lines, more...)
	}
	return lines, nil
}

func interfaceLines() (lines []string, err error) {
	links, err := netlink.LinkList()
	for _, l := range links {
		a := l.Attrs()
		lines = append(lines, fmt.Sprintf("interface %d %s %s mtu %d master %d mac %s up %t", a.Index, a.Name, l.Type(), a.MTU, a.MasterIndex,
			macOf(a), a.Flags&net.FlagUp != 0))
	}
	return lines, err
}

// macOf is "any" for those that the kernel has made up.
func macOf(a *netlink.LinkAttrs) string {
	switch a.Name {
	case "br0", "br1", "eth0", "lo":
		return a.HardwareAddr.String()
	}
	return "any"
}

func addressLines() (lines []string, err error) {
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range addresses {
		lines = append(lines, fmt.Sprintf("address %s on %d", a, a.LinkIndex))
	}
	return lines, err
}

func neighbourLines() (lines []string, err error) {
	neighbours, err := ofBoth(func(family int) ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
	for _, n := range neighbours {
		if n.State == netlink.NUD_NOARP { // a multicast group of the kernel's own
			continue
		}
		lines = append(lines, fmt.Sprintf("neighbour %s %s on %d state %d", n.IP, n.HardwareAddr, n.LinkIndex, n.State))
	}
	return lines, err
}

func routeLines() (lines []string, err error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := ofBoth(func(family int) ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
	})
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP.To4() == nil && r.Dst.IP.IsMulticast() { // the kernel's own, when a carrier comes
			continue
		}
		lines = append(lines, fmt.Sprintf("route to %s by %s on %d from %s table %d type %d metric %d mtu %d", r.Dst, r.Gw, r.LinkIndex, r.Src,
			r.Table, r.Type, r.Priority, r.MTU))
	}
	return lines, err
}

func ruleLines() (lines []string, err error) {
	rules, err := ofBoth(netlink.RuleList)
	for _, r := range rules {
		lines = append(lines, fmt.Sprint("rule ", r))
	}
	return lines, err
}

// ofBoth are IPv4's and then IPv6's.
func ofBoth[T any](list func(family int) ([]T, error)) ([]T, error) {
	v4, err := list(netlink.FAMILY_V4)
	v6, err6 := list(netlink.FAMILY_V6)
	return append(v4, v6...), errors.Join(err, err6)
}

// socketLines are how many there are of each protocol: the kernel would walk large tables to list them. Of the counts
// in a line as "TCP: inuse 1 orphan 0 tw 0 alloc 9 mem 1", inuse and tw are the namespace's own.
func socketLines() (lines []string, err error) {
	text, err := os.ReadFile("/proc/thread-self/net/sockstat")
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		for i := 1; i+1 < len(fields); i += 2 {
			if fields[i] == "inuse" || fields[i] == "tw" {
				lines = append(lines, strings.Join([]string{"sockets", fields[0], fields[i], fields[i+1]}, " "))
			}
		}
	}
	if err == nil && len(lines) == 0 {
		err = errors.New("no count of sockets in /proc/thread-self/net/sockstat")
	}
	return lines, err
}

func (f *fixture) hookLines() (lines []string, err error) {
	links, err := f.DP.Links()
	for _, l := range links {
		lines = append(lines, fmt.Sprintf("hooks of %d %s by %s", l.IfIndex, l.Name, l.Mechanism))
	}
	return lines, err
}

func pinLines() (lines []string, err error) {
	err = filepath.WalkDir(ownBPFFS, func(path string, _ os.DirEntry, err error) error {
		lines = append(lines, "pin "+path)
		return err
	})
	return lines, err
}
