// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/dataplane"
)

var compareIP = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func build(t *testing.T, file string, flags Layer) (Config, error) {
	t.Helper()
	l, err := Parse("c.yaml", strings.NewReader(file))
	if err != nil {
		return Config{}, err
	}
	return Build(Merge(l, flags))
}

func prefixes(texts ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestBuildUnderstandsEveryKey(t *testing.T) {
	got, err := build(t, `
inside: [docker0, br-a]
outside: [eth0]
external: 198.51.100.1
mapping: {icmp: endpoint-independent}
path: direct
xdp: {mode: gateway, containers: true, veth: true}
unsolicited: drop
filtering: {udp: endpoint-independent, tcp: address-and-port-dependent}
refusal: admin-prohibited
mss: clamp
ports: 2000-3000
timeouts: {udp: 2m, tcp_established: 3h, tcp_partial_open: 5m, tcp_closing: 6m, icmp: 61s, sweep: 500ms}
capacity: {sessions: 1000, bindings: 500, sessions_per_binding: 7}
limits: {ports_per_host: 100, sessions_per_host: 200, ports_per_network: 300, sessions_per_network: 0}
block_size: 256
exclude: [10.0.0.0/8, 192.0.2.7, "2001:db8::/32"]
networks:
  - {name: web, exclude: [192.168.0.0/16]}
  - {name: docker0, exclude: []}
  - {name: plain, mode: routed}
  - {name: six, mode: nptv6, external_prefix: "2001:db8:1::/48"}
forwards:
  - {protocol: udp, network: docker0, external: 198.51.100.1:53, internal: "172.17.0.2:5353"}
  - external: 198.51.100.1:8080
    internal: 172.17.0.2:80
socket: /tmp/x.sock
state_dir: /sys/fs/bpf/x/
`, Layer{})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Inside: []string{"docker0", "br-a"}, Outside: []string{"eth0"},
		External: []Range{{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.1")}},
		Path:     PathDirect,
		XDP:      XDP{Mode: XDPGateway, Containers: true, Veth: true}, DropUnsolicited: true,
		Filtering: [3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressAndPortDependent, dataplane.AddressDependent},
		Refusal:   dataplane.RefuseAdminProhibited,
		MSSClamp:  true,
		Settings: dataplane.Settings{UDPTimeout: 2 * time.Minute, TCPEstablishedTimeout: 3 * time.Hour, TCPPartialOpenTimeout: 5 * time.Minute,
			TCPClosingTimeout: 6 * time.Minute, ICMPTimeout: 61 * time.Second, SweepPeriod: 500 * time.Millisecond,
			PortLow: 2000, PortHigh: 3000, SessionsPerBinding: 7},
		Capacity: dataplane.Capacity{Sessions: 1000, Bindings: 500},
		Limits:   dataplane.Limits{HostPorts: 100, HostSessions: 200, NetworkPorts: 300}, BlockSize: 256,
		Exclude: prefixes("10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"),
		Networks: map[string]Network{"web": {Exclude: prefixes("192.168.0.0/16")}, "docker0": {Exclude: prefixes()},
			"plain": {Mode: dataplane.ModeRouted}, "six": {Mode: dataplane.ModeNPTv6, ExternalPrefix: netip.MustParsePrefix("2001:db8:1::/48")}},
		Forwards: []dataplane.Forward{
			{Protocol: dataplane.UDP, Network: "docker0", External: netip.MustParseAddrPort("198.51.100.1:53"), Internal: netip.MustParseAddrPort("172.17.0.2:5353")},
			{Protocol: dataplane.TCP, External: netip.MustParseAddrPort("198.51.100.1:8080"), Internal: netip.MustParseAddrPort("172.17.0.2:80")},
		},
		Socket: "/tmp/x.sock", StateDir: "/sys/fs/bpf/x",
	}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
}

func TestBuildDefaults(t *testing.T) {
	got, err := build(t, "", Layer{Inside: []Value{Flag("inside", "br0")}})
	if err != nil {
		t.Fatal(err)
	}
	ad := dataplane.AddressDependent
	want := Config{Inside: []string{"br0"}, Path: PathAuto, XDP: XDP{Mode: XDPAuto}, Filtering: [3]dataplane.Behavior{ad, ad, ad}, Settings: dataplane.DefaultSettings(),
		Limits:  dataplane.Limits{HostPorts: 16384, HostSessions: 65536},
		Refusal: dataplane.RefuseHostUnreachable, Socket: "/run/conenat/conenat.sock", StateDir: "/sys/fs/bpf/conenat"}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
}

// TestMapping: as filtering, and a warning for each protocol whose RFC it is against.
func TestMapping(t *testing.T) {
	const ei, ad, apd = dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressAndPortDependent
	symmetric := Layer{Mapping: Behaviors{All: Flag("mapping", "address-and-port-dependent")}}
	for name, tt := range map[string]struct {
		file     string
		flags    Layer
		want     [3]dataplane.Behavior
		warnings []string
	}{
		"default":     {"", Layer{}, [3]dataplane.Behavior{ei, ei, ei}, nil},
		"independent": {"mapping: endpoint-independent", Layer{}, [3]dataplane.Behavior{ei, ei, ei}, nil},
		"one":         {"mapping: {icmp: address-dependent}", Layer{}, [3]dataplane.Behavior{ei, ei, ad}, []string{"c.yaml:2:17: address-dependent mapping of icmp is not the endpoint-independent one that RFC 5508 REQ-1a demands"}},
		"flag_before_the_file": {"mapping: {udp: address-dependent}", symmetric, [3]dataplane.Behavior{apd, apd, apd}, []string{
			"--mapping: address-and-port-dependent mapping of udp is not the endpoint-independent one that RFC 4787 REQ-1 demands",
			"--mapping: address-and-port-dependent mapping of tcp is not the endpoint-independent one that RFC 5382 REQ-1 demands",
			"--mapping: address-and-port-dependent mapping of icmp is not the endpoint-independent one that RFC 5508 REQ-1a demands"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := build(t, "inside: [br0]\n"+tt.file, tt.flags)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Mapping); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.warnings, got.Warnings); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLimits: where nothing is said one host can take neither all ports nor the table, however small that is; 0 is no limit.
func TestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		file string
		want dataplane.Limits
	}{
		"default":     {"", dataplane.Limits{HostPorts: 16384, HostSessions: 65536}},
		"small_table": {"capacity: {sessions: 1000, bindings: 600}", dataplane.Limits{HostPorts: 300, HostSessions: 500}},
		"none":        {"limits: {ports_per_host: 0, sessions_per_host: 0}", dataplane.Limits{}},
		"networks":    {"limits: {ports_per_network: 9, sessions_per_network: 8}", dataplane.Limits{HostPorts: 16384, HostSessions: 65536, NetworkPorts: 9, NetworkSessions: 8}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := build(t, "inside: [br0]\n"+tt.file, Layer{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Limits); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFlagsOverrideTheFile(t *testing.T) {
	got, err := build(t, "inside: [a]\nports: 2000-3000\nfiltering: {udp: endpoint-independent}\nsocket: /a\n", Layer{
		Inside:    []Value{Flag("inside", "b")},
		Filtering: Behaviors{All: Flag("filtering", "address-and-port-dependent")},
		Socket:    Flag("socket", "/b"),
	})
	if err != nil {
		t.Fatal(err)
	}
	apd := dataplane.AddressAndPortDependent
	if got.Inside[0] != "b" || got.Socket != "/b" || got.Settings.PortLow != 2000 || got.Filtering != [3]dataplane.Behavior{apd, apd, apd} {
		t.Errorf("%+v", got)
	}
}

// TestXDP: one word, keys, or a flag before them; off is off.
func TestXDP(t *testing.T) {
	for name, tt := range map[string]struct {
		file  string
		flags Layer
		want  XDP
	}{
		"default":              {"", Layer{}, XDP{Mode: XDPAuto}},
		"one":                  {"xdp: gateway", Layer{}, XDP{Mode: XDPGateway}},
		"off":                  {"xdp: off", Layer{}, XDP{Mode: XDPOff}},
		"keys":                 {"xdp: {mode: gateway, containers: true}", Layer{}, XDP{Mode: XDPGateway, Containers: true}},
		"flag_before_the_file": {"xdp: {mode: gateway, containers: true}", Layer{XDP: XDPValues{Mode: Flag("xdp", "off")}}, XDP{Mode: XDPOff, Containers: true}},
		"flag_with_the_file":   {"xdp: {containers: true}", Layer{XDP: XDPValues{Mode: Flag("xdp", "gateway")}}, XDP{Mode: XDPGateway, Containers: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := build(t, "inside: [br0]\n"+tt.file, tt.flags)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.XDP); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	const in = "inside: [br0]\n"
	tests := []struct {
		name, file string
		flags      Layer
		want       string // in the error
	}{
		{"limit", in + "limits: {ports_per_host: many}", Layer{}, `c.yaml:2:26: "many": want a number from 0 to 16777216`},
		{"limit_key", in + "limits: {ports: 3}", Layer{}, "ports"},
		{"block_size", in + "block_size: 100", Layer{}, `c.yaml:2:13: "100": want a power of two from 64 to 4096, or 0 for no blocks`},
		{"block_size_large", in + "block_size: 8192", Layer{}, `"8192": want a power of two`},
		{"block_outside_of_ports", in + "block_size: 1024\nports: 2000-3000", Layer{}, "c.yaml:2:13: no block of 1024 ports lies within the ports 2000-3000"},
		{"nobody_inside", "outside: [eth0]", Layer{}, "no inside interface"},
		{"unknown_key", in + "timeuots: {}", Layer{}, `c.yaml:2:1: unknown field "timeuots"`},
		{"unknown_nested_key", in + "timeouts: {upd: 5m}", Layer{}, `c.yaml:2:12: unknown field "upd"`},
		{"unknown_filtering_protocol", in + "filtering: {sctp: endpoint-independent}", Layer{}, `c.yaml:2:13: unknown field "sctp"`},
		{"refusal", in + "refusal: rst", Layer{}, `c.yaml:2:10: unknown refusal "rst": want silent, host-unreachable or admin-prohibited`},
		{"exclude", in + "exclude: [10.0.0.0/8, lan]", Layer{}, `c.yaml:2:23: "lan" is no prefix: want ADDR/BITS, such as 10.0.0.0/8`},
		{"exclude_within", in, Layer{Exclude: []Value{Flag("exclude", "10.1.2.3/8")}}, "--exclude: prefix 10.1.2.3/8 has an address within it: want 10.0.0.0/8"},
		{"exclude_of_network", in + "networks: [{name: web, exclude: [10.0.0.0/33]}]", Layer{}, `c.yaml:2:34: "10.0.0.0/33" is no prefix`},
		{"network_without_name", in + "networks: [{exclude: []}]", Layer{}, "networks: an entry has no name"},
		{"network_twice", in + "networks: [{name: a}, {name: a}]", Layer{}, "c.yaml:2:30: network a is given twice"},
		{"mode", in + "networks: [{name: a, mode: bridge}]", Layer{}, `c.yaml:2:28: unknown mode "bridge": want nat, nptv6 or routed`},
		{"nptv6_without_prefix", in + "networks: [{name: a, mode: nptv6}]", Layer{}, "c.yaml:2:28: network a: mode nptv6 wants an external prefix beside it"},
		{"prefix_without_nptv6", in + `networks: [{name: a, external_prefix: "2001:db8::/48"}]`, Layer{}, "network a: external prefix 2001:db8::/48 wants mode nptv6 beside it"},
		{"prefix_of_IPv4", in + "networks: [{name: a, mode: nptv6, external_prefix: 10.0.0.0/8}]", Layer{}, `"10.0.0.0/8" is no prefix of IPv6`},
		{"prefix_within", in + `networks: [{name: a, mode: nptv6, external_prefix: "2001:db8::1/48"}]`, Layer{}, "external prefix 2001:db8::1/48: want one of IPv6, with zeros behind its bits"},
		{"prefix_long", in + `networks: [{name: a, mode: nptv6, external_prefix: "2001:db8::/65"}]`, Layer{}, "want 1 to 64 bits (RFC 6296)"},
		{"prefix_twice", in + `networks: [{name: a, mode: nptv6, external_prefix: "2001:db8::/48"}, {name: b, mode: nptv6, external_prefix: "2001:db8:0:1::/64"}]`,
			Layer{}, "external prefix 2001:db8:0:1::/64 of network b is network a's, which has 2001:db8::/48"},
		{"mss", in + "mss: 1400", Layer{}, `c.yaml:2:6: mss "1400": want clamp or keep`},
		{"doubled_key", in + "inside: [br1]", Layer{}, "c.yaml:2:1: "},
		{"syntax", "inside: [br0\nx", Layer{}, "c.yaml:"},
		{"list_for_a_value", in + "ports: [1, 2]", Layer{}, "c.yaml:2:8: want a single value"},
		{"null_interface", "inside: [~]", Layer{}, "is no interface name"},
		{"behaviour", in + "filtering: full-cone", Layer{}, `c.yaml:2:12: unknown behaviour "full-cone"`},
		{"behaviour_flag", in, Layer{Filtering: Behaviors{All: Flag("filtering", "x")}}, `--filtering: unknown behaviour "x"`},
		{"mapping", in + "mapping: symmetric", Layer{}, `c.yaml:2:10: unknown behaviour "symmetric"`},
		{"unknown_mapping_protocol", in + "mapping: {sctp: address-dependent}", Layer{}, `c.yaml:2:11: unknown field "sctp"`},
		{"path_unknown", in, Layer{Path: Flag("path", "sideways")}, "--path: path \"sideways\": want auto, direct or stack"},
		{"xdp", in + "xdp: generic", Layer{}, `c.yaml:2:6: xdp "generic": want auto, off or gateway`},
		{"xdp_flag", in, Layer{XDP: XDPValues{Mode: Flag("xdp", "native")}}, `--xdp: xdp "native": want auto, off or gateway`},
		{"xdp_mode", in + "xdp: {mode: on}", Layer{}, `c.yaml:2:13: xdp "on": want auto, off or gateway`},
		{"xdp_key", in + "xdp: {container: true}", Layer{}, `c.yaml:2:7: unknown field "container"`},
		{"xdp_boolean", in + "xdp: {veth: maybe}", Layer{}, `c.yaml:2:13: "maybe": want true or false`},
		{"xdp_containers_alone", in + "xdp: {containers: true}", Layer{}, "c.yaml:2:19: containers are reached by XDP with mode gateway beside it alone"},
		{"unsolicited", in + "unsolicited: reject", Layer{}, `c.yaml:2:14: unsolicited "reject": want pass or drop`},
		{"docker_odd", in, Layer{Docker: Value{Text: "maybe", Origin: "c.yaml:1:9"}}, "c.yaml:1:9: \"maybe\": want true or false"},
		{"ports_low", in + "ports: 80-2000", Layer{}, "c.yaml:2:8: ports \"80-2000\": want LOW-HIGH"},
		{"ports_swapped", in, Layer{Ports: Flag("ports", "3000-2000")}, "--ports: "},
		{"ports_high", in, Layer{Ports: Flag("ports", "3000-65536")}, "--ports: "},
		{"one_port", in, Layer{Ports: Flag("ports", "3000")}, "--ports: "},
		{"timeout_short", in + "timeouts: {udp: 999ms}", Layer{}, "c.yaml:2:17: \"999ms\": want a duration from 1s"},
		{"timeout_long", in + "timeouts: {udp: 721h}", Layer{}, "want a duration"},
		{"timeout_unit", in + "timeouts: {udp: 300}", Layer{}, "want a duration"},
		{"capacity", in + "capacity: {sessions: 1}", Layer{}, "c.yaml:2:22: \"1\": want a number from 64"},
		{"capacity_negative", in + "capacity: {bindings: -1}", Layer{}, "want a number"},
		{"same_interface", "inside: [eth0]\noutside: [eth0]", Layer{}, "c.yaml:2:11: interface eth0 cannot be inside and outside"},
		{"interface_twice", "inside: [br0, br0]", Layer{}, "c.yaml:1:15: interface br0 is given twice"},
		{"interface_name", "", Layer{Inside: []Value{Flag("inside", "much-too-long-name")}}, "--inside: \"much-too-long-name\" is no interface name"},
		{"external", in, Layer{External: List{Flag("external", "eth0")}}, "--external: \"eth0\" are no external addresses"},
		{"external_of_one_link", in, Layer{External: List{Flag("external", "fe80::1")}}, "cannot be reached from outside"},
		{"external_loopback", in, Layer{External: List{Flag("external", "127.0.0.1")}}, "cannot be reached from outside"},
		{"external_backwards", in, Layer{External: List{Flag("external", "203.0.113.9-203.0.113.8")}}, "end before they begin"},
		{"external_of_two_families", in, Layer{External: List{Flag("external", "203.0.113.9-2001:db8::1")}}, "are no external addresses"},
		{"external_bad_prefix", in, Layer{External: List{Flag("external", "203.0.113.9/33")}}, "want ADDR, ADDR/BITS or ADDR-ADDR"},
		{"external_twice", in, Layer{External: List{Flag("external", "203.0.113.9"), Flag("external", "203.0.113.9")}}, "is given twice"},
		{"socket_relative", in, Layer{Socket: Flag("socket", "x.sock")}, "--socket: \"x.sock\": want an absolute path"},
		{"forward_icmp", in + "forwards: [{protocol: icmp, external: '1.2.3.4:1', internal: '1.2.3.4:1'}]", Layer{}, "c.yaml:2:23: protocol \"icmp\" cannot be forwarded"},
		{"forward_endpoint", in + "forwards: [{external: '1.2.3.4', internal: '1.2.3.4:1'}]", Layer{}, "c.yaml:2:23: \"1.2.3.4\" is no endpoint"},
		{"forward_of_two_families", in + "forwards: [{external: '1.2.3.4:1', internal: '[fd00::2]:1'}]", Layer{}, "c.yaml:2:46: forward 1.2.3.4:1 to [fd00::2]:1: want both endpoints of IPv4"},
		{"forward_half", in + "forwards: [{external: '1.2.3.4:1'}]", Layer{}, "an entry has no internal endpoint"},
		{"forward_twice", in + "forwards:\n- {external: '1.2.3.4:1', internal: '10.0.0.1:1'}\n- {external: '1.2.3.4:1', internal: '10.0.0.2:1'}", Layer{},
			"c.yaml:4:14: external endpoint tcp/1.2.3.4:1 is forwarded already at c.yaml:3:14"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := build(t, tt.file, tt.flags)
			if err == nil {
				t.Fatalf("accepted: %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is\n%v\nwithout %q", err, tt.want)
			}
		})
	}
}

func TestShortTimeoutsAreAllowedWithAWarning(t *testing.T) {
	got, err := build(t, "inside: [br0]\ntimeouts: {udp: 2s, tcp_established: 1h, icmp: 1m}", Layer{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"c.yaml:2:17: 2s is shorter than the 2m0s that RFC 4787 REQ-5 demands",
		"c.yaml:2:38: 1h0m0s is shorter than the 2h4m0s that RFC 5382 REQ-5 demands",
	}
	if diff := cmp.Diff(want, got.Warnings); diff != "" {
		t.Error(diff)
	}
}

func TestEveryWrongValueIsReported(t *testing.T) {
	_, err := build(t, "inside: [br0]\nports: 1\nexternal: x\n", Layer{})
	for _, want := range []string{"c.yaml:2:8", "c.yaml:3:11"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: without %s", err, want)
		}
	}
}
