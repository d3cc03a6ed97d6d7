// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a process's network namespace.
type Namespace struct {
	ID        int          // as the reader's namespace numbers it (RTM_GETNSID); -1: it does not
	Addresses []netip.Addr // of both families
	Gateway   netip.Addr   // of the IPv4 default route with the lowest metric; the zero Addr: there is none
	Gateway6  netip.Addr   // the same of IPv6

	// Began is when the process began, since boot (CLOCK_BOOTTIME), to the hundredth of a second.
	Began time.Duration
}

// ReadNamespace reads the network namespace of a process by /proc and netlink.
func ReadNamespace(pid int) (Namespace, error) {
	n := Namespace{ID: -1}
	theirs, err := netns.GetFromPath(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return n, err
	}
	defer theirs.Close()
	if n.ID, err = namespaceID(theirs); err != nil {
		return n, err
	}
	inside, err := netlink.NewHandleAt(theirs, unix.NETLINK_ROUTE)
	if err != nil {
		return n, fmt.Errorf("open a netlink socket in it: %w", err)
	}
	defer inside.Close()
	addrs, err := retry(func() ([]netlink.Addr, error) { return inside.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return n, fmt.Errorf("list its addresses: %w", err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			n.Addresses = append(n.Addresses, addr.Unmap())
		}
	}
	for family, to := range map[int]*netip.Addr{netlink.FAMILY_V4: &n.Gateway, netlink.FAMILY_V6: &n.Gateway6} {
		routes, err := retry(func() ([]netlink.Route, error) { return inside.RouteList(nil, family) })
		if err != nil {
			return n, fmt.Errorf("list its routes: %w", err)
		}
		*to = gateway(routes)
	}
	n.Began, err = began(pid)
	return n, err
}

// userHz is how many clock ticks of /proc are a second: USER_HZ, on every architecture that Docker runs on.
const userHz = 100

// began reads the start time of a process: the 20th number after its name, which is in parentheses and may have any
// character (proc_pid_stat(5)).
func began(pid int) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("read the start time in %s: it has %d fields", path, len(fields))
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the start time in %s: %w", path, err)
	}
	return time.Duration(ticks) * (time.Second / userHz), nil
}

// namespaceID asks the namespace of the calling thread how it numbers another one.
func namespaceID(other netns.NsHandle) (int, error) {
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer here.Close()
	id, err := here.GetNetNsIdByFd(int(other))
	if err != nil {
		return -1, fmt.Errorf("ask for its number: %w", err)
	}
	return id, nil
}

// retry reads again when the kernel says that the list changed while it was read.
func retry[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

func gateway(routes []netlink.Route) (out netip.Addr) {
	best := math.MaxInt
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if addr, ok := netip.AddrFromSlice(r.Gw); ok && r.Priority < best {
			best, out = r.Priority, addr.Unmap()
		}
	}
	return out
}
