// SPDX-License-Identifier: Apache-2.0

package reorder

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sysctls make a router of one interface, of IPv6 where the kernel has it. The memory that fragments take is the namespace's own, not
// the host's: its limits are the kernel's defaults, said here so that no host's changed defaults are inherited. ipfrag_max_dist would
// drop a datagram when 64 others of its source have begun meanwhile; a source may be a NAT with many hosts behind it. With no address
// of its own (addr_gen_mode) it tells nobody of better routers.
var sysctls = []struct{ name, value string }{
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "0"},
	{"ipv4/conf/" + inner + "/rp_filter", "0"},
	{"ipv4/conf/" + inner + "/accept_local", "1"},
	{"ipv4/conf/" + inner + "/forwarding", "1"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/" + inner + "/send_redirects", "0"},
	{"ipv4/ipfrag_high_thresh", "4194304"},
	{"ipv4/ipfrag_low_thresh", "3145728"},
	{"ipv4/ipfrag_max_dist", "0"},
	{"ipv4/ipfrag_time", "30"},
	{"ipv6/conf/" + inner + "/addr_gen_mode", "1"},
	{"ipv6/conf/" + inner + "/accept_ra", "0"},
	{"ipv6/conf/" + inner + "/disable_ipv6", "0"},
	{"ipv6/conf/all/forwarding", "1"},
}

// defragmenter6 are those of what puts IPv6's fragments in order, which is there when a table has asked for it.
var defragmenter6 = []struct{ name, value string }{
	{"netfilter/nf_conntrack_frag6_high_thresh", "4194304"},
	{"netfilter/nf_conntrack_frag6_low_thresh", "3145728"},
	{"netfilter/nf_conntrack_frag6_timeout", "30"},
}

// Configure makes the namespace send back what comes in: what has skb->mark 1 in pieces of at most mtu bytes, all else in those
// that it came in. It may be called again; packets that pass meanwhile are not lost.
func (n *Namespace) Configure(mtu int) error {
	host, err := netlink.LinkByIndex(n.IfIndex)
	if err != nil {
		return fmt.Errorf("look for %s: %w", n.name, err)
	}
	err = n.do(func() error {
		link, err := netlink.LinkByName(inner)
		if err != nil {
			return err
		}
		if err := errors.Join(addTables(), setSysctls(sysctls), setUp("lo"), setUp(inner)); err != nil {
			return err
		}
		return addRoutes(link.Attrs().Index, host.Attrs().HardwareAddr, mtu)
	})
	if err != nil {
		return fmt.Errorf("configure the namespace of %s: %w", n.name, err)
	}
	return nil
}

// setUp is for loopback, too: without any address at all a namespace takes no route with a gateway.
func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func setSysctls(list []struct{ name, value string }) error {
	for _, s := range list {
		err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0)
		if errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(s.name, "ipv4/") && !haveIPv6() {
			continue
		}
		if err != nil {
			return fmt.Errorf("set net/%s: %w", s.name, err)
		}
	}
	return nil
}

// haveIPv6 is false where the kernel was built or started without it.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/" + inner)
	return err == nil
}

const (
	cutMark  = 1 // REORDER_CUT of reorder.h
	cutTable = 1
)

// addRoutes sends everything to the other end. A neighbour that is known for good saves address resolution, which
// nobody would answer.
func addRoutes(link int, to net.HardwareAddr, mtu int) error {
	four, six := net.IPv4(169, 254, 0, 1), net.ParseIP("fe80::1")
	all4, all6 := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	routes := []netlink.Route{{Gw: four, Dst: all4}, {Gw: four, Dst: all4, Table: cutTable, MTU: mtu, MTULock: true}}
	if haveIPv6() {
		routes = append(routes, netlink.Route{Gw: six, Dst: all6})
	}
	for _, r := range routes {
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link, State: netlink.NUD_PERMANENT, IP: r.Gw, HardwareAddr: to})
		if err != nil {
			return fmt.Errorf("add the neighbour %s: %w", r.Gw, err)
		}
		r.LinkIndex, r.Flags = link, int(netlink.FLAG_ONLINK)
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("add the route by %s with MTU %d: %w", r.Gw, r.MTU, err)
		}
	}
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Table = unix.AF_INET, cutMark, cutTable
	rule.Priority = cutTable // else each call would add one
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the rule for what is to be cut: %w", err)
	}
	return nil
}

func addTables() error {
	if err := addTable(nftables.TableFamilyIPv4); err != nil || !haveIPv6() {
		return err
	}
	if err := addTable(nftables.TableFamilyIPv6); err != nil {
		return err
	}
	return setSysctls(defragmenter6)
}

// addTable is
//
//	chain prerouting { type filter hook prerouting priority raw
//	    notrack
//	    ct state untracked
//	}
//	chain postrouting { type filter hook postrouting priority filter
//	    meta l4proto tcp @th,152,8 set @th,152,8
//	}
//	chain output { type filter hook output priority filter; policy drop }
//
// Any expression of ct turns the defragmenter on, and conntrack with it. Writing the last byte of a TCP header puts it all into the
// first fragment: the kernel else sends the fragments as they came, be the first one too short for it. What the namespace says for
// itself, as IPv6 does to multicast routers, is of interest to nobody.
func addTable(family nftables.TableFamily) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: "conenat", Family: family}
	conn.AddTable(table)
	conn.DelTable(table) // adding it first makes deleting it succeed in any case
	conn.AddTable(table)
	before := conn.AddChain(&nftables.Chain{Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	drop := nftables.ChainPolicyDrop
	conn.AddChain(&nftables.Chain{Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	after := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityFilter})
	conn.AddRule(&nftables.Rule{Table: table, Chain: before, Exprs: []expr.Any{&expr.Notrack{}}})
	conn.AddRule(&nftables.Rule{Table: table, Chain: before, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(expr.CtStateBitUNTRACKED)},
	}})
	conn.AddRule(&nftables.Rule{Table: table, Chain: after, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 19, Len: 1},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1,
			Base: expr.PayloadBaseTransportHeader, Offset: 19, Len: 1},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write the nftables table: %w", err)
	}
	return nil
}
