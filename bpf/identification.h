/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * IPv4 identification (RFC 6864 section 5.3.1, RFC 7857 section 10): hosts that
 * share an external address choose their IDs each for itself, and fragments of two
 * datagrams with one ID make a third. So what may be cut, or was, gets an ID of the
 * NAT's. Atomic datagrams (DF, and no fragment) need none: theirs stays.
 *
 * As in the kernel, a counter for each of many hashes of addresses and protocol,
 * shared by the CPUs: split between them, each would come round so much sooner. A
 * secret is in the hash: nobody computes which addresses share a counter with his own,
 * to foresee their IDs.
 */
#ifndef CONENAT_IDENTIFICATION_H
#define CONENAT_IDENTIFICATION_H

#include "packet.h"

static __always_inline bool packet_is_atomic(const struct packet *p)
{
	return (p->flags & (PACKET_DF | PACKET_FIRST_FRAGMENT |
			    PACKET_LATER_FRAGMENT)) == PACKET_DF;
}

#ifdef NAT_IPV6
/* Of IPv6, fragments alone have one, of 32 bits, and random (RFC 7739): it stays. */
static __always_inline nat_id identification(nat_addr saddr, nat_addr daddr,
					     __u8 proto, __u32 segments)
{
	return 0;
}
#else
/* An element, random to begin with: nobody knows where it does. */
static __always_inline __u32 *identification_at(__u32 index)
{
	__u32 *e = bpf_map_lookup_elem(&identifications, &index);

	if (e && !*e)
		__sync_val_compare_and_swap(e, 0, bpf_get_prandom_u32() | 1);
	return e;
}

/* A new ID, never 0; a GSO packet's segments count on from it. */
NAT_GLOBAL __u16 identification(nat_addr saddr, nat_addr daddr, __u8 proto,
				__u32 segments)
{
	__u32 *secret = identification_at(IDENTIFICATION_SECRET);
	__u32 *counter, hash, first;

	if (!secret)
		return 0;
	hash = (daddr ^ *secret) * 0x9e3779b1U;
	hash = (hash ^ hash >> 15 ^ saddr ^ proto) * *secret;
	counter = identification_at(hash >> (32 - NAT_IDENTIFICATION_BITS));
	if (!counter)
		return 0;
	first = __sync_fetch_and_add(counter, segments);
	if (!(__u16)first)
		first = __sync_fetch_and_add(counter, segments);
	return bpf_htons((__u16)first);
}

#endif /* NAT_IPV6 */

#endif /* CONENAT_IDENTIFICATION_H */
