/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors (RFC 5508 section 4): a message about a packet of a session gets
 * the addresses, ports and checksums that its reader sent that packet with. The
 * session is neither refreshed nor ended by it (REQ-6), whoever sent it
 * (RFC 4787 REQ-12a).
 *
 * A half is found by the packets of its direction; an error that travels in a
 * half's direction speaks of a packet of the other one. So the key is the
 * embedded packet's turned round, for errors from inside, from outside and
 * hairpinned ones alike.
 */
#ifndef CONENAT_ICMP_H
#define CONENAT_ICMP_H

#include "session.h"

#define ICMP_ERROR_HEADER 8 /* the embedded packet follows */

/* The packet that an error speaks of. */
struct embedded {
	nat_addr saddr;
	nat_addr daddr;
	__be16 sport;
	__be16 dport;
	__be16 check; /* of its IPv4 header */
	__u16 l3;
	__u16 l4;
	__u16 l4_check; /* offset of its checksum; 0: not there, or unused */
	__u8 proto;
	__u8 reply; /* ICMP: it was a reply */
	__u8 later; /* a later fragment, of what has no ports */
};

static __always_inline int embedded_ip(struct __sk_buff *skb,
				       const struct packet *p,
				       struct embedded *e)
{
	struct ip_header ip = {};
	int rc;

	e->l3 = p->l4 + ICMP_ERROR_HEADER;
	rc = ip_load(skb, e->l3, p->l3 + p->total, &ip);
	if (rc < 0)
		return rc;
	if (ip.later && !protocol_is_portless(ip.proto)) /* no ports to go by */
		return -REASON_DROPPED_ICMP_NO_SESSION;
	e->l4 = ip.l4;
	e->saddr = ip.saddr;
	e->daddr = ip.daddr;
	e->check = ip.check;
	e->proto = ip.proto;
	e->later = ip.later;
	return 0;
}

/* RFC 792: at least 8 bytes of the transport header. */
#define EMBEDDED_TRANSPORT 8

static __always_inline int embedded_ports(struct __sk_buff *skb,
					  const struct packet *p,
					  struct embedded *e)
{
	struct icmphdr icmp;
	__be16 ports[2];
	__u16 kind;

	if (protocol_is_portless(e->proto))
		return 0;
	if (e->l4 + EMBEDDED_TRANSPORT > p->l3 + p->total)
		return -REASON_DROPPED_MALFORMED;
	if (e->proto != PROTO_ICMP) {
		if (bpf_skb_load_bytes(skb, e->l4, ports, sizeof(ports)) < 0)
			return -REASON_DROPPED_MALFORMED;
		e->sport = ports[0];
		e->dport = ports[1];
		return 0;
	}
	if (bpf_skb_load_bytes(skb, e->l4, &icmp, sizeof(icmp)) < 0)
		return -REASON_DROPPED_MALFORMED;
	kind = icmp_kind(icmp.type);
	if (!(kind & (PACKET_QUERY | PACKET_REPLY)))
		return -REASON_DROPPED_ICMP_NO_SESSION;
	e->reply = kind == PACKET_REPLY;
	if (e->reply)
		e->dport = icmp.id;
	else
		e->sport = icmp.id;
	return 0;
}

/* Where the embedded transport checksum is, if the message reaches that far. */
static __always_inline int embedded_check(struct __sk_buff *skb,
					  const struct packet *p,
					  struct embedded *e)
{
	__u16 at = e->l4;
	__be16 check;

	switch (e->proto) {
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		at += __builtin_offsetof(struct udphdr, check);
		break;
	case IPPROTO_TCP:
		at += __builtin_offsetof(struct tcphdr, check);
		break;
	case PROTO_ICMP:
		at += __builtin_offsetof(struct icmphdr, checksum);
		break;
	default:
		return protocol_is_portless(e->proto) ?
			       0 :
			       -REASON_DROPPED_ICMP_NO_SESSION;
	}
	if (e->later || at + sizeof(check) > p->l3 + p->total ||
	    bpf_skb_load_bytes(skb, at, &check, sizeof(check)) < 0)
		return 0;
	if (e->proto != IPPROTO_UDP || check)
		e->l4_check = at;
	return 0;
}

