// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"
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
}

// Contenders are all of them; conenat is the path of the binary that is measured. What joins the comparison
// (another hook, another NAT) joins here.
func Contenders(conenat string) []Contender {
	return []Contender{
		{Forwarding, false, func(context.Context, *Lab) error { return nil }},
		{NFTables, true, masquerade},
		{Direct, true, daemon{binary: conenat, path: "direct", udpTimeout: "5m"}.start},
		{Stack, true, daemon{binary: conenat, path: "stack", udpTimeout: "5m"}.start},
	}
}

// ShortTimeout is that of Expiring's UDP sessions.
const ShortTimeout = 5 * time.Second

// Expiring is conenat with sessions that soon expire, and a sweeper that comes a minute after the start.
func Expiring(conenat string) Contender {
	return Contender{Direct, true, daemon{binary: conenat, path: "direct", udpTimeout: ShortTimeout.String()}.start}
}

// The contenders' names.
const (
	Forwarding = "forwarding"     // the kernel routes, nothing translates
	NFTables   = "nftables"       // masquerade and DNAT, and no other rule
	Direct     = "conenat-direct" // from interface to interface
	Stack      = "conenat-stack"  // by the host's routing and netfilter
)

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
		oifname "docker0" %[6]s saddr %[8]s snat to %[1]s
	}
}
`, l.External(), ForwardedPort, ForwardedPort2, l.Inside.Addr, l.Inside2.Addr, l.Family.Table(), addressType, inside, protocol), "nft", "-f", "-")
	return err
}
