/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A first packet from outside: whose it is, and whether it may come in. */
#ifndef CONENAT_INBOUND_H
#define CONENAT_INBOUND_H

#include "conntrack.h"
#include "own.h"

static __noinline int inbound_filtered(const struct nat *n, nat_addr internal,
				       __be16 internal_port, __u16 zone)
{
	struct event_packet e = {
		.internal = internal,
		.internal_port = internal_port,
		.external = n->p.daddr,
		.external_port = n->p.dport,
		.remote = n->p.saddr,
		.remote_port = n->p.sport,
		.zone = zone,
		.proto = n->p.proto,
	};

	event_sampled(&e, EVENT_INBOUND_FILTERED);
	return -REASON_DROPPED_FILTERED;
}

/*
 * On the stack path netfilter goes on with the connections that conenat has taken
 * over from it: the host's rules know them by what they are in its table.
 */
static __always_inline bool
inbound_is_netfilters(const struct nat *n, const struct session_half *half)
{
	return n->stack && half->flags & HALF_NETFILTER &&
	       conntrack_translates(n->skb, &n->p);
}

/* ref is held for the session; it is the session's, or given back. */
static __noinline int inbound_open(const struct nat *n,
				   const struct binding_ref *ref)
{
	struct nat_binding *b = binding_at(ref->binding);
	struct session_plan *plan = plan_new();
	struct nat_zone *zone;

	if (!b || !plan)
		return -REASON_DROPPED_RACE;
	plan->ref = *ref;
	plan->reverse_ref = *ref;
	plan->saddr = n->p.daddr;
	plan->sport = n->p.dport;
	plan->daddr = n->p.saddr;
	plan->dport = n->p.sport;
	plan->peer_zone = NAT_ZONE_OUTSIDE;
	plan->reverse_seen = n->p.seen;
	plan->unrouted = 1;
	plan->flags = HALF_INBOUND;
	plan->key.saddr = b->internal;
	plan->key.sport = b->internal_port;
	plan->key.daddr = n->p.saddr;
	plan->key.dport = n->p.sport;
	plan->key.proto = n->p.proto;
	plan->key.zone = b->zone;
	plan->target = TARGET_OUTSIDE;
	plan->reverse_target = TARGET_DEVICE;
	plan->reverse_next_hop = b->internal;
	zone = zone_get(b->zone);
	if (zone) {
		plan->reverse_ifindex = zone->ifindex;
		plan->reverse_mtu = route_mtu(n->skb, zone->ifindex);
	}
	if (b->zone == NAT_ZONE_HOST)
		plan->target = plan->reverse_target = TARGET_HOST;
	return session_open(plan);
}

/* Addresses that nothing from outside can have. */
static __always_inline bool inbound_is_martian(const struct nat *n, __u16 zone)
{
	return addr_never_routed(n->p.saddr) ||
	       bpf_map_lookup_elem(&addresses, &n->p.saddr) ||
	       address_in_zone(zone, addr_arg(n->p.saddr));
}

/*
 * Whether the host's socket comes before a dynamic binding on the same port, which
 * was there first: one that is connected to just this remote, and one that takes
 * connections, of which the inside host opens those that it has. A UDP socket has
 * what the binding's filter would drop.
 */
static __noinline int inbound_is_hosts(const struct nat *n,
				       const struct nat_binding *b,
				       const struct binding_ref *ref)
{
	int socket = packet_socket(n->skb, &n->p);

	if (socket != HOST_SOCKET_WAITING)
		return socket == HOST_SOCKET_CONNECTED;
	return n->p.proto == IPPROTO_TCP || !filter_allows(b, ref, n->p.saddr);
}

/* It would end here on its way to the inside host: it opens nothing. */
static __always_inline int inbound_ttl(const struct nat *n, __u16 zone)
{
	bool routed = !n->stack && zone != NAT_ZONE_HOST;

	return routed && n->p.ttl <= 1 ? -REASON_DROPPED_TTL : 0;
}

/* Whether the binding admits a packet that is of no session of its. */
static __noinline int inbound_admit(const struct nat *n,
				    const struct binding_ref *ref)
{
	struct nat_binding *b = binding_at(ref->binding);

	if (!b)
		return -REASON_DROPPED_RACE;
	if (inbound_is_martian(n, b->zone))
		return -REASON_DROPPED_SPOOFED;
	if (!(b->flags & BINDING_STATIC)) {
		if (!(b->flags & BINDING_OWN) && inbound_is_hosts(n, b, ref))
			return -REASON_PASSED_HOST;
		if (conntrack_brings_in(n->skb, &n->p))
			return -REASON_PASSED_CONNTRACK;
	}
	/* An ICMP reply that nobody asked for opens nothing. */
	if (n->p.proto == PROTO_ICMP || !filter_allows(b, ref, n->p.saddr))
		return inbound_filtered(n, b->internal, b->internal_port,
					b->zone);
	if (n->p.proto != IPPROTO_TCP || packet_opens(&n->p))
		return inbound_ttl(n, b->zone);
	/* It began before this binding did. */
	if (packet_is_hosts(n))
		return -REASON_PASSED_HOST;
	return conntrack_brings_in(n->skb, &n->p) ?
		       -REASON_PASSED_CONNTRACK :
		       -REASON_DROPPED_TCP_NO_SESSION;
}

