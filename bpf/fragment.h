/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments that come in order: the first one has the ports and leaves behind
 * which session its datagram belongs to; the later ones look there. Out of
 * order they need the kernel's defragmenter (docs/decisions).
 */
#ifndef CONENAT_FRAGMENT_H
#define CONENAT_FRAGMENT_H

#include "session.h"

#define FRAGMENT_TICKS 1800 /* 30 s: the kernel's ipfrag_time */

static __always_inline void fragment_key_of(const struct nat *n,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = n->p.saddr;
	key->daddr = n->p.daddr;
	key->id = n->p.id;
	key->zone = n->zone;
	key->proto = n->p.proto;
}

/* Called with the verdict of a datagram's first fragment. */
static __noinline int fragment_remember(const struct nat *n,
					const struct session_key *session,
					int rc)
{
	struct nat_fragment f = {
		.session = *session,
		.last_seen = n->tick,
		.stack = -rc > REASON_LAST_TRANSLATED,
		.id = n->id,
	};
	struct fragment_key key;

	if (-rc > REASON_LAST_PASSED)
		return 0;
	fragment_key_of(n, &key);
	bpf_map_update_elem(&fragments, &key, &f, BPF_ANY);
	return 0;
}

/* A later fragment: of a known session, the kernel's, or of no known first. */
static __noinline int fragment_forward(struct nat *n, int unknown)
{
	struct session_half *half;
	struct nat_fragment *f;
	struct fragment_key key;

	fragment_key_of(n, &key);
	f = bpf_map_lookup_elem(&fragments, &key);
	if (!f || tick_diff(n->tick, f->last_seen) > FRAGMENT_TICKS)
		return unknown;
	if (f->stack && !n->egress)
		return -REASON_PASSED_STACK;
	half = session_find(&f->session);
	if (!half)
		return unknown;
	n->id = f->id;
	return session_translate(n, half);
}

#endif /* CONENAT_FRAGMENT_H */
