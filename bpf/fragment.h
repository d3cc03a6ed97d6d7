/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Later fragments, which have no ports: they go as their datagram's first one has
 * gone, which leaves behind what that was (datagram.h). One that comes before it
 * waits for it in the namespace of reorder.h.
 */
#ifndef CONENAT_FRAGMENT_H
#define CONENAT_FRAGMENT_H

#include "owner.h"
#include "session.h"

/*
 * Whether it is the last one, of those that came in order: the identification is
 * free, and the next datagram that has it may come in any.
 */
static __always_inline bool fragment_completes(struct __sk_buff *skb,
					       const struct packet *p,
					       struct nat_fragment *f)
{
	struct ip_fragment this = {};

	if (ip_fragment_of(skb, p, &this) < 0 || this.offset != f->next)
		return false;
	f->next += this.units;
	return !this.more;
}

/* What the first one has left behind; -LOOK_AGAIN: it has not come. */
NAT_GLOBAL int fragment_first_of(struct __sk_buff *skb, const struct packet *p,
				 __u32 zone, bool egress,
				 struct nat_fragment *first)
{
	struct nat_fragment *f;
	struct fragment_key key;

	if (!p || !first)
		return -LOOK_AGAIN;
	fragment_key_of(p, zone, egress, &key);
	f = bpf_map_lookup_elem(&fragments, &key);
	if (!f || !is_recent(f->last_seen) || f->way == FRAGMENT_REORDER)
		return -LOOK_AGAIN;
	*first = *f;
	if (fragment_completes(skb, p, f))
		bpf_map_delete_elem(&fragments, &key);
	return 0;
}

static __always_inline int fragment_translate(struct nat *n,
					      const struct nat_fragment *first)
{
	struct session_half *half = session_find(&first->session);
	bool routed;
	int rc;

	if (n->p.flags & PACKET_SHORT) /* ports that nobody has translated */
		return -REASON_DROPPED_MALFORMED;
	if (!half)
		return -REASON_DROPPED_FRAGMENT;
	n->id = first->id;
	routed = session_routes(n, half);
	rc = session_limits(n, half, routed);
	return rc < 0 ? rc : session_translate(n, half, routed);
}

static __noinline int fragment_follow(struct nat *n,
				      const struct nat_fragment *first)
{
	switch (first->way) {
	case FRAGMENT_TRANSLATE:
		return fragment_translate(n, first);
	case FRAGMENT_PASS:
		return -REASON_PASSED_STACK;
	}
	return -REASON_DROPPED_FRAGMENT;
}

/*
 * otherwise is its reason where nothing can put it in order. -LOOK_AGAIN: on another
 * CPU the first one has come by now.
 */
static __noinline int fragment_early(struct nat *n, int otherwise)
{
	struct nat_config *cfg = config_get();
	int rc = 0;

	if (!cfg || !cfg->reorder_ifindex)
		return otherwise;
	if (n->zone != NAT_ZONE_OUTSIDE)
		rc = source_admitted(n);
	if (rc < 0)
		return rc;
	rc = fragment_claim(n, NULL, FRAGMENT_REORDER);
	return rc == 0 ? -REASON_DROPPED_FRAGMENT : rc;
}

/* A later fragment after its first one; -LOOK_AGAIN: that has not come. */
static family_inline int fragment_known(struct nat *n)
{
	struct nat_fragment first = {};
	int rc = fragment_first_of(n->skb, &n->p, n->zone, n->egress, &first);

	return rc < 0 ? rc : fragment_follow(n, &first);
}

/* A later fragment; early says what to do with one that comes before the first. */
static __always_inline int fragment_forward(struct nat *n,
					    int (*early)(struct nat *n))
{
	int rc = fragment_known(n);

	if (rc != -LOOK_AGAIN)
		return rc;
	rc = early(n);
	if (rc != -LOOK_AGAIN)
		return rc;
	rc = fragment_known(n);
	return rc == -LOOK_AGAIN ? -REASON_DROPPED_RACE : rc;
}

#endif /* CONENAT_FRAGMENT_H */
