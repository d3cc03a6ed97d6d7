/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From bytes to struct packet: parsed once, with a cursor, values only. */
#ifndef CONENAT_PACKET_H
#define CONENAT_PACKET_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "config.h"

/* linux/icmp.h would bring the C library's headers along. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* of a query; of an error: unused */
	__be16 sequence;
};

enum icmp_type { /* IANA */
	ICMP_ECHOREPLY = 0,
	ICMP_DEST_UNREACH = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMP_TIMESTAMP = 13,
	ICMP_TIMESTAMPREPLY = 14,
};

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

#define MAX_HEADERS (ETH_HLEN + 60 + 20) /* IPv4 with options, and TCP */

#define PACKET_DF (1 << 0)
#define PACKET_OPTIONS (1 << 1)
#define PACKET_FIRST_FRAGMENT (1 << 2)
#define PACKET_LATER_FRAGMENT (1 << 3) /* no transport header */
#define PACKET_QUERY (1 << 4) /* ICMP echo or timestamp request */
#define PACKET_REPLY (1 << 5) /* the answer to one */
#define PACKET_ERROR (1 << 6) /* ICMP error: no ports */
#define PACKET_OTHER_ICMP (1 << 7) /* neither query, reply nor error */
#define PACKET_SHORT (1 << 8) /* the first one, and yet no transport header */
#define PACKET_CUT (1 << 9) /* to be cut to the inside MTU */

struct packet {
	nat_addr saddr;
	nat_addr daddr;
	__be16 sport; /* as in struct session_key */
	__be16 dport;
	__be16 id;
	__be16 check; /* of the IPv4 header */
	__u16 l3; /* offsets from the start of the data */
	__u16 l4;
	__u16 total; /* length from l3, of the packet as it is here */
	__u16 segment; /* the same of what goes over the wire */
	__u16 flags; /* PACKET_* */
	__u8 proto;
	__u8 ttl;
	__u8 seen; /* SEEN_* of a TCP segment */
	__u8 tcp; /* its flags */
	__u16 mtu; /* that it is too big for; else 0 */
};

struct hdr_cursor {
	void *pos;
};

/*
 * The flag if value is negative, else 0: without a branch, which would double the
 * states that the verifier has to follow from there on.
 */
static __always_inline __u16 flag_if_negative(__s32 value, __u16 flag)
{
	__u32 bits = value;

	barrier_var(bits);
	return (bits >> 31) * flag;
}

/* Headers must be in the linear part for direct access. */
static __always_inline void packet_pull(struct __sk_buff *skb)
{
	__u32 want = MAX_HEADERS;

	if (skb->len < want)
		want = skb->len;
	if (skb->data + want > skb->data_end)
		bpf_skb_pull_data(skb, want);
}

static __always_inline int parse_ethernet(struct hdr_cursor *cursor, void *end,
					  struct ethhdr **hdr)
{
	*hdr = cursor->pos;
	if ((void *)(*hdr + 1) > end)
		return -REASON_DROPPED_MALFORMED;
	cursor->pos = *hdr + 1;
	return 0;
}

static __always_inline int parse_ipv4(struct hdr_cursor *cursor, void *end,
				      struct iphdr **hdr)
{
	struct iphdr *ip = cursor->pos;

	if ((void *)(ip + 1) > end)
		return -REASON_DROPPED_MALFORMED;
	if (ip->version != 4 || ip->ihl < 5)
		return -REASON_DROPPED_MALFORMED;
	*hdr = ip;
	cursor->pos += ip->ihl * 4;
	return 0;
}

/* Padding of the frame is no transport header. */
static __always_inline bool transport_fits(const struct packet *p, __u32 size)
{
	return p->l4 - p->l3 + size <= p->total;
}

/* What one segment of a GSO packet is on the wire; size: its transport header's. */
static __always_inline void packet_segment(struct __sk_buff *skb,
					   struct packet *p, __u32 size)
{
	if (skb->gso_size)
		p->segment = p->l4 - p->l3 + size + skb->gso_size;
}

static __always_inline int parse_udp(struct __sk_buff *skb,
				     struct hdr_cursor *cursor, void *end,
				     struct packet *p)
{
	struct udphdr *udp = cursor->pos;

