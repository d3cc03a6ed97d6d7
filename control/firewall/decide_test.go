// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/dataplane"
)

var compareIP = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// onHost is what conenat carries in these tests: docker0 and a network of the operator's name, by eth0.
var onHost = Traffic{
	Inside:   []string{"docker0", "custom1"},
	Outside:  []string{"eth0"},
	Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.20.0.0/16")},
}

// hostLinks are the interfaces of that host, and of a Podman and a libvirt on it.
var hostLinks = []link{
	{index: 1, name: "lo", addresses: prefixes("127.0.0.1/8")},
	{index: 2, name: "eth0", addresses: prefixes("198.51.100.1/24")},
	{index: 3, name: "docker0", addresses: prefixes("172.17.0.1/16")},
	{index: 4, name: "custom1", addresses: prefixes("172.20.0.1/16")},
	{index: 5, name: "cni-podman0", addresses: prefixes("10.88.0.1/16")},
	{index: 6, name: "virbr0", addresses: prefixes("192.168.122.1/24")},
	{index: 7, name: "vnet0", master: "virbr0"},
	{index: 8, name: "veth1", master: "docker0"},
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// forwarding is a filter table without Docker with the given lines, of which the first may be chains.
func forwarding(lines string) string {
	return "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n" + lines + "\nCOMMIT\n"
}

func inTable(name, lines string) string {
	forward := ":FORWARD ACCEPT\n"
	if name == "nat" {
		forward = ""
	}
	return "*" + name + "\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n" + forward + ":OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n" + lines + "\nCOMMIT\n"
}

// cases are rules in iptables' words, each of which TestDecide decides as text, and TestIptables as the
// kernel has it, by both back ends. want is "WHERE: RULE", without the back end.
var cases = []struct {
	name  string
	rules string
	sets  []string // ipsets (hash:ip, or hash:net of bridges) that the rules name
	want  []string
}{
	{name: "nothing", rules: forwarding("")},
	{name: "docker_20", rules: docker20},
	{name: "docker_27", rules: docker27, sets: []string{"docker-ext-bridges-v4"}},
	{name: "docker_28", rules: docker28},
	{name: "libvirt", rules: libvirt},
	{name: "podman_cni", rules: podman},
	{name: "podman_netavark", rules: netavark, want: []string{
		"filter FORWARD -> NETAVARK_FORWARD: -A NETAVARK_FORWARD -m conntrack --ctstate INVALID -j DROP",
	}},
	{name: "ufw", rules: dockerUser(ufw), want: []string{
		"filter FORWARD -> ufw-before-forward: -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"filter FORWARD -> ufw-before-forward: -A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT",
		`filter FORWARD -> ufw-after-logging-forward: -A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "`,
	}},
	{name: "ufw_docker", rules: dockerUser(ufwDocker), want: []string{
		"filter FORWARD -> DOCKER-USER -> ufw-user-forward: -A ufw-user-forward -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j ACCEPT",
		`filter FORWARD -> DOCKER-USER -> ufw-docker-logging-deny: -A ufw-docker-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW DOCKER BLOCK] "`,
		"filter FORWARD -> DOCKER-USER -> ufw-docker-logging-deny: -A ufw-docker-logging-deny -j DROP",
	}},
	{name: "fail2ban", rules: dockerUser(fail2ban), want: []string{
		"filter FORWARD -> DOCKER-USER -> f2b-nginx: -A f2b-nginx -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable",
	}},
	{name: "crowdsec", rules: dockerUser(crowdsec), sets: []string{"crowdsec-blacklists-0"}, want: []string{
		"filter FORWARD -> DOCKER-USER -> CROWDSEC_CHAIN: -A CROWDSEC_CHAIN -m set --match-set crowdsec-blacklists-0 src -j DROP",
	}},
	{name: "kube_proxy", rules: kubeProxy, want: []string{
		"filter FORWARD -> KUBE-FORWARD: -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
		`filter FORWARD -> KUBE-FORWARD: -A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT`,
	}},
	{name: "docker_user_drop", rules: dockerUser("-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -i eth0 ! -s 192.0.2.0/24 -j DROP"), want: []string{
		"filter FORWARD -> DOCKER-USER: -A DOCKER-USER ! -s 192.0.2.0/24 -i eth0 -j DROP",
	}},
	{name: "docker_user_is_not_reached", rules: dockerUser("-A DOCKER-USER -j DROP")},
	{name: "after_an_unconditional_return", rules: forwarding(":X -\n-A FORWARD -j X\n-A X -j RETURN\n-A X -j DROP")},
	{name: "a_shape_of_Docker_without_a_Docker", rules: forwarding("-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"), want: []string{
		"filter FORWARD: -A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
	}},
	{name: "nearly_a_shape_of_Docker", rules: dockerUser("-A FORWARD -i docker0 ! -o eth1 -j ACCEPT"), want: []string{
		"filter FORWARD: -A FORWARD -i docker0 ! -o eth1 -j ACCEPT",
	}},
	{name: "a_shape_of_Docker_for_the_uplink", rules: dockerUser("-A DOCKER -i eth0 -o docker0 -j ACCEPT\n-A FORWARD -i eth0 ! -o eth0 -j ACCEPT"), want: []string{
		"filter FORWARD: -A FORWARD -i eth0 ! -o eth0 -j ACCEPT",
	}},
	{name: "policy_without_a_Docker", rules: strings.Replace(forwarding(""), "FORWARD ACCEPT", "FORWARD DROP", 1), want: []string{"filter FORWARD: -P FORWARD DROP"}},
	{name: "policy_of_mangle", rules: strings.Replace(inTable("mangle", ""), "PREROUTING ACCEPT", "PREROUTING DROP", 1), want: []string{"mangle PREROUTING: -P PREROUTING DROP"}},
	{name: "policy_of_INPUT", rules: strings.Replace(forwarding(""), "INPUT ACCEPT", "INPUT DROP", 1)},
	{name: "counters_only", rules: forwarding(":STATS -\n-A FORWARD -i docker0\n-A FORWARD -j STATS\n-A STATS -s 172.17.0.2/32 -m comment --comment \"-j DROP\"\n-A STATS -p tcp -j RETURN")},
	{name: "empty_chain", rules: forwarding(":X -\n-A FORWARD -j X")},
	{name: "chain_of_INPUT_alone", rules: forwarding(":X -\n-A INPUT -j X\n-A X -j DROP")},
	{name: "log_mark_mss", rules: forwarding("-A FORWARD -j LOG") + inTable("mangle",
		"-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\n-A PREROUTING -i eth0 -j MARK --set-xmark 0x1/0xffffffff"), want: []string{
		"mangle PREROUTING: -A PREROUTING -i eth0 -j MARK --set-xmark 0x1/0xffffffff",
		"mangle FORWARD: -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
		"filter FORWARD: -A FORWARD -j LOG",
	}},
	{name: "queue_and_goto", rules: forwarding(":Q -\n-A FORWARD -g Q\n-A FORWARD -j DROP\n-A Q -j NFQUEUE --queue-num 0"), want: []string{
		"filter FORWARD -> Q: -A Q -j NFQUEUE --queue-num 0", // the DROP is never reached
	}},
	{name: "raw_of_others", rules: "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -i eth0 -m rpfilter --invert -j DROP\nCOMMIT\n", want: []string{
		"raw PREROUTING: -A PREROUTING -i eth0 -m rpfilter --invert -j DROP",
	}},
	{name: "raw_like_Docker_28_without_a_Docker", rules: "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP\nCOMMIT\n", want: []string{
		"raw PREROUTING: -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
	}},
	{name: "postrouting", rules: inTable("mangle", "-A POSTROUTING -o eth0 -j DSCP --set-dscp 0x0a\n-A POSTROUTING -o virbr0 -j DSCP --set-dscp 0x0a"), want: []string{
		"mangle POSTROUTING: -A POSTROUTING -o eth0 -j DSCP --set-dscp 0x0a",
	}},
	{name: "interfaces", rules: forwarding(`-A FORWARD -i virbr+ -j DROP
-A FORWARD -i eth0 -o eth0 -j DROP
-A FORWARD -i eth+ -o docker+ -j ACCEPT
-A FORWARD ! -i docker+ -o eth0 -j DROP
-A FORWARD -i docker0 -o custom1 -j DROP
-A FORWARD -i wg0 -o docker0 -j DROP`), want: []string{
		"filter FORWARD: -A FORWARD -i eth+ -o docker+ -j ACCEPT",
		"filter FORWARD: -A FORWARD ! -i docker+ -o eth0 -j DROP", // custom1 to eth0
		"filter FORWARD: -A FORWARD -i docker0 -o custom1 -j DROP",
	}},
	{name: "interfaces_of_the_way", rules: forwarding(":X -\n-A FORWARD -i eth0 -j X\n-A X -o virbr0 -j DROP\n-A X -i docker0 -j DROP\n-A X -o docker0 -p tcp -m tcp --dport 22 -j DROP"), want: []string{
		"filter FORWARD -> X: -A X -o docker0 -p tcp -m tcp --dport 22 -j DROP",
	}},
	{name: "addresses", rules: forwarding(`-A FORWARD -s 192.0.2.0/24 -d 203.0.113.0/24 -j DROP
-A FORWARD -s 10.88.0.0/16 -j ACCEPT
-A FORWARD -d 10.88.0.0/16 -j DROP
-A FORWARD -d 224.0.0.0/4 -j DROP
-A FORWARD -s 172.17.0.0/16 -d 10.88.0.0/16 -j DROP
-A FORWARD -s 172.16.0.0/12 -d 203.0.113.0/24 -j DROP
-A FORWARD ! -s 172.16.0.0/12 -o eth0 -j DROP
-A FORWARD -i eth0 -s 10.88.0.0/16 -j DROP`), want: []string{
		"filter FORWARD: -A FORWARD -s 172.16.0.0/12 -d 203.0.113.0/24 -j DROP",
		"filter FORWARD: -A FORWARD -s 10.88.0.0/16 -i eth0 -j DROP", // against forged sources
	}},
	{name: "other_protocols", rules: forwarding("-A FORWARD -p gre -j DROP\n-A FORWARD ! -p icmp -j DROP\n-A FORWARD -p esp -j ACCEPT"), want: []string{
		"filter FORWARD: -A FORWARD ! -p icmp -j DROP",
	}},
	{name: "reached_twice_is_one", rules: forwarding(":X -\n-A FORWARD -i docker0 -j X\n-A FORWARD -o docker0 -j X\n-A X -m mark --mark 0x1 -j DROP"), want: []string{
		"filter FORWARD -> X: -A X -m mark --mark 0x1 -j DROP",
	}},
}

// fromText is the model of what iptables-save would print.
func fromText(t *testing.T, b backend, rules string) ruleset {
	t.Helper()
	tables, err := parseSave(b, rules)
	if err != nil {
		t.Fatal(err)
	}
	return ruleset{family: ipv4, tables: tables, links: hostLinks}
}

func lines(b backend, findings []Finding) (out []string) {
	for _, f := range findings {
		out = append(out, strings.TrimPrefix(f.String(), string(b)+" "))
	}
	return out
}

func TestDecide(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			rs := fromText(t, iptables, tt.rules)
			got := lines(iptables, decide(rs, onHost).Bypassed)
			for i := range got { // the texts of these tests are not all in iptables-save's order
				got[i] = strings.ReplaceAll(got[i], "-i eth0 ! -s 192.0.2.0/24", "! -s 192.0.2.0/24 -i eth0")
				got[i] = strings.ReplaceAll(got[i], "-i eth0 -s 10.88.0.0/16", "-s 10.88.0.0/16 -i eth0")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			again := decide(fromText(t, iptables, tt.rules), onHost)
			if diff := cmp.Diff(decide(rs, onHost), again, compareIP); diff != "" {
				t.Errorf("another answer for the same rules:\n%s", diff)
			}
		})
	}
}

