/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What XDP knows of a frame: plain packets alone, with their headers in the linear
 * part and all of the packet behind them. A frame of several buffers is none, for not
 * every driver sends those that another one has received; nor is one of a VLAN. What
 * is not plain is for tc, which looks closer.
 */
#ifndef CONENAT_XDP_PARSE_H
#define CONENAT_XDP_PARSE_H

#include "parse.h"

/* Where the headers are: valid as long as the frame. */
struct xdp_headers {
	struct ethhdr *eth;
	struct ip_struct *ip;
	struct udphdr *ports; /* TCP has them in the same place */
	__be16 *check; /* of either protocol */
};

static __always_inline bool mac_equal(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* Not __builtin_memcpy, which goes by bytes: nothing tells clang of the alignment. */
static __always_inline void mac_copy(void *to, const void *from)
{
	__u16 *x = to;
	const __u16 *y = from;

	x[0] = y[0];
	x[1] = y[1];
	x[2] = y[2];
}

/* Whether the frame is for the router. */
static __always_inline bool xdp_is_routed(struct xdp_md *ctx,
					  const struct nat_link *link,
					  struct xdp_headers *h)
{
	struct hdr_cursor cursor = { .pos = (void *)(long)ctx->data };
	void *end = (void *)(long)ctx->data_end;

	return parse_ethernet(&cursor, end, &h->eth) == 0 &&
	       mac_equal(h->eth->h_dest, link->mac);
}

/* Behind the IP header, at which the cursor is. */
static __always_inline bool xdp_parse_ports(struct hdr_cursor *cursor,
					    void *end, struct xdp_headers *h,
					    struct packet *p)
{
	struct tcphdr *tcp = cursor->pos;

	h->ports = cursor->pos;
	switch (p->proto) {
	case IPPROTO_UDP:
		h->check = &h->ports->check;
		return parse_udp(cursor, end, p) > 0;
	case IPPROTO_TCP:
		h->check = &tcp->check;
		return parse_tcp(cursor, end, p) > 0;
	}
	return false;
}

static __always_inline bool xdp_parse(struct xdp_md *ctx, struct xdp_headers *h,
				      struct packet *p)
{
	struct hdr_cursor cursor = { .pos = h->eth + 1 };
	void *end = (void *)(long)ctx->data_end;

	h->ip = cursor.pos;
	p->l3 = ETH_HLEN;
	p->l4 = ETH_HLEN + IP_HEADER_MIN;
	return ip_parse_plain(&cursor, end, p) &&
	       xdp_parse_ports(&cursor, end, h, p);
}

#endif /* CONENAT_XDP_PARSE_H */
