/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * External ports: a bitmap for each external address and protocol. Setting the
 * bit is the claim, so that two CPUs never get one port; finding a free one is
 * a walk over words, at most 1024 of them, however full the range is.
 */
#ifndef CONENAT_PORTS_H
#define CONENAT_PORTS_H

#include "packet.h"

#define PORT_TRIES 32 /* ports found free that a socket of the host has */
#define WORD_TRIES 64 /* ports that another CPU is faster with */
#define PARITY_EVEN 0x5555555555555555ULL
#define PARITY_ANY 0xffffffffffffffffULL

static __always_inline struct nat_ports *ports_get(__u32 address, __u8 proto)
{
	int l4 = l4_index(proto);
	__u32 index;

	if (l4 < 0)
		return NULL;
	index = address * NAT_PROTOCOLS + l4;
	return bpf_map_lookup_elem(&ports, &index);
}

/*
 * A port's word. clang knows that 16 bits need no mask; the verifier before
 * 6.18 (6.12 fails) knows it no more after a spill or a byte swap.
 */
static __always_inline __u64 *port_word(struct nat_ports *map, __u16 port)
{
	__u32 index = port / 64;

	barrier_var(index);
	return &map->words[index & (NAT_PORT_WORDS - 1)];
}

static __always_inline bool port_claim(struct nat_ports *map, __u16 port)
{
	__u64 *word = port_word(map, port);
	__u64 bit = 1ULL << (port % 64);

	return !(__sync_fetch_and_or(word, bit) & bit);
}

/* Whether it was claimed. */
static __always_inline bool port_unclaim(struct nat_ports *map, __u16 port)
{
	__u64 bit = 1ULL << (port % 64);

	return __sync_fetch_and_and(port_word(map, port), ~bit) & bit;
}

NAT_GLOBAL int port_release(__u32 address, __u8 proto, __u16 port)
{
	struct nat_ports *map = ports_get(address, proto);

	if (map)
		port_unclaim(map, port);
	return 0;
}

/* Whether a word of an address's bitmaps is of somebody's block: block.h. */
static __always_inline bool word_is_blocked(const struct nat_block_words *taken,
					    __u32 word)
{
	__u32 index = word / 64;

	barrier_var(index);
	return *(volatile __u64 *)&taken
			       ->words[index & (NAT_PORT_WORDS / 64 - 1)] >>
		       (word % 64) &
	       1;
}

static __always_inline bool port_is_blocked(__u32 address, __u16 port)
{
	struct nat_block_words *taken = bpf_map_lookup_elem(&block_words,
							    &address);

	return taken && word_is_blocked(taken, port / 64);
}

/* Of a de Bruijn sequence: its top six bits, shifted left by n, to n. */
static const __u8 lowest_bit_of[64] = {
	0,  1,	48, 2,	57, 49, 28, 3,	61, 58, 50, 42, 38, 29, 17, 4,
	62, 55, 59, 36, 53, 51, 43, 22, 45, 39, 33, 30, 24, 18, 12, 5,
	63, 47, 56, 27, 60, 41, 37, 16, 54, 35, 52, 21, 44, 32, 23, 11,
	46, 26, 40, 15, 34, 20, 31, 10, 25, 14, 19, 9,	13, 8,	7,  6,
};

/* Index of the lowest bit that is set in a word that is not 0. */
static __always_inline __u32 lowest_bit(__u64 word)
{
	__u64 product = (word & -word) * 0x03f79d71b4cb0a89ULL;

	return lowest_bit_of[product >> 58];
}

/* A free port of [low, high], host byte order, as the caller wants it. */
struct port_search {
	__u64 parity; /* the bits of a word that will do */
	__u32 low;
	__u32 high;
	__u32 start; /* the port that the walk starts at */
	__u16 address; /* nat_address.slot */
	__u8 proto;
	__u8 in_block; /* the range is a block of the searcher's own */
};

