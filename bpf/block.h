/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Blocks of ports (RFC 6888 REQ-14, in the spirit of RFC 7422): a network may say
 * that each of its hosts gets its ports out of blocks that are its alone, so that
 * one line of a log says for all of them whose they were. A block is aligned,
 * free for all protocols when it is taken, and given back with the last binding
 * that has a port of it.
 *
 * A bit for each word of the port bitmaps says that it is of a block. Who takes a
 * block sets its bits and then looks whether a port of it has been taken; who
 * takes a port sets its bit and then looks whether it is of a block: of two CPUs
 * that want the same, one sees the other.
 */
#ifndef CONENAT_BLOCK_H
#define CONENAT_BLOCK_H

#include "event.h"
#include "ports.h"

#define BLOCK_TRIES 16

/* Looks for free words: size of them, aligned. */
struct block_walk {
	struct nat_block_words *taken;
	struct nat_ports *udp;
	struct nat_ports *tcp;
	struct nat_ports *icmp;
	__u16 low; /* words: the first one, how many, and where to start */
	__u16 count;
	__u16 start;
	__u16 size; /* of the block, a power of two */
	__u16 found; /* first word; 0: none */
	bool broken; /* one of this block is not free */
	bool own; /* the block is the caller's: are its ports free? */
};

static __always_inline bool block_word_is_free(const struct block_walk *w,
					       __u32 word)
{
	if (!w->own && word_is_blocked(w->taken, word))
		return false;
	return !(w->udp->words[word] | w->tcp->words[word] |
		 w->icmp->words[word]);
}

static long block_walk_step(__u32 index, void *data)
{
	struct block_walk *w = data;
	__u32 word = w->start + index;

	if (word >= w->low + w->count)
		word -= w->count;
	if (word >= NAT_PORT_WORDS || !w->taken || !w->udp || !w->tcp ||
	    !w->icmp)
		return 1;
	if (!(word & (w->size - 1)))
		w->broken = false;
	if (!block_word_is_free(w, word))
		w->broken = true;
	if (w->broken || (word & (w->size - 1)) != w->size - 1)
		return 0;
	w->found = word - w->size + 1;
	return 1;
}

/* The first free block from w->start on, in so many words; 0: none. */
static __always_inline __u32 block_find(struct block_walk *w, __u32 words)
{
	w->found = 0;
	if (bpf_loop(words, block_walk_step, w, 0) < 0)
		return 0;
	return w->found;
}

/* A block's bits are all in one word of 64. */
static __always_inline __u64 block_mask(__u32 first, __u32 size)
{
	return PARITY_ANY >> ((64 - size) & 63) << (first & 63);
}

static __always_inline __u64 *block_bits(struct nat_block_words *taken,
					 __u32 first)
{
	__u32 index = first / 64;

	barrier_var(index);
	return &taken->words[index & (NAT_PORT_WORDS / 64 - 1)];
}

/* Marks the words of a block. False: another CPU has one of them. */
static __always_inline bool block_mark(struct nat_block_words *taken,
				       __u32 first, __u32 size)
{
	__u64 *bits = block_bits(taken, first), mask = block_mask(first, size);
	__u64 old = __sync_fetch_and_or(bits, mask);

	if (!(old & mask))
		return true;
	__sync_fetch_and_and(bits, ~mask | old);
	return false;
}

/* first and size: in words. */
static __noinline int block_unmark(__u32 address, __u32 first, __u32 size)
{
	struct nat_block_words *taken = bpf_map_lookup_elem(&block_words,
							    &address);

	if (taken)
		__sync_fetch_and_and(block_bits(taken, first),
				     ~block_mask(first, size));
	return 0;
}

static __always_inline bool block_walk_begin(struct block_walk *w,
					     __u32 address)
{
	struct nat_config *cfg = config_get();
	__u32 end;

	w->taken = bpf_map_lookup_elem(&block_words, &address);
	w->udp = ports_get(address, IPPROTO_UDP);
	w->tcp = ports_get(address, IPPROTO_TCP);
	w->icmp = ports_get(address, PROTO_ICMP);
	if (!cfg || !w->taken || !w->udp || !w->tcp || !w->icmp)
		return false;
	w->low = (cfg->port_low / 64 + !!(cfg->port_low % 64) + w->size - 1) &
		 ~(w->size - 1);
	end = ((__u32)cfg->port_high + 1) / 64 & ~(w->size - 1);
	if (w->low >= end)
		return false;
	w->count = end - w->low;
	w->start = w->low + (bpf_get_prandom_u32() % w->count & ~(w->size - 1));
	return true;
}

/*
 * A random free block of an address's ports, from the operator's range: its first
 * word, 0 for none, or -LOOK_AGAIN. size: in words.
 */
