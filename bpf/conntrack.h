/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections that came in by the kernel's way (a published port that is
 * Docker's DNAT, a client that is routed to the container's own address): their
 * answers go back by it, and get no binding of ours.
 */
#ifndef CONENAT_CONNTRACK_H
#define CONENAT_CONNTRACK_H

#include "parse.h"

/* linux/netfilter/nf_conntrack_tuple_common.h and nf_conntrack_common.h */
#define IP_CT_DIR_REPLY 1
#define IPS_SRC_NAT (1 << 4)
#define IPS_DST_NAT (1 << 5)

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

enum conntrack_side {
	CONNTRACK_NONE,
	CONNTRACK_ORIGINAL, /* the way that its first packet took */
	CONNTRACK_ORIGINAL_DNAT, /* and its destination is translated */
	CONNTRACK_REPLY,
	CONNTRACK_REPLY_SNAT, /* to what it has translated the source of */
};

/* What conntrack knows of a packet with these addresses and ports. */
NAT_GLOBAL int conntrack_side(struct __sk_buff *skb,
			      struct bpf_sock_tuple *tuple, __u8 proto)
{
	struct bpf_ct_opts___conenat opts = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = proto,
	};
	unsigned long status;
	struct nf_conn *ct;

	if (!tuple || !have_conntrack || proto == PROTO_ICMP)
		return CONNTRACK_NONE;
	ct = bpf_skb_ct_lookup(skb, tuple, TUPLE_SIZE, &opts, CT_OPTS_SIZE);
	if (!ct)
		return CONNTRACK_NONE;
	status = ct->status;
	bpf_ct_release(ct);
	if (opts.dir == IP_CT_DIR_REPLY)
		return status & IPS_SRC_NAT ? CONNTRACK_REPLY_SNAT :
					      CONNTRACK_REPLY;
	return status & IPS_DST_NAT ? CONNTRACK_ORIGINAL_DNAT :
				      CONNTRACK_ORIGINAL;
}

NAT_GLOBAL int conntrack_packet(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};

	if (!p)
		return CONNTRACK_NONE;
	tuple_set(&tuple, p->saddr, p->sport, p->daddr, p->dport);
	return conntrack_side(skb, &tuple, p->proto);
}

/* Whether a packet from inside answers a connection that conntrack knows. */
static __always_inline bool answers_conntrack(struct __sk_buff *skb,
					      const struct packet *p)
{
	int side = conntrack_packet(skb, p);

	return side == CONNTRACK_REPLY || side == CONNTRACK_REPLY_SNAT;
}

/*
 * Whether a packet from outside is of a connection of netfilter's NAT: an answer,
 * or one whose destination it translates. An entry of the host's own that nobody
 * has answered says nothing: anybody can make one by sending.
 */
static __always_inline bool conntrack_brings_in(struct __sk_buff *skb,
						const struct packet *p)
{
	int side = conntrack_packet(skb, p);

	return side == CONNTRACK_REPLY || side == CONNTRACK_REPLY_SNAT ||
	       side == CONNTRACK_ORIGINAL_DNAT;
}

/* Whether netfilter translates a packet from outside to an inside address. */
static __always_inline bool conntrack_translates(struct __sk_buff *skb,
						 const struct packet *p)
{
	int side = conntrack_packet(skb, p);

	return side == CONNTRACK_REPLY_SNAT || side == CONNTRACK_ORIGINAL_DNAT;
}

/*
 * Whether a packet that leaves from an external endpoint answers a connection that
 * netfilter's DNAT has brought in: its entry is turned round.
 */
static family_inline bool answers_dnat(struct __sk_buff *skb,
				       const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};

	tuple_set(&tuple, p->daddr, p->dport, p->saddr, p->sport);
	return conntrack_side(skb, &tuple, p->proto) == CONNTRACK_ORIGINAL_DNAT;
}

#endif /* CONENAT_CONNTRACK_H */
