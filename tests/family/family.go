// SPDX-License-Identifier: Apache-2.0

package family

import (
	"encoding/binary"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

// Family is an address family.
type Family uint8

// The families. IPv4 is the zero value.
const (
	V4 Family = iota
	V6
)

// Tested are the families that Each runs a test in.
var Tested = []Family{V4}

// Each runs a test in each family that is tested, as a subtest with the family's name.
func Each(t *testing.T, test func(t *testing.T, f Family)) {
	t.Helper()
	for _, f := range Tested {
		t.Run(f.String(), func(t *testing.T) { test(t, f) })
	}
}

// String is the name, as it stands in the names of tests.
func (f Family) String() string { return f.word("IPv4", "IPv6") }

// Network is the name of one of package net's networks ("udp", "tcp") in the family: "udp4".
func (f Family) Network(name string) string { return name + f.word("4", "6") }

// Table is nft's word for tables and matches of the family.
func (f Family) Table() string { return f.word("ip", "ip6") }

// Forwarding is the sysctl that makes a router of a host.
func (f Family) Forwarding() string {
	return f.word("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
}

// Sysctl is a setting of the family's own: "KEY=VALUE" of net.ipv4 or net.ipv6.
func (f Family) Sysctl(setting string) string { return f.word("net.ipv4.", "net.ipv6.") + setting }

// Any is the unspecified address.
func (f Family) Any() netip.Addr { return f.Addr(netip.IPv4Unspecified()) }

// Bits is the length of an address.
func (f Family) Bits() int { return f.Any().BitLen() }

func (f Family) word(v4, v6 string) string {
	if f == V6 {
		return v6
	}
	return v4
}

// Of is the family of an address.
func Of(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return V4
	}
	return V6
}

// twins are networks of tests in both families, the longer prefixes first. What is in none of them is in the last one.
var twins = []struct{ v4, v6 netip.Prefix }{
	twin("0.0.0.0/32", "::/128"),
	twin("127.0.0.0/8", "::1/128"), // and 127.0.0.1 is ::1
	twin("192.0.2.0/24", "2001:db8:2::/64"),
	twin("198.51.100.0/24", "2001:db8:100::/64"),
	twin("203.0.113.0/24", "2001:db8:113::/64"),
	twin("10.99.0.0/24", "fd00:99::/64"),
	twin("172.17.0.0/16", "fd00:17::/64"),
	twin("172.18.0.0/16", "fd00:18::/64"),
	twin("172.19.0.0/16", "fd00:19::/64"),
	twin("172.20.0.0/16", "fd00:20::/64"),
	twin("172.21.0.0/16", "fd00:21::/64"),
	twin("224.0.0.0/4", "ff02::/64"), // 224.0.0.1 is ff02::1
	twin("0.0.0.0/0", "2001:db8:ffff::/64"),
}

func twin(v4, v6 string) struct{ v4, v6 netip.Prefix } {
	return struct{ v4, v6 netip.Prefix }{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)}
}

// uplinks are 198.18.N.0/24 and 2001:db8:18:N::/64, N being any.
var uplinks = twin("198.18.0.0/16", "2001:db8:18::/48")

// network is the twin that an IPv4 address is in.
func network(a netip.Addr) (v4, v6 netip.Prefix) {
	if uplinks.v4.Contains(a) {
		b := uplinks.v6.Addr().As16()
		b[7] = a.As4()[2]
		v4, _ = a.Prefix(24)
		return v4, netip.PrefixFrom(netip.AddrFrom16(b), 64)
	}
	for _, t := range twins {
		if t.v4.Contains(a) {
			return t.v4, t.v6
		}
	}
	panic("unreachable: the last network has every address")
}

// Addr is the address, in the family, of the place that a has in IPv4.
func (f Family) Addr(a netip.Addr) netip.Addr {
	if f == V4 || !a.Is4() {
		return a
	}
	v4, v6 := network(a)
	host := binary.BigEndian.Uint32(a.AsSlice()) & (1<<(32-v4.Bits()) - 1)
	out := v6.Addr().As16()
	binary.BigEndian.PutUint32(out[12:], host)
	return netip.AddrFrom16(out)
}

// Endpoint is Addr for an address and a port.
func (f Family) Endpoint(e netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(f.Addr(e.Addr()), e.Port())
}

// At is Addr with a port.
func (f Family) At(a netip.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(f.Addr(a), port)
}

// Prefix is Addr for a network, or an address with its network's length. A network of tests has 64 bits in IPv6, and one with everything
// none; a part of a network is as much smaller than it in IPv6 as it is in IPv4.
func (f Family) Prefix(p netip.Prefix) netip.Prefix {
	if f == V4 || !p.Addr().Is4() {
		return p
	}
	if p.Bits() == 0 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	bits := 128 - (32 - p.Bits())
	switch v4, v6 := network(p.Addr()); {
	case p == v4:
		return v6
	case p.Bits() == v4.Bits():
		bits = v6.Bits()
	}
	return netip.PrefixFrom(f.Addr(p.Addr()), bits)
}

// written matches IPv4 addresses in a text, with or without a prefix length or a port.
var written = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+(/\d+\b|:\d+\b)?`)

// Text is a text whose IPv4 addresses, endpoints and prefixes are the family's.
func (f Family) Text(s string) string {
	if f == V4 {
		return s
	}
	return written.ReplaceAllStringFunc(s, func(found string) string {
		if p, err := netip.ParsePrefix(found); err == nil {
			return f.Prefix(p).String()
		}
		if e, err := netip.ParseAddrPort(found); err == nil {
			return f.Endpoint(e).String()
		}
		if a, err := netip.ParseAddr(found); err == nil {
			return f.Addr(a).String()
		}
		return found // a version, or a name
	})
}

// Texts is Text for each of them, and gives a list of its own.
func (f Family) Texts(lines ...string) []string {
	out := make([]string, 0, len(lines))
	for _, line := range lines {
		out = append(out, f.Text(line))
	}
	return out
}

// Rules is Text for rules of iptables or nft, whose words for the family change, too.
func (f Family) Rules(s string) string {
	if f == V4 {
		return s
	}
	return f.Text(familyWords.Replace(s))
}

var familyWords = strings.NewReplacer("table ip ", "table ip6 ", "ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr",
	"-p icmp ", "-p ipv6-icmp ", "ip protocol icmp", "meta l4proto ipv6-icmp")
