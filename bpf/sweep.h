/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Expiry, by one kernel timer that walks the slot array in bounded chunks: it
 * works while no daemon lives. A slot says until when its session cannot have
 * expired, so that a walk over idle slots reads nothing but the array.
 */
#ifndef CONENAT_SWEEP_H
#define CONENAT_SWEEP_H

#include "session.h"

#define CLOCK_MONOTONIC 1
#define SWEEP_SLOTS 8192 /* looked at in one go */
#define SWEEP_WORK 512 /* of them, sessions looked up */
#define SWEEP_PAUSE 1000000ULL /* ns between two goes of one walk */

struct sweep_walk {
	__u32 cursor;
	__u32 used; /* slots that were ever used */
	__u32 tick;
	__u32 work;
	bool all; /* whatever the slots say: some binding is dying */
};

/* Tick of the last packet that keeps the session alive. */
static __always_inline __u32 session_refreshed(const struct session_key *key,
					       const struct session_half *a,
					       const struct session_half *b)
{
	/* RFC 7857 section 7: else anybody could keep the port open. */
	if (!b || (key->proto == IPPROTO_UDP && !(a->flags & HALF_HAIRPIN) &&
		   filtering_of(key->zone, addr_arg(key->saddr), key->proto) ==
			   NAT_ENDPOINT_INDEPENDENT))
		return a->last_seen;
	return tick_diff(a->last_seen, b->last_seen) > 0 ? a->last_seen :
							   b->last_seen;
}

/* The slot is not to be looked at before the protocol's shortest timeout. */
static __always_inline void slot_postpone(struct session_slot *slot,
					  __u32 deadline, __u32 tick)
{
	struct nat_config *cfg = config_get();
	int l4 = l4_settings(slot->key.proto);
	__u32 latest;

	if (!cfg || l4 < 0 || l4 >= NAT_PROTOCOLS)
		return;
	latest = tick + cfg->recheck[l4];
	slot->check = tick_diff(deadline, latest) < 0 ? deadline : latest;
}

/*
 * Ends a session: events, halves, references, in this order, so that whoever
 * opens it again comes after.
 */
NAT_GLOBAL int session_close(const struct session_key *key, __u8 state)
{
	struct session_half *primary, *reverse;
	struct session_key own, reverse_key;
	struct session_held held = {};
	struct session_change c = {
		.type = EVENT_SESSION_CLOSED,
		.state = state,
	};
	bool self;
	int rc;

	if (!key)
		return 0;
	own = *key;
	primary = session_find(&own);
	if (!primary)
		return 0;
	session_reverse_key(key, primary, &reverse_key);
	reverse = session_find(&reverse_key);
	event_sessions(&c, key, primary, &reverse_key, reverse);
	session_holds(primary, reverse, &held);
	self = primary->flags & HALF_SELF;
	rc = bpf_map_delete_elem(&sessions, &own);
	if (rc < 0) /* another CPU was first, and gives back what it holds */
		return 0;
	if (!self)
		bpf_map_delete_elem(&sessions, &reverse_key);
	return session_release(key, &held);
}

/* Whether the slot's session is at its end, and ended; else looked at later. */
static __always_inline bool sweep_session(struct session_slot *slot,
					  __u32 index, __u32 tick)
{
	struct session_key key = slot->key, reverse_key;
	struct session_half *a = session_find(&key), *b;
	__u32 deadline;
	__u8 state;
	bool dying;

	if (!a || a->slot != index)
		return true;
	session_reverse_key(&key, a, &reverse_key);
	b = session_find(&reverse_key);
	state = session_state(key.proto, a->seen, b ? b->seen : 0);
	deadline = session_refreshed(&key, a, b) +
		   state_lifetime(key.proto, state);
	dying = half_is_dying(a) || (b && half_is_dying(b));
	if (!dying && tick_diff(tick, deadline) <= 0) {
		slot_postpone(slot, deadline + 1, tick);
		return false;
	}
	session_close(&key, state);
	return true;
}

/* How long the host keeps a port that it has sent from; ticks. */
static __always_inline __u32 claim_lifetime(const struct nat_claim *claim,
					    __u8 proto)
{
	enum nat_state state = STATE_ACTIVE;

	if (proto == IPPROTO_TCP)
		state = claim->closing ? STATE_FIN_BOTH : STATE_ESTABLISHED;
	return state_lifetime(proto, state);
}

