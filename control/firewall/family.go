// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// family is what differs between the ways of IPv4 and IPv6 packets through the rules. Each is followed for itself: a rule of
// a table that sees both is read as packets of the one see it, and as those of the other.
type family struct {
	name       string
	af         int
	nfproto    uint8
	tables     map[uint8]string // whose chains see its packets in the stack or a bridge
	word       string           // of a header's fields, in nft's words
	etherType  uint16
	otherTypes []uint16 // of frames that have no packet of it
	icmp       uint8
	own        []netip.Prefix // of loopback, multicast and, in IPv6, one link: of no packet that is carried

	// In the header.
	protocolAt, sourceAt, destinationAt, size uint32

	iptables, legacy backend
	legacyTables     string // lists the tables of the old back end; of the thread's network namespace, as a child's are
	legacySave, save string // the tools that print them
	rejects          []string
	bridgesSet       string // how Docker 27 and 28.0 name all bridges by one ipset
}

var ipv4 = &family{
	name: "IPv4", af: unix.AF_INET, nfproto: unix.NFPROTO_IPV4, word: "ip",
	tables:    map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_INET: "inet", unix.NFPROTO_BRIDGE: "bridge"},
	etherType: unix.ETH_P_IP, otherTypes: []uint16{unix.ETH_P_IPV6, unix.ETH_P_ARP}, icmp: unix.IPPROTO_ICMP,
	own:        []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4")},
	protocolAt: 9, sourceAt: 12, destinationAt: 16, size: 4,
	iptables: iptables, legacy: iptablesLegacy,
	legacyTables: "/proc/thread-self/net/ip_tables_names", legacySave: "iptables-legacy-save", save: "iptables-save",
	rejects: []string{"icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable",
		"", "icmp-net-prohibited", "icmp-host-prohibited", "tcp-reset", "icmp-admin-prohibited"}, // linux/netfilter_ipv4/ipt_REJECT.h
	bridgesSet: "docker-ext-bridges-v4",
}

var ipv6 = &family{
	name: "IPv6", af: unix.AF_INET6, nfproto: unix.NFPROTO_IPV6, word: "ip6",
	tables:    map[uint8]string{unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet", unix.NFPROTO_BRIDGE: "bridge"},
	etherType: unix.ETH_P_IPV6, otherTypes: []uint16{unix.ETH_P_IP, unix.ETH_P_ARP}, icmp: unix.IPPROTO_ICMPV6,
	own:        []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10")},
	protocolAt: 6, sourceAt: 8, destinationAt: 24, size: 16,
	iptables: ip6tables, legacy: ip6tablesLegacy,
	legacyTables: "/proc/thread-self/net/ip6_tables_names", legacySave: "ip6tables-legacy-save", save: "ip6tables-save",
	rejects: []string{"icmp6-no-route", "icmp6-adm-prohibited", "icmp6-not-neighbour", "icmp6-addr-unreachable",
		"icmp6-port-unreachable", "", "tcp-reset", "icmp6-policy-fail", "icmp6-reject-route"}, // linux/netfilter_ipv6/ip6t_REJECT.h
	bridgesSet: "docker-ext-bridges-v6",
}

// families are those that traffic has, IPv4 where it has none yet.
func (t Traffic) families() []*family {
	four, six := t.of(ipv4), t.of(ipv6)
	switch {
	case len(six.Prefixes) == 0:
		return []*family{ipv4}
	case len(four.Prefixes) == 0:
		return []*family{ipv6}
	}
	return []*family{ipv4, ipv6}
}

// of is the traffic of one family.
func (t Traffic) of(f *family) Traffic {
	var prefixes []netip.Prefix
	for _, p := range t.Prefixes {
		if p.Addr().Is4() == (f == ipv4) {
			prefixes = append(prefixes, p)
		}
	}
	t.Prefixes = prefixes
	return t
}

// every is all addresses of the family.
func (f *family) every() netip.Prefix {
	if f == ipv4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
