/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the daemon changes in the tables goes through here (BPF_PROG_RUN), so
 * that there is one piece of code that claims ports and ends bindings, as
 * atomic against packets as packets are among themselves.
 */
#ifndef CONENAT_CONTROL_H
#define CONENAT_CONTROL_H

#include "host.h"
#include "sweep.h"

/* A place for a binding; negative: the table is full. */
static __always_inline __s64 control_place(void)
{
	struct nat_config *cfg = config_get();

	return cfg ? binding_index_take(cfg) : -1;
}

/*
 * A binding whose port is claimed already; ref: it, with one reference. An internal
 * endpoint that has another one already keeps that for what it sends.
 */
static __noinline int control_publish(const struct binding_want *want,
				      __s64 index, struct binding_ref *ref)
{
	struct nat_binding *b = index < 0 ? NULL : binding_at(index);
	int rc;

	if (!b) {
		port_release(want->address, want->proto,
			     bpf_ntohs(want->external_port));
		return ANSWER_FULL;
	}
	/* What another NAT has mapped already counts, whatever the limit. */
	if (!(want->flags & BINDING_STATIC) &&
	    usage_take(want->zone, addr_arg(want->internal), USAGE_PORT, true) <
		    0) {
		port_release(want->address, want->proto,
			     bpf_ntohs(want->external_port));
		binding_index_give(index);
		return ANSWER_FULL;
	}
	if (!(want->flags & BINDING_STATIC))
		pool_keep(want);
	binding_fill(b, want, bpf_ntohs(want->external_port));
	rc = binding_publish(b, index);
	if (rc < 0 && rc != -LOOK_AGAIN) {
		binding_abandon(b, index);
		return ANSWER_FULL;
	}
	ref->binding = index;
	ref->generation = b->word >> 32;
	return ANSWER_OK;
}

/* Whether a binding is of just that internal endpoint. */
static __always_inline bool want_is_of(const struct binding_want *want,
				       const struct nat_binding *b)
{
	return addr_equal(b->internal, want->internal) &&
	       b->internal_port == want->internal_port && b->zone == want->zone;
}

/* A static binding that was not the one of what its host sends: it may be now. */
static __noinline int control_index(const struct binding_ref *ref)
{
	struct nat_binding *b = binding_at(ref->binding);
	struct binding_key key;
	int rc;

	if (!b || b->word >> 32 != ref->generation || b->word & BINDING_DYING)
		return ANSWER_NOT_FOUND;
	if (b->flags & BINDING_INDEXED)
		return ANSWER_OK;
	binding_internal_key(b, &key);
	b->flags |= BINDING_INDEXED;
	rc = bpf_map_update_elem(&internals, &key, ref, BPF_NOEXIST);
	if (rc == 0)
		return ANSWER_OK;
	b->flags &= ~BINDING_INDEXED;
	return rc == -EEXIST ? ANSWER_TAKEN : ANSWER_FULL;
}

/*
 * A binding that is static from now on, and held, is its host's towards every
 * remote. Its old key goes last: who finds it meanwhile makes no other binding.
 */
static __always_inline void control_widen(struct nat_binding *b,
					  const struct binding_ref *ref)
{
	struct binding_key before;

	if (addr_is_any(b->remote))
		return;
	binding_internal_key(b, &before);
	__builtin_memset(&b->remote, 0, sizeof(b->remote));
	b->remote_port = 0;
	b->flags &= ~BINDING_INDEXED;
	control_index(ref);
	internal_forget(&before, ref->binding);
}

/*
 * The claim of an endpoint whose port stays taken: the next one's, for which there
 * is a place: nobody loses it to a binding that does not come about.
 */
static __always_inline int control_reclaim(const struct binding_want *want,
					   const struct claim_key *key,
					   __s64 index, struct binding_ref *ref)
{
	bpf_map_delete_elem(&claims, key);
	return control_publish(want, index, ref);
}

/*
 * Static bindings win. By the endpoint's own host, of itself: its binding becomes
 * the static one. By another's: that goes on with the sessions that it has, which
 * are found by their own endpoints, and opens no more.
 */
static __always_inline int control_displace(const struct binding_want *want,
					    const struct claim_key *key,
					    struct binding_ref *ref)
{
	struct nat_binding *b = binding_at(ref->binding);
	struct binding_key internal;
	__s64 index;

	if (!b || b->flags & BINDING_STATIC)
		return ANSWER_TAKEN;
	if (want_is_of(want, b)) {
		if (binding_hold(ref, BINDING_DYING - 1) < 0)
			return ANSWER_TAKEN;
		b->flags |= want->flags;
		control_widen(b, ref);
		event_binding(b, EVENT_BINDING_CHANGED);
		return ANSWER_OK;
	}
	if (!want->over_socket)
		return ANSWER_TAKEN;
	index = control_place();
	if (index < 0)
		return ANSWER_FULL;
	b->flags |= BINDING_RETIRED;
	event_binding(b, EVENT_BINDING_EXPIRED);
	binding_internal_key(b, &internal);
	internal_forget(&internal, ref->binding);
	return control_reclaim(want, key, index, ref);
}

