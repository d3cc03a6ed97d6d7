/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is known of a packet, once it is parsed: values only. */
#ifndef CONENAT_PACKET_H
#define CONENAT_PACKET_H

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "config.h"

/* Of either family; linux/icmp.h would bring the C library's headers along. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id; /* of a query; of an error: unused */
	__be16 sequence;
};

#define PACKET_DF (1 << 0) /* of IPv6: always */
#define PACKET_OPTIONS (1 << 1) /* each router looks at them */
#define PACKET_FIRST_FRAGMENT (1 << 2)
#define PACKET_LATER_FRAGMENT (1 << 3) /* no transport header */
#define PACKET_QUERY (1 << 4) /* ICMP echo or timestamp request */
#define PACKET_REPLY (1 << 5) /* the answer to one */
#define PACKET_ERROR (1 << 6) /* ICMP error: no ports */
#define PACKET_OTHER (1 << 7) /* ICMP of no such kind, or a protocol of none */
#define PACKET_SHORT (1 << 8) /* the first one, and yet no transport header */
#define PACKET_CUT (1 << 9) /* to be cut to the inside MTU */
#define PACKET_PORTLESS (1 << 10) /* addresses alone are translated */
#define PACKET_PART \
	(1 << 11) /* of such: a fragment, which needs no other one */
#define PACKET_TAIL (1 << 12) /* of such: and not the first one */

struct packet {
	nat_addr saddr;
	nat_addr daddr;
	__be16 sport; /* as in struct session_key */
	__be16 dport;
	nat_id id;
	union {
		__be16 check; /* of the IPv4 header */
		__u16 fragment; /* IPv6: offset of the fragment header */
	};
	__u16 l3; /* offsets from the start of the data */
	__u16 l4;
	__u16 total; /* length from l3, of the packet as it is here */
	__u16 segment; /* the same of what goes over the wire */
	__u16 flags; /* PACKET_* */
	__u8 proto;
	__u8 ttl;
	__u8 seen; /* SEEN_* of a TCP segment */
	__u8 tcp; /* its flags */
	__u16 mtu; /* that it is too big for; or what is wrong with it: its offset */
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

/* What is read by direct access must be in the linear part. */
static __always_inline void packet_pull(struct __sk_buff *skb, __u32 want)
{
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

/* The flags' byte (RFC 9293 section 3.1). */
#define TCP_FLAGS 13
#define TCP_FIN (1 << 0)
#define TCP_SYN (1 << 1)
#define TCP_RST (1 << 2)
#define TCP_ACK (1 << 4)

/* A TCP SYN without ACK. */
static __always_inline bool packet_opens(const struct packet *p)
{
	return (p->tcp & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
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