	if ((void *)(udp + 1) > end || !transport_fits(p, sizeof(*udp)))
		return -REASON_DROPPED_MALFORMED;
	if (bpf_ntohs(udp->len) < sizeof(*udp))
		return -REASON_DROPPED_MALFORMED;
	p->sport = udp->source;
	p->dport = udp->dest;
	packet_segment(skb, p, sizeof(*udp));
	return 0;
}

/* The flags' byte (RFC 9293 section 3.1). */
#define TCP_FLAGS 13
#define TCP_SYN (1 << 1)
#define TCP_RST (1 << 2)
#define TCP_ACK (1 << 4)

/* SEEN_*, four bits for each of what RST, SYN and FIN can be together. */
#define SEEN_OF_FLAGS                                                  \
	(SEEN_OTHER | SEEN_FIN << 4 | SEEN_SYN << 8 | SEEN_SYN << 12 | \
	 SEEN_RST << 16 | SEEN_RST << 20 | SEEN_RST << 24 | SEEN_RST << 28)

/* A TCP SYN without ACK. */
static __always_inline bool packet_opens(const struct packet *p)
{
	return (p->tcp & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

static __always_inline int parse_tcp(struct __sk_buff *skb,
				     struct hdr_cursor *cursor, void *end,
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
	packet_segment(skb, p, tcp->doff * 4);
	return 0;
}

static __always_inline int parse_icmp(struct hdr_cursor *cursor, void *end,
				      struct packet *p)
{
	struct icmphdr *icmp = cursor->pos;

	if ((void *)(icmp + 1) > end || !transport_fits(p, sizeof(*icmp)))
		return -REASON_DROPPED_MALFORMED;
	switch (icmp->type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
		p->flags |= PACKET_QUERY;
		p->sport = icmp->id;
		return 0;
	case ICMP_ECHOREPLY:
	case ICMP_TIMESTAMPREPLY:
		p->flags |= PACKET_REPLY;
		p->dport = icmp->id;
		return 0;
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		p->flags |= PACKET_ERROR;
		return 0;
	}
	p->flags |= PACKET_OTHER_ICMP;
	return 0;
}

static __always_inline int parse_transport(struct __sk_buff *skb,
					   struct hdr_cursor *cursor, void *end,
					   struct packet *p)
{
	switch (p->proto) {
	case IPPROTO_UDP:
		return parse_udp(skb, cursor, end, p);
	case IPPROTO_TCP:
		return parse_tcp(skb, cursor, end, p);
	case IPPROTO_ICMP:
		return parse_icmp(cursor, end, p);
	}
	return -REASON_PASSED_PROTOCOL;
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

/* PACKET_* of the IPv4 header, whose length is header. */
static __always_inline __u16 packet_flags(struct iphdr *ip, __s32 header)
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

static __always_inline int packet_addresses(struct __sk_buff *skb,
					    struct iphdr *ip, struct packet *p)
{
	__u32 header = p->l4 - p->l3;
	__u32 total = bpf_ntohs(ip->tot_len);
	__u32 here = skb->len - p->l3;

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
	p->flags = packet_flags(ip, header);
	return 0;
}

/*
 * Parse from the network header on. l3 is its offset: ETH_HLEN, or 0 on a link
 * without Ethernet header.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, __u32 l3,
					struct packet *p)
{
	void *end, *data;
	struct hdr_cursor cursor;
	struct iphdr *ip;
	int rc;

	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return -REASON_PASSED_NOT_IPV4;
	packet_pull(skb);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	cursor.pos = data + l3;
	rc = parse_ipv4(&cursor, end, &ip);
	if (rc < 0)
		return rc;
	p->l3 = l3;
	p->l4 = l3 + ip->ihl * 4;
	rc = packet_addresses(skb, ip, p);
	if (rc < 0)
		return rc;
	if (packet_is_short(p))
		p->flags ^= PACKET_FIRST_FRAGMENT | PACKET_LATER_FRAGMENT |
			    PACKET_SHORT;
	if (p->flags & PACKET_LATER_FRAGMENT)
		return l4_index(p->proto) < 0 ? -REASON_PASSED_PROTOCOL : 0;
	return parse_transport(skb, &cursor, end, p);
}

static __always_inline void packet_key(const struct packet *p, __u32 zone,
				       struct session_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->sport = p->sport;
	key->dport = p->dport;
	key->proto = p->proto;
	key->zone = zone;
}

#endif /* CONENAT_PACKET_H */
