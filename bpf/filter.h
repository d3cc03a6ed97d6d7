/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Filtering behaviour (RFC 4787 section 5): may this remote send to this
 * binding? Endpoint-independent: always. Address-and-port-dependent: only where
 * a session is, which the session lookup has answered already.
 * Address-dependent: where a permission is; it lives as long as a session of
 * the binding with that remote address does.
 */
#ifndef CONENAT_FILTER_H
#define CONENAT_FILTER_H

#include "binding.h"
#include "owner.h"

#define PERMISSION_TRIES 4

static __always_inline void permission_key_of(const struct binding_ref *ref,
					      nat_addr remote,
					      struct permission_key *key)
{
	key->binding = ref->binding;
	key->generation = ref->generation;
	key->remote = remote;
}

/*
 * One more reference on an entry that was looked up, unless it is ending, or is
 * another key's by now: the hash may have given the element away meanwhile. What
 * is added to one that is ending ends with it.
 */
static __always_inline bool permission_add(struct permission *p,
					   const struct permission_key *key)
{
	if (__sync_fetch_and_add(&p->references, 1) & PERMISSION_DYING)
		return false;
	if (bpf_map_lookup_elem(&permissions, key) == p)
		return true;
	__sync_fetch_and_add(&p->references, -1);
	return false;
}

/* One more session with that remote address. */
NAT_GLOBAL int permission_hold(const struct binding_ref *ref,
			       nat_addr_arg remote)
{
	struct permission fresh = { .references = 1 };
	struct permission_key key;
	struct permission *p;
	int i;

	if (!ref)
		return -REASON_DROPPED_RACE;
	permission_key_of(ref, addr_of(remote), &key);
	for (i = 0; i < PERMISSION_TRIES; i++) {
		p = bpf_map_lookup_elem(&permissions, &key);
		if (p && permission_add(p, &key))
			return 0;
		if (!p && bpf_map_update_elem(&permissions, &key, &fresh,
					      BPF_NOEXIST) == 0)
			return 0;
	}
	return -REASON_DROPPED_SESSIONS_FULL;
}

NAT_GLOBAL int permission_drop(const struct binding_ref *ref,
			       nat_addr_arg remote)
{
	struct permission_key key;
	struct permission *p;

	if (!ref)
		return 0;
	permission_key_of(ref, addr_of(remote), &key);
	p = bpf_map_lookup_elem(&permissions, &key);
	if (!p || __sync_fetch_and_add(&p->references, -1) != 1)
		return 0;
	if (__sync_val_compare_and_swap(&p->references, 0, PERMISSION_DYING) ==
	    0)
		bpf_map_delete_elem(&permissions, &key);
	return 0;
}

static __always_inline bool permission_exists(const struct binding_ref *ref,
					      nat_addr remote)
{
	struct permission_key key;

	permission_key_of(ref, remote, &key);
	return bpf_map_lookup_elem(&permissions, &key) != NULL;
}

/* Whether a remote that has no session with the binding may open one. */
static __always_inline bool filter_allows(const struct nat_binding *b,
					  const struct binding_ref *ref,
					  nat_addr remote)
{
	if (b->flags & BINDING_STATIC)
		return true;
	switch (filtering_of(b->zone, addr_arg(b->internal), b->proto)) {
	case NAT_ENDPOINT_INDEPENDENT:
		return true;
	case NAT_ADDRESS_DEPENDENT:
		return permission_exists(ref, remote);
	default:
		return false;
	}
}

#endif /* CONENAT_FILTER_H */
