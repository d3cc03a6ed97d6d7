/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A private network namespace whose kernel puts fragments in order
 * (docs/decisions/0012-fragments.md): they go in by the peer of a veth, and come
 * back by its other end to where they came from, the one with the ports first.
 */
#ifndef CONENAT_REORDER_H
#define CONENAT_REORDER_H

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

/* Of two networks' that are one there nevertheless, the second is dropped. */
static __always_inline int origin_put(const struct packet *p,
				      const struct nat_origin *o)
{
	struct nat_origin *old;
	struct origin_key key = {
		.saddr = p->saddr,
		.daddr = p->daddr,
		.id = ip_origin_id(p->id, o->zone),
		.proto = ip_fragment_proto(p->proto),
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
	__u8 ttl = p->ttl + 1;

	return ttl ? ip_set_ttl(skb, p, ttl) : 0;
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
		rc = ip_set_id(skb, p->l3, p->id, ip_origin_id(p->id, zone));
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
	struct ip_header ip = {};
	int rc;

	rc = ip_load(skb, ETH_HLEN, skb->len, &ip);
	if (rc < 0)
		return rc;
	key->saddr = ip.saddr;
	key->daddr = ip.daddr;
	key->id = ip.id;
	key->proto = ip_fragment_proto(ip.proto);
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
	if (bpf_skb_store_bytes(skb, 0, o->mac, sizeof(o->mac), 0) < 0 ||
	    ip_set_id(skb, ETH_HLEN, key.id, ip_origin_id(key.id, o->zone)) < 0)
		return -REASON_DROPPED_REWRITE;
	skb->mark = o->mark;
	skb->tc_index = REORDERED_MARK;
	n->action = bpf_redirect(o->ifindex, BPF_F_INGRESS);
	return n->action == TC_ACT_REDIRECT ? -REASON_DIVERTED_BACK :
					      -REASON_DROPPED_REWRITE;
}

#endif /* CONENAT_REORDER_H */
