// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"net/netip"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// nptv6 is RFC 6296 with the prefixes of section 3.6: two hosts of one network, and two outside.
func nptv6(l *line) {
	const (
		a, extA = "[fd01:203:405:1::1234]:2000", "[2001:db8:1:d550::1234]:2000"
		b, extB = "[fd01:203:405:2::5678]:3000", "[2001:db8:1:d551::5678]:3000"
		remote  = "[2001:4860::8888]:53"
		router  = "2001:4860::9999"
	)
	r := l.rig(rig.In(family.V6), rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name == "br0" {
			n.Prefixes = []netip.Prefix{netip.MustParsePrefix("fd01:203:405::/48")}
			n.Mode, n.ExternalPrefix = dataplane.ModeNPTv6, netip.MustParsePrefix("2001:db8:1::/48")
		}
	}))
	// Checksums are right, and no packet leaves anything behind: the first one from outside passes, too.
	r.Outside(TCP(remote, extA, "S", "")).Translated("translated_inbound", TCP(remote, a, "S", "").Hop())
	r.Inside(TCP(a, remote, "SA", "")).Translated("translated_outbound", TCP(extA, remote, "SA", "").Hop())
	r.Inside(UDP(b, remote, "x")).Translated("translated_outbound", UDP(extB, remote, "x").Hop())
	r.Empty()
	r.Hairpin("p1", UDP(a, extB, "x"), UDP(extA, b, "x"))
	address := func(endpoint string) string { return Endpoint(endpoint).Addr().String() }
	r.Outside(ICMPError(router, address(extA), 3, 4, UDP(extA, remote, "x"), 0)).Translated("translated_icmp_error",
		ICMPError(router, address(a), 3, 4, UDP(a, remote, "x"), 0).Hop())
	r.Inside(ICMPError(address(a), address(remote), 3, 3, UDP(remote, a, "x"), 0)).Translated("translated_icmp_error",
		ICMPError(address(extA), address(remote), 3, 3, UDP(remote, extA, "x"), 0).Hop())
}
