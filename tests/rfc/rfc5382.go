// SPDX-License-Identifier: Apache-2.0

package rfc

var rfc5382 = Document{"RFC 5382", "TCP (BCP 142)", []Requirement{
	{"REQ-1", Must, "endpoint-independent mapping", Holds, ""},
	{"REQ-2", Must, "every valid sequence of packets, of connections opened from inside or, where that is permitted, from outside", Holds, ""},
	{"REQ-2a", Must, "simultaneous open", Holds, ""},
	{"REQ-3", Recommended, "endpoint-independent filtering where transparency matters most, address-dependent where stringency does", Holds,
		"address-dependent by default, endpoint-independent by configuration"},
	{"REQ-3a", May, "the filtering behaviour is configurable", Holds, ""},
	{"REQ-3b", May, "the filtering behaviour is not that of UDP", Holds, "if so configured"},
	{"REQ-4", MustNot, "answer an unsolicited inbound SYN within 6 s; an outbound SYN for the connection meanwhile drops it silently", Holds,
		"at a bound endpoint: other ports of the address are the host's own"},
	{"REQ-4a", Must, "silence for good, where an answer would violate the NAT's policy", Holds, "it is the policy"},
	{"REQ-5", MustNot, "an idle session expires in under 2 h 4 min (established) or 4 min (transitory)", Holds, "an operator who configures less is warned"},
	{"REQ-5a", May, "the idle timeouts are configurable", Holds, ""},
	{"REQ-6", Recommended, "ALGs that affect TCP are disabled by default", Holds, "there is none"},
	{"REQ-7", MustNot, "port overloading", Holds, ""},
	{"REQ-8", Must, "hairpinning", Holds, ""},
	{"REQ-8a", Must, "a hairpinned packet comes from the external address and port", Holds, ""},
	{"REQ-9", Should, "ICMP Destination Unreachable is translated", Holds, ""},
	{"REQ-10", MustNot, "an ICMP message ends a mapping or a connection", Holds, ""},
}}
