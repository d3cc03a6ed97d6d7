// SPDX-License-Identifier: Apache-2.0

package rfc

var ipv6 = Document{"IPv6", "what the others, each tested in both families, do not say of it", []Requirement{
	{"NAT66", Must, "a host has one external endpoint for each of its own, and no address of the inside is seen outside", Holds, ""},
	{"NPTv6", Must, "RFC 6296: stateless, checksum-neutral, hairpinning, the inner packets of ICMPv6 errors translated", Holds, ""},
	{"too-big", Must, "ICMPv6 Packet Too Big is sent and translated", Holds, ""},
	{"extension-headers", Must, "extension headers before the transport header are stepped over", Holds, ""},
	{"fragment-header", Must, "fragments are translated", Holds, ""},
	{"discovery", MustNot, "neighbour discovery is translated or dropped", Holds, ""},
	{"no-checksum", MustNot, "a UDP datagram without a checksum is made one with a wrong one (RFC 8200 section 8.1)", Holds, "as it comes, it goes on: its receiver drops it"},
}}
