// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

var base = [3]dataplane.Behavior{dataplane.AddressDependent, dataplane.AddressDependent, dataplane.AddressDependent}

func TestLabels(t *testing.T) {
	const (
		eif = dataplane.EndpointIndependent
		adf = dataplane.AddressDependent
		apf = dataplane.AddressAndPortDependent
	)
	for _, tt := range []struct {
		name, key, value string
		disabled         bool
		mapping          *[3]dataplane.Behavior
		filtering        *[3]dataplane.Behavior
		problem          string
	}{
		{name: "none", key: "com.example.team", value: "a"},
		{name: "disabled", key: "conenat.enable", value: "false", disabled: true},
		{name: "enabled", key: "conenat.enable", value: "true"},
		{name: "enable_what", key: "conenat.enable", value: "no", problem: `container x: ignore label conenat.enable="no": want true or false`},
		{name: "all", key: "conenat.filtering", value: "endpoint-independent", filtering: &[3]dataplane.Behavior{eif, eif, eif}},
		{name: "one", key: "conenat.filtering", value: "udp=endpoint-independent", filtering: &[3]dataplane.Behavior{eif, adf, adf}},
		{
			name: "each", key: "conenat.filtering", value: "icmp=endpoint-independent, tcp=address-and-port-dependent,udp=address-dependent",
			filtering: &[3]dataplane.Behavior{adf, apf, eif},
		},
		{
			name: "bad_behaviour", key: "conenat.filtering", value: "cone",
			problem: `container x: ignore label conenat.filtering="cone": unknown behaviour "cone": want endpoint-independent, address-dependent or address-and-port-dependent`,
		},
		{
			name: "bad_protocol", key: "conenat.filtering", value: "sctp=address-dependent",
			problem: `container x: ignore label conenat.filtering="sctp=address-dependent": unknown protocol "sctp": want udp, tcp or icmp`,
		},
		{
			name: "twice", key: "conenat.filtering", value: "udp=address-dependent,udp=address-dependent",
			problem: `container x: ignore label conenat.filtering="udp=address-dependent,udp=address-dependent": udp is given twice`,
		},
		{name: "mapping", key: "conenat.mapping", value: "tcp=address-and-port-dependent", mapping: &[3]dataplane.Behavior{adf, apf, adf}},
		{
			name: "bad_mapping", key: "conenat.mapping", value: "symmetric",
			problem: `container x: ignore label conenat.mapping="symmetric": unknown behaviour "symmetric": want endpoint-independent, address-dependent or address-and-port-dependent`,
		},
		{
			name: "external_twice", key: "conenat.external", value: "198.51.100.2, 198.51.100.2",
			problem: `container x: ignore label conenat.external="198.51.100.2, 198.51.100.2": external address 198.51.100.2 is given twice`,
		},
		{
			name: "one_to_one_with_what", key: "conenat.one-to-one", value: "true",
			problem: `container x: ignore label conenat.one-to-one="true": want one address of its own beside it: conenat.external=ADDR`,
		},
		{
			name: "one_to_one", key: "conenat.one-to-one", value: "yes",
			problem: `container x: ignore label conenat.one-to-one="yes": want true or false`,
		},
		{
			name: "typo", key: "conenat.filterin", value: "a",
			problem: `container x: ignore label conenat.filterin="a": no such label: want conenat.enable, conenat.filtering, conenat.mapping, conenat.max-ports, conenat.max-sessions, conenat.block-size, conenat.refusal, conenat.mss, conenat.exclude, conenat.external, conenat.one-to-one, conenat.mode or conenat.external-prefix`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, problems := parseLabels("container x", map[string]string{tt.key: tt.value})
			var want []string
			if tt.problem != "" {
				want = []string{tt.problem}
			}
			if diff := cmp.Diff(want, problems); diff != "" {
				t.Error(diff)
			}
			over := func(b *behaviors) *[3]dataplane.Behavior {
				if b == nil {
					return nil
				}
				return b.over(base)
			}
			type said struct{ Mapping, Filtering *[3]dataplane.Behavior }
			diff := cmp.Diff(said{tt.mapping, tt.filtering}, said{over(l.mapping), over(l.filtering)})
			if diff != "" || l.disabled != tt.disabled {
				t.Errorf("disabled %v\n%s", l.disabled, diff)
			}
		})
	}
}

func TestProblemsAreInOrder(t *testing.T) {
	_, problems := parseLabels("network n", map[string]string{"conenat.z": "", "conenat.external": "", "conenat.a": ""})
	for i, prefix := range []string{"network n: ignore label conenat.a=", "network n: ignore label conenat.external=", "network n: ignore label conenat.z="} {
		if i >= len(problems) || problems[i][:len(prefix)] != prefix {
			t.Errorf("%q", problems)
		}
	}
}

