/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Bindings: an internal endpoint's external endpoint; one for each remote address
 * or endpoint where the network's mapping depends on it (RFC 4787 section 4.1).
 *
 * A binding lives in an array; internals and claims are indices to it by its
 * internal and by its external endpoint. Its word holds a generation and a
 * count of references (sessions; one more while it is static), so that "take a
 * reference on just this binding" is one compare-and-swap that can neither hit
 * the array element's next tenant nor revive what ends. Whoever brings the
 * count to 0 ends it.
 *
 * Claim order: the port's bit, the claim, the internal index. Each is atomic;
 * who loses at the last one gives the others back and takes the winner's.
 */
#ifndef CONENAT_BINDING_H
#define CONENAT_BINDING_H

#include <linux/errno.h>

#include "pool.h"

#define HOLD_TRIES 16

static __always_inline struct nat_pool *pool_get(__u32 id)
{
	return bpf_map_lookup_elem(&pools, &id);
}

/*
 * An int, not the helper's long: before Linux 6.4 (d7ba4cc900bf) an inlined map
 * helper leaves an error in 32 bits, which is not negative in 64.
 */
static __always_inline int queue_pop(void *queue, __u32 *index)
{
	return bpf_map_pop_elem(queue, index);
}

/* Takes a number that was never used; negative: there is none. */
static __always_inline __s64 pool_bump(struct nat_pool *pool, __u32 max)
{
	__u32 index;

	if (pool->used >= max)
		return -1;
	index = __sync_fetch_and_add(&pool->used, 1);
	return index < max ? (__s64)index : -1;
}

static family_inline __s64 binding_index_take(const struct nat_config *cfg)
{
	struct nat_pool *pool = pool_get(POOL_BINDINGS);
	__u32 index;

	if (!pool)
		return -1;
	if (queue_pop(&binding_free, &index) < 0)
		return pool_bump(pool, cfg->max_bindings);
	__sync_fetch_and_sub(&pool->free, 1);
	return index;
}

static family_inline int binding_index_give(__u32 index)
{
	struct nat_pool *pool = pool_get(POOL_BINDINGS);

	if (pool && bpf_map_push_elem(&binding_free, &index, 0) == 0)
		__sync_fetch_and_add(&pool->free, 1);
	return 0;
}

static __always_inline struct nat_binding *binding_at(__u32 index)
{
	return bpf_map_lookup_elem(&bindings, &index);
}

static __always_inline void binding_internal_key(const struct nat_binding *b,
						 struct binding_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->address = b->internal;
	key->port = b->internal_port;
	key->remote = b->remote;
	key->remote_port = b->remote_port;
	key->zone = b->zone;
	key->proto = b->proto;
	key->realm = b->realm;
}

static __always_inline void claim_key_of(nat_addr address, __be16 port,
					 __u8 proto, struct claim_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->address = address;
	key->port = port;
	key->proto = proto;
}

/*
 * One more reference on just this binding. -REASON_DROPPED_QUOTA: it has as
 * many as it may; -REASON_DROPPED_RACE: it has ended, or is ending.
 */
NAT_GLOBAL int binding_hold(const struct binding_ref *ref, __u32 limit)
{
	struct nat_binding *b = ref ? binding_at(ref->binding) : NULL;
	__u64 word;
	int i;

	if (!b)
		return -REASON_DROPPED_RACE;
	for (i = 0; i < HOLD_TRIES; i++) {
		word = *(volatile __u64 *)&b->word;
		if (word >> 32 != ref->generation || word & BINDING_DYING)
			return -REASON_DROPPED_RACE;
		/* A static binding's own reference is no session. */
		if ((__u32)word - (b->flags & BINDING_STATIC) >= limit)
			return -REASON_DROPPED_QUOTA;
		if (__sync_val_compare_and_swap(&b->word, word, word + 1) ==
		    word)
			return 0;
	}
	return -REASON_DROPPED_RACE;
}

/* The index by internal endpoint, unless it leads to another binding by now. */
static __always_inline void internal_forget(const struct binding_key *key,
					    __u32 index)
{
	struct binding_ref *ref = bpf_map_lookup_elem(&internals, key);

	if (ref && ref->binding == index)
		bpf_map_delete_elem(&internals, key);
}

