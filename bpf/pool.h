/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which external address an inside host gets, of those that an outside has for it:
 * its own set's, or its network's, or the outside's default pool. Paired (RFC 4787
 * REQ-2, RFC 6888 REQ-2): the same one for all its bindings there. Not what comes
 * first and not what has most room, but the highest of a hash of the host and each
 * address: the same after a restart, and an address more moves few hosts. A host
 * that has bindings is not moved at all: its entry of hosts says where it is.
 *
 * Asked when a binding is made, never by a packet that has one.
 */
#ifndef CONENAT_POOL_H
#define CONENAT_POOL_H

#include "allocate.h"
#include "usage.h"

#define PAIR_REALM(pair) ((__u16)((pair) >> 48) - 1)
#define PAIR_SET(pair) ((__u16)((pair) >> 32))
#define PAIR_GENERATION(pair) ((__u16)((pair) >> 16))
#define PAIR_SLOT(pair) ((__u16)(pair))

static __always_inline struct nat_external *external_of(nat_addr address)
{
	struct nat_address *a = bpf_map_lookup_elem(&addresses, &address);

	return a ? external_at(a->slot) : NULL;
}

/* Whose addresses a binding may have: the host's, its network's, the realm's. */
static __always_inline __u16 pool_set(const struct binding_want *want)
{
	struct nat_owner *owner = owner_of(want->zone, want->internal);
	struct nat_zone *zone = zone_get(want->zone);

	if (owner && owner->set)
		return owner->set;
	return zone && zone->set ? zone->set : want->realm;
}

/* Not where another host has all of an address. */
static __always_inline bool external_admits(const struct nat_external *e,
					    const struct binding_want *want)
{
	return e->realm == want->realm && !addr_is_any(e->address) &&
	       (addr_is_any(e->internal) ||
		(addr_equal(e->internal, want->internal) &&
		 e->zone == want->zone));
}

/* What the remote's packets would be found by, from outside. */
SCRATCH(struct session_key, answer)

/*
 * Whether somebody talks to the remote by an external address already, where nothing
 * but the remote tells whose an answer is. Of two that ask at once, the session that
 * is inserted first decides.
 */
NAT_GLOBAL bool remote_is_taken(const struct binding_want *want,
				nat_addr_arg external)
{
	struct session_key *key = answer_new();

	if (!want || !key || !protocol_is_portless(want->proto))
		return false;
	key->saddr = want->remote;
	key->daddr = addr_of(external);
	key->proto = want->proto;
	return bpf_map_lookup_elem(&sessions, key);
}

struct pool_walk {
	struct nat_set *set;
	const struct binding_want *want;
	__u32 seed; /* of the host */
	__u32 best;
	__u16 slot; /* of the best one */
	bool found;
	bool taken; /* one would do, but for remote_is_taken */
};

static long pool_walk_step(__u32 index, void *data)
{
	struct pool_walk *w = data;
	struct nat_external *e;
	struct nat_address *a;
	nat_addr address;
	__u32 weight;

	if (!w->set || index >= w->set->count || index >= NAT_ADDRESSES)
		return 1;
	address = w->set->address[index];
	weight = addr_hash(address, w->seed);
	if (w->found && weight <= w->best)
		return 0;
	a = bpf_map_lookup_elem(&addresses, &address);
	e = a ? external_at(a->slot) : NULL;
	if (!e || !external_admits(e, w->want))
		return 0;
	if (remote_is_taken(w->want, addr_arg(address))) {
		w->taken = true;
		return 0;
	}
	w->best = weight;
	w->slot = a->slot;
	w->found = true;
	return 0;
}

/* The slot of the address that a host gets of a set; negative: there is none. */
static __noinline int pool_best(const struct binding_want *want, __u32 set)
{
	struct nat_realm *realm = realm_get(want->realm);
	struct nat_config *cfg = config_get();
	struct pool_walk w = {
		.seed = addr_hash(want->internal, want->zone),
		.want = want,
	};

	if (set == want->realm && realm && realm->pool == 1)
		return realm->slot;
	w.set = bpf_map_lookup_elem(&sets, &set);
	if (!cfg)
		return -REASON_DROPPED_NO_ADDRESS;
	/*
	 * Before Linux 6.7 a callback is verified once, with what is there before its
	 * first call: a branch on a constant false would be taken out.
	 */
	w.found = cfg->zero;
	w.taken = cfg->zero;
	if (!w.set || bpf_loop(NAT_ADDRESSES, pool_walk_step, &w, 0) < 0)
		return -REASON_DROPPED_NO_ADDRESS;
	if (w.found)
		return w.slot;
	return w.taken ? -REASON_DROPPED_REMOTE_TAKEN :
			 -REASON_DROPPED_NO_ADDRESS;
}