func TestNetworks(t *testing.T) {
	const id = "0123456789abcdef0123"
	ipam := network.IPAM{Config: []network.IPAMConfig{{Subnet: "fd00::/64"}, {Subnet: "172.18.5.1/16"}}}
	options := func(kv ...string) map[string]string { return map[string]string{kv[0]: kv[1]} }
	for _, tt := range []struct {
		name      string
		in        network.Summary
		leftAlone string
		device    string
		noICC     bool
	}{
		{name: "default", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionDefault, "true")}, device: "docker0"},
		{name: "user", in: network.Summary{Driver: "bridge", IPAM: ipam}, device: "br-0123456789ab"},
		{name: "named", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionName, "br9")}, device: "br9"},
		{name: "no_icc", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionICC, "false")}, device: "br-0123456789ab", noICC: true},
		{name: "nat", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionGateway, "nat-unprotected")}, device: "br-0123456789ab"},
		{
			name: "routed", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionGateway, "routed")},
			device: "br-0123456789ab", leftAlone: "gateway mode routed (com.docker.network.bridge.gateway_mode_ipv4)",
		},
		{
			name: "isolated", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionGateway, "isolated")},
			device: "br-0123456789ab", leftAlone: "gateway mode isolated (com.docker.network.bridge.gateway_mode_ipv4)",
		},
		{
			name: "no_masquerade", in: network.Summary{Driver: "bridge", IPAM: ipam, Options: options(optionMasquerade, "false")},
			device: "br-0123456789ab", leftAlone: "masquerade is off (com.docker.network.bridge.enable_ip_masquerade=false)",
		},
		{
			name: "internal", in: network.Summary{Driver: "bridge", IPAM: ipam, Internal: true},
			device: "br-0123456789ab", leftAlone: "internal: it has no way outside",
		},
		{
			name: "IPv6_without_the_switch", in: network.Summary{Driver: "bridge", IPAM: network.IPAM{Config: ipam.Config[:1]}},
			device: "br-0123456789ab", leftAlone: "no addresses",
		},
		{
			name: "disabled", in: network.Summary{Driver: "bridge", IPAM: ipam, Labels: options("conenat.enable", "false")},
			device: "br-0123456789ab", leftAlone: "label conenat.enable=false",
		},
		{name: "macvlan", in: network.Summary{Driver: "macvlan", IPAM: ipam}, leftAlone: "driver macvlan: its containers are on the uplink's own network"},
		{name: "ipvlan", in: network.Summary{Driver: "ipvlan", IPAM: ipam}, leftAlone: "driver ipvlan: its containers are on the uplink's own network"},
		{name: "overlay", in: network.Summary{Driver: "overlay", IPAM: ipam}, leftAlone: "driver overlay: swarm translates it"},
		{name: "ingress", in: network.Summary{Driver: "overlay", Ingress: true}, leftAlone: "swarm's own network"},
		{name: "docker_gwbridge", in: network.Summary{Driver: "bridge", IPAM: ipam}, device: "br-0123456789ab", leftAlone: "swarm's own network"},
		{name: "plugin", in: network.Summary{Driver: "weave:latest", IPAM: ipam}, leftAlone: "driver weave:latest: only bridge networks are translated"},
		{name: "config_only", in: network.Summary{Driver: "bridge", ConfigOnly: true}, leftAlone: "config-only: a template for other networks"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Name, tt.in.ID = tt.name, id
			got, problems := newNetwork(tt.in, base, base)
			if got.LeftAlone != tt.leftAlone || got.Interface != tt.device || got.ICC == tt.noICC || problems != nil {
				t.Errorf("%+v %q", got, problems)
			}
			if tt.leftAlone == "" && !cmp.Equal(got.Subnets, []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")}, compare) {
				t.Errorf("subnets %v", got.Subnets)
			}
		})
	}
}

