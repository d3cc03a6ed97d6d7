/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which way the fragments of a datagram go: the one that comes first decides, by
 * one insert, and the others find what it has left. A datagram whose first
 * fragment comes first never gets to the namespace of reorder.h.
 */
#ifndef CONENAT_DATAGRAM_H
#define CONENAT_DATAGRAM_H

#include "owner.h"
#include "reorder.h"
#include "scratch.h"

/* What the fragment at hand says of its datagram. */
SCRATCH(struct nat_fragment, datagram)

static __always_inline void fragment_key_of(const struct packet *p, __u32 zone,
					    bool egress,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->id = p->id;
	key->zone = zone;
	key->proto = ip_fragment_proto(p->proto);
	key->egress = egress;
}

/*
 * The way of a fragment that finds what another of its datagram has left: that one's,
 * if it has gone to be put in order. -LOOK_AGAIN: it has not, and is the first one.
 */
static __always_inline int fragment_joins(const struct __sk_buff *skb,
					  const struct packet *p,
					  const struct nat_fragment *f,
					  const struct nat_fragment *old)
{
	if (!old || !is_recent(old->last_seen) || old->way == f->way)
		return f->way;
	if (p->flags & PACKET_LATER_FRAGMENT)
		return -LOOK_AGAIN;
	if (old->way == FRAGMENT_REORDER && f->way != FRAGMENT_DROP &&
	    skb->tc_index != REORDERED_MARK)
		return FRAGMENT_REORDER;
	return f->way;
}

/*
 * A fragment about to go the way that datagram_get() says, or the one that it has to:
 * a way, which those that follow it go, too, or -REASON_DROPPED_FRAGMENT. -LOOK_AGAIN: as
 * fragment_joins. (Of two datagrams with one identification within 30 s, a fragment may
 * be lost between CPUs.)
 */
NAT_GLOBAL int fragment_put(struct __sk_buff *skb, const struct packet *p,
			    __u32 zone, bool egress)
{
	struct nat_fragment *f = datagram_get();
	struct fragment_key key;
	int rc, way;

	if (!p || !f)
		return -REASON_DROPPED_FRAGMENT;
	way = f->way;
	fragment_key_of(p, zone, egress, &key);
	rc = bpf_map_update_elem(&fragments, &key, f, BPF_NOEXIST);
	if (rc < 0) {
		way = fragment_joins(skb, p, f,
				     bpf_map_lookup_elem(&fragments, &key));
		if (way < 0)
			return way;
		if (way == f->way)
			bpf_map_update_elem(&fragments, &key, f, BPF_ANY);
	}
	return way;
}

static __always_inline int fragment_claim(struct nat *n,
					  const struct session_key *session,
					  __u8 way)
{
	struct nat_fragment *f = datagram_new();
	int rc;

	if (!f)
		return -REASON_DROPPED_FRAGMENT;
	f->last_seen = n->tick;
	f->way = way;
	f->id = n->id;
	f->next = ip_fragment_units(&n->p);
	if (session)
		f->session = *session;
	rc = fragment_put(n->skb, &n->p, n->zone, n->egress);
	if (rc < 0)
		return rc;
	rc = rc == FRAGMENT_REORDER && !n->egress ?
		     reorder_send(n->skb, &n->p, n->zone) :
		     0;
	return reorder_reason(n, rc, -REASON_DIVERTED_FRAGMENT, 0);
}

/*
 * The reason of a first fragment, from which its later ones' follows. A spoofer's says
 * nothing of the datagrams of whom it pretends to be.
 */
static __noinline int fragment_settle(struct nat *n, int rc)
{
	bool passed = -rc <= REASON_LAST_PASSED;
	int diverted;

	if (-rc <= REASON_LAST_DIVERTED || source_is_stolen(n))
		return rc;
	diverted = fragment_claim(n, NULL,
				  passed ? FRAGMENT_PASS : FRAGMENT_DROP);
	return diverted < 0 ? diverted : rc;
}

/*
 * Larger than the inside MTU, and may be fragmented (RFC 4787 REQ-13a): cut there. Of
 * a datagram in fragments, all go there. otherwise: they have been.
 */
static __noinline int reorder_cut(struct nat *n, int otherwise)
{
	int rc;

	if (n->p.flags & (PACKET_LATER_FRAGMENT | PACKET_PART))
		return otherwise;
	n->p.flags |= PACKET_CUT;
	if (n->p.flags & PACKET_FIRST_FRAGMENT)
		rc = fragment_claim(n, NULL, FRAGMENT_REORDER);
	else
		rc = reorder_reason(n, reorder_send(n->skb, &n->p, n->zone),
				    -REASON_DIVERTED_TOO_BIG, 0);
	return rc < 0 ? rc : otherwise;
}

#endif /* CONENAT_DATAGRAM_H */
