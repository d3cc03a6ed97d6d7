/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The IPv4 header (RFC 791): ip.h. */
#ifndef CONENAT_IPV4_H
#define CONENAT_IPV4_H

#include <linux/ip.h>

#define NAT_ETHERTYPE bpf_htons(ETH_P_IP)
#define IP_HEADER_MIN 20 /* bytes */
#define MAX_HEADERS (ETH_HLEN + 60 + 20) /* with options, and TCP */

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* What a later fragment's protocol field may be beside the transport's. */
static __always_inline bool ip_is_extension(__u8 proto)
{
	return false;
}

/* PACKET_* of the header, whose length is header. */
static __always_inline __u16 ip_flags(struct iphdr *ip, __s32 header)
{
	__s32 no_options = sizeof(*ip);
	__u32 frag = bpf_ntohs(ip->frag_off);
	__s32 offset = frag & IP_OFFSET;
	__s32 first = (frag & (IP_OFFSET | IP_MF)) ^ IP_MF;

	return (frag & IP_DF ? PACKET_DF : 0) |
	       flag_if_negative(no_options - header, PACKET_OPTIONS) |
	       flag_if_negative(-offset, PACKET_LATER_FRAGMENT) |
	       flag_if_negative(first - 1, PACKET_FIRST_FRAGMENT);
}

/* From the header at p->l3, at which the cursor is, to the transport header. */
static __always_inline int ip_parse(struct __sk_buff *skb,
				    struct hdr_cursor *cursor, void **end,
				    struct packet *p)
{
	struct iphdr *ip = cursor->pos;
	__u32 here = skb->len - p->l3;
	__u32 header, total;

	if ((void *)(ip + 1) > *end)
		return -REASON_DROPPED_MALFORMED;
	if (ip->version != 4 || ip->ihl < 5)
		return -REASON_DROPPED_MALFORMED;
	header = ip->ihl * 4;
	cursor->pos += header;
	p->l4 = p->l3 + header;
	total = bpf_ntohs(ip->tot_len);
	if (total == 0 && skb->gso_size) /* BIG TCP */
		total = here > 0xffff ? 0xffff : here;
	if (total < header || total > here)
		return -REASON_DROPPED_MALFORMED;
	p->total = total;
	p->segment = total;
	p->saddr = ip->saddr;
	p->daddr = ip->daddr;
	p->id = ip->id;
	p->check = ip->check;
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->flags = ip_flags(ip, header);
	return 0;
}

/* The same straight on a frame, of XDP: without options, and no fragment. */
static __always_inline bool ip_parse_plain(struct hdr_cursor *cursor, void *end,
					   struct packet *p)
{
	struct iphdr *ip = cursor->pos;
	__u32 total;

	if ((void *)(ip + 1) > end || ip->version != 4 ||
	    ip->ihl * 4 != sizeof(*ip) ||
	    ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return false;
	total = ip_length(ip->tot_len);
	if (cursor->pos + total > end)
		return false;
	cursor->pos = ip + 1;
	p->total = total;
	p->segment = total;
	p->saddr = ip->saddr;
	p->daddr = ip->daddr;
	p->id = ip->id;
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->flags = ip->frag_off & bpf_htons(IP_DF) ? PACKET_DF : 0;
	return true;
}

/* A header that is not the packet's own, at the offset l3. */
static __always_inline int ip_load(struct __sk_buff *skb, __u32 l3, __u32 end,
				   struct ip_header *h)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)) < 0)
		return -REASON_DROPPED_MALFORMED;
	if (ip.version != 4 || ip.ihl < 5)
		return -REASON_DROPPED_MALFORMED;
	h->saddr = ip.saddr;
	h->daddr = ip.daddr;
	h->id = ip.id;
	h->check = ip.check;
	h->l4 = l3 + ip.ihl * 4;
	h->proto = ip.protocol;
	h->later = !!(ip.frag_off & bpf_htons(IP_OFFSET));
	return 0;
}

