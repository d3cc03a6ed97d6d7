/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a packet leaves: asked of the kernel's routing (ip rule and all its
 * tables) once per session, and once more a second while it is in use, so that
 * a changed route is followed whether a daemon lives or not.
 */
#ifndef CONENAT_ROUTE_H
#define CONENAT_ROUTE_H

#include "parse.h"
#include "scratch.h"

#define ROUTE_TICKS 60 /* about 1 s */

struct route {
	__u32 ifindex;
	nat_addr next_hop;
	__u16 mtu; /* 0: not known */
	__u16 realm;
	__u8 unknown_hop; /* for the direct path, to be looked up then */
	__u8 pad[3];
};

SCRATCH(struct route, route)

/* What is known of the packet at hand, for all that decides about it. */
struct nat {
	struct __sk_buff *skb;
	struct packet p;
	__u32 tick;
	__u16 zone; /* that it comes from */
	nat_id id; /* of the datagram from here on; 0: its own */
	int action; /* for a packet that was translated */
	__u8 egress; /* at the outside egress hook */
	__u8 stack; /* the interface's packets go the kernel's way */
	__u8 stack_egress; /* at egress of an interface whose path is the stack */
	__u8 from_port; /* at a bridge port: the sender's own */
	__u8 drop_unsolicited; /* LINK_DROP_UNSOLICITED of the interface */
};

/*
 * Why a packet from inside goes to the kernel, which answers its sender: by its routing,
 * which may lead to another network's host. So the NAT answers where it might.
 */
static __always_inline int kernel_answers(const struct nat *n, int rc)
{
	if (n->egress || !zone_overlaps(n->zone))
		return rc;
	switch (rc) {
	case -REASON_PASSED_TTL:
		return -REASON_DROPPED_TTL;
	case -REASON_PASSED_TOO_BIG:
		return -REASON_DROPPED_TOO_BIG;
	case -REASON_PASSED_NO_ROUTE:
		return -REASON_DROPPED_NO_ROUTE;
	}
	return rc;
}

static __always_inline int route_error(int rc)
{
	if (rc < 0) /* the inside device has gone: nothing may leak out */
		return -REASON_DROPPED_REWRITE;
	switch (rc) {
	case BPF_FIB_LKUP_RET_NOT_FWDED: /* local, broadcast, multicast */
		return -REASON_PASSED_LOCAL;
	default: /* blackhole, unreachable, forwarding off: the kernel answers */
		return -REASON_PASSED_NO_ROUTE;
	}
}

static __always_inline __u16 route_mtu(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	if (bpf_check_mtu(skb, ifindex, &mtu, 0, 0) < 0)
		return 0;
	return mtu > 0xffff ? 0xffff : mtu;
}

/* At egress the kernel has chosen: the interface that the packet leaves by. */
static __always_inline int route_taken(struct __sk_buff *skb, struct route *r)
{
	struct nat_link *link = link_get(skb->ifindex);

	if (!link || link->kind != LINK_OUTSIDE)
		return -REASON_PASSED_NOT_OUTSIDE;
	r->ifindex = skb->ifindex;
	r->realm = link->owner;
	r->unknown_hop = 1;
	return 0;
}

/* The route from an inside device (iif) to daddr, if it leads outside. */
NAT_GLOBAL int route_lookup(struct __sk_buff *skb, const struct packet *p,
			    __u32 iif, struct route *r)
{
	struct bpf_fib_lookup fib = {
		.tot_len = 1, /* so that the route's MTU is answered */
		.ifindex = iif,
	};
	__u32 flags = fib_skip_neigh ? BPF_FIB_LOOKUP_SKIP_NEIGH : 0;
	struct nat_link *link;
	int rc;

	if (!p || !r)
		return -REASON_PASSED_NO_ROUTE;
	fib.l4_protocol = p->proto;
	fib.sport = p->sport;
	fib.dport = p->dport;
	fib_set(&fib, p->saddr, p->daddr);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), flags);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return route_error(rc);
	link = link_get(fib.ifindex);
	if (!link || link->kind != LINK_OUTSIDE)
		return -REASON_PASSED_NOT_OUTSIDE;
	r->ifindex = fib.ifindex;
	r->realm = link->owner;
	r->next_hop = fib_next_hop(&fib);
	/* Without a neighbour and the flag, the kernel leaves mtu_result out. */
	r->mtu = fib.mtu_result > 1 ? fib.mtu_result :
				      route_mtu(skb, fib.ifindex);
	return 0;
}

