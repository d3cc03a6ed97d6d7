/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Hairpinning (RFC 4787 REQ-9): a packet from inside to a bound external
 * endpoint goes to the inside host behind it, from the sender's own external
 * endpoint (9a). Within one network every binding can be reached, whatever the
 * filtering: both are inside. From another network only a static binding can,
 * so that isolation between networks stays.
 */
#ifndef CONENAT_HAIRPIN_H
#define CONENAT_HAIRPIN_H

#include "conntrack.h"
#include "own.h"

/*
 * A connection that began before the binding that is in its way: a socket of the
 * host's is its other end, or netfilter translates its destination.
 */
static __always_inline bool hairpin_is_older(const struct nat *n)
{
	return packet_is_hosts(n) ||
	       conntrack_packet(n->skb, &n->p) == CONNTRACK_ORIGINAL_DNAT;
}

/*
 * Whether a packet from inside answers a connection that conntrack knows. Of two hosts
 * with one address it knows the one that the kernel's routing finds.
 */
static __always_inline bool inside_answers_conntrack(const struct nat *n)
{
	return answers_conntrack(n->skb, &n->p) &&
	       (!zone_overlaps(n->zone) ||
		zone_of_route(n->skb, addr_arg(n->p.saddr)) == n->zone);
}

/*
 * Whose binding a packet from inside needs: its own source endpoint's, behind an
 * address of the realm.
 */
static __noinline int want_of_sender(const struct nat *n, __u16 realm,
				     struct binding_want *want)
{
	want->internal = n->p.saddr;
	want->internal_port = n->p.sport;
	want->remote = n->p.daddr;
	want->remote_port = n->p.dport;
	want->zone = n->zone;
	want->realm = realm;
	want->proto = n->p.proto;
	want->mapping = mapping_of(n->zone, n->p.proto);
	if (zone_is_routed(n->zone))
		want_itself(want);
	return 0;
}

/* The way back to the sender: its own bridge port, or its network's device. */
static __always_inline void plan_towards_sender(const struct nat *n,
						struct session_plan *plan)
{
	struct nat_link *link = link_get(n->skb->ifindex);
	struct nat_zone *zone = zone_get(n->zone);

	plan->reverse_next_hop = n->p.saddr;
	plan->reverse_target = TARGET_DEVICE;
	if (zone) {
		plan->reverse_ifindex = zone->ifindex;
		plan->reverse_mtu = route_mtu(n->skb, zone->ifindex);
	}
	if (!link || link->kind != LINK_INSIDE_PORT || n->egress)
		return;
	plan->port_ifindex = link->ifindex;
	if (!(link->flags & LINK_PEER))
		return;
	plan->reverse_target = TARGET_PORT;
	plan->reverse_ifindex = link->ifindex;
}

/* Sender and receiver are one endpoint: one half is both directions. */
static __always_inline void plan_self(struct session_plan *plan)
{
	plan->flags |= HALF_SELF;
	plan->target = plan->reverse_target;
	plan->ifindex = plan->reverse_ifindex;
	plan->mtu = plan->reverse_mtu;
	binding_drop(plan->reverse_ref.binding, plan->reverse_ref.generation);
}

/* Both references are held for the session; they are its, or given back. */
static __noinline int hairpin_open(const struct nat *n,
				   const struct binding_ref *from,
				   const struct binding_ref *to)
{
	struct nat_binding *sender = binding_at(from->binding);
	struct nat_binding *receiver = binding_at(to->binding);
	struct session_plan *plan = plan_new();
	struct nat_zone *zone;

	if (!sender || !receiver || !plan)
		return -REASON_DROPPED_RACE;
	packet_key(&n->p, n->zone, &plan->key);
	plan->ref = *from;
	plan->reverse_ref = *to;
	plan->flags = HALF_HAIRPIN;
	plan->target = TARGET_DEVICE;
	plan->saddr = sender->external;
	plan->sport = sender->external_port;
	plan->daddr = receiver->internal;
	plan->dport = receiver->internal_port;
	plan->next_hop = receiver->internal;
	plan->peer_zone = receiver->zone;
	plan->seen = n->p.seen;
	zone = zone_get(receiver->zone);
	if (zone) {
		plan->ifindex = zone->ifindex;
		plan->mtu = route_mtu(n->skb, zone->ifindex);
	}
	plan_towards_sender(n, plan);
	if (from->binding == to->binding)
		plan_self(plan);
	return session_open(plan);
}

/* Whom a hairpin goes to. */
struct hairpin_receiver {
	nat_addr internal;
	__u16 zone;
	__u8 flags; /* of its binding */
};

static __always_inline bool hairpin_reaches(const struct nat *n,
					    const struct hairpin_receiver *to)
{
	struct nat_zone *zone = zone_get(n->zone);

	if (to->flags & BINDING_STATIC)
		return to->zone != NAT_ZONE_HOST;
	if (to->flags & BINDING_OWN &&
	    own_is_open(to->zone, to->internal, n->p.proto))
		return true;
	return to->zone == n->zone && zone && !(zone->flags & ZONE_ISOLATED);
}

