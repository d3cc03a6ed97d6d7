/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How many ports and sessions an inside host has, and its network (RFC 6888
 * REQ-4 and REQ-5). Counted with a binding's and a session's beginning, given
 * back with its end, and never by a packet in between. Who is at a limit gets no
 * more; what there is goes on: nothing is evicted.
 */
#ifndef CONENAT_USAGE_H
#define CONENAT_USAGE_H

#include "config.h"

#define USAGE_TRIES 4

/* Whose: the host's own packets are nobody's. */
static __always_inline bool usage_counts(__u32 zone)
{
	return zone && zone <= NAT_ZONE_LAST;
}

static __always_inline bool usage_is_over(__u64 word, __u64 one, __u32 limit)
{
	__u64 has = one == USAGE_PORT ? (__u32)word :
					(word & ~USAGE_DYING) >> 32;

	return limit && has >= limit;
}

/* One less; the last one of all takes the entry away. */
static __noinline int usage_drop(const struct owner_key *key, __u64 one)
{
	struct nat_host *u = bpf_map_lookup_elem(&hosts, key);

	if (!u || __sync_fetch_and_add(&u->word, -one) != one)
		return 0;
	if (__sync_val_compare_and_swap(&u->word, 0, USAGE_DYING) == 0)
		bpf_map_delete_elem(&hosts, key);
	return 0;
}

/*
 * One more in an entry that was looked up, unless it is ending, or is another
 * host's by now: -LOOK_AGAIN. (As permission_add does it.)
 */
static __always_inline int usage_add(struct nat_host *u,
				     const struct owner_key *key, __u64 one,
				     __u32 limit)
{
	__u64 old = __sync_fetch_and_add(&u->word, one);

	if (old & USAGE_DYING)
		return -LOOK_AGAIN;
	if (bpf_map_lookup_elem(&hosts, key) != u) {
		__sync_fetch_and_add(&u->word, -one);
		return -LOOK_AGAIN;
	}
	if (!usage_is_over(old, one, limit))
		return 0;
	usage_drop(key, one);
	return one == USAGE_PORT ? -REASON_DROPPED_HOST_PORTS :
				   -REASON_DROPPED_HOST_SESSIONS;
}

/* One more of a host's. */
static __noinline int usage_hold(const struct owner_key *key, __u64 one,
				 __u32 limit)
{
	struct nat_host fresh = { .word = one }, *u;
	int i, rc;

	for (i = 0; i < USAGE_TRIES; i++) {
		u = bpf_map_lookup_elem(&hosts, key);
		if (u) {
			rc = usage_add(u, key, one, limit);
			if (rc != -LOOK_AGAIN)
				return rc;
			continue;
		}
		rc = bpf_map_update_elem(&hosts, key, &fresh, BPF_NOEXIST);
		if (rc == 0)
			return 0;
	}
	return -REASON_DROPPED_RACE;
}

static __always_inline __u32 usage_limit(const struct nat_zone *zone, __u64 one,
					 bool host)
{
	const struct nat_limits *l = &zone->limits;

	if (one == USAGE_PORT)
		return host ? l->host_ports : l->zone_ports;
	return host ? l->host_sessions : l->zone_sessions;
}

/*
 * One more port or session (USAGE_PORT, USAGE_SESSION) of an inside host and of
 * its network, if they may have it. 0 or -REASON_DROPPED_*.
 */
NAT_GLOBAL int usage_take(__u32 zone, nat_addr_arg address, __u64 one,
			  bool unlimited)
{
	struct nat_usage *all = bpf_map_lookup_elem(&zone_usage, &zone);
	struct nat_zone *z = zone_get(zone);
	struct owner_key key;
	__u64 old;
	int rc;

	if (!usage_counts(zone))
		return 0;
	if (!all || !z)
		return -REASON_DROPPED_RACE;
	old = __sync_fetch_and_add(&all->word, one);
	if (!unlimited && usage_is_over(old, one, usage_limit(z, one, false))) {
		__sync_fetch_and_add(&all->word, -one);
		return one == USAGE_PORT ? -REASON_DROPPED_NETWORK_PORTS :
					   -REASON_DROPPED_NETWORK_SESSIONS;
	}
	owner_key_of(zone, addr_of(address), &key);
	rc = usage_hold(&key, one, unlimited ? 0 : usage_limit(z, one, true));
	if (rc < 0)
		__sync_fetch_and_add(&all->word, -one);
	return rc;
}

/*
 * Whether an inside host may have one more session: else it gets no binding for one,
 * which would begin and end, with its events, at each packet that is refused.
 * 0 or -REASON_DROPPED_*.
 */
NAT_GLOBAL int usage_room(__u32 zone, nat_addr_arg address)
{
	struct nat_usage *all = bpf_map_lookup_elem(&zone_usage, &zone);
	struct nat_zone *z = zone_get(zone);
	struct owner_key key;
	struct nat_host *u;

	if (!usage_counts(zone) || !all || !z)
		return 0;
	if (usage_is_over(all->word, USAGE_SESSION, z->limits.zone_sessions))
		return -REASON_DROPPED_NETWORK_SESSIONS;
	owner_key_of(zone, addr_of(address), &key);
	u = bpf_map_lookup_elem(&hosts, &key);
	if (u && usage_is_over(u->word, USAGE_SESSION, z->limits.host_sessions))
		return -REASON_DROPPED_HOST_SESSIONS;
	return 0;
}

NAT_GLOBAL int usage_give(__u32 zone, nat_addr_arg address, __u64 one)
{
	struct nat_usage *all = bpf_map_lookup_elem(&zone_usage, &zone);
	struct owner_key key;

	if (!usage_counts(zone) || !all)
		return 0;
	owner_key_of(zone, addr_of(address), &key);
	usage_drop(&key, one);
	__sync_fetch_and_add(&all->word, -one);
	return 0;
}

#endif /* CONENAT_USAGE_H */