/* What the binding of a host has counted, and held of its blocks. */
static __always_inline void binding_give(const struct nat_binding *b)
{
	struct block_key key = {
		.address = b->internal,
		.zone = b->zone,
		.slot = b->address,
	};

	if (b->flags & BINDING_IN_BLOCK)
		blocks_drop(&key);
	if (b->flags & BINDING_COUNTED)
		usage_give(b->zone, addr_arg(b->internal), USAGE_PORT);
}

/* A binding that has ended is found no more. */
static __noinline int binding_unindex(const struct nat_binding *b, __u32 index)
{
	struct binding_key internal;
	struct claim_key external;
	struct nat_claim *claim;

	if (b->flags & BINDING_INDEXED) {
		binding_internal_key(b, &internal);
		internal_forget(&internal, index);
	}
	claim_key_of(b->external, b->external_port, b->proto, &external);
	claim = bpf_map_lookup_elem(&claims, &external);
	if (claim && claim->binding == index) /* it may never have got it */
		bpf_map_delete_elem(&claims, &external);
	return 0;
}

/*
 * The indices, the port and the array element of a binding that has ended. The port
 * of one that a static binding has displaced is that one's.
 */
static __noinline int binding_forget(struct nat_binding *b, __u32 index)
{
	binding_unindex(b, index);
	if (!(b->flags & BINDING_RETIRED) && !held_put(b))
		port_release(b->address, b->proto, bpf_ntohs(b->external_port));
	binding_give(b);
	binding_index_give(index);
	return 0;
}

/*
 * One reference less; the last one ends the binding. The event goes out before
 * the indices are deleted: a successor's "created" comes after it.
 */
NAT_GLOBAL int binding_drop(__u32 index, __u32 generation)
{
	struct nat_binding *b = binding_at(index);
	__u64 old, next;

	if (!b)
		return 0;
	old = __sync_fetch_and_add(&b->word, -1ULL) - 1;
	if (old >> 32 != generation || (__u32)old & ~(__u32)BINDING_DYING)
		return 0;
	next = (__u64)(generation + 1) << 32;
	if (__sync_val_compare_and_swap(&b->word, old, next) != old)
		return 0; /* somebody took a reference: it lives on */
	if (!(b->flags &
	      BINDING_RETIRED)) /* which was told when it was displaced */
		event_binding(b, EVENT_BINDING_EXPIRED);
	return binding_forget(b, index);
}

/* A packet has left by the binding, which a session of it holds. */
static __always_inline void binding_touch(__u32 index, __u32 tick)
{
	struct nat_binding *b = binding_at(index);

	if (b && b->outbound != tick)
		b->outbound = tick;
}

/* Towards every remote, as static bindings are. */
static __always_inline void want_internal_key(const struct binding_want *want,
					      struct binding_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->address = want->internal;
	key->port = want->internal_port;
	key->zone = want->zone;
	key->proto = want->proto;
	key->realm = want->realm;
}

/* As much of the remote as the mapping depends on; else they stay as they are. */
static __always_inline void want_remote(const struct binding_want *want,
					nat_addr *remote, __be16 *remote_port)
{
	if (want->mapping == NAT_ENDPOINT_INDEPENDENT)
		return;
	*remote = want->remote;
	if (want->mapping == NAT_ADDRESS_AND_PORT_DEPENDENT)
		*remote_port = want->remote_port;
}

/*
 * What leads to the binding that a packet leaves by, and its key. A static binding,
 * and one of a 1:1 address, is its host's towards every remote, whatever the mapping;
 * another one from before the mapping was changed has the sessions that it has.
 */
static __always_inline struct binding_ref *
internal_find(const struct binding_want *want, struct binding_key *key)
{
	struct binding_ref *found;
	struct nat_binding *b;

	want_internal_key(want, key);
	found = bpf_map_lookup_elem(&internals, key);
	if (want->mapping == NAT_ENDPOINT_INDEPENDENT)
		return found;
	b = found ? binding_at(found->binding) : NULL;
	if (b && b->flags & (BINDING_STATIC | BINDING_OWN))
		return found;
	want_remote(want, &key->remote, &key->remote_port);
	return bpf_map_lookup_elem(&internals, key);
}

