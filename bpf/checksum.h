/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Internet checksums (RFC 1071) and their incremental update (RFC 1624). */
#ifndef CONENAT_CHECKSUM_H
#define CONENAT_CHECKSUM_H

#include "packet.h"

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* check with diff (of bpf_csum_diff) applied: RFC 1624, equation 3. */
static __always_inline __be16 csum_apply(__be16 check, __u32 diff)
{
	__u64 sum = (__u64)(__u16)~check + diff;

	sum = (sum & 0xffffffff) + (sum >> 32);
	return csum_fold((__u32)sum);
}

/* One's complement addition. */
static __always_inline __u32 csum_add(__u32 a, __u32 b)
{
	__u64 sum = (__u64)a + b;

	return (sum & 0xffffffff) + (sum >> 32);
}

/* Of what sums up to this, not folded. */
static __always_inline __u16 csum_of_sum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return csum_fold((sum & 0xffff) + (sum >> 16));
}

/*
 * What another address, or port, changes: numbers to add up, by csum_of_sum, with the
 * complement of the checksum. Cheaper than bpf_csum_diff where a call counts.
 */
static __always_inline __u64 csum_addr_change(nat_addr old, nat_addr new)
{
	return sizeof(old) / sizeof(__u32) * 0xffffffffULL - addr_sum(old) +
	       addr_sum(new);
}

static __always_inline __u32 csum_word_change(__u16 old, __u16 new)
{
	return (__u16)~old + new;
}

/* What changes a checksum that covers both addresses. */
static __always_inline __u32 csum_addr_diff(nat_addr old_s, nat_addr old_d,
					    nat_addr new_s, nat_addr new_d)
{
	nat_addr from[2] = { old_s, old_d };
	nat_addr to[2] = { new_s, new_d };

	return bpf_csum_diff((__be32 *)from, sizeof(from), (__be32 *)to,
			     sizeof(to), 0);
}

static __always_inline __u32 csum_port_diff(__be16 old_s, __be16 old_d,
					    __be16 new_s, __be16 new_d)
{
	__be32 from[1] = { old_s | (__u32)old_d << 16 };
	__be32 to[1] = { new_s | (__u32)new_d << 16 };

	return bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
}

#define CSUM_CHUNK 64
#define CSUM_CHUNKS 1024 /* 64 KiB */

struct csum_walk {
	struct __sk_buff *skb;
	__u32 offset;
	__u32 left;
	__s64 sum;
};

static long csum_step(__u32 index, void *data)
{
	struct csum_walk *walk = data;
	__u8 chunk[CSUM_CHUNK] = {};
	__u32 len = walk->left, last;

	if (!len)
		return 1;
	if (len > CSUM_CHUNK)
		len = CSUM_CHUNK;
	/*
	 * 1 to CSUM_CHUNK, in words that 6.1's verifier follows: it learns no
	 * minimum from "not 0", and nothing on a 32-bit copy of what it compares.
	 */
	last = len - 1;
	barrier_var(last);
	len = (last & (CSUM_CHUNK - 1)) + 1;
	if (bpf_skb_load_bytes(walk->skb, walk->offset, chunk, len) < 0) {
		walk->sum = -1;
		return 1;
	}
	walk->sum = bpf_csum_diff(0, 0, (__be32 *)chunk, sizeof(chunk),
				  (__u32)walk->sum);
	walk->offset += len;
	walk->left -= len;
	return walk->left == 0 || walk->sum < 0;
}

/* What len bytes from offset on sum up to, not folded; negative: unreadable. */
static __always_inline __s64 csum_of(struct __sk_buff *skb, __u32 offset,
				     __u32 len)
{
	struct csum_walk walk = {
		.skb = skb,
		.offset = offset,
		.left = len,
	};

	if (bpf_loop(CSUM_CHUNKS, csum_step, &walk, 0) < 0 || walk.left)
		return -1;
	return walk.sum;
}

/* Whether len bytes from offset on sum up to a right checksum. */
static __always_inline bool csum_valid(struct __sk_buff *skb, __u32 offset,
				       __u32 len)
{
	__s64 sum = csum_of(skb, offset, len);

	return sum >= 0 && csum_fold((__u32)sum) == 0;
}

#endif /* CONENAT_CHECKSUM_H */
