/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections that came in by the kernel's way (a published port that is
 * Docker's DNAT, a client that is routed to the container's own address): their
 * answers go back by it, and get no binding of ours.
 */
#ifndef CONENAT_CONNTRACK_H
#define CONENAT_CONNTRACK_H

#include "packet.h"

#define IP_CT_DIR_REPLY 1 /* linux/netfilter/nf_conntrack_tuple_common.h */

/* Opaque, but whole: the loader compares it with the kernel's by BTF. */
struct nf_conn {
	unsigned long status;
} __attribute__((preserve_access_index));

struct bpf_ct_opts___conenat {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

#define CT_OPTS_SIZE 12 /* Linux 6.0; later kernels take it, too */

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb,
					 struct bpf_sock_tuple *tuple,
					 __u32 tuple_size,
					 struct bpf_ct_opts___conenat *opts,
					 __u32 opts_size) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *ct) __ksym __weak;

/* Whether a packet from inside answers a connection that conntrack knows. */
static __noinline bool answers_conntrack(struct __sk_buff *skb,
					 const struct packet *p)
{
	struct bpf_ct_opts___conenat opts = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = p->proto,
	};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *ct;

	if (!have_conntrack || p->proto == IPPROTO_ICMP)
		return false;
	tuple.ipv4.saddr = p->saddr;
	tuple.ipv4.daddr = p->daddr;
	tuple.ipv4.sport = p->sport;
	tuple.ipv4.dport = p->dport;
	ct = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts,
			       CT_OPTS_SIZE);
	if (!ct)
		return false;
	bpf_ct_release(ct);
	return opts.dir == IP_CT_DIR_REPLY;
}

#endif /* CONENAT_CONNTRACK_H */