NAT_GLOBAL int embedded_parse(struct __sk_buff *skb, const struct packet *p,
			      struct embedded *e)
{
	int rc;

	if (!p || !e || p->flags & PACKET_FIRST_FRAGMENT)
		return -REASON_DROPPED_FRAGMENT;
	rc = embedded_ip(skb, p, e);
	if (rc < 0)
		return rc;
	rc = embedded_ports(skb, p, e);
	return rc < 0 ? rc : embedded_check(skb, p, e);
}

/*
 * The checksums of the message, extensions (RFC 4884) included, and of the
 * embedded IPv4 header (REQ-3); not the embedded transport's (REQ-3c).
 */
static __noinline bool error_is_sound(const struct nat *n,
				      const struct embedded *e)
{
	__u32 length = n->p.total - (n->p.l4 - n->p.l3);
	__s64 sum = csum_of(n->skb, n->p.l4, length);

	if (sum < 0)
		return false;
	sum += icmp_pseudo_sum(n->p.saddr, n->p.daddr, length);
	return !csum_of_sum(sum) && ip_is_sound(n->skb, e->l3, e->l4);
}

static __always_inline void embedded_key(const struct nat *n,
					 const struct embedded *e,
					 struct session_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = e->daddr;
	key->daddr = e->saddr;
	key->sport = e->dport;
	key->dport = e->sport;
	key->proto = e->proto;
	key->zone = n->zone;
}

static __always_inline int embedded_store(const struct nat *n, __u32 at,
					  const void *from, __u32 size)
{
	if (bpf_skb_store_bytes(n->skb, at, from, size, 0) < 0)
		return -REASON_DROPPED_REWRITE;
	return 0;
}

/* The embedded transport checksum with diff applied; *sum: what that changes. */
static __always_inline int embedded_recheck(const struct nat *n,
					    const struct embedded *e,
					    __u32 diff, __u32 *sum)
{
	__be32 from[1] = { 0 }, to[1] = { 0 };
	__be16 check;

	if (!e->l4_check)
		return 0;
	if (bpf_skb_load_bytes(n->skb, e->l4_check, &check, 2) < 0)
		return -REASON_DROPPED_REWRITE;
	from[0] = check;
	check = csum_apply(check, diff);
	if (!check && e->proto != IPPROTO_TCP && e->proto != PROTO_ICMP)
		check = 0xffff;
	to[0] = check;
	*sum = bpf_csum_diff(from, sizeof(from), to, sizeof(to), *sum);
	return embedded_store(n, e->l4_check, &check, 2);
}

static __always_inline int embedded_store_ports(const struct nat *n,
						const struct embedded *e,
						const struct session_half *half)
{
	__be16 ports[2] = { half->dport, half->sport };
	__be16 id = e->reply ? half->sport : half->dport;

	if (protocol_is_portless(e->proto))
		return 0;
	if (e->proto != PROTO_ICMP)
		return embedded_store(n, e->l4, ports, sizeof(ports));
	return embedded_store(n, e->l4 + __builtin_offsetof(struct icmphdr, id),
			      &id, sizeof(id));
}

/*
 * The embedded packet as its sender knows it. *sum is what that changes of the
 * outer message's checksum.
 */
