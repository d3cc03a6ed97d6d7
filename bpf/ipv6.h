/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The IPv6 header and its extensions (RFC 8200): ip.h. */
#ifndef CONENAT_IPV6_H
#define CONENAT_IPV6_H

#include <linux/ipv6.h>

#define NAT_ETHERTYPE bpf_htons(ETH_P_IPV6)
#define IP_HEADER_MIN 40 /* bytes */
#define IPV6_MIN_MTU 1280
#define MAX_HEADERS (ETH_HLEN + 40 + 20) /* without extensions, and TCP */

#define EXTENSIONS_MAX 6 /* that are stepped over */
#define EXTENSIONS_END 2048 /* bytes from the start of the data */

/* Every one of them begins so; a fragment header is just that. */
struct ipv6_extension {
	__u8 next;
	__u8 length; /* in 8 bytes, the first 8 left out */
	__be16 field; /* of a fragment header: offset, and M */
	__be32 id;
};

#define FRAGMENT_MORE 1
#define FRAGMENT_OFFSET 0xfff8 /* bytes */

/* Where a walk over the extensions is. */
struct ipv6_walk {
	nat_id id;
	__u16 at; /* offset of the header that proto says */
	__u16 end;
	__u16 fragment; /* offset of the fragment header; 0: none */
	__u16 field; /* of it, in host byte order */
	__u8 proto;
	__u8 hop_by_hop;
};

static __always_inline bool ip_is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING ||
	       proto == IPPROTO_FRAGMENT || proto == IPPROTO_DSTOPTS;
}

static __always_inline bool ipv6_walk_is_later(const struct ipv6_walk *w)
{
	return w->fragment && w->field & FRAGMENT_OFFSET;
}

/* One header further; 1: at the transport header, or a later fragment's payload. */
static __noinline int ipv6_step(struct __sk_buff *skb, struct ipv6_walk *w)
{
	struct ipv6_extension h;

	if (!ip_is_extension(w->proto) || ipv6_walk_is_later(w))
		return 1;
	if (w->at + sizeof(h) > w->end ||
	    bpf_skb_load_bytes(skb, w->at, &h, sizeof(h)) < 0)
		return -REASON_DROPPED_MALFORMED;
	if (w->proto == IPPROTO_FRAGMENT) {
		if (w->fragment)
			return -REASON_DROPPED_MALFORMED;
		w->fragment = w->at;
		w->field = bpf_ntohs(h.field);
		w->id = h.id;
		w->at += sizeof(h);
	} else {
		w->hop_by_hop |= w->proto == IPPROTO_HOPOPTS;
		w->at += (h.length + 1) * 8;
	}
	w->proto = h.next;
	return w->at > w->end ? -REASON_DROPPED_MALFORMED : 0;
}

/* Over all of them; one too many is malformed. */
NAT_GLOBAL int ipv6_extensions(struct __sk_buff *skb, struct ipv6_walk *w)
{
	int i, rc = 0;

	if (!w)
		return -REASON_DROPPED_MALFORMED;
#pragma unroll /* Linux 6.1 takes no loop that begins in its middle */
	for (i = 0; i <= EXTENSIONS_MAX; i++) {
		rc = ipv6_step(skb, w);
		if (rc)
			break;
	}
	return rc > 0 ? 0 : -REASON_DROPPED_MALFORMED;
}

/* PACKET_* of what the walk has found. An atomic fragment (RFC 6946) is none. */
static __always_inline __u16 ipv6_walk_flags(const struct __sk_buff *skb,
					     const struct ipv6_walk *w)
{
	__u16 flags = PACKET_DF;

	/* A GSO packet has one that no router sees (BIG TCP). */
	if (w->hop_by_hop && !skb->gso_size)
		flags |= PACKET_OPTIONS;
	if (ipv6_walk_is_later(w))
		return flags | PACKET_LATER_FRAGMENT;
	return w->fragment && w->field & FRAGMENT_MORE ?
		       flags | PACKET_FIRST_FRAGMENT :
		       flags;
}

/* The same as a rare packet has it: behind extensions. */
static __always_inline int ipv6_parse_on(struct __sk_buff *skb,
					 struct hdr_cursor *cursor, void **end,
					 struct packet *p)
{
	struct ipv6_walk w = {
		.proto = p->proto,
		.at = p->l4,
		.end = p->l3 + p->total,
	};
	__u32 l4;
	int rc;

