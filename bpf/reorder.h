/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A private network namespace whose kernel puts fragments in order
 * (docs/decisions/0012-fragments.md): they go in by the peer of a veth, and come
 * back by its other end to where they came from, the one with the ports first.
 * Which way a datagram goes, who comes first decides: a datagram whose first
 * fragment comes first never gets there.
 */
#ifndef CONENAT_REORDER_H
#define CONENAT_REORDER_H

#include "owner.h"
#include "translate.h"
#include "verdict.h"

#define FRAGMENT_TICKS 1800 /* 30 s: the kernel's ipfrag_time */

/*
 * Marks what has come back, in order, for the hook that sees it once more.
 * tc_index as for DIRECT_PATH_MARK: a veth's other namespace clears skb->mark.
 */
#define REORDERED_MARK 0xc07f

/* skb->mark in the namespace: its route with the inside MTU. */
#define REORDER_CUT 1

static __always_inline bool is_recent(__u32 last_seen)
{
	return tick_diff(clock_tick(), last_seen) <= FRAGMENT_TICKS;
}

/*
 * Two networks may use the same addresses, and the defragmenter knows no networks:
 * who comes second with the same identification is dropped.
 */
static __always_inline int origin_put(const struct packet *p,
				      const struct nat_origin *o)
{
	struct nat_origin *old;
	struct origin_key key = {
		.saddr = p->saddr,
		.daddr = p->daddr,
		.id = p->id,
		.proto = p->proto,
	};
	int rc;

	rc = bpf_map_update_elem(&origins, &key, o, BPF_NOEXIST);
	if (rc == 0)
		return 0;
	old = bpf_map_lookup_elem(&origins, &key);
	if (old && old->zone != o->zone && is_recent(old->last_seen))
		return -REASON_DROPPED_FRAGMENT;
	rc = bpf_map_update_elem(&origins, &key, o, BPF_ANY);
	return rc < 0 ? -REASON_DROPPED_REWRITE : 0;
}

static __always_inline int origin_remember(struct __sk_buff *skb,
					   const struct packet *p, __u32 zone)
{
	struct nat_origin o = {
		.ifindex = skb->ifindex,
		.mark = skb->mark,
		.last_seen = clock_tick(),
		.zone = zone,
	};

	if (p->l3 && bpf_skb_load_bytes(skb, 0, o.mac, sizeof(o.mac)) < 0)
		return -REASON_DROPPED_REWRITE;
	return origin_put(p, &o);
}

