/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which external port a binding gets: the internal port itself where it is free,
 * else one at random (RFC 6056, RFC 7857 section 9) of the same class and parity
 * (RFC 4787 REQ-3a and REQ-4), and of the other parity before none.
 */
#ifndef CONENAT_ALLOCATE_H
#define CONENAT_ALLOCATE_H

#include "block.h"
#include "held.h"
#include "scratch.h"

#define BLOCK_ROUNDS \
	4 /* a block that was taken, and full before it was searched */

/* Beside an allocated port: it is of a block of the host's. */
#define PORT_IN_BLOCK (1 << 16)

/* What a new binding is to be. */
struct binding_want {
	nat_addr internal;
	nat_addr external; /* any: one of the pool */
	__be16 internal_port;
	__be16 external_port; /* 0: any */
	nat_addr remote; /* first one */
	__be16 remote_port;
	__u16 zone;
	__u16 realm;
	__u16 address; /* nat_address.slot */
	__u8 proto;
	__u8 flags; /* BINDING_STATIC, BINDING_PUBLISHED, BINDING_OWN */
	__u8 over_socket;
	__u8 mapping; /* enum nat_behavior: what of the remote makes another one */
};

SCRATCH(struct binding_want, want)

/*
 * Of a routed network: outside, the internal endpoint itself, by whichever interface. It
 * is nobody else's, and in no bitmap; the claim is what inbound packets find.
 */
static __always_inline void want_itself(struct binding_want *want)
{
	want->external = want->internal;
	want->address = NAT_NO_SLOT;
	want->realm = 0;
	want->mapping = NAT_ENDPOINT_INDEPENDENT;
}

NAT_GLOBAL bool want_host_socket(struct __sk_buff *skb,
				 const struct binding_want *want, __u16 port)
{
	struct bpf_sock_tuple tuple = {};

	if (!want)
		return false;
	tuple_set(&tuple, want->remote, want->remote_port, want->external,
		  bpf_htons(port));
	return host_socket(skb, &tuple, want->proto) != HOST_SOCKET_NONE;
}

/* Of an internal port below 1024; ICMP identifiers have no classes. */
static __always_inline bool want_is_low(const struct binding_want *want)
{
	return want->proto != PROTO_ICMP &&
	       bpf_ntohs(want->internal_port) < 1024;
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
	if (want->proto == PROTO_ICMP) {
		s->low = 0;
		s->high = 65535;
	} else if (want_is_low(want)) {
		s->low = 1;
		s->high = 1023;
	}
}

static __always_inline __u64 want_parity(const struct binding_want *want)
{
	if (want->proto != IPPROTO_UDP)
		return PARITY_ANY;
	return PARITY_EVEN << (bpf_ntohs(want->internal_port) & 1);
}

static __always_inline __u32 random_between(__u32 low, __u32 high)
{
	return low + bpf_get_prandom_u32() % (high - low + 1);
}

/* A random port of the range and parity; negative: none. Its bit is set. */
NAT_GLOBAL int port_pick(struct __sk_buff *skb, const struct binding_want *want,
			 struct port_search *s)
{
	__u32 port, refused = 0;
	int i;

	if (!want || !s || s->low > s->high)
		return -REASON_DROPPED_PORT_EXHAUSTED;
	if (!s->low)
		s->low = 1; /* 0 means "none" below */
	s->start = random_between(s->low, s->high);
	for (i = 0; i < PORT_TRIES; i++) {
		port = port_search_run(s);
		if (!port)
			break;
		if (!want_host_socket(skb, want, port))
			return port;
		port_release(want->address, want->proto, port);
		if (port == refused) /* once round */
			break;
		if (!refused)
			refused = port;
		s->start = port < s->high ? port + 1 : s->low;
	}
	return -REASON_DROPPED_PORT_EXHAUSTED;
}

/* The internal port itself, if it is of the range and free; negative: it is not. */
NAT_GLOBAL int port_preserve(struct __sk_buff *skb,
			     const struct binding_want *want,
			     const struct port_search *s)
{
	struct nat_ports *map;
	__u32 port;

	if (!want || !s)
		return -1;
	map = ports_get(want->address, want->proto);
	port = bpf_ntohs(want->internal_port);
	if (!map || port < s->low || port > s->high || !port_claim(map, port))
		return -1;
	if ((s->in_block || !port_is_blocked(want->address, port)) &&
	    !want_host_socket(skb, want, port))
		return port;
	port_release(want->address, want->proto, port);
	return -1;
}