static __noinline int embedded_restore(const struct nat *n,
				       const struct embedded *e,
				       const struct session_half *half,
				       __u32 *sum)
{
	__u32 addr_diff = csum_addr_diff(e->saddr, e->daddr, half->daddr,
					 half->saddr);
	__u32 port_diff = csum_port_diff(e->sport, e->dport, half->dport,
					 half->sport);
	__u32 diff = port_diff;
	int rc;

	if (e->proto != PROTO_ICMP || ICMP_COVERS_ADDRESSES)
		diff = csum_add(diff, addr_diff);
	*sum = csum_add(port_diff, ip_readdress_diff(addr_diff));
	rc = embedded_recheck(n, e, diff, sum);
	if (rc < 0)
		return rc;
	rc = embedded_store_ports(n, e, half);
	if (rc < 0)
		return rc;
	return ip_readdress(n->skb, e->l3, e->check, half->daddr, half->saddr,
			    addr_diff);
}

/* The outer header: an inside sender becomes the external address (REQ-5). */
static __always_inline int error_outer(struct nat *n,
				       const struct session_key *key,
				       const struct session_half *half)
{
	struct rewrite to = {
		.saddr = n->p.saddr,
		.daddr = half->daddr,
		.decrement_ttl = session_routes(n, half),
	};

	if (!addr_equal(half->saddr, key->saddr))
		to.saddr = half->saddr;
	if (session_enters(n, half))
		rewrite_for_stack(n, &to);
	if (!packet_is_atomic(&n->p))
		session_identify(n, to.saddr, to.daddr);
	to.id = n->id;
	return rewrite_packet(n->skb, &n->p, &to);
}

static __noinline int error_translate(struct nat *n, const struct embedded *e,
				      const struct session_key *key,
				      const struct session_half *half)
{
	__u32 at = n->p.l4 + __builtin_offsetof(struct icmphdr, checksum);
	__u32 sum = 0;
	int rc;

	if (session_routes(n, half) && n->p.ttl <= 1)
		return -REASON_DROPPED_TTL;
	rc = embedded_restore(n, e, half, &sum);
	if (rc < 0)
		return rc;
	if (sum && bpf_l4_csum_replace(n->skb, at, 0, sum, 0) < 0)
		return -REASON_DROPPED_REWRITE;
	rc = error_outer(n, key, half);
	if (rc < 0)
		return rc;
	rc = session_send(n, half);
	return rc < 0 ? rc : -REASON_TRANSLATED_ICMP_ERROR;
}

/*
 * An ICMP error. unknown is the reason where it speaks of no session: from
 * outside it may be about the host's own packets.
 */
static __noinline int error_forward(struct nat *n, int unknown)
{
	struct session_half *half;
	struct embedded e = {};
	struct session_key key;
	int rc;

	if (embedded_parse(n->skb, &n->p, &e) < 0)
		return unknown;
	embedded_key(n, &e, &key);
	half = session_find(&key);
	if (!half || !addr_equal(n->p.daddr, key.daddr))
		return unknown;
	if (session_takes_stack(n, half))
		return -REASON_PASSED_STACK;
	if (!error_is_sound(n, &e))
		return -REASON_DROPPED_ICMP_CHECKSUM;
	if (half->target == TARGET_OUTSIDE && !n->egress) {
		rc = session_exceptions(n, half);
		if (rc < 0)
			return rc;
	}
	return error_translate(n, &e, &key, half);
}

/* The zone of whom the packet was for that an error speaks of. */
static family_inline __u32 error_zone(const struct nat *n)
{
	struct ip_header ip = {};

	if (ip_load(n->skb, n->p.l4 + ICMP_ERROR_HEADER, n->p.l3 + n->p.total,
		    &ip) < 0)
		return NAT_ZONE_OUTSIDE;
	return zone_of_route(n->skb, addr_arg(ip.daddr));
}

/*
 * An error of the host's own about a packet from outside that it was to forward
 * to an inside host, and did not (REJECT, TTL, MTU): who sent that knows the
 * external endpoint alone.
 */
static __always_inline int error_of_host(struct nat *n)
{
	n->zone = error_zone(n);
	return n->zone == NAT_ZONE_OUTSIDE ?
		       -REASON_PASSED_HOST :
		       error_forward(n, -REASON_PASSED_HOST);
}

#endif /* CONENAT_ICMP_H */
