// SPDX-License-Identifier: Apache-2.0

package rfc

var rfc6888 = Document{"RFC 6888", "many hosts share an address (BCP 127)", []Requirement{
	{"REQ-2", Must, "address pooling is paired by default", Holds, "and there is no other"},
	{"REQ-3", Must, "external pools of addresses that are not contiguous", Holds, "`external`, addresses, prefixes and ranges"},
	{"REQ-4", Must, "a limit on the external ports of a subscriber", Holds, "16384 of a host by default; of a network, too"},
	{"REQ-5", Should, "a limit on the state of a subscriber", Holds, "sessions of a binding, a host and a network"},
	{"REQ-6", Must, "translation can be switched off for destinations", Holds, "`exclude`, for each network"},
	{"REQ-8", ShouldNot, "an external port has a new mapping within 120 s of its mapping's end", Holds,
		"but for what the RFC excepts: TCP, address-dependent or stricter filtering, static bindings"},
	{"REQ-9", Must, "a port control protocol: PCP (RFC 6887)", Later, "the issue that brings PCP"},
	{"REQ-11A", Must, "no mapping can be made: the packet is dropped", Holds, ""},
	{"REQ-11B", Should, "its sender is told by ICMP Host Unreachable (3/1)", Holds, "by default"},
	{"REQ-11C", Should, "the management is notified", Holds, "events port.exhausted and quota.exceeded"},
	{"REQ-11D", MustNot, "a mapping that exists is deleted to make room", Holds, ""},
	{"REQ-12", ShouldNot, "destinations are logged", Holds, "events name them to who asks for events"},
	{"REQ-13", Should, "external ports are used to the full", Holds, ""},
	{"REQ-14", Should, "port allocation keeps the log small", Holds, "with `block_size`: a line for each block"},
	{"REQ-15", Should, "external ports are hard to guess", Holds, "where they are not the internal ones"},
}}
