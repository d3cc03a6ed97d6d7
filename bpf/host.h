/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The host shares the external address. What it sends from a free port takes
 * that port: a claim without a binding, held while packets come and as long as
 * a session of the protocol would be. What it sends from a port that a binding
 * holds is translated like any other packet, in a zone of its own.
 */
#ifndef CONENAT_HOST_H
#define CONENAT_HOST_H

#include "nptv6.h"
#include "sweep.h"

/* The slot by which the sweeper finds a claim of the host. */
static __always_inline int host_slot(const struct claim_key *key,
				     struct slot_ref *ref)
{
	struct session_key slot = {
		.saddr = key->address,
		.sport = key->port,
		.proto = key->proto,
		.zone = NAT_ZONE_CLAIM,
	};

	return slot_reserve(&slot, ref);
}

/* The host uses this endpoint, which nobody holds. */
static __noinline int host_claim(const struct claim_key *key, __u32 tick,
				 bool forwarded)
{
	struct nat_address *address;
	struct nat_claim claim = {
		.binding = CLAIM_HOST,
		.last_seen = tick,
		.forwarded = forwarded,
	};
	struct slot_ref slot = {};
	struct nat_ports *map;
	int rc;

	address = bpf_map_lookup_elem(&addresses, &key->address);
	if (!address)
		return -REASON_PASSED_HOST;
	map = ports_get(address->slot, key->proto);
	if (!map || !port_claim(map, bpf_ntohs(key->port)))
		return -REASON_PASSED_HOST; /* another CPU was first */
	if (host_slot(key, &slot) == 0) {
		claim.generation = slot.index;
		rc = bpf_map_update_elem(&claims, key, &claim, BPF_NOEXIST);
		if (rc == 0 && slot_confirm(&slot) == 0)
			return -REASON_PASSED_HOST;
		if (rc == 0)
			bpf_map_delete_elem(&claims, key);
		slot_abandon(&slot);
	}
	port_release(address->slot, key->proto, bpf_ntohs(key->port));
	return -REASON_PASSED_HOST;
}

static __always_inline void host_touch(const struct nat *n,
				       struct nat_claim *claim)
{
	bool closing = n->p.seen & (SEEN_FIN | SEEN_RST);

	if (claim->last_seen != n->tick)
		claim->last_seen = n->tick;
	if (closing && !claim->closing)
		claim->closing = 1;
	if (n->p.seen & SEEN_SYN && claim->closing)
		claim->closing = 0;
	if (claim->forwarded && !n->skb->ingress_ifindex)
		claim->forwarded = 0;
}

/* ref is held for the session; it is the session's, or given back. */
static __noinline int host_session(const struct nat *n,
				   const struct binding_ref *ref)
{
	struct nat_binding *b = binding_at(ref->binding);
	struct session_plan *plan = plan_new();

	if (!b || !plan)
		return -REASON_DROPPED_RACE;
	packet_key(&n->p, NAT_ZONE_HOST, &plan->key);
	plan->ref = *ref;
	plan->reverse_ref = *ref;
	plan->saddr = b->external;
	plan->sport = b->external_port;
	plan->daddr = n->p.daddr;
	plan->dport = n->p.dport;
	plan->target = TARGET_HOST;
	plan->reverse_target = TARGET_HOST;
	plan->peer_zone = NAT_ZONE_OUTSIDE;
	plan->seen = n->p.seen;
	return session_open(plan);
}

/* The session, if any, whose remote a packet with an external endpoint goes to. */
static __always_inline struct session_half *
session_of_remote(const struct nat *n, struct session_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = n->p.daddr;
	key->daddr = n->p.saddr;
	key->sport = n->p.dport;
	key->dport = n->p.sport;
	key->proto = n->p.proto;
	key->zone = NAT_ZONE_OUTSIDE;
	return session_find(key);
}

/*
 * The host answers: what netfilter's DNAT has brought in, or a datagram that was left
 * to its socket (inbound_is_hosts).
 */
static __noinline int host_answers(const struct nat *n)
{
	struct session_key key;

	if (answers_dnat(n->skb, &n->p))
		return true;
	return n->p.proto == IPPROTO_UDP && !session_of_remote(n, &key) &&
	       answers_conntrack(n->skb, &n->p);
}

/* The host sends from a port that a binding holds: a session of its own. */
static __noinline int host_open(const struct nat *n)
{
	struct binding_want *want = want_new();
	struct binding_ref ref = {};
	struct nat_address *address;
	int rc;

	address = bpf_map_lookup_elem(&addresses, &n->p.saddr);
	if (!address || !want)
		return -REASON_PASSED_HOST;
	if (host_answers(n))
		return -REASON_PASSED_CONNTRACK;
	/* A connection that was there before the binding: it goes on as it is. */
	if (n->p.proto == IPPROTO_TCP && !packet_opens(&n->p))
		return -REASON_PASSED_HOST;
	/* Behind the address that it has, also where a realm has several. */
	want->external = n->p.saddr;
	want->address = address->slot;
	want_of_sender(n, address->realm, want);
	rc = binding_obtain(n->skb, want, &ref);
	if (rc < 0)
		return outbound_refused(want, rc);
	rc = host_session(n, &ref);
	return rc == -LOOK_AGAIN ? 0 : rc;
}

