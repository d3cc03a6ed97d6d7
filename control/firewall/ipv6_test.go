// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

// onHost6 is onHost with IPv6 alone, and onBoth with both.
var (
	onHost6 = Traffic{Inside: onHost.Inside, Outside: onHost.Outside, Prefixes: prefixes("fd00::/64", "fd00:1::/64")}
	onBoth  = Traffic{Inside: onHost.Inside, Outside: onHost.Outside, Prefixes: append(prefixes("172.17.0.0/16"), onHost6.Prefixes...)}
)

// in6 are a fixture's rules as the same author writes them for IPv6.
func in6(rules string) string {
	return strings.NewReplacer("172.17.0.2:", "[fd00::2]:", "172.17.0.2/32", "fd00::2/128", "172.17.0.0/16", "fd00::/64", "192.0.2.2/32", "2001:db8::2/128", "192.0.2.2:", "[2001:db8::2]:", "127.0.0.0/8", "::1/128",
		"127.0.0.1/32", "::1/128", "198.51.100.1/32", "2001:db8::1/128", "docker-ext-bridges-v4", "docker-ext-bridges-v6",
		"-p icmp -m icmp --icmp-type 8", "-p ipv6-icmp -m icmp6 --icmpv6-type 128", "--reject-with icmp-port", "--reject-with icmp6-port").Replace(rules)
}

// cases6 are rules as cases has them, of IPv6.
var cases6 = []struct {
	name, rules string
	want        []string
}{
	{"nothing", forwarding(""), nil},
	{"docker_20_with_ip6tables", in6(docker20), nil},
	{"docker_28", in6(docker28), nil},
	{"policy", strings.Replace(forwarding(""), "FORWARD ACCEPT", "FORWARD DROP", 1), []string{"filter FORWARD: -P FORWARD DROP"}},
	{"docker_user", dockerUser("-A FORWARD -j DOCKER-USER\n-A DOCKER-USER ! -s 2001:db8:9::/48 -i eth0 -j DROP"), []string{
		"filter FORWARD -> DOCKER-USER: -A DOCKER-USER ! -s 2001:db8:9::/48 -i eth0 -j DROP",
	}},
	{"addresses", forwarding(`-A FORWARD -s fd00::/64 -d 2001:db8:9::/48 -j DROP
-A FORWARD -s fd00:2::/64 -j ACCEPT
-A FORWARD -d fe80::/10 -j DROP
-A FORWARD -d ff02::1/128 -j DROP
-A FORWARD -d fd00:1::7/128 -j REJECT --reject-with icmp6-adm-prohibited`), []string{
		"filter FORWARD: -A FORWARD -s fd00::/64 -d 2001:db8:9::/48 -j DROP",
		"filter FORWARD: -A FORWARD -d fd00:1::7/128 -j REJECT --reject-with icmp6-adm-prohibited",
	}},
	{"protocols", forwarding("-A FORWARD -p icmp -j DROP\n-A FORWARD -p ipv6-icmp -j DROP"), []string{
		"filter FORWARD: -A FORWARD -p ipv6-icmp -j DROP",
	}},
}

