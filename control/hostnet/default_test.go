// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestLowestMetric(t *testing.T) {
	unicast := func(index, metric int) netlink.Route {
		return netlink.Route{Type: unix.RTN_UNICAST, LinkIndex: index, Priority: metric}
	}
	multipath := func(metric int, hops ...*netlink.NexthopInfo) netlink.Route {
		return netlink.Route{Type: unix.RTN_UNICAST, Priority: metric, MultiPath: hops}
	}
	dead := &netlink.NexthopInfo{LinkIndex: 9, Flags: unix.RTNH_F_DEAD}
	tests := []struct {
		name   string
		routes []netlink.Route
		want   []int
	}{
		{"none", nil, nil},
		{"lowest", []netlink.Route{unicast(2, 200), unicast(3, 100), unicast(4, 150)}, []int{3}},
		{"equal_but_for_TOS", []netlink.Route{unicast(2, 100), unicast(3, 100)}, []int{2, 3}},
		{"multipath", []netlink.Route{multipath(0, &netlink.NexthopInfo{LinkIndex: 5}, &netlink.NexthopInfo{LinkIndex: 4})}, []int{5, 4}},
		{"dead_nexthop", []netlink.Route{multipath(0, dead, &netlink.NexthopInfo{LinkIndex: 4})}, []int{4}},
		{"dead_route", []netlink.Route{multipath(1, dead), unicast(3, 100)}, []int{3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, lowestMetric(tt.routes)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What the kernel's own rules and tables come to; the interfaces are called as in the host that has them.
func TestDefaultRoutesOfTheKernel(t *testing.T) {
	const uplinks = `link set lo up
link add eth0 type veth peer name x0
link add eth1 type veth peer name x1
link add wg0 type veth peer name x2
link set eth0 up
link set x0 up
link set eth1 up
link set x1 up
link set wg0 up
link set x2 up
addr add 198.51.100.1/24 dev eth0
addr add 192.0.2.1/24 dev eth1
addr add 10.8.0.2/24 dev wg0
`
	const main = "route add default via 198.51.100.254\n"
	tests := []struct {
		name, commands string
		want           []string
	}{
		{"no_route", "", nil},
		{"main", main, []string{"eth0"}},
		{"metrics_of_main", main + "route add default via 192.0.2.254 metric 100\n", []string{"eth0"}},
		{"lower_metric_of_another_table", "route add default via 198.51.100.254 metric 500\nroute add default via 192.0.2.254 table 100\nrule add from 172.18.0.0/16 lookup 100\n", []string{"eth0", "eth1"}},
		{"wg_quick", main + "route add default dev wg0 table 51820\nrule add not fwmark 51820 table 51820\nrule add table main suppress_prefixlength 0\n", []string{"eth0", "wg0"}},
		{"by_interface_of_entry", main + "route add default via 192.0.2.254 table 7\nrule add iif docker0 lookup 7\n", []string{"eth0", "eth1"}},
		{"tables_by_priority_of_rule", main + "route add default via 192.0.2.254 table 7\nroute add default dev wg0 table 9\nrule add pref 200 lookup 7\nrule add pref 100 lookup 9\n", []string{"eth0", "wg0", "eth1"}},
		{"each_once", main + "route add default via 198.51.100.254 table 7\nrule add from 172.18.0.0/16 lookup 7\n", []string{"eth0"}},
		{"table_that_no_rule_leads_to", main + "route add default via 192.0.2.254 table 7\n", []string{"eth0"}},
		{"table_over_255", "route add default via 192.0.2.254 table 1000\nrule add from 172.18.0.0/16 lookup 1000\n", []string{"eth1"}},
		{"suppressed", "route add default via 192.0.2.254 table 7\nrule add lookup 7 suppress_prefixlength 0\n", nil},
		{"rules_without_a_table", main + "rule add from 10.0.0.1 blackhole\nrule add from 10.0.0.2 unreachable\nrule add from 10.0.0.3 prohibit\nrule add from 10.0.0.4 goto 32766\nrule add from 10.0.0.5 nop\n", []string{"eth0"}},
		{"routes_to_nowhere", "route add unreachable default\nroute add blackhole default table 7\nrule add lookup 7\n", nil},
		{"loopback", "route add default dev lo table 7\nrule add fwmark 1 lookup 7\n", nil}, // a transparent proxy's
		{"nothing_leads_to_main", main + "rule del lookup main\n", nil},
		{"not_the_whole_world", "route add 0.0.0.0/1 via 192.0.2.254\n", nil},
		{"multipath", "route add default nexthop via 192.0.2.254 nexthop via 198.51.100.254\n", []string{"eth1", "eth0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			ip(t, uplinks+tt.commands)
			checkDefaults(t, tt.want, func(s Snapshot) []int { return s.Default })
		})
	}
}

// checkDefaults compares the names of a snapshot's default interfaces.
func checkDefaults(t *testing.T, want []string, of func(Snapshot) []int) {
	t.Helper()
	s, err := New().Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, index := range of(s) {
		l, _ := s.LinkAt(index)
		got = append(got, l.Name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The same in IPv6, whose tables are others: what has a default route of IPv4 has none of IPv6 by that.
func TestIPv6DefaultRoutesOfTheKernel(t *testing.T) {
	const uplinks = `link set lo up
link add eth0 type veth peer name x0
link add eth1 type veth peer name x1
link set eth0 up
link set x0 up
link set eth1 up
link set x1 up
addr add 198.51.100.1/24 dev eth1
route add default via 198.51.100.254
rule add from 172.18.0.0/16 lookup 9
addr add 2001:db8::1/64 dev eth0 nodad
addr add 2001:db8:1::1/64 dev eth1 nodad
`
	const main = "route add default via 2001:db8::fe\n"
	tests := []struct {
		name, commands string
		want           []string
	}{
		{"no_route", "", nil},
		{"main", main, []string{"eth0"}},
		{"link_local_nexthop", "route add default via fe80::1 dev eth1\n", []string{"eth1"}},
		{"of_a_router_advertisement", "route add default via fe80::1 dev eth1 proto ra metric 1024\n", []string{"eth1"}},
		{"of_two_routers", "route add default via fe80::1 dev eth0 proto ra metric 1024\nroute append default via fe80::2 dev eth1 proto ra metric 1024\n", []string{"eth0", "eth1"}},
		{"metrics", main + "route add default via 2001:db8:1::fe metric 2000\n", []string{"eth0"}},
		{"multipath", "route add default nexthop via 2001:db8:1::fe nexthop via 2001:db8::fe\n", []string{"eth1", "eth0"}},
		{"rule", main + "route add default via 2001:db8:1::fe table 7\nrule add from fd00::/64 lookup 7\n", []string{"eth0", "eth1"}},
		{"rule_of_IPv4", main + "route add default via 2001:db8:1::fe table 9\n", []string{"eth0"}},
		{"to_nowhere", "route add unreachable default\n", nil},
		{"not_the_whole_world", "route add 2000::/3 via 2001:db8::fe\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			ip(t, uplinks)
			ip6(t, tt.commands)
			checkDefaults(t, tt.want, func(s Snapshot) []int { return s.Default6 })
			checkDefaults(t, []string{"eth1"}, func(s Snapshot) []int { return s.Default })
		})
	}
}

func TestIsDefault(t *testing.T) {
	for text, want := range map[string]bool{"0.0.0.0/0": true, "::/0": true, "::/1": false, "0.0.0.0/1": false, "10.0.0.0/8": false} {
		_, dst, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := isDefault(dst); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