static __always_inline int block_claim(__u32 address, __u32 size)
{
	struct block_walk w = { .size = size };
	__u32 first;

	if (!size || size & (size - 1) || size > NAT_BLOCK_MAX / 64 ||
	    !block_walk_begin(&w, address))
		return 0;
	first = block_find(&w, w.count);
	if (!first)
		return 0;
	if (!block_mark(w.taken, first, size))
		return -LOOK_AGAIN;
	w.start = first;
	w.own = true;
	if (block_find(&w, size))
		return first;
	block_unmark(address, first, size);
	return -LOOK_AGAIN;
}

/* An entry of nat_blocks.block, taken apart. */
static __always_inline __u32 block_first(__u32 block)
{
	return block >> 16;
}

static __always_inline __u32 block_ports(__u32 block)
{
	return block & 0xffff;
}

static __noinline int event_block(const struct block_key *key,
				  nat_addr external, __u32 block,
				  enum nat_event_type type)
{
	struct nat_event *e = event_begin(type);
	__u32 first = block_first(block);

	if (!e)
		return 0;
	e->zone = key->zone;
	e->external_port = bpf_htons(first);
	e->last_port = bpf_htons(first + block_ports(block) - 1);
	addr_to_event(e->internal, key->address);
	addr_to_event(e->external, external);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The event goes out first: the next one's "allocated" comes after it. */
static __always_inline void block_give(const struct block_key *key,
				       nat_addr external, __u32 block)
{
	event_block(key, external, block, EVENT_BLOCK_RELEASED);
	block_unmark(key->slot, block_first(block) / 64,
		     block_ports(block) / 64);
}

/* One more binding of a host's that is to have a port of its blocks. */
static __noinline int blocks_hold(const struct block_key *key,
				  nat_addr external)
{
	struct nat_blocks fresh = { .references = 1, .external = external };
	struct nat_blocks *b;
	int i;

	for (i = 0; i < BLOCK_TRIES; i++) {
		b = bpf_map_lookup_elem(&blocks, key);
		if (!b) {
			if (bpf_map_update_elem(&blocks, key, &fresh,
						BPF_NOEXIST) == 0)
				return 0;
			continue;
		}
		if (__sync_fetch_and_add(&b->references, 1) & BLOCKS_DYING)
			continue;
		if (bpf_map_lookup_elem(&blocks, key) == b)
			return 0;
		__sync_fetch_and_add(&b->references, -1);
	}
	return -REASON_DROPPED_RACE;
}

/* One less; the last one gives the blocks back, while nobody else can. */
static __noinline int blocks_drop(const struct block_key *key)
{
	struct nat_blocks *b = bpf_map_lookup_elem(&blocks, key);
	int i;

	if (!b || __sync_fetch_and_add(&b->references, -1) != 1 ||
	    __sync_val_compare_and_swap(&b->references, 0, BLOCKS_DYING) != 0)
		return 0;
	for (i = 0; i < NAT_HOST_BLOCKS; i++) {
		if (!b->block[i])
			break;
		block_give(key, b->external, b->block[i]);
	}
	return bpf_map_delete_elem(&blocks, key);
}

/* How many blocks a host has. */
NAT_GLOBAL int blocks_count(const struct block_key *key)
{
	struct nat_blocks *b;
	struct block_key own;
	int i;

	if (!key)
		return 0;
	own = *key;
	b = bpf_map_lookup_elem(&blocks, &own);
	for (i = 0; i < NAT_HOST_BLOCKS; i++)
		if (!b || !b->block[i])
			break;
	return i;
}

/* One of them; 0: it has not so many. */
NAT_GLOBAL __u32 blocks_get(const struct block_key *key, __u32 n)
{
	struct nat_blocks *b;
	struct block_key own;

	if (!key || n >= NAT_HOST_BLOCKS)
		return 0;
	own = *key;
	b = bpf_map_lookup_elem(&blocks, &own);
	return b ? b->block[n] : 0;
}

/*
 * One block more for a host that has n of them, which the caller has found full.
 * 0: look again, another CPU may have been faster. ports: how many in a block.
 */
NAT_GLOBAL int blocks_grow(const struct block_key *key, __u32 n, __u32 ports)
{
	struct nat_blocks *b;
	struct block_key own;
	__u32 block;
	int rc;

	if (!key)
		return -REASON_DROPPED_RACE;
	if (n >= NAT_HOST_BLOCKS)
		return -REASON_DROPPED_HOST_PORTS;
	own = *key;
	rc = block_claim(own.slot, ports / 64);
	if (rc <= 0)
		return rc ? 0 : -REASON_DROPPED_PORT_EXHAUSTED;
	block = rc * 64 << 16 | ports;
	b = bpf_map_lookup_elem(&blocks, &own);
	if (!b) {
		block_unmark(own.slot, rc, ports / 64);
		return -REASON_DROPPED_RACE;
	}
	event_block(&own, b->external, block, EVENT_BLOCK_ALLOCATED);
	if (__sync_val_compare_and_swap(&b->block[n], 0, block) != 0)
		block_give(&own, b->external, block);
	return 0;
}

#endif /* CONENAT_BLOCK_H */
