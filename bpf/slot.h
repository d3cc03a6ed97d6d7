/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The array that the sweeper walks. A slot names a session, or a port of the
 * host, and says until when that cannot have expired.
 *
 * Its word is a generation and a state: reserved before what it names is
 * inserted, live after. Who is held up in between for longer than a session
 * lives finds the slot taken back, by one compare-and-swap that either the
 * sweeper or he wins: nothing is ever in the tables that no slot names, and no
 * slot names what is another's by now.
 */
#ifndef CONENAT_SLOT_H
#define CONENAT_SLOT_H

#include "binding.h"

#define SLOT_FREE 0
#define SLOT_RESERVED 1
#define SLOT_LIVE 2
#define SLOT_STATE 3 /* of these */
#define SLOT_GENERATION 4 /* one more */

/* A slot that was reserved. */
struct slot_ref {
	__u32 index;
	__u32 word;
};

static __always_inline struct session_slot *slot_at(__u32 index)
{
	return bpf_map_lookup_elem(&session_slots, &index);
}

static __always_inline __u32 slot_word(const struct session_slot *slot)
{
	return *(volatile __u32 *)&slot->word;
}

static __always_inline bool slot_is_due(const struct session_slot *slot,
					__u32 tick)
{
	return tick_diff(tick, slot->check) >= 0;
}

static __always_inline __s64 slot_take(const struct nat_config *cfg)
{
	struct nat_pool *pool = pool_get(POOL_SESSIONS);
	__u32 index;

	if (!pool)
		return -1;
	if (queue_pop(&session_free, &index) < 0)
		return pool_bump(pool, cfg->max_sessions);
	__sync_fetch_and_sub(&pool->free, 1);
	return index;
}

/*
 * Frees a slot, unless it is not what it was when its word was read: somebody
 * else has freed it, or made it live.
 */
static __always_inline void slot_give(struct session_slot *slot,
				      const struct slot_ref *ref)
{
	struct nat_pool *pool = pool_get(POOL_SESSIONS);
	__u32 freed = (ref->word & ~SLOT_STATE) + SLOT_GENERATION;

	if (__sync_val_compare_and_swap(&slot->word, ref->word, freed) !=
	    ref->word)
		return;
	if (pool && bpf_map_push_elem(&session_free, &ref->index, 0) == 0)
		__sync_fetch_and_add(&pool->free, 1);
}

/* A slot that names the key, due after the shortest timeout; 0 or negative. */
NAT_GLOBAL int slot_reserve(const struct session_key *key, struct slot_ref *ref)
{
	struct nat_config *cfg = config_get();
	struct session_slot *slot;
	__s64 index;
	int l4;

	if (!key || !ref || !cfg)
		return -1;
	l4 = l4_settings(key->proto);
	if (l4 < 0 || l4 >= NAT_PROTOCOLS)
		return -1;
	index = slot_take(cfg);
	slot = index < 0 ? NULL : slot_at(index);
	if (!slot)
		return -1;
	slot->check = clock_tick() + cfg->recheck[l4];
	slot->key = *key;
	ref->index = index;
	/* A full barrier: nobody sees it reserved with what it was before. */
	ref->word = __sync_fetch_and_add(&slot->word, SLOT_RESERVED) +
		    SLOT_RESERVED;
	return 0;
}

/* What the slot names is inserted. Negative: too late, it has to go again. */
static __always_inline int slot_confirm(const struct slot_ref *ref)
{
	struct session_slot *slot = slot_at(ref->index);
	__u32 live = ref->word - SLOT_RESERVED + SLOT_LIVE;

	if (slot && __sync_val_compare_and_swap(&slot->word, ref->word, live) ==
			    ref->word)
		return 0;
	return -REASON_DROPPED_RACE;
}

/* What the slot was to name is not inserted. */
static __always_inline void slot_abandon(const struct slot_ref *ref)
{
	struct session_slot *slot = slot_at(ref->index);

	if (slot)
		slot_give(slot, ref);
}

#endif /* CONENAT_SLOT_H */
