/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The one place that says which address family the code below nat.bpf.c is for.
 * Every header after this one is written in the plain names (struct session_key,
 * sessions, nat_addr, addr_equal). IPv6 joins by a family6.h that gives the same
 * names their IPv6 meaning, and by including the headers once more: no second
 * copy of any logic, and maps of each family's own.
 */
#ifndef CONENAT_FAMILY4_H
#define CONENAT_FAMILY4_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "abi.h"

#define AF_INET 2
#define NAT_FAMILY AF_INET

typedef __be32 nat_addr;

#define session_key session_key4
#define session_half session_half4
#define session_slot session_slot4
#define binding_key binding_key4
#define nat_binding binding4
#define claim_key claim_key4
#define nat_claim claim4
#define permission_key permission_key4
#define fragment_key fragment_key4
#define nat_fragment fragment4
#define origin_key origin_key4
#define nat_prefix nat_prefix4
#define nat_zone nat_zone4
#define nat_realm nat_realm4
#define nat_external nat_external4
#define nat_set nat_set4
#define nat_request nat_request4
#define owner_key owner_key4
#define block_key block_key4
#define exclusion_key exclusion_key4

#define sessions sessions4
#define session_slots session_slots4
#define session_free session_free4
#define bindings bindings4
#define binding_free binding_free4
#define internals internals4
#define claims claims4
#define permissions permissions4
#define fragments fragments4
#define origins origins4
#define zones zones4
#define realms realms4
#define addresses addresses4
#define externals externals4
#define sets sets4
#define owners owners4
#define hosts hosts4
#define blocks blocks4
#define exclusions exclusions4

/*
 * A function that the verifier checks once and on its own, whoever calls it:
 * what keeps programs of this size below its limits, on 6.1 too. Its pointers
 * are to plain memory and may be NULL as far as the verifier knows.
 */
#define NAT_GLOBAL __attribute__((noinline))

static __always_inline bool addr_equal(nat_addr a, nat_addr b)
{
	return a == b;
}

static __always_inline bool addr_is_any(nat_addr a)
{
	return !a;
}

static __always_inline bool addr_in_prefix(nat_addr a, nat_addr prefix,
					   nat_addr mask)
{
	return (a & mask) == prefix;
}

/* Whether an address of a prefix is a host's: neither the network's nor broadcast. */
static __always_inline bool addr_is_host(nat_addr a, nat_addr prefix,
					 nat_addr mask)
{
	return bpf_ntohl(~mask) <= 1 || (a != prefix && a != (prefix | ~mask));
}

/* A well mixed number (the finalizer of MurmurHash3), the same on every machine. */
static __always_inline __u32 addr_hash(nat_addr a, __u32 seed)
{
	__u32 h = bpf_ntohl(a) ^ seed;

	h = (h ^ h >> 16) * 0x85ebca6bU;
	h = (h ^ h >> 13) * 0xc2b2ae35U;
	return h ^ h >> 16;
}

/* Multicast, limited broadcast, loopback and "this network" (RFC 6890). */
static __always_inline bool addr_never_routed(nat_addr a)
{
	__u8 first = bpf_ntohl(a) >> 24;

	return first >= 224 || first == 127 || first == 0;
}

/* An inside address for the nft table, as it lies in memory. */
static __always_inline __u32 addr_to_mark(nat_addr a)
{
	return a;
}

static __always_inline void addr_to_event(__u8 out[16], nat_addr a)
{
	__builtin_memset(out, 0, 16);
	__builtin_memcpy(out, &a, sizeof(a));
}

#endif /* CONENAT_FAMILY4_H */
