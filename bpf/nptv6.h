/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Prefix translation (NPTv6, RFC 6296): a network's hosts have its external prefix
 * outside, each the same address always. No binding, no session and no port: any
 * protocol passes, and each fragment by itself. A mapped address sums up to what the
 * one before did, so that no checksum is touched, an ICMPv6 error's neither, whose
 * quoted packet is mapped, too.
 */
#ifndef CONENAT_NPTV6_H
#define CONENAT_NPTV6_H

#include "icmp.h"
#include "outbound.h"

#ifdef NAT_IPV6

/* An address in the words that its checksum is made of. */
union nptv6_words {
	nat_addr address;
	__be16 word[8];
};

#define NPTV6_SUBNET 3 /* bits 48 to 63 */
#define NPTV6_NONE 0xffff /* 0 and 0xffff are one number to a checksum */

static __always_inline __be16 nptv6_add(__be16 word, __be16 adjustment)
{
	__u32 sum = (__u32)word + adjustment;

	sum = (sum & 0xffff) + (sum >> 16);
	return sum == NPTV6_NONE ? 0 : sum;
}

/*
 * Of a /48 and shorter the subnet makes up for the other prefix (RFC 6296 section 3.4),
 * else the first word of the interface identifier that can (section 3.5).
 */
static __always_inline int nptv6_adjust(union nptv6_words *to,
					const nat_addr *mask, __be16 adjustment)
{
	int i;

	if (!(mask->word[1] & bpf_htonl(0xffff))) {
		if (to->word[NPTV6_SUBNET] == NPTV6_NONE)
			return -REASON_DROPPED_UNMAPPED;
		to->word[NPTV6_SUBNET] = nptv6_add(to->word[NPTV6_SUBNET],
						   adjustment);
		return 0;
	}
#pragma unroll
	for (i = NPTV6_SUBNET + 1; i < 8; i++) {
		if (to->word[i] == NPTV6_NONE)
			continue;
		to->word[i] = nptv6_add(to->word[i], adjustment);
		return 0;
	}
	return -REASON_DROPPED_UNMAPPED;
}

/*
 * An inside host's address as it is outside; inward: the other way round. 0, or
 * -REASON_DROPPED_UNMAPPED: it has none there.
 */
NAT_GLOBAL int nptv6_map(nat_addr *address, __u32 zone_id, bool inward)
{
	struct nat_zone *zone = zone_get(zone_id);
	union nptv6_words to;
	nat_addr mask, prefix;
	__be16 adjustment;
	int i, rc;

	if (!address || !zone)
		return -REASON_DROPPED_UNMAPPED;
	mask = zone->prefix[0].mask;
	prefix = inward ? zone->prefix[0].address : zone->external;
	adjustment = inward ? ~zone->adjustment : zone->adjustment;
	to.address = *address;
#pragma unroll
	for (i = 0; i < 4; i++)
		to.address.word[i] = (to.address.word[i] & ~mask.word[i]) |
				     prefix.word[i];
	rc = nptv6_adjust(&to, &mask, adjustment);
	if (rc == 0)
		*address = to.address;
	return rc;
}

/* Whether an address is of a network's external prefix. */
NAT_GLOBAL bool nptv6_is_external(__u32 zone_id, nat_addr_arg arg)
{
	struct nat_zone *zone = zone_get(zone_id);

	return zone && addr_in_prefix(addr_of(arg), zone->external,
				      zone->prefix[0].mask);
}

/*
 * The packet that an ICMPv6 error speaks of: inward, one that an inside host has sent,
 * whose source is its again; else one that it was sent. What is nobody's there stays.
 */