struct port_walk {
	struct nat_ports *map;
	struct nat_block_words *taken;
	struct port_search s;
	__u32 word; /* the next one */
	__u32 found; /* 0: none */
};

/* The bits of word that lie in [low, high] and are of the parity. */
static __always_inline __u64 port_mask(const struct port_search *s, __u32 word)
{
	__u64 mask = s->parity;

	if (word == s->low / 64)
		mask &= PARITY_ANY << (s->low % 64);
	if (word == s->high / 64)
		mask &= PARITY_ANY >> (63 - s->high % 64);
	return mask;
}

/* Its lowest free port that will do, the start and what follows it first; 0. */
static __always_inline __u32 port_of_word(const struct port_walk *w, __u32 word,
					  bool first)
{
	__u32 rotate = w->s.start % 64;
	__u64 free = ~*(volatile __u64 *)&w->map->words[word];

	free &= port_mask(&w->s, word);
	if (first) /* what lies below the start comes last */
		free &= PARITY_ANY << rotate;
	if (!free)
		return 0;
	if (free >> rotate)
		return word * 64 + rotate + lowest_bit(free >> rotate);
	return word * 64 + lowest_bit(free);
}

static long port_walk_step(__u32 index, void *data)
{
	struct port_walk *w = data;
	__u32 word = w->word;
	__u32 port;

	if (word >= NAT_PORT_WORDS || !w->map || !w->taken)
		return 1;
	port = port_of_word(w, word, index == 0);
	if (!port || (!w->s.in_block && word_is_blocked(w->taken, word))) {
		w->word = word < w->s.high / 64 ? word + 1 : w->s.low / 64;
		return 0;
	}
	if (!port_claim(w->map, port))
		return 0; /* another CPU was first: the same word again */
	w->found = port;
	/* Unless it has become somebody's block meanwhile. */
	if (w->s.in_block || !word_is_blocked(w->taken, word))
		return 1;
	port_unclaim(w->map, port);
	w->found = 0;
	return 0;
}

/* Claims a port from s->start on, round the range; 0: none is free. */
NAT_GLOBAL int port_search_run(const struct port_search *s)
{
	struct port_walk w = {};
	__u32 words, slot;

	if (!s || s->low > s->high || s->high > 65535 || s->start < s->low ||
	    s->start > s->high)
		return 0;
	w.s = *s;
	w.word = s->start / 64;
	slot = s->address;
	w.map = ports_get(slot, s->proto);
	w.taken = bpf_map_lookup_elem(&block_words, &slot);
	words = s->high / 64 - s->low / 64 + 1;
	/* The first word once more at the end: its bits below the start. */
	if (bpf_loop(words + 1 + WORD_TRIES, port_walk_step, &w, 0) < 0)
		return 0;
	return w.found;
}

enum host_socket {
	HOST_SOCKET_NONE,
	HOST_SOCKET_WAITING, /* listening, or not connected */
	HOST_SOCKET_CONNECTED, /* to the tuple's remote */
};

#define TCP_LISTEN 10

/*
 * The socket of the host that would receive what comes from the tuple's source
 * (the remote) to its destination (the external endpoint).
 */
NAT_GLOBAL int host_socket(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
			   __u8 proto)
{
	int kind = HOST_SOCKET_WAITING;
	struct bpf_sock *sk;

	if (!tuple)
		return HOST_SOCKET_NONE;
	if (proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, tuple, TUPLE_SIZE,
				       BPF_F_CURRENT_NETNS, 0);
	else if (proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, tuple, TUPLE_SIZE,
				       BPF_F_CURRENT_NETNS, 0);
	else
		return HOST_SOCKET_NONE;
	if (!sk)
		return HOST_SOCKET_NONE;
	if (sk->dst_port && sk->state != TCP_LISTEN)
		kind = HOST_SOCKET_CONNECTED;
	bpf_sk_release(sk);
	return kind;
}

#endif /* CONENAT_PORTS_H */
