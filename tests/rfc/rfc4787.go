// SPDX-License-Identifier: Apache-2.0

package rfc

var rfc4787 = Document{"RFC 4787", "UDP (BCP 127)", []Requirement{
	{"REQ-1", Must, "endpoint-independent mapping", Holds, ""},
	{"REQ-2", Recommended, "address pooling \"paired\": an internal host keeps one external address", Holds, "behind each outside"},
	{"REQ-3", MustNot, "port overloading: two internal endpoints at one external endpoint", Holds, ""},
	{"REQ-3a", Recommended, "a source port of 0-1023 is mapped to one of 0-1023, one of 1024-65535 to one of 1024-65535", Holds, ""},
	{"REQ-4", Recommended, "port parity is preserved", Holds, "where a port of the parity is left"},
	{"REQ-5", MustNot, "the mapping timer expires in less than 2 minutes", Holds, "an operator who configures less is warned"},
	{"REQ-5b", May, "the mapping timer is configurable", Holds, ""},
	{"REQ-5c", Recommended, "the mapping timer is 5 minutes or more by default", Holds, ""},
	{"REQ-6", Must, "outbound packets refresh the mapping", Holds, ""},
	{"REQ-6a", May, "inbound packets refresh the mapping", Holds, "but under endpoint-independent filtering (RFC 7857, section 7)"},
	{"REQ-7", Must, "translates between internal nodes and external nodes whose addresses conflict numerically", Holds,
		"in sessions from inside, where the host's routing tells the nodes apart; else by the RFC's other way: Docker chooses no prefix that the host has a route to"},
	{"REQ-8", Recommended, "endpoint-independent filtering where transparency matters most, address-dependent where stringency does", Holds,
		"address-dependent by default, endpoint-independent by configuration"},
	{"REQ-9", Must, "hairpinning", Holds, ""},
	{"REQ-9a", Must, "a hairpinned packet comes from the external address and port", Holds, ""},
	{"REQ-10", Should, "no ALG touches UDP", Holds, "there is none"},
	{"REQ-11", Must, "deterministic: mapping and filtering behaviour never change, under any condition", Holds, ""},
	{"REQ-12", MustNot, "an ICMP message ends a mapping", Holds, ""},
	{"REQ-12a", ShouldNot, "ICMP messages are filtered by their source address", Holds, ""},
	{"REQ-12b", Recommended, "supports ICMP Destination Unreachable", Holds, ""},
	{"REQ-13", Must, "DF=1 and larger than the link: ICMP \"fragmentation needed\" to the sender", Holds, "the kernel answers, from the network's gateway"},
	{"REQ-13a", Must, "DF=0 and larger than the link: fragmented, and the fragments are sent in order", Holds, "the kernel fragments"},
	{"REQ-14", Must, "passes fragments that come in order and out of order", Holds, "those out of order by a namespace of its own, whose kernel puts them in order"},
	{"REQ-14a", Must, "floods of fragments do not hurt fragments in order nor packets that are none", Holds, ""},
}}