/* The same for a port of the host; a static binding may have taken it. */
static __always_inline bool sweep_claim(struct session_slot *slot, __u32 index,
					__u32 tick)
{
	struct nat_address *address;
	struct nat_claim *claim;
	struct claim_key key;
	__u32 deadline;

	claim_key_of(slot->key.saddr, slot->key.sport, slot->key.proto, &key);
	claim = bpf_map_lookup_elem(&claims, &key);
	if (!claim || claim->binding != CLAIM_HOST ||
	    claim->generation != index)
		return true;
	deadline = claim->last_seen + claim_lifetime(claim, key.proto);
	address = bpf_map_lookup_elem(&addresses, &key.address);
	if (address && tick_diff(tick, deadline) <= 0) {
		slot_postpone(slot, deadline + 1, tick);
		return false;
	}
	bpf_map_delete_elem(&claims, &key);
	if (address)
		port_release(address->slot, key.proto, bpf_ntohs(key.port));
	return true;
}

static __always_inline bool sweep_live(struct session_slot *slot, __u32 index,
				       __u32 tick)
{
	if (slot->key.zone == NAT_ZONE_CLAIM)
		return sweep_claim(slot, index, tick);
	return sweep_session(slot, index, tick);
}

/* Looks at one slot, if it is time to. Returns how much work that was: 0 or 1. */
NAT_GLOBAL int sweep_slot(__u32 index, __u32 tick, bool all)
{
	struct session_slot *slot = slot_at(index);
	struct slot_ref ref = { .index = index };
	bool due, free;

	if (!slot)
		return 0;
	ref.word = slot_word(slot);
	due = slot_is_due(slot, tick);
	switch (ref.word & SLOT_STATE) {
	case SLOT_RESERVED: /* whoever inserts what it names has been held up */
		free = due;
		break;
	case SLOT_LIVE:
		if (!due && !all)
			return 0;
		free = sweep_live(slot, index, tick);
		break;
	default:
		return 0;
	}
	if (free)
		slot_give(slot, &ref);
	return 1;
}

static long sweep_step(__u32 index, void *data)
{
	struct sweep_walk *walk = data;

	if (walk->cursor >= walk->used || walk->work >= SWEEP_WORK)
		return 1;
	walk->work += sweep_slot(walk->cursor, walk->tick, walk->all);
	walk->cursor++;
	return 0;
}

static __always_inline struct sweeper *sweeper_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sweeper, &zero);
}

/* One go from the cursor on; moves it, 0 at the end. -EBUSY: another is at it. */
static __always_inline int sweep_chunk(__u32 *cursor, bool all)
{
	struct sweeper *s = sweeper_get();
	struct nat_pool *pool = pool_get(POOL_SESSIONS);
	struct nat_config *cfg = config_get();
	struct sweep_walk walk = {
		.tick = clock_tick(),
		.all = all,
	};

	if (!pool || !cfg || !s || !cursor)
		return -EINVAL;
	walk.cursor = *cursor;
	if (__sync_val_compare_and_swap(&s->busy, 0, 1) != 0)
		return -EBUSY;
	walk.used = pool->used < cfg->max_sessions ? pool->used :
						     cfg->max_sessions;
	bpf_loop(SWEEP_SLOTS, sweep_step, &walk, 0);
	held_sweep(walk.tick);
	*cursor = walk.cursor >= walk.used ? 0 : walk.cursor;
	__sync_val_compare_and_swap(&s->busy, 1, 0);
	return 0;
}

/* ns until the timer's next go. */
static __always_inline __u64 sweep_delay(struct sweeper *s)
{
	struct nat_config *cfg = config_get();
	__u64 now = bpf_ktime_get_ns(), next;

	if (!cfg || s->cursor)
		return SWEEP_PAUSE;
	next = s->walk_started + cfg->sweep_period;
	s->walk_started = now;
	return next > now + SWEEP_PAUSE ? next - now : SWEEP_PAUSE;
}

static int sweep_timer(void *map, __u32 *key, struct sweeper *s)
{
	__u32 cursor = s->cursor;

	if (sweep_chunk(&cursor, false) == 0)
		s->cursor = cursor;
	bpf_timer_start(&s->timer, sweep_delay(s), 0);
	return 0;
}

/*
 * Starts the timer with this program's callback; done at each load, or the
 * program that armed it before would stay loaded.
 */
static __noinline int sweep_arm(void)
{
	struct sweeper *s = sweeper_get();
	int rc;

	if (!s)
		return -EINVAL;
	rc = bpf_timer_init(&s->timer, &sweeper, CLOCK_MONOTONIC);
	if (rc < 0 && rc != -EBUSY)
		return rc;
	rc = bpf_timer_set_callback(&s->timer, sweep_timer);
	if (rc < 0)
		return rc;
	return bpf_timer_start(&s->timer, SWEEP_PAUSE, 0);
}

#endif /* CONENAT_SWEEP_H */