/* The same of an endpoint that the host has sent from. */
static __always_inline int control_relieve(const struct binding_want *want,
					   const struct claim_key *key,
					   struct binding_ref *ref)
{
	__s64 index = control_place();

	return index < 0 ? ANSWER_FULL : control_reclaim(want, key, index, ref);
}

/*
 * The external endpoint is taken: by a binding, or by the host, which has sent from
 * it (as its own NAT does for a port that it forwards) and gives way, if that is
 * what is asked. The sweeper, which ends claims of the host's, stands still.
 */
static __noinline int control_take_over(const struct binding_want *want)
{
	struct sweeper *s = sweeper_get();
	struct binding_ref ref = {};
	struct claim_key key;
	int rc;

	if (!s || __sync_val_compare_and_swap(&s->busy, 0, 1) != 0)
		return ANSWER_BUSY;
	claim_key_of(want->external, want->external_port, want->proto, &key);
	rc = binding_by_external(&key, &ref);
	if (rc == 0)
		rc = control_displace(want, &key, &ref);
	else if (rc == -REASON_PASSED_HOST && want->over_socket)
		rc = control_relieve(want, &key, &ref);
	else
		rc = ANSWER_TAKEN;
	__sync_val_compare_and_swap(&s->busy, 1, 0);
	return rc;
}

/* The binding that a request speaks of, checked. */
static __noinline int request_want(const struct nat_request *r,
				   struct binding_want *want)
{
	bool itself = zone_is_routed(r->zone) &&
		      addr_equal(r->external, r->internal) &&
		      r->external_port == r->internal_port;
	struct nat_address *address;

	if (l4_index(r->proto) < 0 || r->proto == PROTO_ICMP ||
	    !r->external_port || !r->internal_port || !r->zone ||
	    r->zone > NAT_ZONE_LAST)
		return ANSWER_BAD_REQUEST;
	address = bpf_map_lookup_elem(&addresses, &r->external);
	if (!address && !itself)
		return ANSWER_NO_ADDRESS;
	want->internal = r->internal;
	want->internal_port = r->internal_port;
	want->external = r->external;
	want->external_port = r->external_port;
	want->zone = r->zone;
	want->proto = r->proto;
	if (!address) {
		want_itself(want);
		return ANSWER_OK;
	}
	want->address = address->slot;
	want->realm = address->realm;
	return ANSWER_OK;
}

/* A static binding; its one reference is its own. */
static __noinline int control_bind(struct __sk_buff *skb,
				   const struct nat_request *r)
{
	struct binding_want *want = want_new();
	struct binding_ref ref = {};
	__s32 port;
	int rc;

	if (!want)
		return ANSWER_FAILED;
	rc = request_want(r, want);
	if (rc != ANSWER_OK)
		return rc;
	want->flags = BINDING_STATIC;
	if (r->flags & BIND_PUBLISHED)
		want->flags |= BINDING_PUBLISHED;
	want->over_socket = r->flags & BIND_OVER_SOCKET;
	port = port_exactly(skb, want);
	if (port == -ANSWER_TAKEN)
		return control_take_over(want);
	if (port < 0)
		return -port;
	return control_publish(want, control_place(), &ref);
}

/* A session's binding, with one more reference: as another NAT had mapped it. */
static __noinline int import_binding(struct __sk_buff *skb,
				     const struct binding_want *want,
				     struct binding_ref *ref)
{
	struct nat_binding *b;
	struct nat_claim *claim;
	struct claim_key key;
	__s32 port;
	int rc;

	claim_key_of(want->external, want->external_port, want->proto, &key);
	rc = binding_by_external(&key, ref);
	if (rc == 0) {
		b = binding_at(ref->binding);
		if (!b || !want_is_of(want, b))
			return ANSWER_TAKEN;
		return binding_hold_session(ref) < 0 ? ANSWER_TAKEN : ANSWER_OK;
	}
	/* Its own packets have passed the egress hook, as masquerade sends them. */
	claim = bpf_map_lookup_elem(&claims, &key);
	if (rc == -REASON_PASSED_HOST && claim && claim->forwarded)
		return control_relieve(want, &key, ref);
	port = port_exactly(skb, want);
	return port < 0 ? -port : control_publish(want, control_place(), ref);
}

static __always_inline void import_plan(const struct nat_request *r,
					struct session_plan *plan)
{
	plan->key.saddr = plan->reverse_next_hop = r->internal;
	plan->key.sport = r->internal_port;
	plan->key.daddr = plan->daddr = r->remote;
	plan->key.dport = plan->dport = r->remote_port;
	plan->key.zone = r->zone;
	plan->key.proto = r->proto;
	plan->saddr = r->external;
	plan->sport = r->external_port;
	plan->target = TARGET_OUTSIDE;
	plan->reverse_target = TARGET_DEVICE;
	plan->peer_zone = NAT_ZONE_OUTSIDE;
	plan->seen = r->seen;
	plan->reverse_seen = r->reverse_seen;
	plan->unrouted = 1;
	plan->unlimited = 1;
	plan->flags = HALF_NETFILTER;
}

