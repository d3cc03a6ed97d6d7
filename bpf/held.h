/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ports that nobody gets for 120 s after their binding's end (RFC 6888 REQ-8):
 * the next one would receive what is sent to the last one. Exempt is what the RFC
 * exempts: TCP, whose state is tracked, static bindings, ports of an address that is
 * one host's alone, and a filter that asks who sends; an ICMP reply is filtered always.
 *
 * Such a port keeps its bit in the bitmap, gets one in a bitmap of its own, and
 * waits in a queue for the sweeper. Whoever clears that second bit has the port.
 */
#ifndef CONENAT_HELD_H
#define CONENAT_HELD_H

#include "owner.h"
#include "ports.h"

#define HELD_WORK 4096 /* looked at in one go of the sweeper */

static __always_inline struct nat_ports *held_get(__u32 address)
{
	return bpf_map_lookup_elem(&held, &address);
}

/* A port that waits is the caller's from now on; false: it does not. */
static __always_inline bool held_take(__u32 address, __u8 proto, __u16 port)
{
	struct nat_ports *map = held_get(address);

	return proto == IPPROTO_UDP && map && port_unclaim(map, port);
}

static __always_inline bool held_is_asked(const struct nat_binding *b)
{
	return b->proto == IPPROTO_UDP && b->used &&
	       !(b->flags & (BINDING_STATIC | BINDING_OWN)) &&
	       filtering_of(b->zone, addr_arg(b->internal), b->proto) ==
		       NAT_ENDPOINT_INDEPENDENT;
}

/* Lets a binding's port wait. False: there is no room, or no need to. */
static __noinline int held_put(const struct nat_binding *b)
{
	struct nat_held entry = {
		.slot = b->address,
		.port = bpf_ntohs(b->external_port),
		.since = clock_tick(),
	};
	struct nat_ports *map = held_get(b->address);

	if (!map || !held_is_asked(b))
		return false;
	port_claim(map, entry.port);
	if (bpf_map_push_elem(&held_ports, &entry, 0) == 0)
		return true;
	port_unclaim(map, entry.port);
	return false;
}

/* The first one in the queue, if its time has come. */
static long held_step(__u32 index, void *data)
{
	__u32 *tick = data;
	struct nat_held entry;

	if (bpf_map_peek_elem(&held_ports, &entry) < 0 ||
	    tick_diff(*tick, entry.since) <= NAT_HOLD_TICKS ||
	    bpf_map_pop_elem(&held_ports, &entry) < 0)
		return 1;
	if (held_take(entry.slot, IPPROTO_UDP, entry.port))
		port_release(entry.slot, IPPROTO_UDP, entry.port);
	return 0;
}

/* Frees the ports whose time has come; one walker at a time. */
NAT_GLOBAL int held_sweep(__u32 tick)
{
	bpf_loop(HELD_WORK, held_step, &tick, 0);
	return 0;
}

#endif /* CONENAT_HELD_H */
