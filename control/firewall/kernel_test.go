// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/require"
)

// inNamespace runs the rest of the test on a thread in a network namespace of its own, which ends with it.
func inNamespace(t testing.TB) {
	t.Helper()
	require.Root(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// addLinks makes the interfaces of hostLinks, as bridges.
func addLinks(t testing.TB) {
	t.Helper()
	for _, l := range hostLinks {
		if l.name == "lo" || l.master != "" {
			continue
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: l.name}}
		if err := netlink.LinkAdd(bridge); err != nil {
			t.Fatal(err)
		}
		for _, a := range l.addresses {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), 32)}}
			if err := netlink.AddrAdd(bridge, addr); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func addSets(t testing.TB, sets []string) {
	t.Helper()
	for _, name := range sets {
		kind := "hash:ip"
		if strings.HasPrefix(name, "docker") {
			kind = "hash:net"
		}
		if err := netlink.IpsetCreate(name, kind, netlink.IpsetCreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func inspect(t testing.TB) Report {
	t.Helper()
	report, err := New().Inspect(onHost)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// handled is the mark of a rule with words that iptables-nft keeps as a C struct, and that are not printed.
var handled = regexp.MustCompile(` \(handle \d+\)$`)

// printable is want without the words that got leaves out; the chain and the number of rules stay.
func printable(want, got []string) []string {
	out := append([]string(nil), want...)
	for i := range out {
		if i < len(got) && handled.MatchString(got[i]) {
			where, _, _ := strings.Cut(out[i], ": -A ")
			_, rule, _ := strings.Cut(got[i], ": -A ")
			out[i] = where + ": -A " + rule
		}
	}
	return out
}

func TestIptables(t *testing.T) {
	for _, b := range []backend{iptables, iptablesLegacy} {
		for _, tt := range cases {
			t.Run(string(b)+"/"+tt.name, func(t *testing.T) {
				inNamespace(t)
				addLinks(t)
				addSets(t, tt.sets)
				load(t, b, tt.rules)
				got := lines(b, inspect(t).Bypassed)
				if diff := cmp.Diff(printable(tt.want, got), got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func load(t testing.TB, b backend, rules string) {
	t.Helper()
	if b == iptables {
		run(t, rules, "iptables-nft-restore")
	} else {
		run(t, rules, "iptables-legacy-restore")
	}
}

func TestIptablesDiverted(t *testing.T) {
	for _, b := range []backend{iptables, iptablesLegacy} {
		for _, tt := range diversions {
			t.Run(string(b)+"/"+tt.name, func(t *testing.T) {
				inNamespace(t)
				addLinks(t)
				load(t, b, tt.rules)
				got := inspect(t)
				if diff := cmp.Diff(tt.want, unlabelled(b, got.Diverted), compareIP); diff != "" {
					t.Error(diff)
				}
				translated := lines(b, got.Translated)
				if diff := cmp.Diff(printable(tt.translated, translated), translated); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// What is printed of rules that are partly C structs.
func TestTextsOfIptablesNft(t *testing.T) {
	inNamespace(t)
	load(t, iptables, forwarding(`-A FORWARD -s 172.17.0.0/16 ! -d 10.0.0.0/8 -i docker0 -p tcp -m multiport --dports 22,80:90 -m comment --comment "a b" -j REJECT --reject-with tcp-reset
-A FORWARD -p udp -m udp ! --dport 53 -m conntrack --ctstate INVALID,NEW -j DROP
-A FORWARD -m conntrack ! --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT
-A FORWARD -m limit --limit 3/min -j LOG
-A FORWARD -m pkttype --pkt-type broadcast -j MARK --set-xmark 0x1/0xffffffff
-A FORWARD -p icmp -m icmp --icmp-type 8 -j NFQUEUE --queue-num 1`))
	want := []string{
		`filter FORWARD: -A FORWARD -s 172.17.0.0/16 ! -d 10.0.0.0/8 -i docker0 -p tcp -m multiport --dports 22,80:90 -m comment --comment "a b" -j REJECT --reject-with tcp-reset`,
		"filter FORWARD: -A FORWARD -p udp -m udp ! --dport 53 -m conntrack --ctstate INVALID,NEW -j DROP",
		"filter FORWARD: -A FORWARD -m conntrack ! --ctstate ESTABLISHED -j ACCEPT",
		"filter FORWARD: -A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT",
		"filter FORWARD: -A FORWARD -m limit -j LOG (handle N)",
		"filter FORWARD: -A FORWARD -m pkttype -j MARK (handle N)",
		"filter FORWARD: -A FORWARD -p icmp -m icmp -j NFQUEUE (handle N)",
	}
	got := lines(iptables, inspect(t).Bypassed)
	for i := range got {
		got[i] = handled.ReplaceAllString(got[i], " (handle N)")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// nftables rules as their authors write them.
const (
	// firewalld 1.3 (Debian 12), the default zone public on eth0.
	firewalld = `table inet firewalld {
	chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; jump mangle_PREROUTING_ZONES; }
	chain mangle_PREROUTING_ZONES { iifname "eth0" goto mangle_PRE_public; goto mangle_PRE_public; }
	chain mangle_PRE_public { jump mangle_PRE_public_pre; }
	chain mangle_PRE_public_pre { }
	chain filter_PREROUTING { type filter hook prerouting priority filter + 10; policy accept; icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept; meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }
	chain filter_INPUT { type filter hook input priority filter + 10; policy accept; ct state invalid drop; }
	chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } reject with icmpv6 addr-unreachable
		jump filter_FORWARD_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_ZONES { iifname "eth0" goto filter_FWD_public; goto filter_FWD_public; }
	chain filter_FWD_public { jump filter_FWD_public_allow; }
	chain filter_FWD_public_allow { oifname "eth0" accept; }
}`
	// crowdsec-firewall-bouncer 0.0.30, hooks input and forward.
	crowdsecNFT = `table ip crowdsec {
	set crowdsec-blacklists { type ipv4_addr; flags timeout; elements = { 203.0.113.9 timeout 1h } }
	chain crowdsec-chain-input { type filter hook input priority filter - 10; policy accept; ip saddr @crowdsec-blacklists drop; }
	chain crowdsec-chain-forward { type filter hook forward priority filter - 10; policy accept; ip saddr @crowdsec-blacklists drop; }
}`
	// libvirt 10.4 and later, nftables back end.
	libvirtNFT = `table ip libvirt_network {
	chain forward { type filter hook forward priority filter; policy accept; counter jump guest_cross; counter jump guest_input; counter jump guest_output; }
	chain guest_output { ip saddr 192.168.122.0/24 iif "virbr0" counter accept; iif "virbr0" counter reject; }
	chain guest_input { oif "virbr0" ip daddr 192.168.122.0/24 ct state established,related counter accept; oif "virbr0" counter reject; }
	chain guest_cross { iif "virbr0" oif "virbr0" counter accept; }
	chain guest_nat { type nat hook postrouting priority srcnat; policy accept; ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 counter masquerade; }
}`
	// LXD 5 (incus 0.6 too): lxd/firewall/drivers/drivers_nftables_templates.go.
	lxd = `table inet lxd {
	chain fwd.lxdbr0 { type filter hook forward priority filter; policy accept; ip version 4 oifname "lxdbr0" accept; ip version 4 iifname "lxdbr0" accept; ip6 version 6 oifname "lxdbr0" accept; }
	chain pstrt.lxdbr0 { type nat hook postrouting priority srcnat; policy accept; }
}`
	// Docker 29's nftables back end (moby's integration/network/bridge/nftablesdoc), shortened.
	docker29 = `table ip docker-bridges {
	map filter-forward-in-jumps { type ifname : verdict; elements = { "docker0" : jump filter-forward-in__docker0 } }
	chain filter-FORWARD { type filter hook forward priority filter; policy accept; oifname vmap @filter-forward-in-jumps; }
	chain filter-forward-in__docker0 { ct state established,related counter accept; iifname "docker0" counter accept; counter drop; }
	chain nat-PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local counter jump nat-prerouting-and-output; }
	chain nat-prerouting-and-output { iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:80; }
	chain raw-PREROUTING { type filter hook prerouting priority raw; policy accept; ip daddr 172.17.0.2 iifname != "docker0" counter drop; }
}`
)

var handleNumber = regexp.MustCompile(`# handle \d+$`)

func TestNFT(t *testing.T) {
	chain := func(rules string) string {
		return "table inet t {\n set bridges { type ifname; elements = { \"virbr0\", \"lxdbr0\" } }\n set block { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }\n" +
			" chain empty { }\n chain x { accept; }\n chain f { type filter hook forward priority 0; policy accept\n" + rules + "\n}\n}"
	}
	tests := []struct {
		name, rules string
		want        []string
	}{
		{"firewalld", firewalld, []string{
			"nft inet firewalld filter_FORWARD: ct state @__setN accept",
			"nft inet firewalld filter_FORWARD: ct status & 0x20000000 != 0x00000000 accept",
			"nft inet firewalld filter_FORWARD: ct state invalid drop",
			`nft inet firewalld filter_FORWARD -> filter_FORWARD_ZONES -> filter_FWD_public -> filter_FWD_public_allow: oifname "eth0" accept`,
			"nft inet firewalld filter_FORWARD: reject",
		}},
		{"crowdsec", crowdsecNFT, []string{"nft ip crowdsec crowdsec-chain-forward: ip saddr @crowdsec-blacklists drop"}},
		{"libvirt", libvirtNFT, nil},
		{"lxd", lxd, nil},
		{"docker_29", docker29, nil},
		{"conenat", "table ip conenat { chain postrouting { type filter hook postrouting priority 99; drop; } }\ntable inet conenat-x { chain f { type filter hook forward priority 0; policy drop; } }", nil},
		{"policy", "table inet t { chain f { type filter hook forward priority 0; policy drop; } }", []string{"nft inet t f: policy drop"}},
		{"policy_behind_an_accept", "table inet t { chain f { type filter hook forward priority 0; policy drop; accept; } }", []string{"nft inet t f: accept"}},
		{"policy_of_input", "table inet t { chain f { type filter hook input priority 0; policy drop; } }", nil},
		{"a_table_called_filter", "table ip filter { chain forward { type filter hook forward priority 0; ip protocol tcp drop; } }", []string{"nft ip filter forward: meta l4proto tcp drop"}},
		{"IPv6", "table ip6 t { chain f { type filter hook forward priority 0; policy drop; } }\n" + chain("meta nfproto ipv6 drop\nip6 saddr fe80::/10 drop\nmeta l4proto ipv6-icmp drop\nether type ip6 drop"), nil},
		{"nothing_but_counters", chain("counter\ncounter return\nip saddr 172.17.0.2 counter jump empty"), nil},
		{"interfaces", chain(`iifname "virbr*" drop
iifname @bridges drop
iifname { "virbr*", "lxdbr0" } drop
iifname { "virbr*", "docker*" } drop
iif "virbr0" drop
iifname . oifname { "virbr0" . "eth0" } drop
iifname != { "eth0", "docker0", "custom1" } drop
oifname != "docker0" iifname "eth0" tcp dport 22 drop`), []string{
			`nft inet t f: iifname { "docker*", "virbr*" } drop`,
			`nft inet t f: iifname "eth0" oifname != "docker0" tcp dport 22 drop`, // custom1 is left
		}},
		{"verdict_maps", chain(`iifname vmap { "virbr0" : drop, "eth0" : jump x, "docker0" : jump empty }
ct state vmap { invalid : drop, new : continue }`), []string{
			"nft inet t f -> x: accept", "nft inet t f: ct state @__mapN drop",
		}},
		{"addresses", chain(`ip saddr 192.0.2.0/24 ip daddr 203.0.113.0/24 drop
ip saddr 10.88.0.0-10.88.0.255 accept
ip daddr { 10.88.0.0/16, 192.168.122.7 } drop
ip saddr { 172.17.0.0/24, 192.168.122.7 } ip daddr @block drop
ip daddr != 172.16.0.0/12 oifname "docker0" drop`), []string{
			"nft inet t f: ip saddr { 172.17.0.0/24, 192.168.122.7/32 } ip daddr @block drop",
		}},
		{"effects", chain("log prefix \"seen \"\nmeta mark set 0x1\nct mark set 0x1\ntcp flags syn tcp option maxseg size set rt mtu\nip dscp set cs1"), []string{
			`nft inet t f: log prefix "seen "`, "nft inet t f: meta mark set", "nft inet t f: ct set",
			"nft inet t f: meta l4proto tcp @th,104,8 & 0x02 != 0x00 exthdr set", "nft inet t f: payload set",
		}},
		{"duplicate_and_tproxy", "table ip t { chain p { type filter hook prerouting priority mangle; iifname \"docker0\" meta l4proto tcp tproxy to :3128; iifname \"eth0\" dup to 10.0.0.9; } }", []string{
			`nft ip t p: iifname "docker0" meta l4proto tcp tproxy`, `nft ip t p: iifname "eth0" dup`,
		}},
		{"bridge", "table bridge t { chain f { type filter hook forward priority 0; iifname \"vnet0\" drop; iifname \"veth1\" drop; iifname \"later\" ether type arp drop; }\nchain o { type filter hook output priority 0; policy drop; } }", []string{
			`nft bridge t f: iifname "veth1" drop`, "nft bridge t o: policy drop",
		}},
		{"netdev_is_before_both_paths", "table netdev t { chain i { type filter hook ingress device eth0 priority 0; policy drop; } }", nil},
		{"dormant", "table inet t { flags dormant; chain f { type filter hook forward priority 0; policy drop; } }", nil},
		{"order", "table inet b { chain f { type filter hook forward priority 5; drop; } }\ntable inet a { chain f { type filter hook forward priority -5; drop; }\nchain p { type filter hook prerouting priority 100; drop; } }", []string{
			"nft inet a p: drop", "nft inet a f: drop", "nft inet b f: drop",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			addLinks(t)
			addPorts(t)
			run(t, strings.ReplaceAll(tt.rules, "} }", "}\n}"), "nft", "-f", "-")
			var got []string
			for _, f := range inspect(t).Bypassed {
				text := strings.TrimSpace(handleNumber.ReplaceAllString(f.String(), ""))
				got = append(got, regexp.MustCompile(`@__(set|map)\d+`).ReplaceAllString(text, "@__${1}N"))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// addPorts makes the ports of hostLinks.
func addPorts(t testing.TB) {
	t.Helper()
	for _, l := range hostLinks {
		if l.master == "" {
			continue
		}
		bridge, err := netlink.LinkByName(l.master)
		if err != nil {
			t.Fatal(err)
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: l.name, MasterIndex: bridge.Attrs().Index}, PeerName: "peer-" + l.name}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNFTDiverted(t *testing.T) {
	tests := []struct {
		name, rules string
		want        []Diverted
		translated  int
	}{
		{"docker_29", docker29, []Diverted{dockers(diverted(dataplane.TCP, 8080, 8080, "", "ip docker-bridges nat-PREROUTING -> nat-prerouting-and-output"))}, 0},
		// kube-proxy 1.33's nftables mode (pkg/proxy/nftables/proxier_test.go).
		{"kube_proxy", `table ip kube-proxy {
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.10 . tcp . 80 : goto service-X } }
	map service-nodeports { type inet_proto . inet_service : verdict; elements = { tcp . 30080 : goto external-X, udp . 30053 : goto external-X } }
	chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
	chain endpoint-X { ip saddr 10.244.1.4 jump mark-for-masquerade; meta l4proto tcp dnat to 10.244.1.4:8080; }
	chain service-X { ip daddr 10.96.0.10 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade; numgen random mod 1 vmap { 0 : goto endpoint-X } }
	chain external-X { jump mark-for-masquerade; goto service-X; }
	chain services { ip daddr . meta l4proto . th dport vmap @service-ips; fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports; }
	chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
}`, []Diverted{
			diverted(dataplane.TCP, 80, 80, "10.96.0.10/32", "ip kube-proxy nat-prerouting -> services -> service-X -> endpoint-X"),
			diverted(dataplane.TCP, 30080, 30080, "", "ip kube-proxy nat-prerouting -> services -> external-X -> service-X -> endpoint-X"),
		}, 1},
		{"ranges", `table ip t { chain n { type nat hook prerouting priority dstnat
	iifname "eth0" tcp dport { 22, 80-90 } dnat to 10.0.0.5
	ip daddr 198.51.100.1 udp dport 100-200 redirect to :53
	iifname "eth0" meta l4proto { tcp, udp } th dport 53 dnat to 10.0.0.5
	iifname "eth0" dnat to tcp dport map { 8000 : 10.0.0.5, 8001 : 10.0.0.6 }
	iifname "virbr0" tcp dport 99 redirect
	iifname "docker0" tcp dport 443 redirect to :3128
} }`, []Diverted{
			diverted(dataplane.TCP, 22, 22, "", "ip t n"), diverted(dataplane.TCP, 53, 53, "", "ip t n"),
			diverted(dataplane.TCP, 80, 90, "", "ip t n"), diverted(dataplane.TCP, 8000, 8000, "", "ip t n"),
			diverted(dataplane.TCP, 8001, 8001, "", "ip t n"), diverted(dataplane.UDP, 53, 53, "", "ip t n"),
			diverted(dataplane.UDP, 100, 200, "198.51.100.1/32", "ip t n"),
		}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			addLinks(t)
			run(t, strings.ReplaceAll(tt.rules, "} }", "}\n}"), "nft", "-f", "-")
			got := inspect(t)
			if diff := cmp.Diff(tt.want, unlabelled(nft, got.Diverted), compareIP); diff != "" {
				t.Error(diff)
			}
			if len(got.Translated) != tt.translated {
				t.Errorf("translated: %v, want %d", got.Translated, tt.translated)
			}
		})
	}
}

func TestPolicies(t *testing.T) {
	const tmpl = " tmpl src 198.51.100.1 dst 203.0.113.9 proto esp mode tunnel"
	tests := []struct{ name, policy, want string }{
		{"from_inside", "src 172.17.0.0/16 dst 10.9.0.0/24 dir out" + tmpl, "xfrm policy out: src 172.17.0.0/16 dst 10.9.0.0/24 dir out priority 0" + tmpl},
		{"to_inside", "src 10.9.0.0/24 dst 172.0.0.0/8 dir fwd" + tmpl, "xfrm policy fwd: src 10.9.0.0/24 dst 172.0.0.0/8 dir fwd priority 0" + tmpl},
		{"everything", "src 0.0.0.0/0 dst 0.0.0.0/0 dir out" + tmpl, "xfrm policy out: src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 0" + tmpl},
		{"blocked", "src 0.0.0.0/0 dst 10.9.0.0/24 dir out action block", "xfrm policy out: src 0.0.0.0/0 dst 10.9.0.0/24 action block dir out priority 0"},
		{"passes_untouched", "src 0.0.0.0/0 dst 0.0.0.0/0 dir out action allow", ""},
		{"host_to_host", "src 198.51.100.1/32 dst 203.0.113.9/32 dir out" + tmpl, ""},
		{"IPv6", "src ::/0 dst ::/0 dir out tmpl src 2001:db8::1 dst 2001:db8::2 proto esp mode tunnel", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			run(t, "", "ip", append([]string{"xfrm", "policy", "add"}, strings.Fields(tt.policy)...)...)
			if got := strings.Join(lines(nft, inspect(t).Bypassed), "\n"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Who may not read the rules gets an error, never "no rules".
func TestWithoutCapability(t *testing.T) {
	inNamespace(t)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil { // of this thread alone, which ends with the test
		t.Fatal(err)
	}
	_, err := New().Inspect(onHost)
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "grant CAP_NET_ADMIN") {
		t.Errorf("got %v", err)
	}
}

// A reader beside a writer sees all of a transaction, or nothing: the table always has one thing that drops,
// its policy or its rule.
func TestInspectBesideAWriter(t *testing.T) {
	inNamespace(t)
	addLinks(t)
	state := func(chain string) string {
		return "add table inet t\ndelete table inet t\ntable inet t {\nchain f { type filter hook forward priority 0; " + chain + "; }\n}\n"
	}
	scripts := []string{state("policy drop"), state("policy accept; drop")}
	run(t, scripts[0], "nft", "-f", "-")
	stop, ended := make(chan struct{}), make(chan error, 1)
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	go func() { ended <- rewrite(namespace, scripts, stop) }()
	for range 2000 {
		if got := inspect(t).Bypassed; len(got) != 1 {
			t.Errorf("not one finding: %v", got)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// rewrite loads scripts in turn, again and again, in a namespace, until told to stop.
func rewrite(namespace *os.File, scripts []string, stop <-chan struct{}) error {
	runtime.LockOSThread() // and never unlocked
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(scripts[i%len(scripts)])
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
}