/* The binding of the sender, behind the receiver's external address. */
static __always_inline int hairpin_sender(const struct nat *n, __u16 realm,
					  struct binding_ref *from)
{
	struct binding_want *want = want_new();
	int rc;

	if (!want)
		return -REASON_DROPPED_RACE;
	want_of_sender(n, realm, want);
	rc = binding_obtain(n->skb, want, from);
	return rc < 0 ? outbound_refused(want, rc) : 0;
}

/* Whether a packet of no session may open a hairpin with that binding. */
static __noinline int hairpin_admit(const struct nat *n,
				    const struct hairpin_receiver *to)
{
	int rc;

	/* The host's own connection to a port that Docker publishes. */
	if (inside_answers_conntrack(n))
		return -REASON_PASSED_CONNTRACK;
	if (!hairpin_reaches(n, to))
		return -REASON_DROPPED_ISOLATED;
	/* Between networks the host's rules are to see it: Docker's NAT leads on. */
	if (n->stack && to->zone != n->zone)
		return to->flags & BINDING_PUBLISHED ? -REASON_PASSED_STACK :
						       -REASON_DROPPED_ISOLATED;
	rc = source_admitted(n);
	if (rc < 0)
		return rc;
	if (!packet_opens(&n->p)) {
		if (hairpin_is_older(n))
			return -REASON_PASSED_CONNTRACK;
		if (n->p.proto == IPPROTO_TCP)
			return -REASON_DROPPED_TCP_NO_SESSION;
	}
	return n->p.ttl <= 1 ? -REASON_DROPPED_TTL : 0;
}

/* to is held; it is the session's, or given back. */
static __always_inline int hairpin_between(const struct nat *n,
					   const struct binding_ref *to)
{
	struct nat_binding *receiver = binding_at(to->binding);
	struct binding_ref from = {};
	int rc = -REASON_DROPPED_RACE;

	if (receiver)
		rc = hairpin_sender(n, receiver->realm, &from);
	if (rc < 0) {
		binding_drop(to->binding, to->generation);
		return rc;
	}
	return hairpin_open(n, &from, to);
}

/* The binding that a packet to an external endpoint goes to, held. */
static __noinline int hairpin_binding(const struct nat *n,
				      struct binding_ref *ref)
{
	struct hairpin_receiver to = {};
	struct nat_binding *b;
	struct claim_key key;
	int rc;

	claim_key_of(n->p.daddr, n->p.dport, n->p.proto, &key);
	rc = binding_by_external(&key, ref);
	if (rc < 0)
		return rc;
	b = binding_at(ref->binding);
	if (!b)
		return -REASON_DROPPED_RACE;
	to.internal = b->internal;
	to.zone = b->zone;
	to.flags = b->flags;
	rc = hairpin_admit(n, &to);
	return rc < 0 ? rc : binding_hold_session(ref);
}

/* The same of an address that is one inside host's alone; 0: own_obtain has it. */
static __noinline int hairpin_own(const struct nat *n)
{
	struct nat_external *e = own_external(n->p.daddr);
	struct hairpin_receiver to = { .flags = BINDING_OWN };

	if (!e)
		return -REASON_PASSED_LOCAL;
	to.internal = e->internal;
	to.zone = e->zone;
	return hairpin_admit(n, &to);
}

/* Nobody could tell two senders behind one address apart; the host gets what it is sent. */
static __noinline int hairpin_portless(const struct nat *n)
{
	return own_external(n->p.daddr) ? -REASON_DROPPED_PROTOCOL :
					  -REASON_PASSED_LOCAL;
}

/*
 * A packet of no session, from inside to an external address: the host's own,
 * or for the binding that holds the endpoint. 0: there is a session now.
 */
static __noinline int hairpin_miss(const struct nat *n)
{
	struct binding_ref to = {};
	int rc = -REASON_PASSED_UNBOUND;

	if (n->p.flags & PACKET_PORTLESS)
		return hairpin_portless(n);
	if (n->p.proto != PROTO_ICMP)
		rc = hairpin_binding(n, &to);
	else if (!(n->p.flags & PACKET_QUERY))
		rc = -REASON_PASSED_HOST;
	if (rc == -REASON_PASSED_UNBOUND) {
		rc = hairpin_own(n);
		if (rc == 0)
			rc = own_obtain(n, &to);
	}
	if (rc == -REASON_PASSED_HOST)
		return -REASON_PASSED_LOCAL;
	if (rc < 0)
		return rc;
	rc = hairpin_between(n, &to);
	return rc == -LOOK_AGAIN ? 0 : rc;
}

#endif /* CONENAT_HAIRPIN_H */
