/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A first packet from inside: which session it opens, if any. */
#ifndef CONENAT_OUTBOUND_H
#define CONENAT_OUTBOUND_H

#include "hairpin.h"

/* Whether a packet of no session may open one from inside. */
static __always_inline int outbound_may_open(const struct packet *p)
{
	if (p->proto == PROTO_ICMP)
		return p->flags & PACKET_QUERY ? 0 : -REASON_DROPPED_ICMP_TYPE;
	if (p->seen & SEEN_RST)
		return -REASON_DROPPED_TCP_NO_SESSION;
	return 0;
}

/* ref is held for the session; it is the session's, or given back. */
static __noinline int outbound_open(const struct nat *n,
				    const struct binding_ref *ref)
{
	struct nat_binding *b = binding_at(ref->binding);
	struct session_plan *plan = plan_new();
	struct route *r = route_get();

	if (!b || !plan || !r)
		return -REASON_DROPPED_RACE;
	packet_key(&n->p, n->zone, &plan->key);
	plan->ref = *ref;
	plan->reverse_ref = *ref;
	plan->target = TARGET_OUTSIDE;
	plan->peer_zone = NAT_ZONE_OUTSIDE;
	plan->saddr = b->external;
	plan->sport = b->external_port;
	plan->daddr = n->p.daddr;
	plan->dport = n->p.dport;
	plan->ifindex = r->ifindex;
	plan->next_hop = r->next_hop;
	plan->mtu = r->mtu;
	plan->unrouted = r->unknown_hop;
	plan->seen = n->p.seen;
	plan_towards_sender(n, plan);
	return session_open(plan);
}

static __always_inline int outbound_exceptions(struct nat *n,
					       const struct route *r)
{
	if (n->egress) /* the kernel has seen to it */
		return 0;
	if (n->p.ttl <= 1)
		return -REASON_PASSED_TTL;
	if (n->p.flags & PACKET_DF && r->mtu && n->p.segment > r->mtu) {
		n->p.mtu = r->mtu;
		return -REASON_PASSED_TOO_BIG;
	}
	return 0;
}

/*
 * On the kernel's way conntrack knows the connections that conenat has brought in,
 * too: those of an endpoint that is bound, and on the stack path any datagram, whose
 * binding may have ended before conntrack's entry. (A client that is routed to the
 * container's own address is answered by TCP alone there.)
 */
static family_inline bool outbound_is_ours(const struct nat *n,
					   const struct binding_want *want)
{
	struct binding_key key;

	if (!n->egress)
		return false;
	if (n->stack_egress && n->p.proto != IPPROTO_TCP)
		return true;
	return internal_find(want, &key) != NULL;
}

/* The binding that it needs, unless conntrack has its connection. */
static family_inline int outbound_want(const struct nat *n,
				       struct binding_want *want)
{
	struct route *r = route_get();

	if (!want || !r)
		return -REASON_DROPPED_RACE;
	want_of_sender(n, r->realm, want);
	if (!outbound_is_ours(n, want) && inside_answers_conntrack(n))
		return -REASON_PASSED_CONNTRACK;
	return 0;
}

/* Where a packet of no session leaves, if it does: route_get(). 0 or its reason. */
static __noinline int outbound_route(struct nat *n)
{
	struct nat_zone *zone = zone_get(n->zone);
	struct route *r = route_new();
	int rc;

	if (!zone || !r)
		return -REASON_PASSED_NO_LINK;
	rc = route_resolve(n->skb, &n->p, n->egress, zone->ifindex, r);
	if (rc < 0)
		return rc;
	rc = source_admitted(n);
	/* At egress it is late for that: the identity rule has kept masquerade off. */
	if (rc < 0 && !(n->egress && rc == -REASON_PASSED_EXCLUDED))
		return rc;
	if (destination_is_excluded(n->zone, addr_arg(n->p.daddr)))
		return -REASON_PASSED_DESTINATION;
	return outbound_exceptions(n, r);
}

/*
 * A packet from inside that is of no session. 0: there is one now, look again;
 * else the packet's reason.
 */
static __noinline int outbound_miss(struct nat *n)
{
	struct binding_want *want = want_new();
	struct binding_ref ref = {};
	int rc;

	rc = outbound_route(n);
	if (rc == 0)
		rc = outbound_may_open(&n->p);
	/* It may answer what came in by netfilter's NAT, which changes ports. */
	if (rc == 0 && !n->egress && protocol_hides_ports(n->p.proto))
		rc = -REASON_PASSED_STACK;
	if (rc < 0)
		return rc;
	rc = outbound_want(n, want);
	if (rc < 0)
		return rc;
	rc = binding_obtain(n->skb, want, &ref);
	if (rc < 0)
		return outbound_refused(want, rc);
	rc = outbound_open(n, &ref);
	return rc == -LOOK_AGAIN ? 0 : rc;
}

/* The same for any destination. */
static __always_inline int inside_miss(struct nat *n)
{
	if (addr_never_routed(n->p.daddr))
		return -REASON_PASSED_LOCAL;
	if (bpf_map_lookup_elem(&addresses, &n->p.daddr))
		return hairpin_miss(n);
	return kernel_answers(n, outbound_miss(n));
}

#endif /* CONENAT_OUTBOUND_H */
