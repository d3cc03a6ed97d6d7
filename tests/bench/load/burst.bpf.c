// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * One frame, sent many times by BPF_F_TEST_XDP_LIVE_FRAMES, and its end. The kernel
 * makes batches of 64 and sends each before it begins the next, so the time from one
 * batch's first frame to the next one's is all that happens to 64 frames.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define BURST_BATCH 64 /* NAPI_POLL_WEIGHT: the kernel's default */
#define BURST_MARKS 64
#define BURST_LEAST 60
#define BURST_MOST 74 /* IPv6 and TCP without options */

__u8 frame[BURST_MOST];
__u64 marks[BURST_MARKS]; /* when each batch began */
__u32 made;

/* What a packet has to be to count: its IP version's addresses, one after the other. */
struct burst_want {
	__u32 addresses[8];
	__u8 protocol;
	__u8 ipv6;
	__u8 pad[2];
};

struct burst_want want;
__u64 arrived;

/* emit writes all that the way may have changed when the page was here before. */
SEC("xdp")
int emit(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data,
	     *end = (void *)(long)ctx->data_end;
	__u32 batch = made / BURST_BATCH % BURST_MARKS;
	int i;

	if (data + BURST_LEAST > end)
		return XDP_ABORTED;
	if (made++ % BURST_BATCH == 0)
		marks[batch] = bpf_ktime_get_ns();
	__builtin_memcpy(data, frame, BURST_LEAST);
#pragma unroll
	for (i = BURST_LEAST; i < BURST_MOST; i += 2) {
		if (data + i + 2 > end)
			break;
		*(__u16 *)(data + i) = *(__u16 *)(frame + i);
	}
	return XDP_TX;
}

static __always_inline int same(const __u32 *a, const __u32 *b, int words)
{
	int i;

#pragma unroll
	for (i = 0; i < words; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

static __always_inline int wanted(struct ethhdr *eth, void *end)
{
	struct iphdr *ip = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);

	if (want.ipv6)
		return (void *)(ip6 + 1) <= end &&
		       eth->h_proto == bpf_htons(ETH_P_IPV6) &&
		       ip6->nexthdr == want.protocol &&
		       same((void *)&ip6->saddr, want.addresses, 8);
	return (void *)(ip + 1) <= end && eth->h_proto == bpf_htons(ETH_P_IP) &&
	       ip->protocol == want.protocol &&
	       same((void *)&ip->saddr, want.addresses, 2);
}

SEC("xdp")
int end_xdp(struct xdp_md *ctx)
{
	arrived += wanted((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	return XDP_DROP;
}

SEC("tc")
int end_tc(struct __sk_buff *skb)
{
	arrived += wanted((void *)(long)skb->data, (void *)(long)skb->data_end);
	return TC_ACT_SHOT;
}

char __license[] SEC("license") = "Dual BSD/GPL";