static __always_inline void binding_fill(struct nat_binding *b,
					 const struct binding_want *want,
					 __u32 port)
{
	__builtin_memset(&b->remote, 0, sizeof(b->remote));
	b->remote_port = 0;
	want_remote(want, &b->remote, &b->remote_port);
	b->internal = want->internal;
	b->internal_port = want->internal_port;
	b->external = want->external;
	b->external_port = bpf_htons(port);
	b->zone = want->zone;
	b->proto = want->proto;
	b->flags = want->flags;
	if (!(want->flags & BINDING_STATIC))
		b->flags |= BINDING_COUNTED;
	if (port & PORT_IN_BLOCK)
		b->flags |= BINDING_IN_BLOCK;
	b->realm = want->realm;
	b->address = want->address;
	b->used = 0;
	b->created = clock_seconds();
	b->outbound = clock_tick();
	b->word = (b->word >> 32 << 32) + 1;
}

/*
 * The index by internal endpoint. A published port takes it from a dynamic binding,
 * whose sessions go on: what the container opens from now on leaves as what is
 * published. 0, -EEXIST or another error.
 */
static __always_inline int binding_index(const struct nat_binding *b,
					 const struct binding_ref *ref)
{
	struct binding_key internal;
	struct binding_ref *found;
	struct nat_binding *other;
	int rc;

	binding_internal_key(b, &internal);
	rc = bpf_map_update_elem(&internals, &internal, ref, BPF_NOEXIST);
	if (rc != -EEXIST || !(b->flags & BINDING_PUBLISHED))
		return rc;
	found = bpf_map_lookup_elem(&internals, &internal);
	other = found ? binding_at(found->binding) : NULL;
	if (!other || other->flags & BINDING_STATIC)
		return rc;
	return bpf_map_update_elem(&internals, &internal, ref, BPF_ANY);
}

/*
 * Publishes a filled binding: its event, so that none of a session comes before
 * it; the claim; then the index by internal endpoint. -LOOK_AGAIN:
 * another CPU bound the same internal endpoint, or (static) it has a binding
 * already, which then stays the one for what goes out.
 */
static __noinline int binding_publish(struct nat_binding *b, __u32 index)
{
	struct nat_claim claim = {
		.binding = index,
		.generation = b->word >> 32,
	};
	struct binding_ref ref = {
		.binding = index,
		.generation = claim.generation,
	};
	struct claim_key external;
	int rc;

	b->flags |= BINDING_INDEXED; /* before anybody can find it */
	event_binding(b, EVENT_BINDING_CREATED);
	claim_key_of(b->external, b->external_port, b->proto, &external);
	/* Without ports the session's reverse half is all of a claim. */
	if (!protocol_is_portless(b->proto) &&
	    bpf_map_update_elem(&claims, &external, &claim, BPF_NOEXIST) < 0)
		return -REASON_DROPPED_BINDINGS_FULL;
	rc = binding_index(b, &ref);
	if (rc == 0)
		return 0;
	b->flags &= ~BINDING_INDEXED;
	return rc == -EEXIST ? -LOOK_AGAIN : -REASON_DROPPED_BINDINGS_FULL;
}

/*
 * Ends what another CPU was faster with. Its claim may have been found already:
 * a session that got hold of it ends it.
 */
static __always_inline void binding_abandon(struct nat_binding *b, __u32 index)
{
	__u64 old = __sync_fetch_and_or(&b->word, BINDING_DYING);

	binding_drop(index, old >> 32);
}

/* One more port of the host's, as far as its limits go, at an address of the pool. */
static __always_inline __s32 binding_port(struct __sk_buff *skb,
					  struct binding_want *want)
{
	__s32 port = usage_take(want->zone, addr_arg(want->internal),
				USAGE_PORT, false);

	if (port < 0)
		return port;
	port = usage_room(want->zone, addr_arg(want->internal));
	if (port == 0 && addr_is_any(want->external))
		port = pool_choose(want);
	if (port == 0)
		port = port_allocate(skb, want);
	if (port < 0)
		usage_give(want->zone, addr_arg(want->internal), USAGE_PORT);
	return port;
}

/*
 * A new binding with one reference, the caller's, in ref. 0,
 * -LOOK_AGAIN, or -REASON_DROPPED_*.
 */
static __always_inline int binding_create(struct __sk_buff *skb,
					  struct binding_want *want,
					  struct binding_ref *ref)
{
	struct nat_config *cfg = config_get();
	struct nat_binding *b;
	__s64 index;
	__s32 port;
	int rc;