/* From the whole range, but for what is of somebody's block. */
NAT_GLOBAL int port_of_range(struct __sk_buff *skb,
			     const struct binding_want *want)
{
	struct nat_config *cfg = config_get();
	struct port_search s = {};
	int port;

	if (!cfg || !want)
		return -REASON_DROPPED_PORT_EXHAUSTED;
	s.address = want->address;
	s.proto = want->proto;
	s.parity = want_parity(want);
	want_range(cfg, want, &s);
	port = port_preserve(skb, want, &s);
	if (port < 0)
		port = port_pick(skb, want, &s);
	if (port >= 0 || s.parity == PARITY_ANY)
		return port;
	s.parity = PARITY_ANY;
	return port_pick(skb, want, &s);
}

/*
 * A port of the blocks that the host has; negative: they are full. Three times
 * through them: for the internal port itself, for its parity, for any.
 */
static family_inline int port_of_blocks(struct __sk_buff *skb,
					const struct binding_want *want,
					const struct block_key *key)
{
	struct port_search s = {
		.address = want->address,
		.proto = want->proto,
		.parity = want_parity(want),
		.in_block = 1,
	};
	__u32 step, block;
	int port;

	for (step = 0; step < 3 * NAT_HOST_BLOCKS; step++) {
		if (step == 2 * NAT_HOST_BLOCKS)
			s.parity = PARITY_ANY;
		block = blocks_get(key, step % NAT_HOST_BLOCKS);
		if (!block)
			continue;
		s.low = block_first(block);
		s.high = s.low + block_ports(block) - 1;
		port = step < NAT_HOST_BLOCKS ? port_preserve(skb, want, &s) :
						port_pick(skb, want, &s);
		if (port >= 0)
			return port | PORT_IN_BLOCK;
	}
	return -1;
}

/* From the host's blocks, or one more; it holds a reference on them then. */
NAT_GLOBAL int port_of_host(struct __sk_buff *skb,
			    const struct binding_want *want, __u32 size)
{
	struct block_key key = {};
	int i, rc, port;
	__u32 count;

	if (!want)
		return -REASON_DROPPED_PORT_EXHAUSTED;
	key.address = want->internal;
	key.zone = want->zone;
	key.slot = want->address;
	rc = blocks_hold(&key, want->external);
	for (i = 0; i < BLOCK_ROUNDS && rc == 0; i++) {
		count = blocks_count(&key);
		port = port_of_blocks(skb, want, &key);
		if (port >= 0)
			return port;
		rc = blocks_grow(&key, count, size);
	}
	if (i > 0)
		blocks_drop(&key);
	return rc < 0 ? rc : -REASON_DROPPED_PORT_EXHAUSTED;
}

/*
 * At an address that is the host's alone: the internal port itself, whatever it is,
 * and whatever socket waits there; unless the host is using it, or it is forwarded.
 */
static __always_inline int port_own(const struct binding_want *want)
{
	struct nat_ports *map = ports_get(want->address, want->proto);
	__u16 port = bpf_ntohs(want->internal_port);

	if (map && (port_claim(map, port) ||
		    held_take(want->address, want->proto, port)))
		return port;
	return -REASON_DROPPED_PORT_EXHAUSTED;
}

/*
 * A new binding's external port, with PORT_IN_BLOCK if it is of a block. Its bit is
 * set. -REASON_DROPPED_*: there is none.
 */
static __always_inline int port_allocate(struct __sk_buff *skb,
					 const struct binding_want *want)
{
	struct nat_zone *zone = NULL;

	if (protocol_is_portless(want->proto))
		return 0;
	if (want->address == NAT_NO_SLOT)
		return bpf_ntohs(want->internal_port);
	if (want->flags & BINDING_OWN)
		return port_own(want);
	if (want->zone <= NAT_ZONE_LAST && !want_is_low(want))
		zone = zone_get(want->zone);
	if (zone && zone->block)
		return port_of_host(skb, want, zone->block);
	return port_of_range(skb, want);
}

/* Of an endpoint that no bitmap has. */
static __always_inline bool endpoint_is_claimed(const struct binding_want *want)
{
	struct claim_key key = {
		.address = want->external,
		.port = want->external_port,
		.proto = want->proto,
	};

	return bpf_map_lookup_elem(&claims, &key);
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
	if (want->address == NAT_NO_SLOT)
		return endpoint_is_claimed(want) ? -ANSWER_TAKEN : port;
	if (!map)
		return -ANSWER_BAD_REQUEST;
	if (!port_claim(map, port) &&
	    !held_take(want->address, want->proto, port))
		return -ANSWER_TAKEN;
	if (!want->over_socket && want_host_socket(skb, want, port)) {
		port_release(want->address, want->proto, port);
		return -ANSWER_HOST_SOCKET;
	}
	return port;
}

#endif /* CONENAT_ALLOCATE_H */
