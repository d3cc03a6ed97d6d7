/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * 1:1: an external address that is one inside host's alone. Whatever port of it a
 * packet goes to, and a ping, is that host's, as its filtering behaviour says: a
 * binding comes about with the first packet, from either side. What the host itself
 * holds there it keeps: its claims and its connected sockets.
 *
 * So is what has no ports (protocol.h), from any remote that its filtering of UDP lets
 * in.
 */
#ifndef CONENAT_OWN_H
#define CONENAT_OWN_H

#include "session.h"

/* The slot of an external address that one inside host has; NULL: it is shared. */
static __always_inline struct nat_external *own_external(nat_addr address)
{
	struct nat_external *e = external_of(address);

	return e && !addr_is_any(e->internal) ? e : NULL;
}

/* Whether anybody may open a session with a host that has an address. */
static __always_inline bool own_is_open(__u16 zone, nat_addr internal,
					__u8 proto)
{
	return filtering_of(zone, addr_arg(internal), proto) ==
	       NAT_ENDPOINT_INDEPENDENT;
}

/*
 * The binding of the endpoint that a packet goes to, with one more reference; made
 * where there is none. -REASON_DROPPED_CONFLICT: what the inside host has there is
 * bound to another endpoint, and goes on so until that ends.
 */
static __always_inline int own_obtain(const struct nat *n,
				      struct binding_ref *ref)
{
	struct nat_address *a = bpf_map_lookup_elem(&addresses, &n->p.daddr);
	struct nat_external *e = a ? external_at(a->slot) : NULL;
	struct binding_want *want = want_new();
	struct nat_binding *b;
	int rc;

	if (!e || addr_is_any(e->internal) || !want)
		return -REASON_PASSED_UNBOUND;
	want->flags = BINDING_OWN;
	want->internal = e->internal;
	want->external = n->p.daddr;
	want->internal_port = n->p.dport;
	want->remote = n->p.saddr;
	want->remote_port = n->p.sport;
	want->zone = e->zone;
	want->realm = e->realm;
	want->address = a->slot;
	want->proto = n->p.proto;
	if (n->p.flags & PACKET_PORTLESS)
		want->mapping = NAT_ADDRESS_DEPENDENT;
	rc = binding_obtain(n->skb, want, ref);
	if (rc < 0)
		return outbound_refused(want, rc);
	b = binding_at(ref->binding);
	if (b && addr_equal(b->external, n->p.daddr) &&
	    b->external_port == n->p.dport)
		return 0;
	binding_drop(ref->binding, ref->generation);
	return -REASON_DROPPED_CONFLICT;
}

#endif /* CONENAT_OWN_H */