	rc = ipv6_extensions(skb, &w);
	if (rc < 0)
		return rc;
	p->proto = w.proto;
	p->l4 = w.at;
	p->id = w.id;
	p->fragment = w.fragment;
	p->flags = ipv6_walk_flags(skb, &w);
	l4 = w.at;
	if (l4 > EXTENSIONS_END)
		return -REASON_DROPPED_MALFORMED;
	packet_pull(skb, l4 + sizeof(struct tcphdr));
	cursor->pos = (void *)(long)skb->data + l4;
	*end = (void *)(long)skb->data_end;
	return 0;
}

/* From the header at p->l3, at which the cursor is, to the transport header. */
static __always_inline int ip_parse(struct __sk_buff *skb,
				    struct hdr_cursor *cursor, void **end,
				    struct packet *p)
{
	struct ipv6hdr *ip = cursor->pos;
	__u32 here = skb->len - p->l3;
	__u32 total;

	if ((void *)(ip + 1) > *end || ip->version != 6)
		return -REASON_DROPPED_MALFORMED;
	cursor->pos = ip + 1;
	p->l4 = p->l3 + sizeof(*ip);
	total = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (!ip->payload_len && skb->gso_size) /* BIG TCP */
		total = here > 0xffff ? 0xffff : here;
	if (total > here || total > 0xffff)
		return -REASON_DROPPED_MALFORMED;
	p->total = total;
	p->segment = total;
	__builtin_memcpy(&p->saddr, &ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ip->daddr, sizeof(p->daddr));
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->flags = PACKET_DF;
	return ip_is_extension(p->proto) ? ipv6_parse_on(skb, cursor, end, p) :
					   0;
}

/* The same straight on a frame, of XDP: without extensions. */
static __always_inline bool ip_parse_plain(struct hdr_cursor *cursor, void *end,
					   struct packet *p)
{
	struct ipv6hdr *ip = cursor->pos;
	__u32 payload;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	cursor->pos = ip + 1;
	payload = ip_length(ip->payload_len);
	if (cursor->pos + payload > end || payload > 0xffff - sizeof(*ip))
		return false;
	p->total = payload + sizeof(*ip);
	p->segment = p->total;
	__builtin_memcpy(&p->saddr, &ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ip->daddr, sizeof(p->daddr));
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->flags = PACKET_DF;
	return true;
}

/* A header that is not the packet's own, at the offset l3. */
static __always_inline int ip_load(struct __sk_buff *skb, __u32 l3, __u32 end,
				   struct ip_header *h)
{
	struct ipv6_walk w = { .at = l3 + sizeof(struct ipv6hdr), .end = end };
	struct ipv6hdr ip;
	int rc;

	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)) < 0 || ip.version != 6)
		return -REASON_DROPPED_MALFORMED;
	__builtin_memcpy(&h->saddr, &ip.saddr, sizeof(h->saddr));
	__builtin_memcpy(&h->daddr, &ip.daddr, sizeof(h->daddr));
	w.proto = ip.nexthdr;
	rc = ipv6_extensions(skb, &w);
	if (rc < 0)
		return rc;
	h->id = 0; /* nobody goes by it: ip_origin_id */
	h->l4 = w.at;
	h->proto = w.proto;
	h->later = ipv6_walk_is_later(&w);
	return 0;
}