static __always_inline __u64 pair_of(__u16 realm, __u16 set, __u16 slot,
				     const struct nat_external *e)
{
	return (__u64)(realm + 1) << 48 | (__u64)set << 32 |
	       (__u64)e->generation << 16 | slot;
}

/* Whether a host may go on with the address that it has had. */
static __always_inline bool pair_holds(__u64 pair, __u16 set,
				       const struct binding_want *want)
{
	struct nat_external *e = external_at(PAIR_SLOT(pair));

	if (!e || PAIR_SET(pair) != set ||
	    e->generation != PAIR_GENERATION(pair) || !external_admits(e, want))
		return false;
	/* Somebody has it for himself by now. */
	return set >= NAT_REALMS || !(e->flags & EXTERNAL_NAMED);
}

/* Its pair at an outside; where it has none, a free place; NULL: all are taken. */
static __always_inline __u64 *pair_place(struct nat_host *host, __u16 realm)
{
	__u64 *free = NULL;
	int i;

	for (i = NAT_HOST_PAIRS - 1; i >= 0; i--) {
		if (!host->pair[i])
			free = &host->pair[i];
		else if (PAIR_REALM(host->pair[i]) == realm)
			return &host->pair[i];
	}
	return free;
}

/* The host's entry holds: the caller has counted a port of it. */
static __always_inline __u64 *pool_pair(const struct binding_want *want)
{
	struct nat_host *host;
	struct owner_key key;

	owner_key_of(want->zone, want->internal, &key);
	host = bpf_map_lookup_elem(&hosts, &key);
	return host ? pair_place(host, want->realm) : NULL;
}

/* Whether a host's pair is where its binding is to be. */
static __noinline bool pair_serves(__u64 pair, __u16 set,
				   const struct binding_want *want)
{
	struct nat_external *e = external_at(PAIR_SLOT(pair));
	nat_addr address;

	if (!e || !pair || !pair_holds(pair, set, want))
		return false;
	address = e->address;
	return !remote_is_taken(want, addr_arg(address));
}

/* A binding without ports is at an address, and the host's other ones need not be. */
static __always_inline int pool_portless(struct binding_want *want,
					 const struct nat_external *e)
{
	if (!addr_is_any(e->internal))
		want->flags |= BINDING_OWN;
	return remote_is_taken(want, addr_arg(want->external)) ?
		       -REASON_DROPPED_REMOTE_TAKEN :
		       0;
}

/*
 * The address of a binding that is to be. 0, -REASON_DROPPED_NO_ADDRESS, or
 * -REASON_DROPPED_REMOTE_TAKEN, for which a host leaves its pair once.
 */
NAT_GLOBAL int pool_choose(struct binding_want *want)
{
	__u64 *place, pair = 0;
	struct nat_external *e;
	__u16 set;
	int slot;

	if (!want)
		return -REASON_DROPPED_NO_ADDRESS;
	set = pool_set(want);
	place = pool_pair(want);
	if (place)
		pair = *place;
	slot = PAIR_SLOT(pair);
	if (!pair_serves(pair, set, want))
		slot = pool_best(want, set);
	if (slot < 0)
		return slot;
	e = external_at(slot);
	if (!e || !external_admits(e, want))
		return -REASON_DROPPED_NO_ADDRESS;
	want->external = e->address;
	want->address = slot;
	if (protocol_is_portless(want->proto))
		return pool_portless(want, e);
	/* Another CPU that was faster has chosen the same, but for a change just now. */
	if (place && pair != pair_of(want->realm, set, slot, e))
		__sync_val_compare_and_swap(place, pair,
					    pair_of(want->realm, set, slot, e));
	if (!addr_is_any(
		    e->internal)) { /* one port for it, and so one binding */
		want->flags |= BINDING_OWN;
		want->mapping = NAT_ENDPOINT_INDEPENDENT;
	}
	return 0;
}

/* A binding from elsewhere begins the pairing: what the host binds next is there. */
NAT_GLOBAL int pool_keep(const struct binding_want *want)
{
	struct nat_external *e;
	__u64 *place;

	if (!want)
		return 0;
	e = external_at(want->address);
	place = pool_pair(want);
	if (e && place && !(e->flags & EXTERNAL_NAMED) &&
	    pool_set(want) < NAT_REALMS)
		__sync_val_compare_and_swap(place, 0,
					    pair_of(want->realm, want->realm,
						    want->address, e));
	return 0;
}

#endif /* CONENAT_POOL_H */
