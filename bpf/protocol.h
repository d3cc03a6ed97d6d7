/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is translated. TCP, UDP and ICMP queries have ports, or an identifier in their
 * place. Of some other protocols addresses alone are translated, and the remote address
 * says whose an answer is: one inside host for each external address, protocol and
 * remote. What is in neither list does not leave (docs/decisions/0018-protocols.md).
 */
#ifndef CONENAT_PROTOCOL_H
#define CONENAT_PROTOCOL_H

#include <linux/in.h>

#include "abi.h"

/* enum nat_l4, or negative for a protocol without ports. */
static __always_inline int l4_index(__u8 proto)
{
	switch (proto) {
	case IPPROTO_UDP:
		return NAT_L4_UDP;
	case IPPROTO_TCP:
		return NAT_L4_TCP;
	case of_family(1, 58): /* ICMP and ICMPv6 */
		return NAT_L4_ICMP;
	}
	return -1;
}

/* The same of what is set for each of them: a protocol without ports goes by UDP's. */
static __always_inline int l4_settings(__u8 proto)
{
	int l4 = l4_index(proto);

	return l4 < 0 ? NAT_L4_UDP : l4;
}

/*
 * Whether addresses alone are translated. No checksum of theirs covers these, but
 * UDP-Lite's. The ports of SCTP (whose checksum would have to be made anew, RFC 3309)
 * and of UDP-Lite stay.
 */
static __always_inline bool protocol_is_portless(__u8 proto)
{
	switch (proto) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6: /* RFC 4213: 6in4 */
	case IPPROTO_GRE:
	case IPPROTO_ESP:
	case IPPROTO_SCTP:
	case IPPROTO_UDPLITE:
		return true;
	}
	return false;
}

/* Of those that another NAT, which has seen a packet first, may translate ports. */
static __always_inline bool protocol_hides_ports(__u8 proto)
{
	return proto == IPPROTO_SCTP || proto == IPPROTO_UDPLITE;
}

#endif /* CONENAT_PROTOCOL_H */
