/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Hints to the daemon: what happened, through a ring buffer that may be full. */
#ifndef CONENAT_EVENT_H
#define CONENAT_EVENT_H

#include "config.h"

/* References that are sessions: a static binding holds one for itself. */
static __always_inline __u32 binding_sessions(const struct nat_binding *b)
{
	__u32 references = b->word & (BINDING_DYING - 1);

	if (!(b->flags & BINDING_STATIC) || (b->word & BINDING_DYING))
		return references;
	return references ? references - 1 : 0;
}

static __always_inline struct nat_event *event_begin(enum nat_event_type type)
{
	struct nat_event *e;
	__u64 *lost;
	__u32 zero = 0;

	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		lost = bpf_map_lookup_elem(&events_lost, &zero);
		if (lost)
			(*lost)++;
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = clock_ns();
	e->type = type;
	e->family = NAT_FAMILY;
	return e;
}

static __always_inline void event_binding_fields(struct nat_event *e,
						 const struct nat_binding *b)
{
	e->proto = b->proto;
	e->zone = b->zone;
	e->internal_port = b->internal_port;
	e->external_port = b->external_port;
	addr_to_event(e->internal, b->internal);
	addr_to_event(e->external, b->external);
	e->session_count = binding_sessions(b);
	if (b->flags & BINDING_STATIC)
		e->flags |= EVENT_FLAG_STATIC;
}

static __noinline int event_binding(struct nat_binding *b,
				    enum nat_event_type type)
{
	struct nat_event *e = event_begin(type);

	if (!e)
		return 0;
	event_binding_fields(e, b);
	e->remote_port = b->remote_port;
	addr_to_event(e->remote, b->remote);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * An event that an outsider can cause at will is sampled: one a tick on each
 * CPU, with the number of those that were not sent. Returns 0 for "not now".
 */
static __always_inline __u32 event_sample(__u32 type)
{
	struct nat_sampler *s = bpf_map_lookup_elem(&samplers, &type);
	__u32 tick = clock_tick();
	__u32 count;

	if (!s)
		return 0;
	count = ++s->count;
	if (s->last == tick)
		return 0;
	s->last = tick;
	s->count = 0;
	return count;
}

struct event_packet {
	nat_addr internal;
	nat_addr external;
	nat_addr remote;
	__be16 internal_port;
	__be16 external_port;
	__be16 remote_port;
	__u16 zone;
	__u8 proto;
	__u8 reason; /* quota.exceeded: REASON_DROPPED_* */
	__u8 pad[2];
};

NAT_GLOBAL int event_sampled(const struct event_packet *p,
			     enum nat_event_type type)
{
	__u32 count = event_sample(type);
	struct nat_event *e;

	if (!p || !count)
		return 0;
	e = event_begin(type);
	if (!e)
		return 0;
	e->proto = p->proto;
	e->zone = p->zone;
	e->count = count;
	e->reason = p->reason;
	e->internal_port = p->internal_port;
	e->external_port = p->external_port;
	e->remote_port = p->remote_port;
	addr_to_event(e->internal, p->internal);
	addr_to_event(e->external, p->external);
	addr_to_event(e->remote, p->remote);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* No binding or no session: tell the daemon, where an operator wants to know. */
static __always_inline void event_refused(struct event_packet *p, int rc)
{
	switch (rc) {
	case -REASON_DROPPED_PORT_EXHAUSTED:
	case -REASON_DROPPED_REMOTE_TAKEN:
		event_sampled(p, EVENT_PORT_EXHAUSTED);
		break;
	case -REASON_DROPPED_NO_ADDRESS:
		event_sampled(p, EVENT_ADDRESS_MISSING);
		break;
	case -REASON_DROPPED_QUOTA:
	case -REASON_DROPPED_HOST_PORTS:
	case -REASON_DROPPED_HOST_SESSIONS:
	case -REASON_DROPPED_NETWORK_PORTS:
	case -REASON_DROPPED_NETWORK_SESSIONS:
		p->reason = -rc;
		event_sampled(p, EVENT_QUOTA_EXCEEDED);
		break;
	}
}

#endif /* CONENAT_EVENT_H */
