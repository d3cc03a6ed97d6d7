/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From bytes to struct packet: parsed once, with a cursor. */
#ifndef CONENAT_PARSE_H
#define CONENAT_PARSE_H

#include "ip.h"

/* The length of its header, or -REASON. */
static __always_inline int parse_udp(struct hdr_cursor *cursor, void *end,
				     struct packet *p)
{
	struct udphdr *udp = cursor->pos;

	if ((void *)(udp + 1) > end || !transport_fits(p, sizeof(*udp)))
		return -REASON_DROPPED_MALFORMED;
	if (bpf_ntohs(udp->len) < sizeof(*udp))
		return -REASON_DROPPED_MALFORMED;
	p->sport = udp->source;
	p->dport = udp->dest;
	return sizeof(*udp);
}

/* SEEN_*, four bits for each of what RST, SYN and FIN can be together. */
#define SEEN_OF_FLAGS                                                  \
	(SEEN_OTHER | SEEN_FIN << 4 | SEEN_SYN << 8 | SEEN_SYN << 12 | \
	 SEEN_RST << 16 | SEEN_RST << 20 | SEEN_RST << 24 | SEEN_RST << 28)

/* The same. */
static __always_inline int parse_tcp(struct hdr_cursor *cursor, void *end,
				     struct packet *p)
{
	struct tcphdr *tcp = cursor->pos;

	if ((void *)(tcp + 1) > end)
		return -REASON_DROPPED_MALFORMED;
	/* Of a first fragment the options may be in the next one. */
	if (tcp->doff < 5 || (!(p->flags & PACKET_FIRST_FRAGMENT) &&
			      !transport_fits(p, tcp->doff * 4)))
		return -REASON_DROPPED_MALFORMED;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->tcp = ((__u8 *)tcp)[TCP_FLAGS];
	p->seen = (__u32)SEEN_OF_FLAGS >> (p->tcp & 7) * 4 & 0xf;
	return tcp->doff * 4;
}

static __always_inline int parse_icmp(struct hdr_cursor *cursor, void *end,
				      struct packet *p)
{
	struct icmphdr *icmp = cursor->pos;
	__u16 kind;

	if ((void *)(icmp + 1) > end || !transport_fits(p, sizeof(*icmp)))
		return -REASON_DROPPED_MALFORMED;
	kind = icmp_kind(icmp->type);
	p->flags |= kind;
	if (kind == PACKET_QUERY)
		p->sport = icmp->id;
	else if (kind == PACKET_REPLY)
		p->dport = icmp->id;
	return 0;
}

/* Its fragments have all that it takes: they are no one else's to wait for. */
static __always_inline void parse_part(struct packet *p)
{
	const __u16 fragment = PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT;

	if (p->flags & PACKET_LATER_FRAGMENT)
		p->flags |= PACKET_TAIL;
	if (p->flags & fragment)
		p->flags |= PACKET_PART;
	p->flags &= ~fragment;
}

/*
 * Another protocol. How long the headers of a GSO packet's segments are, the kernel
 * knows alone: outwards it is its way, and inwards what has come fits.
 */
NAT_GLOBAL int parse_portless(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return -REASON_DROPPED_MALFORMED;
	parse_part(p);
	if (!protocol_is_portless(p->proto)) {
		p->flags |= PACKET_OTHER;
		return 0;
	}
	p->flags |= PACKET_PORTLESS;
	if (skb->gso_size) {
		p->flags |= PACKET_OPTIONS;
		packet_segment(skb, p, 0);
	}
	return p->proto == IPPROTO_UDPLITE && !(p->flags & PACKET_TAIL) &&
			       !transport_fits(p, sizeof(struct udphdr)) ?
		       -REASON_DROPPED_MALFORMED :
		       0;
}

/* header: the length of the transport's, or -REASON. */
static __always_inline int parse_segment(struct __sk_buff *skb,
					 struct packet *p, int header)
{
	if (header < 0)
		return header;
	packet_segment(skb, p, header);
	return 0;
}

static __always_inline int parse_transport(struct __sk_buff *skb,
					   struct hdr_cursor *cursor, void *end,
					   struct packet *p)
{
	switch (p->proto) {
	case IPPROTO_UDP:
		return parse_segment(skb, p, parse_udp(cursor, end, p));
	case IPPROTO_TCP:
		return parse_segment(skb, p, parse_tcp(cursor, end, p));
	case PROTO_ICMP:
		return parse_icmp(cursor, end, p);
	}
	return parse_portless(skb, p);
}

/* PACKET_OTHER: why it does not leave, and why it goes on; icmp: of a message. */
static __always_inline int other_refused(const struct packet *p)
{
	return p->proto == PROTO_ICMP ? -REASON_DROPPED_ICMP_TYPE :
					-REASON_DROPPED_PROTOCOL;
}

static __always_inline int other_passed(const struct packet *p, int icmp)
{
	return p->proto == PROTO_ICMP ? icmp : -REASON_PASSED_PROTOCOL;
}

/*
 * A first fragment of 8 or 16 bytes has no whole TCP header (RFC 1858), and goes
 * as those without any. UDP's and ICMP's fit the smallest there is.
 */
static __always_inline bool packet_is_short(const struct packet *p)
{
	return p->flags & PACKET_FIRST_FRAGMENT && p->proto == IPPROTO_TCP &&
	       !transport_fits(p, sizeof(struct tcphdr));
}

/* A later fragment of IPv6 may go on with the extensions of the datagram. */
static __always_inline int parse_later(struct __sk_buff *skb, struct packet *p)
{
	return l4_index(p->proto) < 0 && !ip_is_extension(p->proto) ?
		       parse_portless(skb, p) :
		       0;
}

/*
 * Parse from the network header on. l3 is its offset: ETH_HLEN, or 0 on a link
 * without Ethernet header.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, __u32 l3,
					struct packet *p)
{
	struct hdr_cursor cursor;
	void *end;
	int rc;

	if (skb->vlan_present)
		return -REASON_PASSED_NOT_IP;
	packet_pull(skb, MAX_HEADERS);
	end = (void *)(long)skb->data_end;
	cursor.pos = (void *)(long)skb->data + l3;
	p->l3 = l3;
	rc = ip_parse(skb, &cursor, &end, p);
	if (rc < 0)
		return rc;
	if (packet_is_short(p))
		p->flags ^= PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT |
			    PACKET_SHORT;
	if (p->flags & PACKET_LATER_FRAGMENT)
		return parse_later(skb, p);
	return parse_transport(skb, &cursor, end, p);
}

#endif /* CONENAT_PARSE_H */