static __always_inline int ip_readdress(struct __sk_buff *skb, __u32 l3,
					__be16 check, nat_addr saddr,
					nat_addr daddr, __u32 addr_diff)
{
	nat_addr addrs[2] = { saddr, daddr };

	if (bpf_skb_store_bytes(skb,
				l3 + __builtin_offsetof(struct ipv6hdr, saddr),
				addrs, sizeof(addrs), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* What that changes of a checksum that covers the header, too: no other takes it up. */
static __always_inline __u32 ip_readdress_diff(__u32 addr_diff)
{
	return addr_diff;
}

/* It has no checksum. */
static __always_inline bool ip_is_sound(struct __sk_buff *skb, __u32 l3,
					__u32 l4)
{
	return true;
}

/* The tail of struct ipv6hdr from hop_limit on. */
struct ip_tail {
	__u8 hop_limit;
	nat_addr saddr;
	nat_addr daddr;
} __attribute__((packed));

/*
 * BPF_F_RECOMPUTE_CSUM: what a device has summed up (CHECKSUM_COMPLETE) covers the
 * header, and no checksum in it makes up for what changes; rewrite_check sees to
 * the transport's alone. What the nft table puts back from the mark is taken out
 * without: it leaves all checksums as they are.
 */
static __always_inline int ip_rewrite(struct __sk_buff *skb,
				      const struct packet *p,
				      const struct rewrite *to, __u32 addr_diff)
{
	__u32 at = p->l3 + __builtin_offsetof(struct ipv6hdr, hop_limit);
	struct ip_tail tail = {
		.hop_limit = p->ttl - to->decrement_ttl,
		.saddr = to->saddr,
		.daddr = to->daddr,
	};

	if (bpf_skb_store_bytes(skb, at, &tail, sizeof(tail),
				BPF_F_RECOMPUTE_CSUM) < 0)
		return -REASON_DROPPED_REWRITE;
	if (!to->by_mark)
		return 0;
	at += __builtin_offsetof(struct ip_tail, daddr.word[3]);
	tail.daddr.word[3] = 0;
	if (bpf_skb_store_bytes(skb, at, &tail.daddr.word[3],
				sizeof(tail.daddr.word[3]), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* The same straight on a frame; no checksum in the header takes up the change. */
static __always_inline void ip_rewrite_plain(struct ipv6hdr *ip,
					     const struct rewrite *to,
					     __u64 addr_change)
{
	ip->hop_limit -= to->decrement_ttl;
	__builtin_memcpy(&ip->saddr, &to->saddr, sizeof(to->saddr));
	__builtin_memcpy(&ip->daddr, &to->daddr, sizeof(to->daddr));
}

static __always_inline int ip_set_ttl(struct __sk_buff *skb,
				      const struct packet *p, __u8 ttl)
{
	__u32 at = p->l3 + __builtin_offsetof(struct ipv6hdr, hop_limit);

	if (bpf_skb_store_bytes(skb, at, &ttl, sizeof(ttl),
				BPF_F_RECOMPUTE_CSUM) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* RFC 8200 section 4.5: addresses and ID alone tell datagrams apart. */
static __always_inline __u8 ip_fragment_proto(__u8 proto)
{
	return 0;
}

/* What comes back from the namespace of reorder.h has another ID: addresses have to do. */
static __always_inline nat_id ip_origin_id(nat_id id, __u32 zone)
{
	return 0;
}

static __always_inline int ip_set_id(struct __sk_buff *skb, __u32 l3,
				     nat_id from, nat_id to)
{
	return 0;
}

/* The length of a fragment's payload, in the unit of offsets. */
static __always_inline __u16 ip_fragment_units(const struct packet *p)
{
	return (p->total -
		(p->fragment + sizeof(struct ipv6_extension) - p->l3)) >>
	       3;
}

static __always_inline int ip_fragment_of(struct __sk_buff *skb,
					  const struct packet *p,
					  struct ip_fragment *f)
{
	struct ipv6_extension h;

	if (bpf_skb_load_bytes(skb, p->fragment, &h, sizeof(h)) < 0)
		return -REASON_DROPPED_MALFORMED;
	f->offset = bpf_ntohs(h.field) >> 3;
	f->more = bpf_ntohs(h.field) & FRAGMENT_MORE;
	f->units = ip_fragment_units(p);
	return 0;
}

/* What a whole header of the NAT's own is made of. */
#define ip_struct ipv6hdr

static __always_inline void ip_make(struct ipv6hdr *ip, nat_addr saddr,
				    nat_addr daddr, __u16 length, __u8 tos,
				    __u8 ttl)
{
	ip->version = 6;
	ip->priority = tos >> 4;
	ip->flow_lbl[0] = tos << 4;
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = PROTO_ICMP;
	ip->hop_limit = ttl;
	__builtin_memcpy(&ip->saddr, &saddr, sizeof(saddr));
	__builtin_memcpy(&ip->daddr, &daddr, sizeof(daddr));
}

#endif /* CONENAT_IPV6_H */