/* Other addresses in it. addr_diff: what they change of a checksum. */
static __always_inline int ip_readdress(struct __sk_buff *skb, __u32 l3,
					__be16 check, nat_addr saddr,
					nat_addr daddr, __u32 addr_diff)
{
	nat_addr addrs[2] = { saddr, daddr };

	check = csum_apply(check, addr_diff);
	if (bpf_skb_store_bytes(skb,
				l3 + __builtin_offsetof(struct iphdr, check),
				&check, sizeof(check), 0) < 0 ||
	    bpf_skb_store_bytes(skb,
				l3 + __builtin_offsetof(struct iphdr, saddr),
				addrs, sizeof(addrs), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* What that changes of a checksum that covers the header, too: its own takes it up. */
static __always_inline __u32 ip_readdress_diff(__u32 addr_diff)
{
	return 0;
}

/* Whether the header's own checksum is right. */
static __always_inline bool ip_is_sound(struct __sk_buff *skb, __u32 l3,
					__u32 l4)
{
	return csum_valid(skb, l3, l4 - l3);
}

/* The tail of struct iphdr from ttl on. */
struct ip_tail {
	__u8 ttl;
	__u8 proto;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
};

static __always_inline __u16 ip_word(__u8 first, __u8 second)
{
	return first | second << 8; /* as it lies in memory */
}

/* Another ID: *check is the header's checksum with it. */
static __always_inline int ip_rewrite_id(struct __sk_buff *skb,
					 const struct packet *p, __be16 id,
					 __be16 *check)
{
	*check = csum_apply(*check, (__u32)(__u16)~p->id + id);
	if (bpf_skb_store_bytes(skb,
				p->l3 + __builtin_offsetof(struct iphdr, id),
				&id, sizeof(id), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

static __always_inline int ip_rewrite(struct __sk_buff *skb,
				      const struct packet *p,
				      const struct rewrite *to, __u32 addr_diff)
{
	__u8 ttl = p->ttl - to->decrement_ttl;
	__u32 ttl_diff = (__u16)~ip_word(p->ttl, p->proto);
	struct ip_tail tail = {
		.ttl = ttl,
		.proto = p->proto,
		.saddr = to->saddr,
		.daddr = to->daddr,
	};

	ttl_diff += ip_word(ttl, p->proto);
	tail.check = csum_apply(csum_apply(p->check, addr_diff), ttl_diff);
	if (to->id && ip_rewrite_id(skb, p, to->id, &tail.check) < 0)
		return -REASON_DROPPED_REWRITE;
	if (bpf_skb_store_bytes(skb,
				p->l3 + __builtin_offsetof(struct iphdr, ttl),
				&tail, sizeof(tail), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* The same straight on a frame. addr_change: of csum_addr_change. */
static __always_inline void ip_rewrite_plain(struct iphdr *ip,
					     const struct rewrite *to,
					     __u64 addr_change)
{
	__u8 ttl = ip->ttl - to->decrement_ttl;
	__u64 sum = (__u16)~ip->check + addr_change;

	sum += csum_word_change(ip_word(ip->ttl, ip->protocol),
				ip_word(ttl, ip->protocol));
	if (to->id) {
		sum += csum_word_change(ip->id, to->id);
		ip->id = to->id;
	}
	ip->ttl = ttl;
	ip->saddr = to->saddr;
	ip->daddr = to->daddr;
	ip->check = csum_of_sum(sum);
}

static __always_inline int ip_set_ttl(struct __sk_buff *skb,
				      const struct packet *p, __u8 ttl)
{
	__u32 at = p->l3 + __builtin_offsetof(struct iphdr, check);

	if (bpf_l3_csum_replace(skb, at, ip_word(p->ttl, p->proto),
				ip_word(ttl, p->proto), sizeof(__u16)) < 0)
		return -REASON_DROPPED_REWRITE;
	at = p->l3 + __builtin_offsetof(struct iphdr, ttl);
	if (bpf_skb_store_bytes(skb, at, &ttl, sizeof(ttl), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* Of the fields by which fragments are told apart, beside addresses and ID. */
static __always_inline __u8 ip_fragment_proto(__u8 proto)
{
	return proto;
}

/*
 * A datagram's ID in the namespace of reorder.h, and back. Two networks may use the
 * same addresses, and the defragmenter knows no networks.
 */
static __always_inline nat_id ip_origin_id(nat_id id, __u32 zone)
{
	return id ^ bpf_htons(zone << 8 | zone);
}

NAT_GLOBAL int ip_set_id(struct __sk_buff *skb, __u32 l3, nat_id from,
			 nat_id to)
{
	__u32 check = l3 + __builtin_offsetof(struct iphdr, check);
	__u32 at = l3 + __builtin_offsetof(struct iphdr, id);

	if (from == to)
		return 0;
	if (bpf_l3_csum_replace(skb, check, from, to, sizeof(to)) < 0 ||
	    bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* The length of a fragment's payload, in the unit of offsets. */
static __always_inline __u16 ip_fragment_units(const struct packet *p)
{
	return (p->total - (p->l4 - p->l3)) >> 3;
}

static __always_inline int ip_fragment_of(struct __sk_buff *skb,
					  const struct packet *p,
					  struct ip_fragment *f)
{
	__u32 at = p->l3 + __builtin_offsetof(struct iphdr, frag_off);
	__be16 field = 0;

	if (bpf_skb_load_bytes(skb, at, &field, sizeof(field)) < 0)
		return -REASON_DROPPED_MALFORMED;
	f->offset = bpf_ntohs(field) & IP_OFFSET;
	f->more = field & bpf_htons(IP_MF);
	f->units = ip_fragment_units(p);
	return 0;
}

/* What a whole header of the NAT's own is made of. */
#define ip_struct iphdr

static __always_inline void ip_make(struct iphdr *ip, nat_addr saddr,
				    nat_addr daddr, __u16 length, __u8 tos,
				    __u8 ttl)
{
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = tos;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->frag_off = bpf_htons(IP_DF); /* so that it needs no ID */
	ip->ttl = ttl;
	ip->protocol = PROTO_ICMP;
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = csum_of_sum(
		bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
}

#endif /* CONENAT_IPV4_H */
