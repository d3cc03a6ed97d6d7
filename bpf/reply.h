/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the NAT says itself: a packet that is dropped becomes an ICMP error to its
 * sender (RFC 1812 section 4.3.2), where a router, or RFC 5508 and RFC 6888, owe
 * one. A new skb cannot be had here: the packet itself is turned into the error,
 * and goes back to where it came from.
 */
#ifndef CONENAT_REPLY_H
#define CONENAT_REPLY_H

#include "route.h"

/*
 * Marks a packet that the direct path has translated or made, for the outside
 * egress hook, which it meets again. tc_index is scratch space of traffic control.
 */
#define DIRECT_PATH_MARK 0xc07e

/* Bytes of the whole error: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c). */
#define REPLY_MAX of_family(576, 1280)
#define REPLY_TTL 64
/* Internetwork control: section 4.3.2.5; RFC 4443 asks for nothing. */
#define REPLY_TOS of_family(0xc0, 0)

/* On each CPU, to each side; about 1,000 a second, as the kernel's own limit. */
#define REPLIES_PER_TICK 16

struct reply_headers {
	struct ip_struct ip;
	struct icmphdr icmp;
};

#define REPLY_QUOTE (REPLY_MAX - sizeof(struct reply_headers))

#define REPLY_NONE (-1)

/* What an inside host is told that gets no mapping or session. */
static __always_inline int reply_refusal(__u32 zone_id)
{
	struct nat_zone *zone = zone_get(zone_id);

	if (!zone || zone_id == NAT_ZONE_OUTSIDE)
		return REPLY_NONE;
	switch (zone->refusal) {
	case REFUSAL_HOST_UNREACHABLE:
		return ICMP_SAYS_UNREACHABLE;
	case REFUSAL_ADMIN_PROHIBITED:
		return ICMP_SAYS_PROHIBITED;
	}
	return REPLY_NONE;
}

/* type << 8 | code for a reason to drop a packet; REPLY_NONE: in silence. */
NAT_GLOBAL int reply_of(__u32 zone_id, __u32 reason)
{
	switch (reason) {
	case REASON_DROPPED_PORT_EXHAUSTED:
	case REASON_DROPPED_PROTOCOL:
	case REASON_DROPPED_REMOTE_TAKEN:
	case REASON_DROPPED_BINDINGS_FULL:
	case REASON_DROPPED_SESSIONS_FULL:
	case REASON_DROPPED_QUOTA:
	case REASON_DROPPED_HOST_PORTS:
	case REASON_DROPPED_HOST_SESSIONS:
	case REASON_DROPPED_NETWORK_PORTS:
	case REASON_DROPPED_NETWORK_SESSIONS:
		return reply_refusal(zone_id);
	case REASON_DROPPED_TTL:
		return ICMP_SAYS_TIME_EXCEEDED;
	case REASON_DROPPED_TOO_BIG:
		return ICMP_SAYS_TOO_BIG;
	case REASON_DROPPED_NO_ROUTE:
		return ICMP_SAYS_NO_ROUTE;
	case REASON_DROPPED_UNMAPPED:
		return ICMP_SAYS_BAD_FIELD;
	}
	return REPLY_NONE;
}

/* RFC 1812 section 4.3.2.7: what no error may be sent about. */
static __always_inline bool reply_is_due(const struct __sk_buff *skb,
					 const struct packet *p)
{
	return !(p->flags &
		 (PACKET_ERROR | PACKET_LATER_FRAGMENT | PACKET_TAIL)) &&
	       skb->pkt_type != PACKET_BROADCAST &&
	       skb->pkt_type != PACKET_MULTICAST &&
	       !addr_never_routed(p->saddr);
}

/* Neither side can use up what the other one is told with. */
static __always_inline bool reply_is_allowed(__u32 zone_id)
{
	__u32 inside = zone_id != NAT_ZONE_OUTSIDE, tick = clock_tick();
	struct nat_sampler *s = bpf_map_lookup_elem(&replies, &inside);

	if (!s)
		return false;
	if (s->last != tick) {
		s->last = tick;
		s->count = 0;
	}
	return s->count++ < REPLIES_PER_TICK;
}

/*
 * The transport checksum of a packet as its sender's kernel has left it to a device
 * to fill in (CHECKSUM_PARTIAL): the pseudo-header's sum alone, which is answered;
 * else 0. A program is not told, and cannot say that nothing is left to do.
 */
static __always_inline __u16 reply_unfilled(struct __sk_buff *skb,
					    const struct packet *p)
{
	__u16 length = p->total - (p->l4 - p->l3), check = 0;
	__u32 at = p->l4;
	__u64 sum;

	if (p->proto == IPPROTO_UDP)
		at += __builtin_offsetof(struct udphdr, check);
	else if (p->proto == IPPROTO_TCP)
		at += __builtin_offsetof(struct tcphdr, check);
	else
		return 0;
	if (bpf_skb_load_bytes(skb, at, &check, sizeof(check)) < 0)
		return 0;
	sum = addr_sum(p->saddr) + addr_sum(p->daddr) + bpf_htons(length) +
	      bpf_htons(p->proto);
	return check == (__u16)~csum_of_sum(sum) ? check : 0;
}

/*
 * What the quoted packet, which is at the offset at, sums up to. Where a device will
 * still fill in its checksum, as if the packet went as it is: then all that the
 * checksum covers sums up to the complement of what was there for it, however
 * much of it is quoted.
 */
