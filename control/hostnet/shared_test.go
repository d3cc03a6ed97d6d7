// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/require"
)

func TestShared(t *testing.T) {
	link := func(index int, addresses ...string) (l Link) {
		l.Index = index
		for _, a := range addresses {
			l.Addresses = append(l.Addresses, netip.MustParsePrefix(a))
		}
		return l
	}
	for name, c := range map[string]struct {
		links []Link
		want  []Shared
	}{
		"none":       {[]Link{link(1, "10.0.0.1/24", "10.0.0.2/24"), link(2, "10.0.1.1/24", "fd00::1/64")}, nil},
		"equal":      {[]Link{link(1, "10.0.0.1/24"), link(2, "10.0.0.9/24")}, []Shared{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Links: []int{1, 2}}}},
		"three":      {[]Link{link(3, "10.0.0.1/24"), link(1, "10.0.0.1/24"), link(2, "10.0.0.1/24")}, []Shared{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Links: []int{1, 2, 3}}}},
		"one_within": {[]Link{link(2, "10.0.5.1/24"), link(1, "10.0.0.1/16"), link(3, "10.1.0.1/16")}, []Shared{{Prefix: netip.MustParsePrefix("10.0.5.0/24"), Links: []int{1, 2}}}},
		"IPv6":       {[]Link{link(1, "fd00::1/64"), link(2, "fd00::2/64")}, []Shared{{Prefix: netip.MustParsePrefix("fd00::/64"), Links: []int{1, 2}}}},
	} {
		if diff := cmp.Diff(c.want, shared(c.links), compareIP); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestSharedOnTheHost: routing leads to the one that was there first, and it shows whose rp_filter drops what comes by the other.
func TestSharedOnTheHost(t *testing.T) {
	require.Root(t)
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		address, err := netlink.ParseAddr("10.0.0.1/24")
		must(t, err)
		must(t, netlink.LinkAdd(bridge))
		must(t, netlink.AddrAdd(bridge, address))
		must(t, netlink.LinkSetUp(bridge))
	}
	look := func() (Snapshot, Link, Link) {
		s, err := New().Snapshot()
		must(t, err)
		one, _ := s.Link("one")
		two, _ := s.Link("two")
		return s, one, two
	}
	sysctl := func(name, value string) {
		must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte(value), 0o644))
	}
	sysctl("all", "0")
	sysctl("two", "0")
	s, one, two := look()
	if _, elsewhere := s.Elsewhere(one.Index); elsewhere {
		t.Errorf("%+v: routing does not lead to the first one", s.Shared)
	}
	if sh, elsewhere := s.Elsewhere(two.Index); !elsewhere || sh.Routed != one.Index || two.StrictSource {
		t.Errorf("%+v, %+v", s.Shared, two)
	}
	sysctl("all", "1")
	if _, _, two = look(); !two.StrictSource {
		t.Error("rp_filter is 1 for all, and does not show")
	}
	sysctl("two", "2")
	if _, _, two = look(); two.StrictSource {
		t.Error("rp_filter is 2, and called strict")
	}
}
