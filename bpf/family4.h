/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the plain names mean for IPv4: family.h. */
#ifndef CONENAT_FAMILY4_H
#define CONENAT_FAMILY4_H

#define NAT_FAMILY AF_INET
#define of_family(ipv4_, ipv6_) (ipv4_)

typedef __be32 nat_addr;
typedef __be16 nat_id; /* of a datagram: its fragments have it */

/* What fills whole cache lines, and words. */
#define HALF_PAD 0
#define BINDING_PAD 5

#define session_key session_key4
#define session_half session_half4
#define session_slot session_slot4
#define binding_key binding_key4
#define nat_binding binding4
#define claim_key claim_key4
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
#define nat_blocks nat_blocks4

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

/*
 * An inside address on the kernel's way: what the packet carries, and the mark from
 * which the nft table sets the rest.
 */
static __always_inline nat_addr addr_to_mark(nat_addr inside, nat_addr external,
					     __u32 *mark)
{
	*mark = inside;
	return external;
}

/* For a checksum: not folded. */
static __always_inline __u64 addr_sum(nat_addr a)
{
	return a;
}

static __always_inline void addr_to_event(__u8 out[16], nat_addr a)
{
	__builtin_memset(out, 0, 16);
	__builtin_memcpy(out, &a, sizeof(a));
}

/* An address for a NAT_GLOBAL function, which takes no struct. */
typedef nat_addr nat_addr_arg;

#define addr_arg(address_) (address_)

static __always_inline nat_addr addr_of(nat_addr_arg arg)
{
	return arg;
}

/* Of what would not fit IPv6's stack in its caller's frame. */
#define family_inline __always_inline

/* The kernel's structures. */
static __always_inline void fib_set(struct bpf_fib_lookup *fib, nat_addr saddr,
				    nat_addr daddr)
{
	fib->family = AF_INET;
	fib->ipv4_src = saddr;
	fib->ipv4_dst = daddr;
}

/* Of a result; none: a next hop of the other family (RFC 5549). */
static __always_inline nat_addr fib_next_hop(const struct bpf_fib_lookup *fib)
{
	return fib->family == AF_INET ? fib->ipv4_dst : 0;
}

static __always_inline void neighbour_set(struct bpf_redir_neigh *next,
					  nat_addr address)
{
	next->nh_family = AF_INET;
	next->ipv4_nh = address;
}

#define TUPLE_SIZE sizeof(((struct bpf_sock_tuple *)0)->ipv4)

static __always_inline void tuple_set(struct bpf_sock_tuple *tuple,
				      nat_addr saddr, __be16 sport,
				      nat_addr daddr, __be16 dport)
{
	tuple->ipv4.saddr = saddr;
	tuple->ipv4.sport = sport;
	tuple->ipv4.daddr = daddr;
	tuple->ipv4.dport = dport;
}

#endif /* CONENAT_FAMILY4_H */
