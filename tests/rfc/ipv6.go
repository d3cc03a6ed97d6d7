// SPDX-License-Identifier: Apache-2.0

package rfc

var ipv6 = Document{"IPv6", "the same for IPv6, and NPTv6", []Requirement{
	{"NAT66", Must, "RFC 4787, RFC 5382 and RFC 5508, read for IPv6 to IPv6", Later, "issue 6"},
	{"NPTv6", Must, "RFC 6296: stateless, checksum-neutral, hairpinning, the inner packets of ICMPv6 errors translated", Holds, ""},
	{"too-big", Must, "ICMPv6 Packet Too Big is sent and translated", Later, "issue 6"},
	{"extension-headers", Must, "extension headers before the transport header are stepped over", Later, "issue 6"},
	{"fragment-header", Must, "fragments are translated", Later, "issue 6"},
}}
