/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP of IPv4 (RFC 792): its numbers. */
#ifndef CONENAT_ICMPV4_H
#define CONENAT_ICMPV4_H

#define PROTO_ICMP IPPROTO_ICMP
#define ICMP_COVERS_ADDRESSES false /* its checksum */

enum icmp_type { /* IANA */
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMP_TIMESTAMP = 13,
	ICMP_TIMESTAMPREPLY = 14,
};

enum icmp_code { /* IANA */
	ICMP_NET_UNREACH = 0, /* of ICMP_DEST_UNREACH */
	ICMP_HOST_UNREACH = 1,
	ICMP_FRAG_NEEDED = 4,
	ICMP_PKT_FILTERED = 13,
	ICMP_EXC_TTL = 0, /* of ICMP_TIME_EXCEEDED */
};

/* PACKET_* of a type. */
static __always_inline __u16 icmp_kind(__u8 type)
{
	switch (type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
		return PACKET_QUERY;
	case ICMP_ECHOREPLY:
	case ICMP_TIMESTAMPREPLY:
		return PACKET_REPLY;
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return PACKET_ERROR;
	}
	return PACKET_OTHER;
}

/* What the NAT says itself: type << 8 | code. */
#define ICMP_SAYS_UNREACHABLE (ICMP_DEST_UNREACH << 8 | ICMP_HOST_UNREACH)
#define ICMP_SAYS_PROHIBITED (ICMP_DEST_UNREACH << 8 | ICMP_PKT_FILTERED)
#define ICMP_SAYS_TIME_EXCEEDED (ICMP_TIME_EXCEEDED << 8 | ICMP_EXC_TTL)
#define ICMP_SAYS_TOO_BIG (ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED)
#define ICMP_SAYS_NO_ROUTE (ICMP_DEST_UNREACH << 8 | ICMP_NET_UNREACH)
#define ICMP_SAYS_BAD_FIELD (ICMP_PARAMETERPROB << 8) /* never: nptv6.h */

/* What its checksum covers beside the message. */
static __always_inline __u32 icmp_pseudo_sum(nat_addr saddr, nat_addr daddr,
					     __u16 length)
{
	return 0;
}

#endif /* CONENAT_ICMPV4_H */