	if (!cfg)
		return -REASON_DROPPED_BINDINGS_FULL;
	index = binding_index_take(cfg);
	b = index < 0 ? NULL : binding_at(index);
	if (!b)
		return -REASON_DROPPED_BINDINGS_FULL;
	port = binding_port(skb, want);
	if (port < 0) {
		binding_index_give(index);
		return port;
	}
	binding_fill(b, want, port);
	rc = binding_publish(b, index);
	if (rc < 0) {
		binding_abandon(b, index);
		return rc;
	}
	ref->binding = index;
	ref->generation = b->word >> 32;
	return 0;
}

/* One more reference, for a session. */
static __always_inline int binding_hold_session(const struct binding_ref *ref)
{
	struct nat_config *cfg = config_get();

	return cfg ? binding_hold(ref, cfg->sessions_per_binding) :
		     -REASON_DROPPED_RACE;
}

/*
 * One more reference on a binding that was found by its internal endpoint. An
 * element of a preallocated hash may have become another key's since it was
 * looked up: what it leads to has to be what was asked for.
 */
static __always_inline int
binding_hold_internal(const struct binding_ref *found,
		      const struct binding_key *key, struct binding_ref *ref)
{
	struct nat_binding *b;
	int rc;

	*ref = *found;
	rc = binding_hold_session(ref);
	if (rc < 0)
		return rc;
	b = binding_at(ref->binding);
	if (b && addr_equal(b->internal, key->address) &&
	    b->internal_port == key->port && b->zone == key->zone &&
	    addr_equal(b->remote, key->remote) &&
	    b->remote_port == key->remote_port && b->proto == key->proto &&
	    b->realm == key->realm)
		return 0;
	binding_drop(ref->binding, ref->generation);
	return -REASON_DROPPED_RACE;
}

/* The one that there is, with one more reference; -LOOK_AGAIN: there is none. */
static __noinline int binding_find(const struct binding_want *want,
				   struct binding_ref *ref)
{
	struct binding_ref *found;
	struct binding_key key;

	found = internal_find(want, &key);
	return found ? binding_hold_internal(found, &key, ref) : -LOOK_AGAIN;
}

/*
 * The binding of an internal endpoint towards a remote, made where there is none,
 * with one more reference, the caller's. 0 or -REASON_DROPPED_*. A new one's external
 * address is in want then, if any would do.
 */
NAT_GLOBAL int binding_obtain(struct __sk_buff *skb, struct binding_want *want,
			      struct binding_ref *ref)
{
	int i, rc;

	if (!want || !ref)
		return -REASON_DROPPED_RACE;
	for (i = 0; i < 2; i++) {
		rc = binding_find(want, ref);
		if (rc == -LOOK_AGAIN)
			rc = binding_create(skb, want, ref);
		if (rc != -LOOK_AGAIN)
			return rc;
	}
	return -REASON_DROPPED_RACE;
}

/*
 * Whom an external endpoint belongs to. -REASON_PASSED_UNBOUND: nobody;
 * -REASON_PASSED_HOST: the host. The reference is copied once, and compared with
 * what it leads to: its generation answers for the rest of the packet's way.
 */
static __always_inline int binding_by_external(const struct claim_key *key,
					       struct binding_ref *ref)
{
	struct nat_claim *claim = bpf_map_lookup_elem(&claims, key);
	struct nat_binding *b;

	if (!claim)
		return -REASON_PASSED_UNBOUND;
	ref->binding = claim->binding;
	ref->generation = claim->generation;
	if (ref->binding == CLAIM_HOST)
		return -REASON_PASSED_HOST;
	b = binding_at(ref->binding);
	if (!b || b->word >> 32 != ref->generation ||
	    !addr_equal(b->external, key->address) ||
	    b->external_port != key->port || b->proto != key->proto)
		return -REASON_DROPPED_RACE;
	return 0;
}

/* No binding, and so no session. */
NAT_GLOBAL int outbound_refused(const struct binding_want *want, int rc)
{
	struct event_packet e = {};

	if (!want)
		return rc;
	e.internal = want->internal;
	e.internal_port = want->internal_port;
	e.external = want->external;
	e.remote = want->remote;
	e.remote_port = want->remote_port;
	e.zone = want->zone;
	e.proto = want->proto;
	event_refused(&e, rc);
	return rc;
}

#endif /* CONENAT_BINDING_H */
