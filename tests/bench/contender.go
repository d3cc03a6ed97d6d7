// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/conenat/conenat/tests/family"
)

// What every contender that translates forwards from outside: UDP and TCP to the external address and one of these
// ports, to the same port inside.
const (
	ForwardedPort  = 8080 // to Inside
	ForwardedPort2 = 8081 // to Inside2
)

// Contender is a way from inside to outside.
type Contender struct {
	Name       string
	Translates bool
	Start      func(ctx context.Context, l *Lab) error // until the lab is closed
	Routed     bool                                    // in the lab of NewRoutedLab
	XDP        bool                                    // its packets leave as frames of XDP, so that their sink is to be there
	Proxy      bool                                    // it carries what comes to published ports, and nothing else that is compared
	// End takes its sessions away, for good: nothing is to be sent after it. Nil: it has none.
	End func(ctx context.Context, l *Lab) error
}

// Contenders are what tests/cost and tests/benchvm compare; conenat is the path of the binary that is measured. What joins the
// comparison (another hook, another NAT) joins here or, for make bench alone, in Compared.
func Contenders(conenat string) []Contender {
	return []Contender{
		{Name: Forwarding, Start: nothing},
		{Name: NFTables, Translates: true, Start: masquerade, End: flush},
		{Name: Direct, Translates: true, Start: daemon{binary: conenat, path: "direct", udpTimeout: "5m"}.start},
		{Name: Stack, Translates: true, Start: daemon{binary: conenat, path: "stack", udpTimeout: "5m"}.start},
	}
}

// Gateways are what tests/cost compares between two plain interfaces, in the lab of NewRoutedLab. conenat drops what is unsolicited.
func Gateways(conenat string) []Contender {
	start := func(more string) func(context.Context, *Lab) error {
		return daemon{binary: conenat, path: "direct", udpTimeout: "5m", more: more + "unsolicited: drop\n"}.start
	}
	return []Contender{
		{Name: Gateway + XDPForwarding, Start: xdpForward, Routed: true, XDP: true},
		{Name: Gateway + NFTables, Translates: true, Start: masquerade, Routed: true},
		{Name: Gateway + Direct, Translates: true, Start: start(""), Routed: true},
		{Name: Gateway + XDP, Translates: true, Start: start("xdp: {mode: gateway, veth: true}\n"), Routed: true, XDP: true},
	}
}

// Scale is what contenders have to have room for; the zero Scale is what each comes with.
type Scale struct {
	Sessions   int           // of one inside host
	UDPTimeout time.Duration // 0: so long that no session ends by itself
}

// Compared is what `make bench` compares, in the order of the tables. Another way of conenat's is a line here, with its own lines of
// configuration: s.daemon(conenat, "direct", "lines").
func Compared(conenat string, s Scale) []Contender {
	direct, stack := s.daemon(conenat, "direct"), s.daemon(conenat, "stack")
	xdp := s.daemon(conenat, "direct", "xdp: {mode: gateway, veth: true}")
	containers := s.daemon(conenat, "direct", "xdp: {mode: gateway, containers: true, veth: true}")
	return []Contender{
		{Name: Forwarding, Start: nothing},
		{Name: NFTables, Translates: true, Start: s.netfilter(masquerade), End: flush},
		{Name: Docker, Translates: true, Start: s.netfilter(docker), End: flush},
		{Name: DockerProxy, Translates: true, Start: s.netfilter(dockerProxy), Proxy: true},
		{Name: Stack, Translates: true, Start: stack.start, End: stack.detach},
		{Name: Direct, Translates: true, Start: direct.start, End: direct.detach},
		{Name: IntoContainers, Translates: true, Start: containers.start, End: containers.detach},
		{Name: Gateway + Forwarding, Start: nothing, Routed: true},
		{Name: Gateway + NFTables, Translates: true, Start: s.netfilter(masquerade), End: flush, Routed: true},
		{Name: Gateway + Direct, Translates: true, Start: direct.start, End: direct.detach, Routed: true},
		{Name: Gateway + XDP, Translates: true, Start: xdp.start, End: xdp.detach, Routed: true, XDP: true},
		{Name: Gateway + XDPForwarding, Start: xdpForward, Routed: true, XDP: true},
	}
}

// ShortTimeout is that of Expiring's UDP sessions.
const ShortTimeout = 5 * time.Second

// Expiring is conenat with sessions that soon expire, and a sweeper that comes a minute after the start.
func Expiring(conenat string) Contender {
	return Contender{Name: Direct, Translates: true,
		Start: daemon{binary: conenat, path: "direct", udpTimeout: ShortTimeout.String()}.start}
}

// The contenders' names.
const (
	Forwarding  = "forwarding"     // the kernel routes, nothing translates
	NFTables    = "nftables"       // masquerade and DNAT, and no other rule
	Docker      = "docker"         // the rules of Docker 20.10, by iptables, and br_netfilter
	DockerProxy = "docker-proxy"   // the same, and the userland proxy in place of a published port's rule
	Direct      = "conenat-direct" // from interface to interface
	Stack       = "conenat-stack"  // by the host's routing and netfilter
	XDP         = "conenat-xdp"    // at the network card
	// IntoContainers is Direct out of a container, and by XDP into it.
	IntoContainers = "conenat-xdp-containers"
	XDPForwarding  = "xdp-forwarding" // the least that XDP does with a packet that goes on
	// Generator has nothing between its ends: what sending takes. GeneratorXDP ends at XDP.
	Generator    = "generator"
	GeneratorXDP = "generator-xdp"
	// Gateway begins the names of those in the lab of NewRoutedLab.
	Gateway = "gateway-"
)

// Peer is the name of another contender in the topology that this one has; a generator has no peers.
func Peer(contender, other string) string {
	if contender == Generator || contender == GeneratorXDP {
		return ""
	}
	if strings.HasPrefix(contender, Gateway) {
		return Gateway + other
	}
	return other
}

func nothing(context.Context, *Lab) error { return nil }

// masquerade is the smallest NAT that does what conenat does: it masquerades, port forwards, and hairpins whose receiver
// sees the external address.
func masquerade(ctx context.Context, l *Lab) error {
	inside, addressType, protocol := l.Family.Prefix(netip.MustParsePrefix("172.17.0.0/16")), "ipv4_addr", "ip protocol"
	if l.Family == family.V6 {
		addressType, protocol = "ipv6_addr", "meta l4proto"
	}
	_, err := l.Host.Run(ctx, fmt.Sprintf(`
table %[6]s nat {
	map forwards {
		type inet_proto . inet_service : %[7]s
		elements = { udp . %[2]d : %[4]s, tcp . %[2]d : %[4]s, udp . %[3]d : %[5]s, tcp . %[3]d : %[5]s }
	}
	chain prerouting {
		type nat hook prerouting priority dstnat
		%[6]s daddr %[1]s dnat to %[9]s . th dport map @forwards
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "eth0" %[6]s saddr %[8]s masquerade
		oifname "%[10]s" %[6]s saddr %[8]s snat to %[1]s
	}
}
`, l.External(), ForwardedPort, ForwardedPort2, l.Inside.Addr, l.Inside2.Addr, l.Family.Table(), addressType, inside, protocol,
		l.InsideDevice), "nft", "-f", "-")
	return err
}
