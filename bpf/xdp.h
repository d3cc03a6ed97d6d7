/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * XDP: a short cut in front of the tc programs of the same interface, and nothing
 * else. It translates plain packets of known sessions whose way is known, and drops
 * what is unsolicited; all the rest it hands on as it came, to tc, which opens
 * sessions, answers, follows routes and TCP's states. The tables are tc's: whatever
 * happens, behaviour is tc's, and only the speed is another one
 * (docs/decisions/0019-xdp.md).
 */
#ifndef CONENAT_XDP_H
#define CONENAT_XDP_H

#include "unsolicited.h"
#include "xdp_send.h"

extern struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx,
					 struct bpf_sock_tuple *tuple,
					 __u32 tuple_size,
					 struct bpf_ct_opts___conenat *opts,
					 __u32 opts_size) __ksym __weak;

static __always_inline void xdp_count(enum nat_reason reason)
{
	__u32 index = reason;
	__u64 *counter = bpf_map_lookup_elem(&xdp_counters, &index);

	if (counter)
		(*counter)++;
}

/*
 * Whether a packet of a session is no exception to anything, and no news to it: what
 * opens and ends a TCP connection is, a SYN's MSS option, too.
 */
static __always_inline bool xdp_may_translate(const struct packet *p,
					      const struct session_half *half)
{
	if (p->ttl <= 1 || p->segment > half->mtu || /* 0: not known */
	    half->flags & HALF_HAIRPIN)
		return false;
	return !(p->tcp & (TCP_SYN | TCP_FIN | TCP_RST)) &&
	       !session_tcp_changes(half, p);
}

/* The transport header. change: of csum_addr_change. */
static __always_inline void xdp_rewrite_ports(const struct xdp_headers *h,
					      const struct packet *p,
					      const struct rewrite *to,
					      __u64 change)
{
	bool udp = p->proto == IPPROTO_UDP;
	__be16 check = *h->check;

	if (!udp || check) { /* 0: it has none */
		change += csum_word_change(p->sport, to->sport);
		change += csum_word_change(p->dport, to->dport);
		check = csum_of_sum((__u16)~check + change);
		*h->check = udp && !check ? 0xffff : check;
	}
	h->ports->source = to->sport;
	h->ports->dest = to->dport;
}

static __always_inline void xdp_rewrite(const struct xdp_headers *h,
					const struct packet *p,
					const struct session_half *half)
{
	struct rewrite to = {
		.saddr = half->saddr,
		.daddr = half->daddr,
		.sport = half->sport,
		.dport = half->dport,
		.decrement_ttl = true,
	};
	__u64 change = csum_addr_change(p->saddr, to.saddr) +
		       csum_addr_change(p->daddr, to.daddr);

	if (!packet_is_atomic(p) && !addr_equal(p->saddr, to.saddr))
		to.id = identification(to.saddr, to.daddr, p->proto, 1);
	xdp_rewrite_ports(h, p, &to, change);
	ip_rewrite_plain(h->ip, &to, change);
}

/* A packet of a session: as session_forward, where that needs nothing else. */
static __always_inline int xdp_forward(struct xdp_md *ctx, const struct nat *n,
				       const struct xdp_headers *h,
				       struct session_half *half)
{
	struct nat_link *egress = xdp_egress(half);
	__u32 ifindex = half->ifindex;

	if (!egress || !xdp_may_translate(&n->p, half) ||
	    !hop_ready(ctx, n, half, egress->epoch))
		return XDP_PASS;
	session_refresh(n, half);
	xdp_rewrite(h, &n->p, half);
	mac_copy(h->eth->h_dest, half->hop);
	mac_copy(h->eth->h_source, egress->mac);
	xdp_count(half->target == TARGET_OUTSIDE ? REASON_TRANSLATED_OUTBOUND :
						   REASON_TRANSLATED_INBOUND);
	return bpf_redirect(ifindex, 0);
}

