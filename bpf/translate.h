/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rewriting: addresses, ports, TTL and the checksums that cover them; never the
 * payload. The transport checksum goes through bpf_l4_csum_replace, which knows
 * CHECKSUM_PARTIAL and CHECKSUM_COMPLETE; the IPv4 header's is a plain delta. (Not
 * BPF_F_IPV6, Linux 6.16, for IPv6: ip_rewrite does what it stands for.)
 */
#ifndef CONENAT_TRANSLATE_H
#define CONENAT_TRANSLATE_H

#include "route.h"

/* The transport checksum, of a protocol whose checksum covers the addresses. */
static __always_inline int rewrite_check(struct __sk_buff *skb,
					 const struct packet *p, __u32 offset,
					 __u32 addr_diff, __u32 port_diff,
					 __u64 flags)
{
	__u32 at = p->l4 + offset;

	if (bpf_l4_csum_replace(skb, at, 0, addr_diff,
				flags | BPF_F_PSEUDO_HDR) < 0)
		return -REASON_DROPPED_REWRITE;
	if (port_diff && bpf_l4_csum_replace(skb, at, 0, port_diff, flags) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

static __always_inline int rewrite_ports(struct __sk_buff *skb,
					 const struct packet *p,
					 const struct rewrite *to,
					 __u32 addr_diff)
{
	__be16 ports[2] = { to->sport, to->dport };
	__u32 port_diff = 0;
	int rc;

	if (p->sport != to->sport || p->dport != to->dport)
		port_diff = csum_port_diff(p->sport, p->dport, to->sport,
					   to->dport);
	if (p->proto == IPPROTO_UDP)
		rc = rewrite_check(skb, p,
				   __builtin_offsetof(struct udphdr, check),
				   addr_diff, port_diff, BPF_F_MARK_MANGLED_0);
	else
		rc = rewrite_check(skb, p,
				   __builtin_offsetof(struct tcphdr, check),
				   addr_diff, port_diff, 0);
	if (rc < 0 || !port_diff)
		return rc;
	if (bpf_skb_store_bytes(skb, p->l4, ports, sizeof(ports), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* An ICMP query's or reply's identifier (RFC 5508 section 3.1). */
static __always_inline int rewrite_identifier(struct __sk_buff *skb,
					      const struct packet *p,
					      const struct rewrite *to)
{
	__u32 diff = csum_port_diff(p->sport, p->dport, to->sport, to->dport);
	__be16 id = p->flags & PACKET_QUERY ? to->sport : to->dport;
	__u32 check = p->l4 + __builtin_offsetof(struct icmphdr, checksum);
	__u32 at = p->l4 + __builtin_offsetof(struct icmphdr, id);

	if (!diff)
		return 0;
	if (bpf_l4_csum_replace(skb, check, 0, diff, 0) < 0 ||
	    bpf_skb_store_bytes(skb, at, &id, sizeof(id), 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* An error has no identifier; of the packet that it speaks of, icmp.h takes care. */
static __always_inline int rewrite_icmp(struct __sk_buff *skb,
					const struct packet *p,
					const struct rewrite *to,
					__u32 addr_diff)
{
	__u32 check = p->l4 + __builtin_offsetof(struct icmphdr, checksum);

	if (ICMP_COVERS_ADDRESSES &&
	    bpf_l4_csum_replace(skb, check, 0, addr_diff, BPF_F_PSEUDO_HDR) < 0)
		return -REASON_DROPPED_REWRITE;
	return p->flags & PACKET_ERROR ? 0 : rewrite_identifier(skb, p, to);
}

/* Without a transport header, or one that stays but for UDP-Lite's checksum. */
static __always_inline int rewrite_portless(struct __sk_buff *skb,
					    const struct packet *p,
					    __u32 addr_diff)
{
	const __u16 none = PACKET_LATER_FRAGMENT | PACKET_TAIL;

	if (p->flags & none || p->proto != IPPROTO_UDPLITE)
		return 0;
	/* RFC 3828: where UDP's is, and covers the addresses, whatever else. */
	return rewrite_check(skb, p, __builtin_offsetof(struct udphdr, check),
			     addr_diff, 0, BPF_F_MARK_MANGLED_0);
}

NAT_GLOBAL int rewrite_packet(struct __sk_buff *skb, const struct packet *p,
			      const struct rewrite *to)
{
	__u32 addr_diff;
	int rc = 0;

	if (!p || !to)
		return -REASON_DROPPED_REWRITE;
	addr_diff = csum_addr_diff(p->saddr, p->daddr, to->saddr, to->daddr);
	if (p->flags & (PACKET_LATER_FRAGMENT | PACKET_PORTLESS))
		rc = rewrite_portless(skb, p, addr_diff);
	else if (p->proto == PROTO_ICMP)
		rc = rewrite_icmp(skb, p, to, addr_diff);
	else
		rc = rewrite_ports(skb, p, to, addr_diff);
	if (rc < 0)
		return rc;
	return ip_rewrite(skb, p, to, addr_diff);
}

#endif /* CONENAT_TRANSLATE_H */