/* The namespace is a router: what it takes from the TTL is added before. */
static __always_inline int reorder_ttl(struct __sk_buff *skb,
				       const struct packet *p)
{
	__u32 at = p->l3 + __builtin_offsetof(struct iphdr, check);
	__u8 ttl = p->ttl + 1;

	if (!ttl)
		return 0;
	if (bpf_l3_csum_replace(skb, at, ip_word(p->ttl, p->proto),
				ip_word(ttl, p->proto), sizeof(__u16)) < 0)
		return -REASON_DROPPED_REWRITE;
	at = p->l3 + __builtin_offsetof(struct iphdr, ttl);
	if (bpf_skb_store_bytes(skb, at, &ttl, sizeof(ttl), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* A host's own packet, with an Ethernet header: what a veth's end takes. */
static __always_inline int reorder_frame(struct __sk_buff *skb,
					 const struct packet *p)
{
	if (skb->pkt_type != PACKET_HOST &&
	    bpf_skb_change_type(skb, PACKET_HOST) < 0)
		return -REASON_DROPPED_REWRITE;
	if (!p->l3 && bpf_skb_change_head(skb, ETH_HLEN, 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* Sends a packet into the namespace; 0 if it has not been there, nor can be. */
NAT_GLOBAL int reorder_send(struct __sk_buff *skb, const struct packet *p,
			    __u32 zone)
{
	struct nat_config *cfg = config_get();
	int rc;

	if (!p || !cfg || !cfg->reorder_ifindex ||
	    skb->tc_index == REORDERED_MARK)
		return 0;
	rc = origin_remember(skb, p, zone);
	if (rc == 0)
		rc = reorder_ttl(skb, p);
	if (rc == 0)
		rc = reorder_frame(skb, p);
	if (rc < 0)
		return rc;
	skb->mark = p->flags & PACKET_CUT ? REORDER_CUT : 0;
	return bpf_redirect_peer(cfg->reorder_ifindex, 0);
}

/* The reason of a packet that reorder_send has done rc with; else otherwise. */
static __always_inline int reorder_reason(struct nat *n, int rc, int why,
					  int otherwise)
{
	if (rc == 0)
		return otherwise;
	if (rc < 0)
		return rc;
	n->action = rc;
	return rc == TC_ACT_REDIRECT ? why : -REASON_DROPPED_REWRITE;
}

static __always_inline int reorder_parse(struct __sk_buff *skb,
					 struct origin_key *key)
{
	struct hdr_cursor cursor;
	struct ethhdr *eth;
	struct iphdr *ip;
	void *end;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return -REASON_PASSED_NOT_IPV4;
	packet_pull(skb);
	cursor.pos = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (parse_ethernet(&cursor, end, &eth) < 0 ||
	    parse_ipv4(&cursor, end, &ip) < 0)
		return -REASON_DROPPED_MALFORMED;
	key->saddr = ip->saddr;
	key->daddr = ip->daddr;
	key->id = ip->id;
	key->proto = ip->protocol;
	return 0;
}

/* Back to the interface that it came by, as if it had come so. */
static __noinline int reorder_return(struct nat *n)
{
	struct __sk_buff *skb = n->skb;
	struct origin_key key = {};
	struct nat_origin *o;

	if (reorder_parse(skb, &key) < 0)
		return -REASON_DROPPED_MALFORMED;
	o = bpf_map_lookup_elem(&origins, &key);
	if (!o)
		return -REASON_DROPPED_FRAGMENT;
	if (bpf_skb_store_bytes(skb, 0, o->mac, sizeof(o->mac), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	skb->mark = o->mark;
	skb->tc_index = REORDERED_MARK;
	n->action = bpf_redirect(o->ifindex, BPF_F_INGRESS);
	return n->action == TC_ACT_REDIRECT ? -REASON_DIVERTED_BACK :
					      -REASON_DROPPED_REWRITE;
}

static __always_inline void fragment_key_of(const struct packet *p, __u32 zone,
					    bool egress,
					    struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->id = p->id;
	key->zone = zone;
	key->proto = p->proto;
	key->egress = egress;
}

/*
 * The way of a fragment that finds what another of its datagram has left: that one's,
 * if it has gone to be put in order. -LOOK_AGAIN: it has not, and is the first one.
 */
static __always_inline int fragment_joins(const struct __sk_buff *skb,
					  const struct packet *p,
					  const struct nat_fragment *f,
					  const struct nat_fragment *old)
{
	if (!old || !is_recent(old->last_seen) || old->way == f->way)
		return f->way;
	if (p->flags & PACKET_LATER_FRAGMENT)
		return -LOOK_AGAIN;
	if (old->way == FRAGMENT_REORDER && f->way != FRAGMENT_DROP &&
	    skb->tc_index != REORDERED_MARK)
		return FRAGMENT_REORDER;
	return f->way;
}

/*
 * A fragment about to go the way that f says. 0: it may, and those that follow it go
 * with it; else as reorder_send. (Of two datagrams with one identification within
 * 30 s, a fragment may be lost between CPUs.)
 */
NAT_GLOBAL int fragment_put(struct __sk_buff *skb, const struct packet *p,
			    __u32 zone, bool egress,
			    const struct nat_fragment *f)
{
	struct nat_fragment value;
	struct fragment_key key;
	int rc, way;

	if (!p || !f)
		return -REASON_DROPPED_FRAGMENT;
	value = *f;
	way = f->way;
	fragment_key_of(p, zone, egress, &key);
	rc = bpf_map_update_elem(&fragments, &key, &value, BPF_NOEXIST);
	if (rc < 0) {
		way = fragment_joins(skb, p, f,
				     bpf_map_lookup_elem(&fragments, &key));
		if (way < 0)
			return way;
		if (way == f->way)
			bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
	}
	return way == FRAGMENT_REORDER && !egress ? reorder_send(skb, p, zone) :
						    0;
}

/* The length of a fragment's payload, in the unit of offsets. */
static __always_inline __u16 fragment_units(const struct packet *p)
{
	return (p->total - (p->l4 - p->l3)) >> 3;
}

static __always_inline int fragment_claim(struct nat *n,
					  const struct session_key *session,
					  __u8 way)
{
	struct nat_fragment f = {
		.last_seen = n->tick,
		.way = way,
		.id = n->id,
		.next = fragment_units(&n->p),
	};
	int rc;

	if (session)
		f.session = *session;
	rc = fragment_put(n->skb, &n->p, n->zone, n->egress, &f);
	return reorder_reason(n, rc, -REASON_DIVERTED_FRAGMENT, 0);
}

/*
 * The reason of a first fragment, from which its later ones' follows. A spoofer's says
 * nothing of the datagrams of whom it pretends to be.
 */
static __noinline int fragment_settle(struct nat *n, int rc)
{
	bool passed = -rc <= REASON_LAST_PASSED;
	int diverted;

	if (-rc <= REASON_LAST_DIVERTED || source_is_stolen(n))
		return rc;
	diverted = fragment_claim(n, NULL,
				  passed ? FRAGMENT_PASS : FRAGMENT_DROP);
	return diverted < 0 ? diverted : rc;
}

/*
 * Larger than the inside MTU, and may be fragmented (RFC 4787 REQ-13a): cut there. Of
 * a datagram in fragments, all go there. otherwise: they have been.
 */
static __noinline int reorder_cut(struct nat *n, int otherwise)
{
	int rc;

	if (n->p.flags & PACKET_LATER_FRAGMENT)
		return otherwise;
	n->p.flags |= PACKET_CUT;
	if (n->p.flags & PACKET_FIRST_FRAGMENT)
		rc = fragment_claim(n, NULL, FRAGMENT_REORDER);
	else
		rc = reorder_reason(n, reorder_send(n->skb, &n->p, n->zone),
				    -REASON_DIVERTED_TOO_BIG, 0);
	return rc < 0 ? rc : otherwise;
}

#endif /* CONENAT_REORDER_H */
