// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * A load's two ends, and the least that can be between them. generate is run
 * with BPF_F_TEST_XDP_LIVE_FRAMES, which makes a packet of each run; pages come
 * back as they were left, so each header byte is written anew.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Sessions differ in the local port's low bits, and else in the remote address. */
struct load_shape {
	__u8 headers[ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr)];
	__u16 ip_sum; /* of the IP header less the remote address */
	__u32 udp_sum; /* of the datagram less the remote address and local port */
	__u32 sessions;
	__u32 port_bits;
	__u16 first_port; /* the local one */
	__u8 inbound; /* the remote endpoint is the source */
	__u8 pad;
	__u32 first_remote; /* host byte order */
};

struct load_shape shape;
__u32 next;

/* When the first and the last of each so many packets were made. */
#define MARK_PACKETS 64
__u32 made;
__u64 first_mark;
__u64 last_mark;

/* What a sink counts; 0 is any. */
struct load_want {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 others_pass; /* what is not counted goes on, else it is dropped */
	__u8 pad[3];
};

struct load_want want;
__u64 arrived;
__u64 others;

/* Where forward sends what it gets. */
struct load_way {
	__u8 source[ETH_ALEN];
	__u8 destination[ETH_ALEN];
	__u32 ifindex;
};

struct load_way way;

struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~((sum & 0xffff) + (sum >> 16));
}

static __always_inline void mark(void)
{
	if (made++ % MARK_PACKETS)
		return;
	last_mark = bpf_ktime_get_ns();
	if (!first_mark)
		first_mark = last_mark;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	struct frame *f = (void *)(long)ctx->data;
	__u32 i = next, remote, sum;
	__u16 port, check;

	if ((void *)(f + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	mark();
	next = i + 1 < shape.sessions ? i + 1 : 0;
	port = shape.first_port + (i & ((1U << shape.port_bits) - 1));
	remote = shape.first_remote + (i >> shape.port_bits);
	__builtin_memcpy(f, shape.headers, sizeof(*f));
	sum = (remote >> 16) + (remote & 0xffff);
	if (shape.inbound) {
		f->ip.saddr = bpf_htonl(remote);
		f->udp.dest = bpf_htons(port);
	} else {
		f->ip.daddr = bpf_htonl(remote);
		f->udp.source = bpf_htons(port);
	}
	f->ip.check = bpf_htons(fold(shape.ip_sum + sum));
	check = fold(shape.udp_sum + sum + port);
	f->udp.check = bpf_htons(check ? check :
					 0xffff); /* RFC 768: 0 is none */
	return XDP_TX;
}

static __always_inline int differs(__u32 wanted, __u32 is)
{
	return wanted && wanted != is;
}

static __always_inline int counts(struct frame *f, void *end)
{
	if ((void *)(f + 1) > end || f->eth.h_proto != bpf_htons(ETH_P_IP) ||
	    f->ip.protocol != IPPROTO_UDP || differs(want.saddr, f->ip.saddr) ||
	    differs(want.daddr, f->ip.daddr) ||
	    differs(want.sport, f->udp.source) ||
	    differs(want.dport, f->udp.dest)) {
		__sync_fetch_and_add(&others, 1);
		return 0;
	}
	__sync_fetch_and_add(&arrived, 1);
	return 1;
}

SEC("tc")
int sink(struct __sk_buff *skb)
{
	/* Shorter ones are none of the load's. */
	bpf_skb_pull_data(skb, sizeof(struct frame));
	if (!counts((void *)(long)skb->data, (void *)(long)skb->data_end) &&
	    want.others_pass)
		return TC_ACT_OK;
	return TC_ACT_SHOT;
}

SEC("xdp")
int sink_xdp(struct xdp_md *ctx)
{
	if (!counts((void *)(long)ctx->data, (void *)(long)ctx->data_end) &&
	    want.others_pass)
		return XDP_PASS;
	return XDP_DROP;
}

static __always_inline int hop(struct frame *f)
{
	__u32 check;

	if (f->eth.h_proto != bpf_htons(ETH_P_IP) || f->ip.ttl <= 1)
		return 0;
	f->ip.ttl--;
	check = f->ip.check + bpf_htons(0x0100); /* RFC 1141 */
	f->ip.check = check + (check >= 0xffff);
	return 1;
}

static __always_inline int hop6(struct ethhdr *eth, void *end)
{
	struct ipv6hdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IPV6) ||
	    ip->hop_limit <= 1)
		return 0;
	ip->hop_limit--;
	return 1;
}

/* forward is what any router has to do with a packet, and nothing else. */
SEC("xdp")
int forward(struct xdp_md *ctx)
{
	struct frame *f = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if ((void *)(f + 1) > end || (!hop(f) && !hop6(&f->eth, end)))
		return XDP_PASS;
	__builtin_memcpy(f->eth.h_source, way.source, ETH_ALEN);
	__builtin_memcpy(f->eth.h_dest, way.destination, ETH_ALEN);
	return bpf_redirect(way.ifindex, 0);
}

char __license[] SEC("license") = "Dual BSD/GPL";