func diverted(protocol dataplane.Protocol, low, high uint16, prefix, where string) Diverted {
	d := Diverted{Protocol: protocol, Low: low, High: high, Where: where}
	if prefix != "" {
		d.Prefix = netip.MustParsePrefix(prefix)
		if d.Prefix.IsSingleIP() {
			d.Address = d.Prefix.Addr()
		}
	}
	return d
}

// dockers says that a port is Docker's own.
func dockers(d Diverted) Diverted { d.Docker = true; return d }

// diversions are nat rules; TestDiverted reads them as text, TestIptables as the kernel has them.
var diversions = []struct {
	name       string
	rules      string
	want       []Diverted // Where without the back end
	translated []string
}{
	{name: "docker", rules: docker20, want: []Diverted{
		dockers(diverted(dataplane.TCP, 8080, 8080, "", "nat PREROUTING -> DOCKER")),
		dockers(diverted(dataplane.UDP, 5353, 5353, "198.51.100.1/32", "nat PREROUTING -> DOCKER")),
	}},
	{name: "podman", rules: podman, want: []Diverted{
		diverted(dataplane.TCP, 8088, 8088, "", "nat PREROUTING -> CNI-HOSTPORT-DNAT -> CNI-DN-0123456789abcdef01234"),
	}},
	{name: "kube_proxy", rules: kubeProxy, want: []Diverted{
		diverted(dataplane.TCP, 80, 80, "10.96.0.10/32", "nat PREROUTING -> KUBE-SERVICES -> KUBE-SVC-XGLOHA7QRQ3V22RZ -> KUBE-SEP-AAAAAAAAAAAAAAAA"),
		diverted(dataplane.TCP, 30080, 30080, "", "nat PREROUTING -> KUBE-SERVICES -> KUBE-NODEPORTS -> KUBE-EXT-XGLOHA7QRQ3V22RZ -> KUBE-SVC-XGLOHA7QRQ3V22RZ -> KUBE-SEP-AAAAAAAAAAAAAAAA"),
	}, translated: []string{
		"nat PREROUTING -> KUBE-SERVICES -> KUBE-SVC-XGLOHA7QRQ3V22RZ -> KUBE-SEP-AAAAAAAAAAAAAAAA: -A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m comment --comment \"default/web\" -m tcp -j DNAT --to-destination 10.244.1.4:8080",
	}},
	{name: "host_rules", rules: inTable("nat", `-A PREROUTING -d 198.51.100.1/32 -p tcp -m tcp --dport 2222 -j DNAT --to-destination 10.0.0.5:22
-A PREROUTING -i eth0 -p udp -m multiport --dports 53,5000:5010 -j REDIRECT --to-ports 5353
-A PREROUTING -i virbr0 -p tcp -m tcp --dport 99 -j REDIRECT --to-ports 5353
-A PREROUTING -i eth0 -p tcp -m tcp ! --dport 1024:65535 -j RETURN
-A PREROUTING -d 203.0.113.0/24 -i eth0 -p udp -j DNAT --to-destination 10.0.0.5`), want: []Diverted{
		diverted(dataplane.TCP, 2222, 2222, "198.51.100.1/32", "nat PREROUTING"),
		diverted(dataplane.UDP, 0, 65535, "203.0.113.0/24", "nat PREROUTING"),
		diverted(dataplane.UDP, 53, 53, "", "nat PREROUTING"),
		diverted(dataplane.UDP, 5000, 5010, "", "nat PREROUTING"),
	}},
	{name: "transparent_proxy", rules: inTable("nat", "-A PREROUTING -i docker0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 3128"), translated: []string{
		"nat PREROUTING: -A PREROUTING -i docker0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 3128",
	}},
	{name: "negated", rules: inTable("nat", "-A PREROUTING -i eth0 -p tcp -m tcp ! --dport 22 -j DNAT --to-destination 10.0.0.5"), want: []Diverted{
		diverted(dataplane.TCP, 0, 21, "", "nat PREROUTING"), diverted(dataplane.TCP, 23, 65535, "", "nat PREROUTING"),
	}},
	{name: "postrouting_is_not_ours", rules: inTable("nat", "-A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE")},
}

