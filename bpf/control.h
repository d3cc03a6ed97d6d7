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

static __noinline int control_publish(const struct binding_want *want,
				      __u16 port)
{
	struct nat_config *cfg = config_get();
	struct nat_binding *b;
	__s64 index;
	int rc;

	index = cfg ? binding_index_take(cfg) : -1;
	b = index < 0 ? NULL : binding_at(index);
	if (!b) {
		port_release(want->address, want->proto, port);
		return ANSWER_FULL;
	}
	binding_fill(b, want, port);
	rc = binding_publish(b, index);
	if (rc < 0 && rc != -LOOK_AGAIN) {
		binding_abandon(b, index);
		return ANSWER_FULL;
	}
	return ANSWER_OK;
}

/* A static binding; its one reference is its own. */
static __noinline int control_bind(struct __sk_buff *skb,
				   const struct nat_request *r)
{
	struct binding_want want = {
		.internal = r->internal,
		.internal_port = r->internal_port,
		.external = r->external,
		.external_port = r->external_port,
		.zone = r->zone,
		.proto = r->proto,
		.flags = BINDING_STATIC,
		.over_socket = r->flags & BIND_OVER_SOCKET,
	};
	struct nat_address *address;
	__s32 port;

	if (l4_index(r->proto) < 0 || r->proto == IPPROTO_ICMP ||
	    !r->external_port || !r->internal_port || !r->zone ||
	    r->zone > NAT_ZONE_LAST)
		return ANSWER_BAD_REQUEST;
	address = bpf_map_lookup_elem(&addresses, &want.external);
	if (!address)
		return ANSWER_NO_ADDRESS;
	want.address = address->slot;
	want.realm = address->realm;
	port = port_exactly(skb, &want);
	if (port < 0)
		return -port;
	return control_publish(&want, port);
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

static __noinline int control_reserve(const struct nat_request *r)
{
	struct claim_key key;

	if (l4_index(r->proto) < 0 || !r->external_port)
		return ANSWER_BAD_REQUEST;
	if (!bpf_map_lookup_elem(&addresses, &r->external))
		return ANSWER_NO_ADDRESS;
	claim_key_of(r->external, r->external_port, r->proto, &key);
	if (bpf_map_lookup_elem(&claims, &key))
		return ANSWER_TAKEN;
	host_claim(&key, clock_tick());
	return ANSWER_OK;
}

static __always_inline int control(struct __sk_buff *skb)
{
	struct nat_request r;
	__u32 next = 0;
	int rc;

	if (bpf_skb_load_bytes(skb, 0, &r, sizeof(r)) < 0)
		return ANSWER_BAD_REQUEST;
	switch (r.command) {
	case COMMAND_ARM:
		return sweep_arm() < 0 ? ANSWER_FAILED : ANSWER_OK;
	case COMMAND_BIND:
		return control_bind(skb, &r);
	case COMMAND_KILL:
		return control_kill(&r);
	case COMMAND_RESERVE:
		return control_reserve(&r);
	case COMMAND_SWEEP:
		rc = control_sweep(r.cursor, &next);
		r.cursor = next;
		if (bpf_skb_store_bytes(skb, 0, &r, sizeof(r), 0) < 0)
			return ANSWER_FAILED;
		return rc;
	}
	return ANSWER_BAD_REQUEST;
}

#endif /* CONENAT_CONTROL_H */