static __always_inline bool xdp_conntrack_has(struct xdp_md *ctx,
					      struct bpf_sock_tuple *tuple,
					      __u8 proto)
{
	struct bpf_ct_opts___conenat opts = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = proto,
	};
	struct nf_conn *ct;

	if (!have_conntrack)
		return false;
	ct = bpf_xdp_ct_lookup(ctx, tuple, TUPLE_SIZE, &opts, CT_OPTS_SIZE);
	if (ct)
		bpf_ct_release(ct);
	return ct;
}

/*
 * A packet of no session, as it ends at packet_is_unsolicited of tc, with what comes before
 * that there: claims, and addresses that are an inside host's alone (own.h).
 */
NAT_GLOBAL int xdp_unsolicited(struct xdp_md *ctx, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	struct nat_external *e;
	struct claim_key key;

	if (!p || !packet_is_for_nat(p))
		return XDP_PASS;
	claim_key_of(p->daddr, p->dport, p->proto, &key);
	if (bpf_map_lookup_elem(&claims, &key))
		return XDP_PASS;
	e = external_of(p->daddr);
	if (!e || !addr_is_any(e->internal))
		return XDP_PASS;
	tuple_set(&tuple, p->saddr, p->sport, p->daddr, p->dport);
	if (socket_takes(ctx, &tuple, p->proto) ||
	    xdp_conntrack_has(ctx, &tuple, p->proto))
		return XDP_PASS;
	xdp_count(REASON_DROPPED_UNSOLICITED);
	return XDP_DROP;
}

/* At each hook is the program for IPv4, as at tc: other_family. */
static __always_inline int xdp_other_family(struct xdp_md *ctx,
					    const struct xdp_headers *h,
					    enum nat_xdp_program program)
{
	if (NAT_FAMILY == AF_INET && h->eth->h_proto == bpf_htons(ETH_P_IPV6))
		bpf_tail_call(ctx, &xdp6, program);
	return XDP_PASS;
}

/* Whether XDP translates what comes by a link: not what is the kernel's to route. */
static __always_inline bool xdp_translates(const struct nat_link *link)
{
	return (link->flags & (LINK_XDP | LINK_STACK)) == LINK_XDP;
}

static __always_inline int xdp_inside(struct xdp_md *ctx)
{
	struct nat_link *link = link_get(ctx->ingress_ifindex);
	struct session_half *half;
	struct session_key key;
	struct xdp_headers h;
	struct nat n = {};
	__u32 port;

	if (!link_is_inside(link) || !xdp_translates(link) ||
	    !xdp_is_routed(ctx, link, &h))
		return XDP_PASS;
	if (h.eth->h_proto != NAT_ETHERTYPE)
		return xdp_other_family(ctx, &h, XDP_PROGRAM_INSIDE);
	if (!xdp_parse(ctx, &h, &n.p))
		return XDP_PASS;
	n.tick = clock_tick();
	n.zone = link->owner;
	packet_key(&n.p, n.zone, &key);
	half = session_find(&key);
	/* From another port than before: session_check_port. */
	port = link->kind == LINK_INSIDE_PORT ? link->ifindex : 0;
	if (!half || half->port_ifindex != port)
		return XDP_PASS;
	return xdp_forward(ctx, &n, &h, half);
}

static __always_inline int xdp_outside(struct xdp_md *ctx)
{
	struct nat_link *link = link_get(ctx->ingress_ifindex);
	struct session_half *half;
	struct session_key key;
	struct xdp_headers h;
	struct nat n = {};

	if (!link || link->kind != LINK_OUTSIDE ||
	    !xdp_is_routed(ctx, link, &h))
		return XDP_PASS;
	if (h.eth->h_proto != NAT_ETHERTYPE)
		return xdp_other_family(ctx, &h, XDP_PROGRAM_OUTSIDE);
	if (!xdp_parse(ctx, &h, &n.p))
		return XDP_PASS;
	n.tick = clock_tick();
	n.zone = NAT_ZONE_OUTSIDE;
	packet_key(&n.p, n.zone, &key);
	half = session_find(&key);
	if (half)
		return xdp_translates(link) ? xdp_forward(ctx, &n, &h, half) :
					      XDP_PASS;
	return link->flags & LINK_DROP_UNSOLICITED ?
		       xdp_unsolicited(ctx, &n.p) :
		       XDP_PASS;
}

#endif /* CONENAT_XDP_H */
