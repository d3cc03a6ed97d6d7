// SPDX-License-Identifier: Apache-2.0

package rfc

var rfc7857 = Document{"RFC 7857", "updates of these (BCP 127)", []Requirement{
	{"2.1", Should, "TCP sessions follow RFC 6146's state machine", Holds, ""},
	{"2.2", Should, "timers of partial open and of closing connections are configurable apart, by default 4 minutes each", Holds, ""},
	{"2.3", Must, "a TCP RST that matches a mapping is translated", Holds, ""},
	{"2.3-hold", Should, "its session is held for 4 minutes more", Holds, ""},
	{"5", Should, "mapping behaviour is settable per protocol", Holds, ""},
	{"6", Should, "filtering behaviour is settable per protocol", Holds, ""},
	{"7", Should, "inbound refresh under endpoint-independent filtering can be switched off", Holds, "it is off"},
	{"7.1", ShouldNot, "an outbound ICMP error or RST that answers an inbound packet refreshes the mapping", Holds, ""},
	{"9", Should, "external ports are random (RFC 6056); with port preservation, where the port is taken", Holds, ""},
	{"10", Should, "the IPv4 identification of what is no atomic datagram is unique outside (RFC 6864, section 5.3.1)", Holds, ""},
}}
