/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the plain names mean for IPv6: family.h. */
#ifndef CONENAT_FAMILY6_H
#define CONENAT_FAMILY6_H

#define NAT_FAMILY AF_INET6
#define of_family(ipv4_, ipv6_) (ipv6_)

struct nat_addr6 {
	__be32 word[4];
};
typedef struct nat_addr6 nat_addr;
typedef __be32 nat_id; /* of a datagram: its fragments have it */

/* What fills whole cache lines, and words. */
#define HALF_PAD 28
#define BINDING_PAD 1

#define session_key session_key6
#define session_half session_half6
#define session_slot session_slot6
#define binding_key binding_key6
#define nat_binding binding6
#define claim_key claim_key6
#define permission_key permission_key6
#define fragment_key fragment_key6
#define nat_fragment fragment6
#define origin_key origin_key6
#define nat_prefix nat_prefix6
#define nat_zone nat_zone6
#define nat_realm nat_realm6
#define nat_request nat_request6
#define owner_key owner_key6
#define block_key block_key6
#define exclusion_key exclusion_key6
#define nat_external nat_external6
#define nat_set nat_set6
#define nat_blocks nat_blocks6

#define sessions sessions6
#define session_slots session_slots6
#define session_free session_free6
#define bindings bindings6
#define binding_free binding_free6
#define internals internals6
#define claims claims6
#define permissions permissions6
#define fragments fragments6
#define origins origins6
#define zones zones6
#define realms realms6
#define addresses addresses6
#define owners owners6
#define hosts hosts6
#define blocks blocks6
#define exclusions exclusions6
#define externals externals6
#define sets sets6
/* Of IPv4, these are called as they are. */
#define ports ports6
#define pools pools6
#define block_words block_words6
#define held held6
#define held_ports held_ports6
#define sweeper sweeper6

static __always_inline bool addr_equal(nat_addr a, nat_addr b)
{
	return a.word[0] == b.word[0] && a.word[1] == b.word[1] &&
	       a.word[2] == b.word[2] && a.word[3] == b.word[3];
}

static __always_inline bool addr_is_any(nat_addr a)
{
	return !(a.word[0] | a.word[1] | a.word[2] | a.word[3]);
}

static __always_inline bool addr_in_prefix(nat_addr a, nat_addr prefix,
					   nat_addr mask)
{
	return (a.word[0] & mask.word[0]) == prefix.word[0] &&
	       (a.word[1] & mask.word[1]) == prefix.word[1] &&
	       (a.word[2] & mask.word[2]) == prefix.word[2] &&
	       (a.word[3] & mask.word[3]) == prefix.word[3];
}

/* Of a prefix that it is in: all but the subnet-router's (RFC 4291 section 2.6.1). */
static __always_inline bool addr_is_host(nat_addr a, nat_addr prefix,
					 nat_addr mask)
{
	return !addr_equal(a, prefix) || !(__u32)~mask.word[3];
}

/*
 * Multicast, link-local, and what begins with 64 zeros: unspecified, loopback, and
 * addresses of IPv4 in those of IPv6 (RFC 6890, RFC 4291 section 2.5.5).
 */
static __always_inline bool addr_never_routed(nat_addr a)
{
	__u32 first = bpf_ntohl(a.word[0]);

	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 ||
	       !(first | a.word[1]);
}

/*
 * An inside address on the kernel's way: what checksums are of, and the mark from
 * which the nft table sets its last bits, so that netfilter's rules before it do not
 * know it for the inside host's (ip_rewrite).
 */
static __always_inline nat_addr addr_to_mark(nat_addr inside, nat_addr external,
					     __u32 *mark)
{
	*mark = inside.word[3];
	return inside;
}

/* A well mixed number (the finalizer of MurmurHash3), the same on every machine. */
static __always_inline __u32 addr_hash(nat_addr a, __u32 seed)
{
	__u32 h = seed;
	int i;

	for (i = 0; i < 4; i++) {
		h ^= bpf_ntohl(a.word[i]);
		h = (h ^ h >> 16) * 0x85ebca6bU;
		h = (h ^ h >> 13) * 0xc2b2ae35U;
		h ^= h >> 16;
	}
	return h;
}

/* For a checksum: not folded. */
static __always_inline __u64 addr_sum(nat_addr a)
{
	return (__u64)a.word[0] + a.word[1] + a.word[2] + a.word[3];
}

static __always_inline void addr_to_event(__u8 out[16], nat_addr a)
{
	__builtin_memcpy(out, &a, sizeof(a));
}

/* An address for a NAT_GLOBAL function, which takes no struct. */
typedef const nat_addr *nat_addr_arg;

#define addr_arg(address_) (&(address_))

static __always_inline nat_addr addr_of(nat_addr_arg arg)
{
	nat_addr none = {};

	return arg ? *arg : none;
}

/* A function with a frame of its own, which those of its siblings do not add up with. */
#define family_inline __noinline

/* The kernel's structures. */
static __always_inline void fib_set(struct bpf_fib_lookup *fib, nat_addr saddr,
				    nat_addr daddr)
{
	fib->family = AF_INET6;
	__builtin_memcpy(fib->ipv6_src, &saddr, sizeof(saddr));
	__builtin_memcpy(fib->ipv6_dst, &daddr, sizeof(daddr));
}

/* Of a result. */
static __always_inline nat_addr fib_next_hop(const struct bpf_fib_lookup *fib)
{
	nat_addr hop;

	__builtin_memcpy(&hop, fib->ipv6_dst, sizeof(hop));
	return hop;
}

static __always_inline void neighbour_set(struct bpf_redir_neigh *next,
					  nat_addr address)
{
	next->nh_family = AF_INET6;
	__builtin_memcpy(next->ipv6_nh, &address, sizeof(address));
}

#define TUPLE_SIZE sizeof(((struct bpf_sock_tuple *)0)->ipv6)

static __always_inline void tuple_set(struct bpf_sock_tuple *tuple,
				      nat_addr saddr, __be16 sport,
				      nat_addr daddr, __be16 dport)
{
	__builtin_memcpy(tuple->ipv6.saddr, &saddr, sizeof(saddr));
	__builtin_memcpy(tuple->ipv6.daddr, &daddr, sizeof(daddr));
	tuple->ipv6.sport = sport;
	tuple->ipv6.dport = dport;
}

#endif /* CONENAT_FAMILY6_H */
