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

#include "event.h"
#include "packet.h"
#include "ports.h"

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

static __always_inline __s64 binding_index_take(const struct nat_config *cfg)
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

static __always_inline void binding_index_give(__u32 index)
{
	struct nat_pool *pool = pool_get(POOL_BINDINGS);

	if (pool && bpf_map_push_elem(&binding_free, &index, 0) == 0)
		__sync_fetch_and_add(&pool->free, 1);
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

/*
 * The indices, the port and the array element of a binding that has ended. The port
 * of one that a static binding has displaced is that one's.
 */
static __noinline int binding_forget(struct nat_binding *b, __u32 index)
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
	if (!(b->flags & BINDING_RETIRED))
		port_release(b->address, b->proto, bpf_ntohs(b->external_port));
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

/* What a new binding is to be. */
struct binding_want {
	nat_addr internal;
	nat_addr external;
	__be16 internal_port;
	__be16 external_port; /* 0: any */
	nat_addr remote; /* first one */
	__be16 remote_port;
	__u16 zone;
	__u16 realm;
	__u16 address; /* nat_address.slot */
	__u8 proto;
	__u8 flags; /* BINDING_STATIC */
	__u8 over_socket;
	__u8 mapping; /* enum nat_behavior: what of the remote makes another one */
};

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

/* As much of the remote as the mapping depends on. */
static __always_inline void want_remote_key(const struct binding_want *want,
					    struct binding_key *key)
{
	if (want->mapping == NAT_ENDPOINT_INDEPENDENT)
		return;
	key->remote = want->remote;
	if (want->mapping == NAT_ADDRESS_AND_PORT_DEPENDENT)
		key->remote_port = want->remote_port;
}

/*
 * What leads to the binding that a packet leaves by, and its key. A static binding
 * is its host's towards every remote, whatever the mapping; a dynamic one that is
 * from before the mapping was changed has the sessions that it has.
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
	if (b && b->flags & BINDING_STATIC)
		return found;
	want_remote_key(want, key);
	return bpf_map_lookup_elem(&internals, key);
}

NAT_GLOBAL bool want_host_socket(struct __sk_buff *skb,
				 const struct binding_want *want, __u16 port)
{
	struct bpf_sock_tuple tuple = {};

	if (!want)
		return false;
	tuple.ipv4.saddr = want->remote;
	tuple.ipv4.sport = want->remote_port;
	tuple.ipv4.daddr = want->external;
	tuple.ipv4.dport = bpf_htons(port);
	return host_socket(skb, &tuple, want->proto) != HOST_SOCKET_NONE;
}

/*
 * The range of external ports (RFC 4787 REQ-3a): below 1024 for internal ports
 * below 1024, the operator's range above; all identifiers for ICMP.
 */
static __always_inline void want_range(const struct nat_config *cfg,
				       const struct binding_want *want,
				       struct port_search *s)
{
	s->low = cfg->port_low;
	s->high = cfg->port_high;
	if (want->proto == IPPROTO_ICMP) {
		s->low = 0;
		s->high = 65535;
	} else if (bpf_ntohs(want->internal_port) < 1024) {
		s->low = 1;
		s->high = 1023;
	}
}

static __always_inline __u32 random_between(__u32 low, __u32 high)
{
	return low + bpf_get_prandom_u32() % (high - low + 1);
}

/*
 * A random port (RFC 6056) of the wanted parity (RFC 4787 REQ-4), or of the
 * other one where none is left; negative: none. Its bit is set.
 */
static __always_inline __s32 port_pick(struct __sk_buff *skb,
				       const struct binding_want *want,
				       struct port_search *s)
{
	bool parity = want->proto == IPPROTO_UDP;
	__u32 port, refused = 0;
	int i;

	s->parity = PARITY_ANY;
	if (parity)
		s->parity = PARITY_EVEN << (bpf_ntohs(want->internal_port) & 1);
	if (!s->low)
		s->low = 1; /* 0 means "none" below */
	s->start = random_between(s->low, s->high);
	for (i = 0; i < PORT_TRIES; i++) {
		port = port_search_run(s);
		if (port && !want_host_socket(skb, want, port))
			return port;
		if (port)
			port_release(want->address, want->proto, port);
		if (!port || port == refused) { /* once round */
			if (s->parity == PARITY_ANY)
				return -1;
			s->parity = PARITY_ANY;
			refused = 0;
			continue;
		}
		if (!refused)
			refused = port;
		s->start = port < s->high ? port + 1 : s->low;
	}
	return -1;
}

/* The internal port itself where it is free, else a random one. */
NAT_GLOBAL int port_allocate(struct __sk_buff *skb,
			     const struct binding_want *want)
{
	struct nat_config *cfg = config_get();
	struct port_search s = {};
	struct nat_ports *map;
	__u32 preserved;

	if (!want || !cfg)
		return -1;
	preserved = bpf_ntohs(want->internal_port);
	map = ports_get(want->address, want->proto);
	if (!map)
		return -1;
	s.address = want->address;
	s.proto = want->proto;
	want_range(cfg, want, &s);
	if (preserved >= s.low && preserved <= s.high &&
	    port_claim(map, preserved)) {
		if (!want_host_socket(skb, want, preserved))
			return preserved;
		port_release(want->address, want->proto, preserved);
	}
	return port_pick(skb, want, &s);
}

/* A port that was asked for; its bit is set, or -enum nat_answer. */
NAT_GLOBAL int port_exactly(struct __sk_buff *skb,
			    const struct binding_want *want)
{
	struct nat_ports *map;
	__u16 port;

	if (!want)
		return -ANSWER_BAD_REQUEST;
	map = ports_get(want->address, want->proto);
	port = bpf_ntohs(want->external_port);
	if (!map)
		return -ANSWER_BAD_REQUEST;
	if (!port_claim(map, port))
		return -ANSWER_TAKEN;
	if (!want->over_socket && want_host_socket(skb, want, port)) {
		port_release(want->address, want->proto, port);
		return -ANSWER_HOST_SOCKET;
	}
	return port;
}

static __always_inline void binding_fill(struct nat_binding *b,
					 const struct binding_want *want,
					 __u16 port)
{
	struct binding_key key = {};

	want_remote_key(want, &key);
	b->remote = key.remote;
	b->remote_port = key.remote_port;
	b->internal = want->internal;
	b->internal_port = want->internal_port;
	b->external = want->external;
	b->external_port = bpf_htons(port);
	b->zone = want->zone;
	b->proto = want->proto;
	b->flags = want->flags;
	b->realm = want->realm;
	b->address = want->address;
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
	rc = bpf_map_update_elem(&claims, &external, &claim, BPF_NOEXIST);
	if (rc < 0)
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

/*
 * A new binding with one reference, the caller's, in ref. 0,
 * -LOOK_AGAIN, or -REASON_DROPPED_*.
 */
static __always_inline int binding_create(struct __sk_buff *skb,
					  const struct binding_want *want,
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
	port = port_allocate(skb, want);
	if (port < 0) {
		binding_index_give(index);
		return -REASON_DROPPED_PORT_EXHAUSTED;
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

/*
 * The binding of an internal endpoint towards a remote, made where there is none,
 * with one more reference, the caller's. 0 or -REASON_DROPPED_*.
 */
NAT_GLOBAL int binding_obtain(struct __sk_buff *skb,
			      const struct binding_want *want,
			      struct binding_ref *ref)
{
	struct binding_ref *found;
	struct binding_key key;
	int i, rc;

	if (!want || !ref)
		return -REASON_DROPPED_RACE;
	for (i = 0; i < 2; i++) {
		found = internal_find(want, &key);
		if (found)
			return binding_hold_internal(found, &key, ref);
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

#endif /* CONENAT_BINDING_H */