func TestDecide6(t *testing.T) {
	for _, tt := range append(cases6, struct {
		name, rules string
		want        []string
	}{"docker_27", in6(docker27), nil}) {
		t.Run(tt.name, func(t *testing.T) {
			rs := fromText(t, ip6tables, tt.rules)
			rs.family, rs.links = ipv6, append(rs.links, link{index: 9, name: "virbr1", addresses: prefixes("fd00:2::1/64")})
			if diff := cmp.Diff(tt.want, lines(ip6tables, decide(rs, onBoth).Bypassed)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// addLinks6 makes the interfaces of hostLinks, with addresses of IPv6.
func addLinks6(t testing.TB) {
	t.Helper()
	addLinks(t)
	for name, cidr := range map[string]string{"eth0": "2001:db8::1/64", "docker0": "fd00::1/64", "custom1": "fd00:1::1/64", "virbr0": "fd00:2::1/64"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		p := netip.MustParsePrefix(cidr)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(l, addr); err != nil {
			t.Fatal(err)
		}
	}
}

func inspectAs(t testing.TB, traffic Traffic) Report {
	t.Helper()
	report, err := New().Inspect(traffic)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Rules of ip6tables as the kernel has them: traffic of IPv6 meets them, and that of IPv4 does not.
func TestIp6tables(t *testing.T) {
	for _, b := range []backend{ip6tables, ip6tablesLegacy} {
		for _, tt := range cases6 {
			t.Run(string(b)+"/"+tt.name, func(t *testing.T) {
				inNamespace(t)
				addLinks6(t)
				run(t, tt.rules, map[backend]string{ip6tables: "ip6tables-nft-restore", ip6tablesLegacy: "ip6tables-legacy-restore"}[b])
				for name, traffic := range map[string]Traffic{"IPv6": onHost6, "both": onBoth} {
					got := lines(b, inspectAs(t, traffic).Bypassed)
					if diff := cmp.Diff(printable(tt.want, got), got); diff != "" {
						t.Errorf("%s: %s", name, diff)
					}
				}
				if got := inspect(t).Bypassed; got != nil {
					t.Errorf("IPv4 alone: %v", got)
				}
			})
		}
	}
}

func TestNFT6(t *testing.T) {
	chain := func(family, rules string) string {
		return "table " + family + " t {\n chain f { type filter hook forward priority 0; policy accept\n" + rules + "\n}\n}"
	}
	tests := []struct {
		name, rules string
		want        []string // of IPv6
		both        []string
	}{
		{"another_family", chain("ip", "drop"), nil, []string{"nft ip t f: drop"}},
		{"its_family", chain("ip6", "drop"), []string{"nft ip6 t f: drop"}, []string{"nft ip6 t f: drop"}},
		{"both_families_once", chain("inet", "tcp dport 22 drop"), []string{"nft inet t f: tcp dport 22 drop"}, []string{"nft inet t f: tcp dport 22 drop"}},
		{"inet", chain("inet", "meta nfproto ipv4 tcp dport 9 drop\nicmp type echo-request drop\nicmpv6 type echo-request accept"),
			[]string{"nft inet t f: meta l4proto ipv6-icmp @th,0,8 0x80 accept"},
			[]string{"nft inet t f: tcp dport 9 drop", "nft inet t f: meta l4proto icmp @th,0,8 0x08 drop", "nft inet t f: meta l4proto ipv6-icmp @th,0,8 0x80 accept"}},
		{"addresses", chain("ip6", `ip6 saddr 2001:db8:9::/48 ip6 daddr 2001:db8:8::/48 drop
ip6 saddr fd00:2::-fd00:2::ff accept
ip6 daddr { fd00:2::/64, ff02::/16 } drop
ip6 saddr { fd00::/65, fd00:2::7 } drop
ip6 daddr fd00::/63 oifname "docker0" drop
ip6 saddr & ffff:: == fd00:: drop
ip6 nexthdr udp drop`), []string{
			"nft ip6 t f: ip6 saddr { fd00::/65, fd00:2::7/128 } drop",
			`nft ip6 t f: oifname "docker0" ip6 daddr fd00::/63 drop`,
			"nft ip6 t f: ip6 saddr fd00::/16 drop",
			"nft ip6 t f: meta l4proto udp drop",
		}, nil},
		{"docker_29", strings.NewReplacer("table ip ", "table ip6 ", "ip daddr 172.17.0.2", "ip6 daddr fd00::2", "dnat to 172.17.0.2:80", "dnat to [fd00::2]:80",
			"ip daddr != 127.0.0.0/8", "ip6 daddr != ::1", "ip saddr 172.17.0.0/16", "ip6 saddr fd00::/64", "icmp type", "icmpv6 type").Replace(docker29), nil, nil},
		{"libvirt", libvirtNFT, nil, nil},
		{"lxd", lxd, nil, nil},
		{"crowdsec", strings.NewReplacer("table ip ", "table ip6 ", "ip saddr", "ip6 saddr", "ipv4_addr", "ipv6_addr", "203.0.113.9", "2001:db8:9::9").Replace(crowdsecNFT),
			[]string{"nft ip6 crowdsec crowdsec-chain-forward: ip6 saddr @crowdsec-blacklists drop"}, nil},
		{"conenat", "table ip6 conenat { chain f { type filter hook forward priority 0; policy drop; }\n}", nil, nil},
		{"bridge", "table bridge t { chain f { type filter hook forward priority 0; ether type ip drop; ether type ip6 drop; }\n}", []string{
			"nft bridge t f: drop"}, []string{"nft bridge t f: drop", "nft bridge t f: drop"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			addLinks6(t)
			addPorts(t)
			run(t, tt.rules, "nft", "-f", "-")
			if tt.both == nil {
				tt.both = tt.want
			}
			texts := func(traffic Traffic) (out []string) {
				for _, f := range inspectAs(t, traffic).Bypassed {
					out = append(out, strings.TrimSpace(handleNumber.ReplaceAllString(f.String(), "")))
				}
				return out
			}
			if diff := cmp.Diff(tt.want, texts(onHost6)); diff != "" {
				t.Errorf("IPv6: %s", diff)
			}
			if diff := cmp.Diff(tt.both, texts(onBoth)); diff != "" {
				t.Errorf("both: %s", diff)
			}
		})
	}
}

// Ports that nat rules of IPv6 take are those of addresses of IPv6 alone.
func TestDiverted6(t *testing.T) {
	inNamespace(t)
	addLinks6(t)
	run(t, `table ip6 t {
	chain n {
		type nat hook prerouting priority dstnat
		iifname "eth0" tcp dport 22 dnat to [fd00:2::5]:22
		ip6 daddr 2001:db8::1 udp dport 100-200 redirect to :53
		iifname "docker0" ip6 saddr fd00::/64 tcp dport 443 redirect to :3128
	}
}
table ip t {
	chain n {
		type nat hook prerouting priority dstnat
		iifname "eth0" tcp dport 23 dnat to 10.0.0.5
	}
}
`, "nft", "-f", "-")
	got := inspectAs(t, onBoth)
	want := []Diverted{
		diverted(dataplane.TCP, 23, 23, "", "ip t n"),
		diverted(dataplane.TCP, 22, 22, "::/0", "ip6 t n"), diverted(dataplane.UDP, 100, 200, "2001:db8::1/128", "ip6 t n"),
	}
	if diff := cmp.Diff(want, unlabelled(nft, got.Diverted), compareIP); diff != "" || len(got.Translated) != 1 {
		t.Errorf("translated %v\n%s", got.Translated, diff)
	}
	for _, tt := range []struct {
		to   string
		want bool
	}{{"[2001:db8::1]:22", true}, {"198.51.100.1:22", false}, {"198.51.100.1:23", true}, {"[2001:db8::1]:23", false}} {
		covered := false
		for _, d := range got.Diverted {
			covered = covered || d.Covers(dataplane.TCP, netip.MustParseAddrPort(tt.to))
		}
		if covered != tt.want {
			t.Errorf("%s is covered: %v", tt.to, covered)
		}
	}
}

// TestDockerIPv6: whether somebody translates IPv6 for Docker's networks.
func TestDockerIPv6(t *testing.T) {
	tests := []struct {
		name, program, rules string
		want                 bool
	}{
		{"nothing", "", "", false},
		{"IPv4_alone", "iptables-nft-restore", docker20, false},
		{"ip6tables", "ip6tables-nft-restore", in6(docker20), true},
		{"ip6tables_legacy", "ip6tables-legacy-restore", in6(docker20), true},
		{"ip6tables_legacy_without_Docker", "ip6tables-legacy-restore", inTable("nat", "-A POSTROUTING -o eth0 -j MASQUERADE"), false},
		{"filter_alone", "ip6tables-legacy-restore", dockerUser(""), false},
		{"docker_29", "nft", "table ip6 docker-bridges { chain nat-POSTROUTING { type nat hook postrouting priority 100; }; }", true},
		{"docker_29_of_IPv4", "nft", "table ip docker-bridges { chain nat-POSTROUTING { type nat hook postrouting priority 100; }; }", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			if tt.program == "nft" {
				run(t, tt.rules, "nft", "-f", "-")
			} else if tt.program != "" {
				run(t, tt.rules, tt.program)
			}
			if got, err := New().DockerIPv6(); got != tt.want || err != nil {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestPolicies6(t *testing.T) {
	const tmpl = " tmpl src 2001:db8::1 dst 2001:db8::2 proto esp mode tunnel"
	for policy, want := range map[string]string{
		"src fd00::/64 dst 2001:db8:9::/48 dir out" + tmpl: "xfrm policy out: src fd00::/64 dst 2001:db8:9::/48 dir out priority 0" + tmpl,
		"src ::/0 dst ::/0 dir fwd" + tmpl:                 "xfrm policy fwd: src ::/0 dst ::/0 dir fwd priority 0" + tmpl,
		"src 2001:db8::1 dst 2001:db8::2 dir out" + tmpl:   "",
	} {
		inNamespace(t)
		run(t, "", "ip", append([]string{"xfrm", "policy", "add"}, strings.Fields(policy)...)...)
		if got := strings.Join(lines(nft, inspectAs(t, onHost6).Bypassed), "\n"); got != want {
			t.Errorf("%s: got %q, want %q", policy, got, want)
		}
		if got := inspect(t).Bypassed; got != nil {
			t.Errorf("%s: IPv4 meets %v", policy, got)
		}
	}
}