static __noinline bool import_is_there(const struct session_plan *plan)
{
	struct session_key key = plan->key;

	return session_find(&key);
}

/*
 * A session that lives in another NAT: it goes on from the same external endpoint.
 * What is there already stays as it is.
 */
static __noinline int control_import(struct __sk_buff *skb,
				     const struct nat_request *r)
{
	struct session_plan *plan = plan_new();
	struct binding_want *want = want_new();
	struct nat_zone *zone = zone_get(r->zone);
	struct nat_binding *b;
	int rc;

	if (!plan || !want)
		return ANSWER_FAILED;
	rc = request_want(r, want);
	if (rc != ANSWER_OK)
		return rc;
	if (!zone || !r->remote_port)
		return ANSWER_BAD_REQUEST;
	want->over_socket = 1;
	want->remote = r->remote;
	want->remote_port = r->remote_port;
	want->mapping = mapping_of(r->zone, r->proto);
	import_plan(r, plan);
	plan->reverse_ifindex = zone->ifindex;
	plan->reverse_mtu = route_mtu(skb, zone->ifindex);
	if (import_is_there(plan))
		return ANSWER_OK;
	rc = import_binding(skb, want, &plan->ref);
	if (rc != ANSWER_OK)
		return rc;
	plan->reverse_ref = plan->ref;
	b = binding_at(plan->ref.binding);
	if (b && b->flags & BINDING_STATIC)
		plan->flags |= HALF_INBOUND;
	rc = session_open(plan);
	return rc == 0 || rc == -LOOK_AGAIN ? ANSWER_OK : ANSWER_FULL;
}

/*
 * Marks a binding: no new session; a walk over all slots ends those that are,
 * and the last one ends it. A binding without sessions ends here.
 */
static __noinline int control_kill(const struct nat_request *r)
{
	struct binding_ref ref = r->binding;
	struct nat_binding *b = binding_at(ref.binding);
	__u64 old;

	/* A reference of our own, so that it cannot end under our hands. */
	if (!b || binding_hold(&ref, BINDING_DYING - 1) < 0)
		return ANSWER_NOT_FOUND;
	old = __sync_fetch_and_or(&b->word, BINDING_DYING);
	if (b->flags & BINDING_STATIC && !(old & BINDING_DYING))
		__sync_fetch_and_add(&b->word, -1);
	binding_drop(ref.binding, ref.generation);
	return ANSWER_OK;
}

static __always_inline int control_sweep(__u32 cursor, __u32 *next)
{
	int rc;

	*next = cursor;
	rc = sweep_chunk(next, true);
	if (rc == -EBUSY)
		return ANSWER_BUSY;
	return rc < 0 ? ANSWER_FAILED : ANSWER_OK;
}

/*
 * The host uses an endpoint, or still does; or a connection of another NAT on it,
 * which may turn out to be an inside host's, and be imported.
 */
static __noinline int control_reserve(const struct nat_request *r)
{
	bool forwarded = r->flags & RESERVE_FORWARDED;
	struct nat_claim *claim;
	struct claim_key key;

	if (l4_index(r->proto) < 0 || !r->external_port)
		return ANSWER_BAD_REQUEST;
	if (!bpf_map_lookup_elem(&addresses, &r->external))
		return ANSWER_NO_ADDRESS;
	claim_key_of(r->external, r->external_port, r->proto, &key);
	claim = bpf_map_lookup_elem(&claims, &key);
	if (!claim) {
		host_claim(&key, clock_tick(), forwarded);
		return ANSWER_OK;
	}
	if (claim->binding != CLAIM_HOST)
		return ANSWER_TAKEN;
	claim->last_seen = clock_tick();
	if (!forwarded)
		claim->forwarded = 0;
	return ANSWER_OK;
}

SCRATCH(struct nat_request, request)

static __always_inline int control(struct __sk_buff *skb)
{
	struct nat_request *r = request_new();
	__u32 next = 0;
	int rc;

	if (!r || bpf_skb_load_bytes(skb, 0, r, sizeof(*r)) < 0)
		return ANSWER_BAD_REQUEST;
	switch (r->command) {
	case COMMAND_ARM:
		return sweep_arm() < 0 ? ANSWER_FAILED : ANSWER_OK;
	case COMMAND_BIND:
		return control_bind(skb, r);
	case COMMAND_KILL:
		return control_kill(r);
	case COMMAND_RESERVE:
		return control_reserve(r);
	case COMMAND_IMPORT:
		return control_import(skb, r);
	case COMMAND_INDEX:
		return control_index(&r->binding);
	case COMMAND_SWEEP:
		rc = control_sweep(r->cursor, &next);
		r->cursor = next;
		if (bpf_skb_store_bytes(skb, 0, r, sizeof(*r), 0) < 0)
			return ANSWER_FAILED;
		return rc;
	}
	return ANSWER_BAD_REQUEST;
}

#endif /* CONENAT_CONTROL_H */
