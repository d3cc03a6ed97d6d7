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

NAT_GLOBAL int port_release(__u32 address, __u8 proto, __u16 port)
{
	struct nat_ports *map = ports_get(address, proto);

	if (map)
		__sync_fetch_and_and(port_word(map, port),
				     ~(1ULL << (port % 64)));
	return 0;
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
	__u8 pad;
};

struct port_walk {
	struct nat_ports *map;
	struct port_search s;
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

static long port_walk_step(__u32 index, void *data)
{
	struct port_walk *w = data;
	__u32 first = w->s.low / 64, count = w->s.high / 64 - first + 1;
	__u32 word = w->s.start / 64 + index;
	__u32 rotate = w->s.start % 64;
	__u64 free;
	__u32 port;

	if (word >= first + count)
		word -= count;
	if (word >= NAT_PORT_WORDS || !w->map)
		return 1;
	free = ~w->map->words[word] & port_mask(&w->s, word);
	if (index == 0) /* what lies below the start comes last */
		free &= PARITY_ANY << rotate;
	if (!free)
		return 0;
	if (free >> rotate)
		port = word * 64 + rotate + lowest_bit(free >> rotate);
	else
		port = word * 64 + lowest_bit(free);
	if (!port_claim(w->map, port))
		return 0; /* another CPU was first: the next word */
	w->found = port;
	return 1;
}

/* Claims a port from s->start on, round the range; 0: none is free. */
NAT_GLOBAL int port_search_run(const struct port_search *s)
{
	struct port_walk w = {};
	__u32 words;

	if (!s || s->low > s->high || s->high > 65535 || s->start < s->low ||
	    s->start > s->high)
		return 0;
	w.s = *s;
	w.map = ports_get(s->address, s->proto);
	words = s->high / 64 - s->low / 64 + 1;
	/* The first word once more at the end: its bits below the start. */
	if (bpf_loop(words + 1, port_walk_step, &w, 0) < 0)
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
		sk = bpf_sk_lookup_udp(skb, tuple, sizeof(tuple->ipv4),
				       BPF_F_CURRENT_NETNS, 0);
	else if (proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, tuple, sizeof(tuple->ipv4),
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