func TestPublished(t *testing.T) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	got, refused := published(nat.PortMap{
		"80/tcp":    {{HostIP: "0.0.0.0", HostPort: "8080"}, {HostIP: "::", HostPort: "8080"}, {HostIP: "10.0.0.1", HostPort: "80"}},
		"81/tcp":    {{HostIP: "", HostPort: "81"}, {HostIP: "0.0.0.0", HostPort: "81"}}, // once, though said twice
		"82/tcp":    nil,                                                                 // exposed alone
		"83/tcp":    {{HostIP: "0.0.0.0", HostPort: ""}, {HostIP: "0.0.0.0", HostPort: "0"}, {HostIP: "name", HostPort: "83"}},
		"84/tcp":    {{HostIP: "2001:db8::1", HostPort: "84"}, {HostIP: "::1", HostPort: "85"}},
		"53/udp":    {{HostIP: "::ffff:10.0.0.2", HostPort: "53"}},
		"5000/sctp": {{HostIP: "0.0.0.0", HostPort: "5000"}, {HostIP: "::", HostPort: "5000"}},
	})
	want := []Published{
		{dataplane.TCP, any4, 81, 81}, {dataplane.TCP, any4, 8080, 80}, {dataplane.TCP, netip.MustParseAddr("10.0.0.1"), 80, 80},
		{dataplane.TCP, any6, 81, 81}, {dataplane.TCP, any6, 8080, 80}, {dataplane.TCP, netip.MustParseAddr("::1"), 85, 84},
		{dataplane.TCP, netip.MustParseAddr("2001:db8::1"), 84, 84},
		{dataplane.UDP, netip.MustParseAddr("10.0.0.2"), 53, 53},
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"1 published sctp ports stay with Docker's own rules: conenat binds ports of tcp and udp"}, refused); diff != "" {
		t.Error(diff)
	}
}

// TestPublishedOn: the addresses of the host that a port is published on.
func TestPublishedOn(t *testing.T) {
	for host, want := range map[string]string{
		"0.0.0.0": "198.51.100.1 198.51.100.2", "::": "2001:db8::1", "198.51.100.2": "198.51.100.2", "2001:db8::1": "2001:db8::1",
		"127.0.0.1": "", "::1": "",
	} {
		var got []string
		for _, external := range []string{"198.51.100.1", "198.51.100.2", "2001:db8::1"} {
			if (Published{Host: netip.MustParseAddr(host)}).On(netip.MustParseAddr(external)) {
				got = append(got, external)
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("published on %s: on %q, want %q", host, text, want)
		}
	}
}

// TestFamilies: each family of a network is translated or left alone for itself.
func TestFamilies(t *testing.T) {
	const four, six = "172.18.0.0/16", "fd00::/64"
	const option4, option6 = " (com.docker.network.bridge.gateway_mode_ipv4)", " (com.docker.network.bridge.gateway_mode_ipv6)"
	for _, tt := range []struct {
		name, subnets string
		options       map[string]string
		leftAlone     string
		partly        Partly
	}{
		{name: "both", subnets: four + " " + six},
		{name: "IPv4", subnets: four, options: map[string]string{optionGateway6: "routed"}},
		{name: "IPv6", subnets: six, options: map[string]string{optionGateway: "routed"}},
		{name: "nat", subnets: four + " " + six, options: map[string]string{optionGateway: "nat", optionGateway6: "nat-unprotected"}},
		{name: "IPv6_routed", subnets: four + " " + six, options: map[string]string{optionGateway6: "routed"}, partly: Partly{IPv6: "gateway mode routed" + option6}},
		{name: "IPv4_isolated", subnets: four + " " + six, options: map[string]string{optionGateway: "isolated"}, partly: Partly{IPv4: "gateway mode isolated" + option4}},
		{name: "IPv6_only_and_routed", subnets: six, options: map[string]string{optionGateway6: "routed"}, leftAlone: "gateway mode routed" + option6},
		{
			name: "both_routed", subnets: four + " " + six, options: map[string]string{optionGateway: "routed", optionGateway6: "routed"},
			leftAlone: "gateway mode routed" + option4 + "; gateway mode routed" + option6,
		},
		{
			name: "no_masquerade", subnets: four + " " + six, options: map[string]string{optionMasquerade: "false", optionGateway6: "routed"},
			leftAlone: "masquerade is off (com.docker.network.bridge.enable_ip_masquerade=false)",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := network.Summary{Name: "n", ID: "0123456789abcdef", Driver: "bridge", EnableIPv6: strings.Contains(tt.subnets, six), Options: tt.options}
			var want []netip.Prefix
			for _, s := range strings.Fields(tt.subnets) {
				in.IPAM.Config = append(in.IPAM.Config, network.IPAMConfig{Subnet: s})
				want = append(want, netip.MustParsePrefix(s))
			}
			got, _ := newNetwork(in, base, base)
			if diff := cmp.Diff(want, got.Subnets, compare); diff != "" || got.LeftAlone != tt.leftAlone || got.Partly != tt.partly {
				t.Errorf("left alone %q, partly %+v\n%s", got.LeftAlone, got.Partly, diff)
			}
		})
	}
}

