// SPDX-License-Identifier: Apache-2.0

package rfc

var rfc5508 = Document{"RFC 5508", "ICMP (BCP 148)", []Requirement{
	{"REQ-1", Must, "queries from inside and their answers pass", Holds, ""},
	{"REQ-1a", Should, "the mapping of a query's identifier does not depend on the external host", Holds, ""},
	{"REQ-2", MustNot, "a query session expires in less than 60 s", Holds, "an operator who configures less is warned"},
	{"REQ-2a", Recommended, "its timer is configurable", Holds, ""},
	{"REQ-3", Should, "an error whose ICMP checksum is wrong is dropped silently", Holds, ""},
	{"REQ-3a", Should, "one whose embedded IP header's checksum is wrong, too", Holds, ""},
	{"REQ-3b", Must, "steps over IP options of the embedded packet", Holds, ""},
	{"REQ-3c", ShouldNot, "validates the embedded transport checksum", Holds, ""},
	{"REQ-3d", Must, "leaves ICMP extensions (RFC 4884) out of the embedded packet", Holds, ""},
	{"REQ-4", Should, "an error from outside about no mapping is dropped silently", Holds, "inside; it goes to the host, whose address it was sent to"},
	{"REQ-4a", Must, "else the embedded IP and transport headers become what their sender knows", Holds, ""},
	{"REQ-4b", Must, "type and code stay", Holds, ""},
	{"REQ-4c", Must, "the outer destination becomes the embedded packet's source", Holds, ""},
	{"REQ-5", Should, "an error from inside about no mapping is dropped silently", Holds, ""},
	{"REQ-5a", Must, "else the embedded IP and transport headers become what their sender knows", Holds, ""},
	{"REQ-5b", Must, "type and code stay", Holds, ""},
	{"REQ-5c", Must, "the outer source becomes the external address", Holds, ""},
	{"REQ-6", MustNot, "an error refreshes or deletes the session that it speaks of", Holds, ""},
	{"REQ-7", Must, "hairpinned errors pass", Holds, ""},
	{"REQ-7a", Must, "their outer destination becomes the embedded packet's source", Holds, ""},
	{"REQ-8", Should, "no session can be made: ICMP 3/13 to the sender, and the packet is dropped", Holds,
		"if so configured; by default 3/1, as the later RFC 6888 has it (REQ-11B)"},
	{"REQ-9", May, "a policy keeps ICMP messages off an interface", Holds, "of what is said of refusals: `refusal: silent`"},
	{"REQ-10a", Must, "supports Destination Unreachable, Time Exceeded, Echo and Echo Reply", Holds, "of the NAT's own, those to containers are the kernel's"},
	{"REQ-10b", May, "supports Redirect, Timestamp, Source Route, Address Mask, Parameter Problem, Router Advertisement", Holds, "of these Timestamp and Parameter Problem"},
	{"REQ-10c", ShouldNot, "supports Source Quench or Information Request", Holds, "none is ever sent, and requests do not pass"},
	{"REQ-11", May, "messages that are neither query nor error are dropped", Holds, "from inside; from outside they are the host's"},
}}
