/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The MSS option of SYNs (RFC 9293 section 3.7.1), lowered to what the way outside
 * takes: for networks whose hosts never hear of its MTU, because somebody drops the
 * ICMP errors that tell it.
 */
#ifndef CONENAT_MSS_H
#define CONENAT_MSS_H

#include "ip.h"

enum tcp_option { /* IANA */
	TCP_OPTION_END,
	TCP_OPTION_NOP,
	TCP_OPTION_MSS,
};

#define TCP_OPTION_MSS_LEN 4
#define TCP_OPTIONS_MAX 40 /* bytes, and so options */
#define TCP_DOFF 12 /* the data offset's byte, in its upper four bits */
#define MSS_HEADERS (IP_HEADER_MIN + 20) /* without options (RFC 6691) */

struct mss_walk {
	struct __sk_buff *skb;
	__u32 at;
	__u32 end;
	__be16 mss; /* 0: not found */
};

struct mss_option {
	__u8 kind;
	__u8 length;
	__be16 mss;
};

/* One option; 1 at the end. One that is shorter than MSS at the end is not MSS. */
static long mss_step(__u32 index, void *data)
{
	struct mss_walk *walk = data;
	struct mss_option option = {};

	if (walk->at + TCP_OPTION_MSS_LEN > walk->end ||
	    bpf_skb_load_bytes(walk->skb, walk->at, &option, sizeof(option)) <
		    0)
		return 1;
	if (option.kind == TCP_OPTION_NOP) {
		walk->at++;
		return 0;
	}
	if (option.kind == TCP_OPTION_MSS &&
	    option.length == TCP_OPTION_MSS_LEN) {
		walk->mss = option.mss;
		return 1;
	}
	walk->at += option.length;
	return option.kind == TCP_OPTION_END || option.length < 2;
}

/* The option's value at the offset at; the checksum sums up words from l4 on. */
static __always_inline int mss_store(struct __sk_buff *skb,
				     const struct packet *p, __u32 at,
				     __be16 old, __be16 new)
{
	__u32 check = p->l4 + __builtin_offsetof(struct tcphdr, check);
	bool odd = (at - p->l4) & 1;
	__be16 from = odd ? __builtin_bswap16(old) : old;
	__be16 to = odd ? __builtin_bswap16(new) : new;

	if (bpf_l4_csum_replace(skb, check, from, to, sizeof(to)) < 0 ||
	    bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* Lowers a SYN's MSS option, if it has one, to fit the MTU; never raises it. */
NAT_GLOBAL int mss_clamp(struct __sk_buff *skb, const struct packet *p,
			 __u16 mtu)
{
	struct mss_walk walk = { .skb = skb };
	__u8 offset;

	if (!p || mtu <= MSS_HEADERS)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4 + TCP_DOFF, &offset, 1) < 0)
		return -REASON_DROPPED_REWRITE;
	walk.at = p->l4 + sizeof(struct tcphdr);
	walk.end = p->l4 + (offset >> 4) * 4;
	/* Of a first fragment some may be in the next one; padding is no option. */
	if (walk.end > (__u32)p->l3 + p->total)
		walk.end = (__u32)p->l3 + p->total;
	bpf_loop(TCP_OPTIONS_MAX, mss_step, &walk, 0);
	if (!walk.mss || bpf_ntohs(walk.mss) <= mtu - MSS_HEADERS)
		return 0;
	return mss_store(skb, p,
			 walk.at + __builtin_offsetof(struct mss_option, mss),
			 walk.mss, bpf_htons(mtu - MSS_HEADERS));
}

#endif /* CONENAT_MSS_H */