func TestGateway(t *testing.T) {
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	_, some, _ := net.ParseCIDR("10.0.0.0/8")
	routes := []netlink.Route{
		{Dst: some, Gw: net.IPv4(192, 0, 2, 1)}, {Dst: all, Gw: net.IPv4(192, 0, 2, 2), Priority: 100},
		{Dst: all, LinkIndex: 3}, {Gw: net.IPv4(192, 0, 2, 3), Priority: 50},
	}
	if got := gateway(routes); got != netip.MustParseAddr("192.0.2.3") {
		t.Errorf("gateway %v", got)
	}
	if got := gateway(routes[:1]); got.IsValid() {
		t.Errorf("gateway %v without a default route", got)
	}
}

// TestBegan: a process began after the one that started it, and before now.
func TestBegan(t *testing.T) {
	child := exec.Command("sleep", "100")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait() // killed
	}()
	own, err := began(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	got, err := began(child.Process.Pid)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	if err != nil || own <= 0 || got < own || got > time.Duration(now.Nano()) {
		t.Errorf("began %v after boot, %v; this process %v, now %v", got, err, own, time.Duration(now.Nano()))
	}
	if _, err := began(-1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}

// TestLimitLabels: a number for each container of the network, or one for the network too.
func TestLimitLabels(t *testing.T) {
	base := dataplane.Limits{HostPorts: 1, HostSessions: 2, NetworkPorts: 3, NetworkSessions: 4}
	for _, tt := range []struct {
		name, key, value string
		want             dataplane.Limits
		problem          string
	}{
		{name: "ports", key: "conenat.max-ports", value: "100", want: dataplane.Limits{HostPorts: 100, HostSessions: 2, NetworkPorts: 3, NetworkSessions: 4}},
		{name: "none", key: "conenat.max-sessions", value: "0", want: dataplane.Limits{HostPorts: 1, NetworkPorts: 3, NetworkSessions: 4}},
		{name: "both", key: "conenat.max-sessions", value: "container=5, network=6", want: dataplane.Limits{HostPorts: 1, HostSessions: 5, NetworkPorts: 3, NetworkSessions: 6}},
		{name: "network", key: "conenat.max-ports", value: "network=7", want: dataplane.Limits{HostPorts: 1, HostSessions: 2, NetworkPorts: 7, NetworkSessions: 4}},
		{name: "words", key: "conenat.max-ports", value: "many", want: base, problem: `"many": want a number from 0 (no limit) to 16777215`},
		{name: "negative", key: "conenat.max-ports", value: "-1", want: base, problem: `"-1": want a number`},
		{name: "unknown", key: "conenat.max-ports", value: "host=7", want: base, problem: `unknown limit "host": want container or network`},
		{name: "twice", key: "conenat.max-ports", value: "network=7,network=8", want: base, problem: "network is given twice"},
		{name: "half", key: "conenat.max-ports", value: "network=7,container=x", want: base, problem: `"x": want a number`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, problems := parseLabels("network n", map[string]string{tt.key: tt.value})
			if got := l.limits.Over(base); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			if text := strings.Join(problems, "\n"); (tt.problem == "") != (text == "") || !strings.Contains(text, tt.problem) {
				t.Errorf("problems %q, want %q", text, tt.problem)
			}
		})
	}
}

func TestBlockSizeLabel(t *testing.T) {
	l, problems := parseLabels("network n", map[string]string{"conenat.block-size": "512"})
	if l.blockSize == nil || *l.blockSize != 512 || problems != nil {
		t.Errorf("%v %q", l.blockSize, problems)
	}
	l, problems = parseLabels("network n", map[string]string{"conenat.block-size": "500"})
	if l.blockSize != nil || len(problems) != 1 || !strings.Contains(problems[0], "want a power of two from 64 to 4096") {
		t.Errorf("%v %q", l.blockSize, problems)
	}
}

// TestExcludeLabel: a network's destinations; none is a word, too.
func TestExcludeLabel(t *testing.T) {
	for value, want := range map[string]string{"10.0.0.0/8, 192.0.2.7": "[10.0.0.0/8 192.0.2.7/32]", "": "[]"} {
		n, problems := newNetwork(network.Summary{ID: "0123456789abcdef", Driver: "bridge", Labels: map[string]string{"conenat.exclude": value}}, base, base)
		if fmt.Sprint(n.Exclude) != want || n.Exclude == nil || problems != nil {
			t.Errorf("%q: %v %q", value, n.Exclude, problems)
		}
	}
	l, problems := parseLabels("network n", map[string]string{"conenat.exclude": "10.0.0.0/8,,"})
	if len(problems) != 1 || l.exclude != nil {
		t.Errorf("%v %q", l.exclude, problems)
	}
	l, _ = parseLabels("container x", map[string]string{"conenat.exclude": "10.0.0.0/8"})
	if diff := cmp.Diff([]string{"conenat.exclude"}, l.ofNetworks()); diff != "" {
		t.Error(diff)
	}
}

