/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The network header: ipv4.h and ipv6.h give the same names, for what is read, written
 * and made of it. None of them looks further than their own header and ICMP's numbers.
 */
#ifndef CONENAT_IP_H
#define CONENAT_IP_H

#include "checksum.h"

/* What of a packet changes on its way through the NAT. */
struct rewrite {
	nat_addr saddr;
	nat_addr daddr;
	__be16 sport;
	__be16 dport;
	nat_id id; /* 0: its own */
	bool decrement_ttl;
	bool by_mark; /* addr_to_mark has the destination */
};

/* The network header of a packet that an ICMP error, or the namespace, has. */
struct ip_header {
	nat_addr saddr;
	nat_addr daddr;
	nat_id id;
	__be16 check; /* IPv4's */
	__u16 l4; /* offset of what follows */
	__u8 proto;
	__u8 later; /* a later fragment: no transport header */
};

/* Where a fragment belongs, in units of 8 bytes. */
struct ip_fragment {
	__u16 offset;
	__u16 units; /* of its payload */
	bool more;
};

/* A length to add to a packet's pointer: 6.1's verifier knows no bounds of a byte swap. */
static __always_inline __u32 ip_length(__be16 field)
{
	__u32 length = bpf_ntohs(field);

	barrier_var(length);
	return length & 0xffff;
}

#ifdef NAT_IPV6
#include "icmpv6.h"
#include "ipv6.h"
#else
#include "icmpv4.h"
#include "ipv4.h"
#endif

#endif /* CONENAT_IP_H */
