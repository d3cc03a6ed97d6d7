/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What nobody has asked for: from outside to a port of the NAT's range at an external
 * address, and no session, binding or claim has it, no socket of the host, and no
 * connection that conntrack knows. Where `unsolicited: drop` says so it ends here,
 * before the host makes a conntrack entry of it and answers; at XDP, where there is
 * one, before it is even a packet of the kernel's.
 */
#ifndef CONENAT_UNSOLICITED_H
#define CONENAT_UNSOLICITED_H

#include "conntrack.h"
#include "ports.h"

/* Whether it goes to an endpoint that bindings are made of. */
static __always_inline bool packet_is_for_nat(const struct packet *p)
{
	struct nat_config *cfg = config_get();
	nat_addr external = p->daddr; /* a caller's memory is no key */
	__u16 port = bpf_ntohs(p->dport);

	if (p->flags & PACKET_LATER_FRAGMENT ||
	    (p->proto != IPPROTO_UDP && p->proto != IPPROTO_TCP))
		return false;
	return cfg && port >= cfg->port_low && port <= cfg->port_high &&
	       bpf_map_lookup_elem(&addresses, &external);
}

/*
 * Whether a socket of the host takes it. Unlike host_socket this one also finds those
 * that are no whole sockets any more, or not yet (TIME_WAIT).
 */
static __always_inline bool socket_takes(void *ctx, struct bpf_sock_tuple *t,
					 __u8 proto)
{
	struct bpf_sock *sk;

	if (proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, t, TUPLE_SIZE, BPF_F_CURRENT_NETNS,
					0);
	else
		sk = bpf_sk_lookup_udp(ctx, t, TUPLE_SIZE, BPF_F_CURRENT_NETNS,
				       0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Of no session, binding or claim, at tc: whether it ends here. */
NAT_GLOBAL bool packet_is_unsolicited(struct __sk_buff *skb,
				      const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};

	if (!p || !packet_is_for_nat(p))
		return false;
	tuple_set(&tuple, p->saddr, p->sport, p->daddr, p->dport);
	return !socket_takes(skb, &tuple, p->proto) &&
	       conntrack_side(skb, &tuple, p->proto) == CONNTRACK_NONE;
}

#endif /* CONENAT_UNSOLICITED_H */
