/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where XDP sends the packets of a half: the MAC of its next hop is in the half. It is
 * good for as long as tc trusts a route, and while the daemon has seen no change of
 * routes or neighbours (nat_link.epoch). Then the kernel is asked for route and
 * neighbour, and what it says must be what tc made of the route before: all other
 * changes are tc's, and until it has made them tc has the packets.
 */
#ifndef CONENAT_XDP_SEND_H
#define CONENAT_XDP_SEND_H

#include "session.h"
#include "xdp_parse.h"

/*
 * One of so many times that a hop is found good again, the packet leaves by tc: nothing
 * else uses the kernel's neighbour entry, and what is not used is not asked whether it
 * is still there.
 */
#define HOP_PROBE 16

/* The link by which XDP may send a half's packets. */
static __always_inline struct nat_link *
xdp_egress(const struct session_half *half)
{
	struct nat_link *link = link_get(half->ifindex);

	if (!link || !link->epoch)
		return NULL;
	if (half->target == TARGET_OUTSIDE)
		return link->kind == LINK_OUTSIDE && link->flags & LINK_XDP ?
			       link :
			       NULL;
	if (link->owner != half->peer_zone)
		return NULL;
	if (half->target == TARGET_DEVICE)
		return link->kind == LINK_INSIDE_DEVICE &&
				       link->flags & LINK_XDP ?
			       link :
			       NULL;
	return half->target == TARGET_PORT && link->kind == LINK_INSIDE_PORT &&
			       link->flags & LINK_XDP_PEER ?
		       link :
		       NULL;
}

/*
 * As route_lookup asks, and with the neighbour. 0: session_route would find all as it
 * is; else BPF_FIB_LKUP_RET_NO_NEIGH, or another way than the half's.
 */
static __always_inline int hop_outside(struct xdp_md *ctx,
				       struct bpf_fib_lookup *fib,
				       const struct packet *p,
				       const struct session_half *half,
				       __u32 zone_id)
{
	struct nat_zone *zone = zone_get(zone_id);
	struct nat_link *link = link_get(half->ifindex);
	struct nat_binding *b = binding_at(half->binding);
	int rc;

	if (!zone || !link)
		return -REASON_PASSED_NO_LINK;
	if (b && b->address != NAT_NO_SLOT && b->realm != link->owner)
		return -REASON_DROPPED_ROUTE_MOVED;
	fib->tot_len = 1;
	fib->ifindex = zone->ifindex;
	fib->l4_protocol = p->proto;
	fib->sport = p->sport;
	fib->dport = p->dport;
	fib_set(fib, p->saddr, p->daddr);
	rc = bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
	if (rc == BPF_FIB_LKUP_RET_SUCCESS && fib->ifindex != half->ifindex)
		return -REASON_DROPPED_ROUTE_MOVED;
	return rc;
}

/* The neighbour that send_to_neighbour would ask for: on the network's device. */
static __always_inline int hop_inside(struct xdp_md *ctx,
				      struct bpf_fib_lookup *fib,
				      const struct session_half *half)
{
	struct nat_zone *zone = zone_get(half->peer_zone);
	nat_addr any = {};
	int rc;

	if (!zone ||
	    (half->target == TARGET_DEVICE && zone->ifindex != half->ifindex))
		return -REASON_PASSED_NO_LINK;
	fib->ifindex = zone->ifindex;
	fib_set(fib, any, half->next_hop);
	rc = bpf_fib_lookup(ctx, fib, sizeof(*fib), BPF_FIB_LOOKUP_OUTPUT);
	if (rc == BPF_FIB_LKUP_RET_SUCCESS && fib->ifindex != zone->ifindex)
		return -REASON_DROPPED_ROUTE_MOVED;
	return rc;
}

/* Packets on other CPUs read it meanwhile. */
static __always_inline void hop_write(struct session_half *half,
				      const void *mac, __u8 epoch)
{
	*(volatile __u8 *)&half->hop_epoch = 0;
	barrier();
	mac_copy(half->hop, mac);
	barrier();
	*(volatile __u8 *)&half->hop_epoch = epoch;
}

static __always_inline bool hop_is_to_be_used(const struct session_half *half,
					      __u32 tick, __u8 epoch)
{
	__u32 mixed = (tick + half->slot) *
		      0x9e3779b1U; /* 2^32 / golden ratio */

	return half->hop_epoch == epoch && half->target != TARGET_PORT &&
	       (mixed >> 16) % HOP_PROBE == 0;
}

/* Finds a half's hop, as of the epoch. 0: it is there; else tc sends. */
NAT_GLOBAL int hop_resolve(struct xdp_md *ctx, const struct packet *p,
			   struct session_half *half, __u32 zone, __u8 epoch)
{
	struct bpf_fib_lookup fib = {};
	__u32 tick = clock_tick();
	__u8 none[6] = {};
	bool outside, used;
	int rc;

	if (!p || !half)
		return -REASON_PASSED_STACK;
	outside = half->target == TARGET_OUTSIDE;
	rc = outside ? hop_outside(ctx, &fib, p, half, zone) :
		       hop_inside(ctx, &fib, half);
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH) /* tc asks for it */
		return -REASON_PASSED_STACK;
	if (rc || !addr_equal(fib_next_hop(&fib), half->next_hop)) {
		hop_write(half, none, epoch);
		if (!outside) /* else tc is to look for the route */
			half->resolved = tick;
		return -REASON_PASSED_STACK;
	}
	used = hop_is_to_be_used(half, tick, epoch);
	if (outside && fib.mtu_result > 1)
		half->mtu = fib.mtu_result;
	half->resolved = tick;
	hop_write(half, fib.dmac, epoch);
	return used ? -REASON_PASSED_STACK : 0;
}

static __always_inline bool hop_is_none(const struct session_half *half)
{
	const __u16 *hop = (const __u16 *)half->hop;

	return !(hop[0] | hop[1] | hop[2]);
}

/* Whether the half's hop is good, or could be made so. */
static __always_inline bool hop_ready(struct xdp_md *ctx, const struct nat *n,
				      struct session_half *half, __u8 epoch)
{
	if ((half->hop_epoch != epoch ||
	     tick_diff(n->tick, half->resolved) > ROUTE_TICKS) &&
	    hop_resolve(ctx, &n->p, half, n->zone, epoch) < 0)
		return false;
	return !hop_is_none(half);
}

#endif /* CONENAT_XDP_SEND_H */