/* The route that a packet from inside takes, if it leads outside. */
static __always_inline int route_resolve(struct __sk_buff *skb,
					 const struct packet *p, bool egress,
					 __u32 iif, struct route *r)
{
	return egress ? route_taken(skb, r) : route_lookup(skb, p, iif, r);
}

/*
 * The route to daddr by an outside's interface, for what has its external address
 * as source: as the host's own packets from there are routed.
 */
NAT_GLOBAL int route_by_realm(struct __sk_buff *skb, const struct packet *p,
			      __u32 realm_id, nat_addr_arg external,
			      struct route *r)
{
	struct nat_realm *realm = realm_get(realm_id);
	struct bpf_fib_lookup fib = { .tot_len = 1 };
	__u32 flags = BPF_FIB_LOOKUP_OUTPUT;
	int rc;

	if (!p || !r || !realm || !realm->ifindex)
		return -REASON_PASSED_NO_ROUTE;
	if (fib_skip_neigh)
		flags |= BPF_FIB_LOOKUP_SKIP_NEIGH;
	fib.l4_protocol = p->proto;
	fib_set(&fib, addr_of(external), p->daddr);
	fib.ifindex = realm->ifindex;
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), flags);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return route_error(rc);
	if (fib.ifindex != realm->ifindex)
		return -REASON_PASSED_NOT_OUTSIDE;
	r->ifindex = fib.ifindex;
	r->realm = realm_id;
	r->next_hop = fib_next_hop(&fib);
	r->mtu = fib.mtu_result > 1 ? fib.mtu_result :
				      route_mtu(skb, fib.ifindex);
	return 0;
}

/* BPF_FIB_LKUP_RET_* of what comes by an interface for an address; *ifindex: where to. */
static __always_inline int route_towards(struct __sk_buff *skb, nat_addr addr,
					 __u32 *ifindex)
{
	struct bpf_fib_lookup fib = { .ifindex = *ifindex };
	__u32 flags = fib_skip_neigh ? BPF_FIB_LOOKUP_SKIP_NEIGH : 0;
	nat_addr any = {};
	int rc;

	fib_set(&fib, any, addr);
	rc = bpf_fib_lookup(skb, &fib, sizeof(fib), flags);
	*ifindex = fib.ifindex;
	return rc;
}

/* The zone that the kernel's routing finds an address in; else the outside's. */
NAT_GLOBAL __u32 zone_of_route(struct __sk_buff *skb, nat_addr_arg addr)
{
	__u32 ifindex = skb->ifindex;
	struct nat_link *link;
	int rc;

	rc = route_towards(skb, addr_of(addr), &ifindex);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return NAT_ZONE_OUTSIDE;
	link = link_get(ifindex);
	return link_is_inside(link) ? link->owner : NAT_ZONE_OUTSIDE;
}

/*
 * Whether routing takes an address that was sent from for another host's: it is no
 * network's broadcast address, and none of the host's own.
 */
NAT_GLOBAL bool address_is_remote(struct __sk_buff *skb, nat_addr_arg addr,
				  __u32 ifindex)
{
	int rc = route_towards(skb, addr_of(addr), &ifindex);

	return rc >= 0 && rc != BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* The host's own addresses stay its own, within a network's prefix, too. */
static __always_inline bool address_is_hosts(const struct nat *n)
{
	return bpf_map_lookup_elem(&addresses, &n->p.daddr) ||
	       !address_is_remote(n->skb, addr_arg(n->p.daddr),
				  n->skb->ifindex);
}

#endif /* CONENAT_ROUTE_H */
