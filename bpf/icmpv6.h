/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMPv6 (RFC 4443): its numbers. */
#ifndef CONENAT_ICMPV6_H
#define CONENAT_ICMPV6_H

#include <linux/in6.h>

#define PROTO_ICMP IPPROTO_ICMPV6
#define ICMP_COVERS_ADDRESSES true /* its checksum */

enum icmp_type { /* IANA */
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PKT_TOOBIG = 2,
	ICMPV6_TIME_EXCEED = 3,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
};

enum icmp_code { /* IANA */
	ICMPV6_NOROUTE = 0, /* of ICMPV6_DEST_UNREACH */
	ICMPV6_ADM_PROHIBITED = 1,
	ICMPV6_ADDR_UNREACH = 3,
	ICMPV6_EXC_HOPLIMIT = 0, /* of ICMPV6_TIME_EXCEED */
	ICMPV6_HDR_FIELD = 0, /* of ICMPV6_PARAMPROB */
};

/*
 * PACKET_* of a type. Neighbour discovery (133 to 137) and multicast listeners are
 * neither query nor error, and nobody translates them.
 */
static __always_inline __u16 icmp_kind(__u8 type)
{
	switch (type) {
	case ICMPV6_ECHO_REQUEST:
		return PACKET_QUERY;
	case ICMPV6_ECHO_REPLY:
		return PACKET_REPLY;
	case ICMPV6_DEST_UNREACH:
	case ICMPV6_PKT_TOOBIG:
	case ICMPV6_TIME_EXCEED:
	case ICMPV6_PARAMPROB:
		return PACKET_ERROR;
	}
	return PACKET_OTHER;
}

/* What the NAT says itself: type << 8 | code. */
#define ICMP_SAYS_UNREACHABLE (ICMPV6_DEST_UNREACH << 8 | ICMPV6_ADDR_UNREACH)
#define ICMP_SAYS_PROHIBITED (ICMPV6_DEST_UNREACH << 8 | ICMPV6_ADM_PROHIBITED)
#define ICMP_SAYS_TIME_EXCEEDED (ICMPV6_TIME_EXCEED << 8 | ICMPV6_EXC_HOPLIMIT)
#define ICMP_SAYS_TOO_BIG (ICMPV6_PKT_TOOBIG << 8)
#define ICMP_SAYS_NO_ROUTE (ICMPV6_DEST_UNREACH << 8 | ICMPV6_NOROUTE)
#define ICMP_SAYS_BAD_FIELD (ICMPV6_PARAMPROB << 8 | ICMPV6_HDR_FIELD)

/* What its checksum covers beside the message: the pseudo-header (RFC 8200 section 8.1). */
static __always_inline __u32 icmp_pseudo_sum(nat_addr saddr, nat_addr daddr,
					     __u16 length)
{
	nat_addr addrs[2] = { saddr, daddr };
	__u32 seed = bpf_htons(length) + bpf_htons(PROTO_ICMP);

	return bpf_csum_diff(0, 0, (__be32 *)addrs, sizeof(addrs), seed);
}

#endif /* CONENAT_ICMPV6_H */
