// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"math"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestSortAddresses(t *testing.T) {
	six := func(cidr string, flags, lifetime int) netlink.Addr {
		a := address(2, cidr, unix.RT_SCOPE_UNIVERSE)
		a.Flags, a.ValidLft = flags, lifetime
		return a
	}
	const forever = math.MaxUint32
	usable, tentative := sortAddresses([]netlink.Addr{
		six("2001:db8::9/64", unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE, forever),
		six("2001:db8::8/64", unix.IFA_F_TENTATIVE, forever),
		six("2001:db8::7/64", unix.IFA_F_DEPRECATED, forever),
		six("fd00::1/64", 0, forever),
		six("2001:db8::6/64", unix.IFA_F_TEMPORARY, 3600),
		six("2001:db8::5/64", unix.IFA_F_OPTIMISTIC|unix.IFA_F_TENTATIVE, 3600),
		six("2001:db8::4/64", unix.IFA_F_PERMANENT, forever),
		six("2001:db8::3/64", unix.IFA_F_PERMANENT, forever),
		address(2, "fe80::1/64", unix.RT_SCOPE_LINK),
		address(2, "198.51.100.2/24", unix.RT_SCOPE_UNIVERSE),
		address(2, "198.51.100.1/24", unix.RT_SCOPE_UNIVERSE),
	})
	want := prefixes("198.51.100.2/24", "198.51.100.1/24", "2001:db8::3/64", "2001:db8::4/64", "2001:db8::5/64", "2001:db8::6/64",
		"fd00::1/64", "2001:db8::7/64")
	if diff := cmp.Diff(want, usable[2], compareIP); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(prefixes("2001:db8::9/64", "2001:db8::8/64"), tentative[2], compareIP); diff != "" {
		t.Error(diff)
	}
}

// A temporary address is not taken while the lasting one is being looked at, but it is where no lasting one comes.
func TestSortTemporaryAddresses(t *testing.T) {
	six := func(cidr string, flags int) netlink.Addr {
		a := address(2, cidr, unix.RT_SCOPE_UNIVERSE)
		a.Flags = flags
		return a
	}
	const lasting, temporary = "2001:db8::1/64", "2001:db8::2/64"
	for flags, want := range map[int][]netip.Prefix{
		unix.IFA_F_TENTATIVE:                        nil,
		unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED: prefixes(temporary),
		unix.IFA_F_TENTATIVE | unix.IFA_F_TEMPORARY: prefixes(temporary),
		0: prefixes(lasting, temporary),
	} {
		usable, tentative := sortAddresses([]netlink.Addr{six(lasting, flags), six(temporary, unix.IFA_F_TEMPORARY)})
		if diff := cmp.Diff(want, usable[2], compareIP); diff != "" || len(usable[2])+len(tentative[2]) != 2 {
			t.Errorf("flags %#x: %s; tentative %s", flags, diff, tentative[2])
		}
	}
}

// What the kernel says of addresses of each kind.
func TestIPv6AddressesOfTheKernel(t *testing.T) {
	inNamespace(t)
	ip(t, `link add br0 type bridge
link set br0 up
addr add 172.17.0.1/16 dev br0
addr add fd00:1::1/64 dev br0
link add eth0 type veth peer name x0
link set eth0 up
link set x0 up
addr add 2001:db8::9/64 dev eth0 nodad valid_lft 3600 preferred_lft 0
addr add 2001:db8::2/64 dev eth0 nodad
addr add 2001:db8::1/64 dev eth0 nodad valid_lft 3600 preferred_lft 3600
addr add fd00::1/64 dev eth0 nodad
`)
	s, err := New().Snapshot()
	must(t, err)
	br, _ := s.Link("br0") // no port, no carrier: duplicate address detection does not begin
	if diff := cmp.Diff(prefixes("172.17.0.1/16"), br.Addresses, compareIP) + cmp.Diff(prefixes("fd00:1::1/64"), br.Tentative, compareIP) +
		cmp.Diff(prefixes("172.17.0.0/16", "fd00:1::/64"), br.Prefixes(), compareIP); diff != "" {
		t.Error(diff)
	}
	eth, _ := s.Link("eth0")
	want := prefixes("2001:db8::2/64", "2001:db8::1/64", "fd00::1/64", "2001:db8::9/64")
	if diff := cmp.Diff(want, eth.Family(netip.Addr.Is6), compareIP); diff != "" || eth.Family(netip.Addr.Is4) != nil {
		t.Errorf("%v\n%s", eth.Family(netip.Addr.Is4), diff)
	}
}

func TestForwardingSwitches(t *testing.T) {
	inNamespace(t)
	for _, on := range []bool{false, true, false} {
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			must(t, os.WriteFile("/proc/sys/net/"+name, map[bool][]byte{false: []byte("0"), true: []byte("1")}[on], 0o644))
		}
		s, err := New().Snapshot()
		must(t, err)
		if s.IPForward != on || s.IPv6Forward != on {
			t.Errorf("forwarding %v: read %v and %v", on, s.IPForward, s.IPv6Forward)
		}
	}
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
	if s, err := New().Snapshot(); err != nil || !s.IPForward || s.IPv6Forward {
		t.Errorf("forwarding of IPv4 alone: read %v and %v: %v", s.IPForward, s.IPv6Forward, err)
	}
}
