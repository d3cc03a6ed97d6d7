// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A rule of policy routing that looks a table up.
type rule struct {
	priority uint32
	table    int
	suppress bool // default routes do not count (suppress_prefixlength)
}

var familyNames = map[int]string{unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6"}

// defaults reads a family's rules and routes.
func defaults(family int, links []Link) ([]int, error) {
	rules, err := retry(func() ([]rule, error) { return listRules(family) })
	if err != nil {
		return nil, fmt.Errorf("list the host's %s routing rules: %w", familyNames[family], err)
	}
	routes, err := retry(func() ([]netlink.Route, error) {
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC} // without it, netlink gives the main table only
		return netlink.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the host's %s routes: %w", familyNames[family], err)
	}
	return slices.DeleteFunc(defaultRoutes(rules, routes), func(index int) bool {
		return slices.ContainsFunc(links, func(l Link) bool { return l.Index == index && l.Loopback })
	}), nil
}

// listRules is netlink.RuleList, which does not tell a rule's action.
func listRules(family int) ([]rule, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}})
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) { // no CONFIG_IP_MULTIPLE_TABLES, or no IPv6
		return []rule{{table: unix.RT_TABLE_MAIN}}, nil
	}
	if err != nil {
		return nil, err
	}
	var out []rule
	for _, m := range messages {
		if len(m) < unix.SizeofRtMsg {
			continue
		}
		header := nl.DeserializeRtMsg(m) // struct fib_rule_hdr has the same shape, its action where rtm_type is
		if header.Type != nl.FR_ACT_TO_TBL {
			continue // goto, nop, blackhole, unreachable, prohibit
		}
		attrs, err := nl.ParseRouteAttrAsMap(m[unix.SizeofRtMsg:])
		if err != nil {
			return nil, fmt.Errorf("parse a rule: %w", err)
		}
		out = append(out, parseRule(header.Table, attrs))
	}
	return out, nil
}

func parseRule(table uint8, attrs map[uint16]syscall.NetlinkRouteAttr) rule {
	number := func(attr int, otherwise uint32) uint32 {
		if value := attrs[uint16(attr)].Value; len(value) == 4 {
			return binary.NativeEndian.Uint32(value)
		}
		return otherwise
	}
	return rule{
		priority: number(nl.FRA_PRIORITY, 0), // the kernel leaves 0 out
		table:    int(number(nl.FRA_TABLE, uint32(table))),
		suppress: number(nl.FRA_SUPPRESS_PREFIXLEN, math.MaxUint32) != math.MaxUint32,
	}
}

// defaultRoutes are the interfaces of the default routes of the tables that rules lead to, in their order.
func defaultRoutes(rules []rule, routes []netlink.Route) (out []int) {
	byTable := map[int][]netlink.Route{}
	for _, r := range routes {
		if r.Type == unix.RTN_UNICAST && (r.Dst == nil || isDefault(r.Dst)) {
			byTable[r.Table] = append(byTable[r.Table], r)
		}
	}
	for _, table := range tables(rules) {
		for _, index := range lowestMetric(byTable[table]) {
			if !slices.Contains(out, index) {
				out = append(out, index)
			}
		}
	}
	return out
}

// tables are those that rules lead to, the main one first.
func tables(rules []rule) (out []int) {
	rules = slices.DeleteFunc(slices.Clone(rules), func(r rule) bool { return r.suppress })
	slices.SortStableFunc(rules, func(a, b rule) int {
		if aMain, bMain := a.table == unix.RT_TABLE_MAIN, b.table == unix.RT_TABLE_MAIN; aMain != bMain {
			if aMain {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.priority, b.priority)
	})
	for _, r := range rules {
		if !slices.Contains(out, r.table) {
			out = append(out, r.table)
		}
	}
	return out
}

// lowestMetric are the interfaces of those of a table's default routes that have the lowest metric and a living
// nexthop.
func lowestMetric(routes []netlink.Route) (out []int) {
	best := math.MaxInt
	for _, r := range routes {
		hops := living(r)
		if len(hops) == 0 || r.Priority > best {
			continue
		}
		if r.Priority < best {
			best, out = r.Priority, nil
		}
		out = append(out, hops...)
	}
	return out
}

// living are the interfaces of a route's nexthops that the kernel would use.
func living(r netlink.Route) (out []int) {
	for _, hop := range r.MultiPath {
		if hop.Flags&unix.RTNH_F_DEAD == 0 {
			out = append(out, hop.LinkIndex)
		}
	}
	if len(r.MultiPath) == 0 && r.LinkIndex != 0 && r.Flags&unix.RTNH_F_DEAD == 0 {
		out = append(out, r.LinkIndex)
	}
	return out
}

func isDefault(dst *net.IPNet) bool {
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}