// TestReplyLabels: what a network's containers are told, and their SYNs.
func TestReplyLabels(t *testing.T) {
	n, problems := newNetwork(network.Summary{ID: "0123456789abcdef", Driver: "bridge", Labels: map[string]string{
		"conenat.refusal": "admin-prohibited", "conenat.mss": "keep"}}, base, base)
	if n.Refusal == nil || *n.Refusal != dataplane.RefuseAdminProhibited || n.MSSClamp == nil || *n.MSSClamp || problems != nil {
		t.Errorf("%v %v %q", n.Refusal, n.MSSClamp, problems)
	}
	l, problems := parseLabels("network n", map[string]string{"conenat.refusal": "rst", "conenat.mss": "1400"})
	want := []string{`network n: ignore label conenat.mss="1400": mss "1400": want clamp or keep`,
		`network n: ignore label conenat.refusal="rst": unknown refusal "rst": want silent, host-unreachable or admin-prohibited`}
	if diff := cmp.Diff(want, problems); diff != "" || l.refusal != nil || l.mssClamp != nil {
		t.Error(diff)
	}
	l, _ = parseLabels("container x", map[string]string{"conenat.refusal": "silent", "conenat.mss": "clamp"})
	if diff := cmp.Diff([]string{"conenat.refusal", "conenat.mss"}, l.ofNetworks()); diff != "" {
		t.Error(diff)
	}
}

// TestExternalLabels: addresses, prefixes and ranges; 1:1 is with one address.
func TestExternalLabels(t *testing.T) {
	l, problems := parseLabels("container x", map[string]string{"conenat.external": "198.51.100.2, 203.0.113.8/29,203.0.113.20-203.0.113.22"})
	if got, want := fmt.Sprint(l.external), "[198.51.100.2 203.0.113.8-203.0.113.15 203.0.113.20-203.0.113.22]"; got != want || problems != nil {
		t.Errorf("%s, want %s; %q", got, want, problems)
	}
	l, problems = parseLabels("container x", map[string]string{"conenat.external": "198.51.100.2", "conenat.one-to-one": "true"})
	if !l.oneToOne || problems != nil {
		t.Errorf("%+v, %q", l, problems)
	}
}

// TestModeLabels: of a network, and both or none; Docker's own mode of the gateway is no reason against another prefix then.
func TestModeLabels(t *testing.T) {
	both := map[string]string{"conenat.mode": "nptv6", "conenat.external-prefix": "2001:db8:1::/64"}
	n := network.Summary{Name: "six", ID: "0123456789abcdef0123", Driver: "bridge", EnableIPv6: true, Labels: both,
		IPAM: network.IPAM{Config: []network.IPAMConfig{{Subnet: "fd00::/64"}}}, Options: map[string]string{optionGateway6: "routed"}}
	got, problems := newNetwork(n, base, base)
	if got.LeftAlone != "" || got.Partly != (Partly{}) || got.Mode == nil || *got.Mode != dataplane.ModeNPTv6 || got.ExternalPrefix.String() != "2001:db8:1::/64" || problems != nil {
		t.Errorf("%+v %q", got, problems)
	}
	n.Labels, n.Options = map[string]string{"conenat.mode": "routed"}, map[string]string{optionGateway6: "routed", optionMasquerade: "false"}
	if got, problems := newNetwork(n, base, base); got.LeftAlone != "" || got.Mode == nil || *got.Mode != dataplane.ModeRouted || problems != nil {
		t.Errorf("%+v %q", got, problems)
	}
	for _, wrong := range []map[string]string{{"conenat.mode": "nptv6"}, {"conenat.external-prefix": "2001:db8:1::/64"}, {"conenat.mode": "bridge"},
		{"conenat.mode": "nptv6", "conenat.external-prefix": "10.0.0.0/8"}, {"conenat.mode": "nat", "conenat.external-prefix": "2001:db8:1::/64"}} {
		n.Labels = wrong
		if got, problems := newNetwork(n, base, base); len(problems) == 0 || got.Mode != nil || got.ExternalPrefix.IsValid() || got.LeftAlone == "" {
			t.Errorf("%v: %+v %q", wrong, got, problems)
		}
	}
	l, problems := parseLabels("container x", both)
	if given := l.ofNetworks(); len(given) != 1 || given[0] != "conenat.mode" || problems != nil {
		t.Errorf("%q %q", given, problems)
	}
}