/*
 * Whether a forwarded packet is already what its session makes of it: netfilter
 * still translates a connection that conenat has taken over from it. (Any other
 * NAT user on the host may have made the same of a connection of its own.)
 */
static family_inline bool is_translated(const struct nat *n)
{
	struct session_key key, inside_key;
	struct session_half *half, *inside_half;

	half = session_of_remote(n, &key);
	if (!half || !(half->flags & HALF_NETFILTER))
		return false;
	session_reverse_key(&key, half, &inside_key);
	inside_half = session_find(&inside_key);
	if (inside_half)
		session_touch(n, &inside_key, inside_half);
	return true;
}

/* The host's packet whose source port a binding holds: of which session? */
static __always_inline int host_translate(struct nat *n)
{
	struct session_half *half;
	struct session_key key;

	if (n->skb->ingress_ifindex && is_translated(n))
		return -REASON_PASSED_TRANSLATED;
	n->zone = NAT_ZONE_HOST;
	packet_key(&n->p, n->zone, &key);
	half = session_find(&key);
	if (!half)
		return -LOOK_AGAIN;
	return session_forward(n, &key, half);
}

/*
 * Without ports: what the host itself, or another NAT on it, says to the remote is a
 * session of its own, for nothing else tells whose an answer is. Who was first has it,
 * but the host comes before its containers: none of them gets what answers it.
 */
static __noinline int host_portless(struct nat *n)
{
	struct session_key key, primary;
	struct session_half *half;

	if (addr_never_routed(n->p.daddr))
		return -REASON_PASSED_HOST;
	n->zone = NAT_ZONE_HOST;
	half = session_of_remote(n, &key);
	if (!half)
		return -LOOK_AGAIN;
	session_reverse_key(&key, half, &primary);
	if (primary.zone != NAT_ZONE_HOST)
		return n->skb->ingress_ifindex ? -REASON_DROPPED_REMOTE_TAKEN :
						 -LOOK_AGAIN;
	half = session_find(&primary);
	if (half && half->last_seen != n->tick)
		half->last_seen = n->tick;
	return -REASON_PASSED_HOST;
}

/* Ends what an inside host says to the same remote, and frees its place at once. */
static __noinline int host_displace(const struct nat *n)
{
	struct session_key key, primary;
	struct session_half *half;
	struct session_slot *slot;
	struct slot_ref ref;

	half = session_of_remote(n, &key);
	if (!half)
		return 0;
	session_reverse_key(&key, half, &primary);
	ref.index = half->slot;
	slot = slot_at(ref.index);
	if (!slot)
		return 0;
	ref.word = slot_word(slot);
	/* Another session's by now: the sweeper was first. */
	if (!addr_equal(slot->key.saddr, primary.saddr) ||
	    !addr_equal(slot->key.daddr, primary.daddr) ||
	    slot->key.zone != primary.zone || slot->key.proto != primary.proto)
		return 0;
	session_close(&primary, STATE_ACTIVE);
	slot_give(slot, &ref);
	return 0;
}

/* A packet that the host sends outside. */
static __noinline int host_known(struct nat *n)
{
	struct nat_claim *claim;
	struct claim_key key;

	if (n->p.flags & PACKET_OTHER)
		return other_passed(&n->p, -REASON_PASSED_HOST);
	if (n->p.flags & (PACKET_ERROR | PACKET_REPLY | PACKET_LATER_FRAGMENT))
		return -REASON_PASSED_HOST;
	if (n->p.flags & PACKET_PORTLESS)
		return host_portless(n);
	claim_key_of(n->p.saddr, n->p.sport, n->p.proto, &key);
	claim = bpf_map_lookup_elem(&claims, &key);
	if (!claim)
		return host_claim(&key, n->tick, n->skb->ingress_ifindex);
	if (claim->binding != CLAIM_HOST)
		return host_translate(n);
	host_touch(n, claim);
	return -REASON_PASSED_HOST;
}

/* One after the other, not in each other: their stacks would add up. */
static __always_inline int host_outbound(struct nat *n)
{
	int rc = host_known(n);

	if (rc != -LOOK_AGAIN)
		return rc;
	if (n->p.flags & PACKET_PORTLESS)
		host_displace(n);
	rc = host_open(n);
	/* Where there is no room to write it down, it is the host's all the same. */
	if (rc < 0)
		return n->p.flags & PACKET_PORTLESS ? -REASON_PASSED_HOST : rc;
	rc = host_known(n);
	return rc == -LOOK_AGAIN ? -REASON_DROPPED_RACE : rc;
}

/*
 * The host in an inside host's name: the RST by which its rules refuse a
 * connection from outside. -LOOK_AGAIN: of no session, as any of the host's.
 */
static family_inline int host_as_inside(struct nat *n)
{
	struct session_half *half;
	struct session_key key;

	n->zone = zone_of_route(n->skb, addr_arg(n->p.saddr));
	if (n->zone == NAT_ZONE_OUTSIDE)
		return -LOOK_AGAIN;
	packet_key(&n->p, n->zone, &key);
	half = session_find(&key);
	if (half)
		return session_forward(n, &key, half);
	return zone_has_nptv6(n->zone) ? -REASON_PASSED_PROTOCOL : -LOOK_AGAIN;
}

#endif /* CONENAT_HOST_H */