/*
 * To an address that is one inside host's alone, and an endpoint of it that nobody
 * holds. 0: own_obtain has its binding.
 */
static __noinline int inbound_own(const struct nat *n)
{
	struct nat_external *e = own_external(n->p.daddr);

	/* An ICMP reply that nobody asked for: the host may have. */
	if (!e || (n->p.proto == PROTO_ICMP && !(n->p.flags & PACKET_QUERY)))
		return -REASON_PASSED_UNBOUND;
	if (inbound_is_martian(n, e->zone))
		return -REASON_DROPPED_SPOOFED;
	if (packet_is_hosts(n))
		return -REASON_PASSED_HOST;
	if (conntrack_brings_in(n->skb, &n->p))
		return -REASON_PASSED_CONNTRACK;
	if (!own_is_open(e->zone, e->internal, n->p.proto))
		return inbound_filtered(n, e->internal, n->p.dport, e->zone);
	if (n->p.proto == IPPROTO_TCP && !packet_opens(&n->p))
		return -REASON_DROPPED_TCP_NO_SESSION;
	return inbound_ttl(n, e->zone);
}

/* The binding that a packet of no session goes to, held. */
static __noinline int inbound_binding(const struct nat *n,
				      struct binding_ref *ref)
{
	struct claim_key key;
	int rc;

	if (n->p.flags & PACKET_QUERY)
		return -REASON_PASSED_UNBOUND; /* the host answers pings */
	claim_key_of(n->p.daddr, n->p.dport, n->p.proto, &key);
	rc = binding_by_external(&key, ref);
	if (rc == 0)
		rc = inbound_admit(n, ref);
	return rc < 0 ? rc : binding_hold_session(ref);
}

/*
 * A packet from outside that is of no session. 0: there is one now, look again;
 * else the packet's reason.
 */
static __noinline int inbound_miss(const struct nat *n)
{
	struct binding_ref ref = {};
	int rc = inbound_binding(n, &ref);

	if (rc == -REASON_PASSED_UNBOUND) {
		rc = inbound_own(n);
		if (rc == 0)
			rc = own_obtain(n, &ref);
	}
	if (rc < 0)
		return rc;
	rc = inbound_open(n, &ref);
	return rc == -LOOK_AGAIN ? 0 : rc;
}

/* Whether conntrack takes it for an answer; of ICMP, nobody can ask it here. */
static __always_inline bool inbound_answers(const struct nat *n)
{
	if (n->p.proto == PROTO_ICMP)
		return n->p.flags & PACKET_REPLY;
	return conntrack_packet(n->skb, &n->p) == CONNTRACK_REPLY;
}

/*
 * What an excluded destination answers comes to the inside host's own address. Docker
 * (28 on) drops that in raw PREROUTING, before conntrack can tell whose it is: it takes
 * the stack path's way in (session_enters). In fragments, it stays as it is.
 */
static __noinline int inbound_excluded(struct nat *n)
{
	struct rewrite to = {
		.saddr = n->p.saddr,
		.sport = n->p.sport,
		.dport = n->p.dport,
		.by_mark = true,
	};
	struct nat_external *e;
	__u32 zone, mark;
	int rc;

	if (!destinations_are_excluded() ||
	    n->p.flags & PACKET_FIRST_FRAGMENT ||
	    bpf_map_lookup_elem(&addresses, &n->p.daddr))
		return -REASON_PASSED_UNBOUND;
	zone = zone_of_route(n->skb, addr_arg(n->p.daddr));
	if (zone == NAT_ZONE_OUTSIDE ||
	    !destination_is_excluded(zone, addr_arg(n->p.saddr)) ||
	    !inbound_answers(n))
		return -REASON_PASSED_UNBOUND;
	e = outside_external(n->skb);
	if (!e || addr_is_any(e->address))
		return -REASON_PASSED_UNBOUND;
	to.daddr = addr_to_mark(n->p.daddr, e->address, &mark);
	rc = rewrite_packet(n->skb, &n->p, &to);
	if (rc < 0)
		return rc;
	n->skb->mark = mark;
	n->action = VERDICT_NEXT;
	return -REASON_TRANSLATED_STACK;
}

#endif /* CONENAT_INBOUND_H */