static __always_inline __s64 reply_quote_sum(struct __sk_buff *skb,
					     const struct packet *p, __u32 at,
					     __u32 quote, __u16 unfilled)
{
	__u32 summed = unfilled ? p->l4 - p->l3 : quote;
	__s64 sum = csum_of(skb, at, summed);

	return sum >= 0 && unfilled ? sum + (__u16)~unfilled : sum;
}

static __always_inline void reply_finish(const struct packet *p, nat_addr from,
					 struct reply_headers *h, __u32 quote,
					 __u64 quote_sum)
{
	__u16 length = sizeof(h->icmp) + quote;

	ip_make(&h->ip, from, p->saddr, length, REPLY_TOS, REPLY_TTL);
	h->icmp.checksum = csum_of_sum(
		quote_sum + icmp_pseudo_sum(from, p->saddr, length) +
		bpf_csum_diff(0, 0, (__be32 *)&h->icmp, sizeof(h->icmp), 0));
}

/* Back to the neighbour that it came from. */
static __always_inline int reply_swap_macs(struct __sk_buff *skb,
					   const struct packet *p)
{
	__u8 was[2 * ETH_ALEN], now[2 * ETH_ALEN];

	if (!p->l3)
		return 0;
	if (bpf_skb_load_bytes(skb, 0, was, sizeof(was)) < 0)
		return -REASON_DROPPED_REWRITE;
	__builtin_memcpy(now, was + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(now + ETH_ALEN, was, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, now, sizeof(now), 0);
}

/* The packet, turned into the error whose type, code and MTU h has. */
static __always_inline int reply_make(struct __sk_buff *skb,
				      const struct packet *p, nat_addr from,
				      struct reply_headers *h)
{
	__u32 quote = p->total < REPLY_QUOTE ? p->total : REPLY_QUOTE;
	__u16 unfilled = reply_unfilled(skb, p);
	__s64 sum;

	/* First, as it turns a GSO packet into an ordinary one. */
	if (bpf_skb_change_tail(skb, p->l3 + quote, 0) < 0 ||
	    bpf_skb_adjust_room(skb, sizeof(*h), BPF_ADJ_ROOM_MAC, 0) < 0)
		return -REASON_DROPPED_REWRITE;
	sum = reply_quote_sum(skb, p, p->l3 + sizeof(*h), quote, unfilled);
	if (sum < 0)
		return -REASON_DROPPED_REWRITE;
	reply_finish(p, from, h, quote, sum);
	if (bpf_skb_store_bytes(skb, p->l3, h, sizeof(*h),
				BPF_F_RECOMPUTE_CSUM) < 0)
		return -REASON_DROPPED_REWRITE;
	return reply_swap_macs(skb, p);
}

/* At egress it has left its sender's network behind. */
static __always_inline int reply_send(struct __sk_buff *skb,
				      const struct packet *p, __u32 zone_id,
				      const struct nat_zone *zone, bool egress)
{
	struct bpf_redir_neigh next = {};

	if (!egress) {
		if (zone_id == NAT_ZONE_OUTSIDE)
			skb->tc_index = DIRECT_PATH_MARK;
		return bpf_redirect(skb->ifindex, 0);
	}
	/* bpf_redirect_neigh drops what has no Ethernet header. */
	if (!p->l3 && bpf_skb_change_head(skb, ETH_HLEN, 0) < 0)
		return TC_ACT_SHOT;
	neighbour_set(&next, p->saddr);
	return bpf_redirect_neigh(zone->ifindex, &next, sizeof(next), 0);
}

/*
 * Whether an address that was sent from is another host's: no network's broadcast
 * address, and none of the host's own. Of what is inside, its network says so: routing
 * may take the address for another network's.
 */
NAT_GLOBAL bool reply_reaches(struct __sk_buff *skb, __u32 zone_id,
			      nat_addr_arg addr)
{
	if (zone_id == NAT_ZONE_OUTSIDE)
		return address_is_remote(skb, addr, skb->ifindex);
	return host_in_zone(zone_id, addr);
}

/*
 * Who answers: inside, the network's gateway; outside, the address that was sent to,
 * or for an inside host's own the one that the outside is known by.
 */
static __always_inline nat_addr reply_from(struct __sk_buff *skb,
					   const struct packet *p,
					   __u32 zone_id,
					   const struct nat_zone *zone)
{
	nat_addr sent_to = p->daddr;
	struct nat_external *e;

	if (zone_id != NAT_ZONE_OUTSIDE)
		return zone->gateway;
	if (bpf_map_lookup_elem(&addresses, &sent_to))
		return sent_to;
	e = outside_external(skb);
	return e ? e->address : sent_to;
}

/* The verdict on a packet that is to be dropped: its sender may be told. */
NAT_GLOBAL int reply(struct __sk_buff *skb, const struct packet *p,
		     __u32 zone_id, __u32 reason, bool egress)
{
	struct nat_zone *zone = zone_get(zone_id);
	int what = reply_of(zone_id, reason);
	struct reply_headers h = {};
	nat_addr from;

	if (!p || !zone || what == REPLY_NONE)
		return TC_ACT_SHOT;
	h.icmp.type = what >> 8;
	h.icmp.code = what;
	h.icmp.sequence = bpf_htons(
		p->mtu); /* RFC 1191; the lower half of RFC 4443's, as its pointer */
	from = reply_from(skb, p, zone_id, zone);
	if (addr_is_any(from) || !reply_is_due(skb, p) ||
	    !reply_is_allowed(zone_id) ||
	    !reply_reaches(skb, zone_id, addr_arg(p->saddr)) ||
	    reply_make(skb, p, from, &h) < 0)
		return TC_ACT_SHOT;
	return reply_send(skb, p, zone_id, zone, egress);
}

#endif /* CONENAT_REPLY_H */