NAT_GLOBAL int nptv6_quoted(struct __sk_buff *skb, const struct packet *p,
			    __u32 zone, bool inward)
{
	nat_addr address;
	__u32 at;

	if (!p || !(p->flags & PACKET_ERROR))
		return 0;
	at = p->l4 + ICMP_ERROR_HEADER +
	     (inward ? __builtin_offsetof(struct ipv6hdr, saddr) :
		       __builtin_offsetof(struct ipv6hdr, daddr));
	if (at + sizeof(address) > p->l3 + p->total ||
	    bpf_skb_load_bytes(skb, at, &address, sizeof(address)) < 0)
		return 0;
	if (inward ? !nptv6_is_external(zone, &address) :
		     !address_in_zone(zone, &address))
		return 0;
	if (nptv6_map(&address, zone, inward) < 0)
		return 0;
	if (bpf_skb_store_bytes(skb, at, &address, sizeof(address),
				BPF_F_RECOMPUTE_CSUM) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* An address of the packet's own; of what has none, its sender is told which. */
static __always_inline int nptv6_readdress(struct nat *n, nat_addr *address,
					   __u32 zone, bool inward)
{
	int rc = nptv6_map(address, zone, inward);

	if (rc < 0)
		n->p.mtu = inward ? __builtin_offsetof(struct ipv6hdr, daddr) :
				    __builtin_offsetof(struct ipv6hdr, saddr);
	return rc;
}

/* Towards an inside host: by its own bridge port where that is known. */
static __always_inline void nptv6_towards(__u32 zone_id, nat_addr host,
					  struct session_half *half)
{
	struct nat_owner *owner = owner_of(zone_id, host);
	struct nat_link *link = owner ? link_get(owner->ifindex) : NULL;

	half->target = TARGET_DEVICE;
	half->peer_zone = zone_id;
	half->next_hop = host;
	if (!link || link->kind != LINK_INSIDE_PORT ||
	    !(link->flags & LINK_PEER))
		return;
	half->target = TARGET_PORT;
	half->ifindex = owner->ifindex;
}

/* What no router may pass on to an inside host: session_limits, without one. */
static __always_inline int nptv6_limits(struct nat *n,
					const struct session_half *half)
{
	__u16 mtu;

	if (!session_routes(n, half))
		return 0;
	if (n->p.ttl <= 1)
		return -REASON_DROPPED_TTL;
	if (n->p.segment <= IPV6_MIN_MTU || half->target != TARGET_DEVICE)
		return 0;
	mtu = route_mtu(n->skb, session_device(half));
	if (!mtu || n->p.segment <= mtu)
		return 0;
	n->p.mtu = mtu;
	return -REASON_DROPPED_TOO_BIG;
}

/* On its way, as if of a session: session.h. */
static __noinline int nptv6_send(struct nat *n, const struct session_half *half,
				 const struct rewrite *to)
{
	int rc = ip_rewrite(n->skb, &n->p, to, 0);

	if (rc == 0)
		rc = session_send(n, half);
	if (rc < 0)
		return rc;
	return n->p.flags & PACKET_ERROR ? -REASON_TRANSLATED_ICMP_ERROR :
					   session_reason(n, half);
}

/* From an inside host outside, at each hook of that way. */
static __noinline int nptv6_outbound(struct nat *n)
{
	struct rewrite to = {
		.saddr = n->p.saddr,
		.daddr = n->p.daddr,
		.decrement_ttl = !n->egress,
	};
	struct session_half *half;
	struct route *r;
	int rc;

	rc = outbound_route(n);
	if (rc == 0 && !n->egress && n->p.flags & PACKET_OPTIONS)
		rc = -REASON_PASSED_STACK;
	if (rc < 0)
		return kernel_answers(n, rc);
	rc = nptv6_readdress(n, &to.saddr, n->zone, false);
	if (rc == 0)
		rc = nptv6_quoted(n->skb, &n->p, n->zone, false);
	if (rc < 0)
		return rc;
	r = route_get();
	half = half_new();
	if (!r || !half)
		return -REASON_DROPPED_RACE;
	half->target = TARGET_OUTSIDE;
	half->ifindex = r->ifindex;
	half->next_hop = r->next_hop;
	return nptv6_send(n, half, &to);
}

/*
 * From inside to an external address of the same network (RFC 6296 section 4.3): to the
 * inside host that has it, from the sender's own.
 */
static __noinline int nptv6_hairpin(struct nat *n)
{
	struct nat_zone *zone = zone_get(n->zone);
	struct session_half *half = half_new();
	struct rewrite to = {
		.saddr = n->p.saddr,
		.daddr = n->p.daddr,
		.decrement_ttl = true,
	};
	int rc;

	if (!half || !zone)
		return -REASON_DROPPED_RACE;
	rc = source_admitted(n);
	if (rc == 0 && zone->flags & ZONE_ISOLATED)
		rc = -REASON_DROPPED_ISOLATED;
	if (rc == 0)
		rc = nptv6_readdress(n, &to.saddr, n->zone, false);
	if (rc == 0)
		rc = nptv6_readdress(n, &to.daddr, n->zone, true);
	if (rc < 0)
		return rc;
	half->flags = HALF_HAIRPIN;
	nptv6_towards(n->zone, to.daddr, half);
	rc = nptv6_limits(n, half);
	if (rc == 0)
		rc = nptv6_quoted(n->skb, &n->p, n->zone, false);
	if (rc == 0)
		rc = nptv6_quoted(n->skb, &n->p, n->zone, true);
	return rc < 0 ? rc : nptv6_send(n, half, &to);
}

/* At the inside hooks. */
static __noinline int nptv6_inside(struct nat *n)
{
	if (addr_never_routed(n->p.daddr))
		return -REASON_PASSED_LOCAL;
	if (nptv6_is_external(n->zone, addr_arg(n->p.daddr)))
		return address_is_hosts(n) ? -REASON_PASSED_LOCAL :
					     nptv6_hairpin(n);
	if (!n->stack)
		return nptv6_outbound(n);
	return source_is_stolen(n) ? -REASON_DROPPED_SPOOFED :
				     -REASON_PASSED_STACK;
}

/*
 * The stack path's way in (session_enters). The nft table writes the rest of the inside
 * address and corrects no sum for it: all of them are those of the whole address, as they
 * were of the external one.
 */
static __always_inline int nptv6_enter(struct nat *n, nat_addr inside)
{
	__u32 at = n->p.l3 + __builtin_offsetof(struct ipv6hdr, daddr);
	__u32 mark = inside.word[3];

	inside.word[3] = 0;
	if (bpf_skb_store_bytes(n->skb, at, &inside, sizeof(inside), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	n->skb->mark = mark;
	n->action = VERDICT_NEXT;
	return n->p.flags & PACKET_ERROR ? -REASON_TRANSLATED_ICMP_ERROR :
					   -REASON_TRANSLATED_STACK;
}

/* To the inside host that has an external address. */
static __noinline int nptv6_admitted(struct nat *n, __u32 zone)
{
	struct session_half *half = half_new();
	struct rewrite to = {
		.saddr = n->p.saddr,
		.daddr = n->p.daddr,
		.decrement_ttl = true,
	};
	int rc;

	if (!half)
		return -REASON_DROPPED_RACE;
	rc = nptv6_readdress(n, &to.daddr, zone, true);
	if (rc < 0)
		return rc;
	if (host_is_excluded(zone, to.daddr))
		return -REASON_PASSED_EXCLUDED;
	nptv6_towards(zone, to.daddr, half);
	rc = nptv6_limits(n, half);
	if (rc == 0)
		rc = nptv6_quoted(n->skb, &n->p, zone, true);
	if (rc < 0)
		return rc;
	return session_enters(n, half) ? nptv6_enter(n, to.daddr) :
					 nptv6_send(n, half, &to);
}

/*
 * At egress, of what no session has: whether it is of a host of such a network, n->zone
 * then; egress_forwarded has seen to what has ports.
 */
static __always_inline bool nptv6_leaves(struct nat *n)
{
	struct nat_link *from;

	if (n->zone != NAT_ZONE_OUTSIDE)
		return true;
	if (!n->skb->ingress_ifindex)
		return false;
	from = link_get(n->skb->ingress_ifindex);
	if (!link_is_inside(from) || !zone_has_nptv6(from->owner) ||
	    !address_in_zone(from->owner, addr_arg(n->p.saddr)))
		return false;
	n->zone = from->owner;
	return true;
}

/* The host's own error about a packet to an inside host: error_of_host's n->zone. */
static __always_inline int nptv6_host_error(struct nat *n)
{
	int rc = nptv6_quoted(n->skb, &n->p, n->zone, false);

	n->action = VERDICT_NEXT;
	return rc < 0 ? rc : -REASON_TRANSLATED_ICMP_ERROR;
}

#else

static __always_inline int nptv6_inside(struct nat *n)
{
	return -REASON_PASSED_LOCAL;
}

static __always_inline int nptv6_outbound(struct nat *n)
{
	return -REASON_PASSED_LOCAL;
}

static __always_inline int nptv6_admitted(const struct nat *n, __u32 zone)
{
	return -REASON_DROPPED_UNMAPPED;
}

static __always_inline bool nptv6_leaves(const struct nat *n)
{
	return false;
}

static __always_inline int nptv6_host_error(const struct nat *n)
{
	return -REASON_PASSED_HOST;
}

#endif

#endif /* CONENAT_NPTV6_H */
