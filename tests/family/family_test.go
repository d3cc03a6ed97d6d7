// SPDX-License-Identifier: Apache-2.0

package family

import (
	"net/netip"
	"testing"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"udp br0 172.17.0.2:2000 198.51.100.1:2000 1": "udp br0 [fd00:17::2]:2000 [2001:db8:100::1]:2000 1",
		"203.0.113.254/24":                            "2001:db8:113::fe/64",
		"172.17.1.2":                                  "fd00:17::102",
		"add 172.17.0.0/16 by eth0.10":                "add fd00:17::/64 by eth0.10",
		"172.17.0.9/32":                               "fd00:17::9/128",
		"198.18.3.254 198.18.3.0/24":                  "2001:db8:18:3::fe 2001:db8:18:3::/64",
		"224.0.0.251:5353":                            "[ff02::fb]:5353",
		"0.0.0.0:53 0.0.0.0/0":                        "[::]:53 ::/0",
		"127.0.0.1":                                   "::1",
		"127.0.0.0/8":                                 "::1/128",
		"10.1.2.3":                                    "2001:db8:ffff::a01:203",
		"tcp/198.51.100.1:80":                         "tcp/[2001:db8:100::1]:80",
		"[fd00::1]:80 version 1.2":                    "[fd00::1]:80 version 1.2",
		"999.1.1.1":                                   "999.1.1.1",
	} {
		if got := V6.Text(in); got != want {
			t.Errorf("%q is %q in IPv6, want %q", in, got, want)
		}
		if got := V4.Text(in); got != in {
			t.Errorf("%q is %q in IPv4", in, got)
		}
	}
}

// Two places of a test must not become one.
func TestAddressesStayApart(t *testing.T) {
	seen := map[netip.Addr]netip.Addr{}
	for _, t4 := range append([]struct{ v4, v6 netip.Prefix }{uplinks}, twins...) {
		a := t4.v4.Addr()
		if t4.v4.Bits() < 32 { // a network's own address is nobody's
			a = a.Next()
		}
		for range 600 { // across a third octet, too
			v6 := V6.Addr(a)
			if before, ok := seen[v6]; ok && before != a {
				t.Fatalf("%v and %v are %v", before, a, v6)
			}
			if seen[v6] = a; Of(v6) != V6 || Of(a) != V4 || V4.Addr(a) != a || V6.Addr(v6) != v6 {
				t.Fatalf("%v is %v", a, v6)
			}
			if a = a.Next(); !a.IsValid() {
				break
			}
		}
	}
}

func TestNetworksContainTheirHosts(t *testing.T) {
	for _, text := range []string{"172.17.0.0/16", "198.51.100.0/24", "198.18.7.0/24", "172.17.0.128/25", "203.0.113.9/32", "0.0.0.0/0"} {
		p := netip.MustParsePrefix(text)
		inside, outside := V6.Addr(p.Addr().Next()), V6.Addr(netip.MustParseAddr("192.0.2.1"))
		if got := V6.Prefix(p); p.Bits() < 32 && !got.Contains(inside) || p.Bits() > 0 && got.Contains(outside) || got != got.Masked() {
			t.Errorf("%v is %v in IPv6, and %v and %v hosts", p, got, inside, outside)
		}
	}
}

func TestEach(t *testing.T) {
	defer func(before []Family) { Tested = before }(Tested)
	Tested = []Family{V4, V6}
	var names []string
	Each(t, func(t *testing.T, f Family) { names = append(names, t.Name()) })
	if len(names) != 2 || names[0] != "TestEach/IPv4" || names[1] != "TestEach/IPv6" {
		t.Errorf("subtests %v", names)
	}
}

func TestRules(t *testing.T) {
	const rules = "table ip nat {\nip saddr 172.17.0.0/16 snat to 198.51.100.1\n}\n-A DOCKER -d 172.17.0.2/32 -p icmp -j DROP"
	const want = "table ip6 nat {\nip6 saddr fd00:17::/64 snat to 2001:db8:100::1\n}\n-A DOCKER -d fd00:17::2/128 -p ipv6-icmp -j DROP"
	if got := V6.Rules(rules); got != want {
		t.Errorf("rules are\n%s\nwant\n%s", got, want)
	}
}
