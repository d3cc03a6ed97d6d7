// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sortAddresses are the addresses of global scope by their link's index, as Link has them. Temporary ones (RFC 8981) wait for the
// lasting one that comes with them.
func sortAddresses(addrs []netlink.Addr) (usable, tentative map[int][]netip.Prefix) {
	usable, tentative = map[int][]netip.Prefix{}, map[int][]netip.Prefix{}
	six, comes := map[int][]netlink.Addr{}, map[int]bool{}
	for _, a := range addrs {
		p, ok := prefix(a.IPNet)
		switch {
		case !ok || a.Scope != unix.RT_SCOPE_UNIVERSE:
		case p.Addr().Is4():
			usable[a.LinkIndex] = append(usable[a.LinkIndex], p)
		case a.Flags&unix.IFA_F_DADFAILED != 0 || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC) == unix.IFA_F_TENTATIVE:
			tentative[a.LinkIndex] = append(tentative[a.LinkIndex], p)
			comes[a.LinkIndex] = comes[a.LinkIndex] || a.Flags&unix.IFA_F_DADFAILED == 0 && !temporary(a)
		default:
			six[a.LinkIndex] = append(six[a.LinkIndex], a)
		}
	}
	for index, list := range six {
		slices.SortFunc(list, preferIPv6)
		to := usable
		if comes[index] && !slices.ContainsFunc(list, lasting) {
			to = tentative // who took one now would keep it, until it goes
		}
		for _, a := range list {
			p, _ := prefix(a.IPNet)
			to[index] = append(to[index], p)
		}
	}
	return usable, tentative
}

// preferIPv6 puts the better one of two external addresses first. (The kernel's own order is that of their age, the
// newest one first.)
func preferIPv6(a, b netlink.Addr) int {
	worse := func(bad func(netlink.Addr) bool) int {
		switch {
		case bad(a) == bad(b):
			return 0
		case bad(a):
			return 1
		}
		return -1
	}
	x, _ := prefix(a.IPNet)
	y, _ := prefix(b.IPNet)
	return cmp.Or(worse(deprecated), worse(uniqueLocal), worse(temporary), worse(limited), x.Compare(y))
}

func deprecated(a netlink.Addr) bool { return a.Flags&unix.IFA_F_DEPRECATED != 0 }

// uniqueLocal: RFC 4193's addresses.
func uniqueLocal(a netlink.Addr) bool {
	p, _ := prefix(a.IPNet)
	return p.Addr().IsPrivate()
}

func temporary(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TEMPORARY != 0 }

func lasting(a netlink.Addr) bool { return !temporary(a) }

// limited: a router or a DHCPv6 server has to renew it.
func limited(a netlink.Addr) bool { return a.ValidLft != 0 && uint32(a.ValidLft) != math.MaxUint32 }