func TestDiverted(t *testing.T) {
	for _, tt := range diversions {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(fromText(t, iptables, tt.rules), onHost)
			if diff := cmp.Diff(tt.want, unlabelled(iptables, got.Diverted), compareIP); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.translated, lines(iptables, got.Translated)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Without inside networks nothing is carried, and so nothing bypassed.
func TestDecideWithoutTraffic(t *testing.T) {
	rs := fromText(t, iptables, dockerUser(ufw)+inTable("mangle", "-A PREROUTING -j DROP"))
	if got := decide(rs, Traffic{Outside: []string{"eth0"}}); len(got.Bypassed) != 0 {
		t.Errorf("bypassed: %v", got.Bypassed)
	}
}

func TestRanges(t *testing.T) {
	got := allowed([]ports{{not: true, ranges: []portRange{{22, 22}, {80, 90}}}, {ranges: []portRange{{0, 100}, {60000, 65535}}}})
	want := []portRange{{0, 21}, {23, 79}, {91, 100}, {60000, 65535}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(portRange{})); diff != "" {
		t.Error(diff)
	}
	for text, r := range map[string][2]string{
		"0.0.0.0/0": {"0.0.0.0", "255.255.255.255"}, "10.0.0.1/32": {"10.0.0.1", "10.0.0.1"},
		"10.0.0.0/30 10.0.0.4/32": {"10.0.0.0", "10.0.0.4"}, "255.255.255.254/31": {"255.255.255.254", "255.255.255.255"},
		"::/0": {"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, "fd00::/64": {"fd00::", "fd00::ffff:ffff:ffff:ffff"},
		"fd00::1/128 fd00::2/127": {"fd00::1", "fd00::3"}, "": {"::2", "::1"},
	} {
		if got := join(rangePrefixes(netip.MustParseAddr(r[0]), netip.MustParseAddr(r[1])), " "); got != text {
			t.Errorf("%s: %s, want %s", r, got, text)
		}
	}
}

// What is no output of iptables-save is an error, never no rules.
func TestParseSaveRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no_table":         "-A FORWARD -j DROP",
		"no_chain":         "*filter\n-A FORWARD -j DROP",
		"no_name":          "*filter\n:",
		"no_rule":          "*filter\n:FORWARD ACCEPT\nFORWARD -j DROP",
		"bad_address":      "*filter\n:FORWARD ACCEPT\n-A FORWARD -s x/8 -j DROP",
		"bad_port":         "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport x -j DROP",
		"a_quote_too_few":  "*filter\n:FORWARD ACCEPT\n-A FORWARD -m comment --comment \"x -j DROP",
		"an_error_message": "iptables-save: no such thing",
	} {
		t.Run(name, func(t *testing.T) {
			if tables, err := parseSave(iptablesLegacy, text); err == nil {
				t.Errorf("no error, %d tables", len(tables))
			}
		})
	}
}

func unlabelled(b backend, list []Diverted) (out []Diverted) {
	for _, d := range list {
		d.Where = strings.TrimPrefix(d.Where, string(b)+" ")
		out = append(out, d)
	}
	return out
}
