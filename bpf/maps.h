/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps. All of them are pinned; max_entries of those that hold sessions and
 * bindings are set by package dataplane before they are made. None of them
 * evicts but fragments and origins, which are caches.
 */
#ifndef CONENAT_MAPS_H
#define CONENAT_MAPS_H

#include "abi.h"

#define MAP_ARRAY(name_, value_, entries_)           \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_ARRAY);    \
		__uint(max_entries, entries_);       \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
		__type(key, __u32);                  \
		__type(value, value_);               \
	} name_ SEC(".maps")

#define MAP_HASH(name_, key_, value_, entries_)      \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_HASH);     \
		__uint(max_entries, entries_);       \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
		__type(key, key_);                   \
		__type(value, value_);               \
	} name_ SEC(".maps")

#define MAP_QUEUE(name_, value_, entries_)           \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_QUEUE);    \
		__uint(max_entries, entries_);       \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
		__type(value, value_);               \
	} name_ SEC(".maps")

/* Empty while no network has IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PROGRAM_COUNT);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u32);
} programs6 SEC(".maps");

/* The same for XDP, whose programs no other type can call. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, XDP_PROGRAM_COUNT);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u32);
} xdp6 SEC(".maps");

/* What operators set. */
MAP_ARRAY(config, struct nat_config, 1);
MAP_ARRAY(zones, struct nat_zone, NAT_ZONES);
MAP_ARRAY(realms, struct nat_realm, NAT_REALMS);
MAP_ARRAY(links, struct nat_link, NAT_LINKS);
MAP_HASH(links_overflow, __u32, struct nat_link, 1024);
MAP_HASH(addresses, nat_addr, struct nat_address, NAT_ADDRESSES);
MAP_ARRAY(externals, struct nat_external, NAT_ADDRESSES);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NAT_SETS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct nat_set);
} sets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct owner_key);
	__type(value, struct nat_owner);
} owners SEC(".maps");

/* Destinations that are not translated. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, NAT_EXCLUSIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct exclusion_key);
	__type(value, __u32);
} exclusions SEC(".maps");

/* The truth: bindings and sessions. */
MAP_ARRAY(ports, struct nat_ports, NAT_ADDRESSES *NAT_PROTOCOLS);
MAP_HASH(claims, struct claim_key, struct nat_claim, 1);
MAP_HASH(internals, struct binding_key, struct binding_ref, 1);
MAP_ARRAY(bindings, struct nat_binding, 1);
MAP_QUEUE(binding_free, __u32, 1);
MAP_HASH(sessions, struct session_key, struct session_half, 1);
MAP_ARRAY(session_slots, struct session_slot, 1);
MAP_QUEUE(session_free, __u32, 1);
MAP_HASH(permissions, struct permission_key, struct permission, 1);
MAP_ARRAY(pools, struct nat_pool, POOL_COUNT);

/* What each inside host, and each network, has of them. */
MAP_HASH(hosts, struct owner_key, struct nat_host, 1);
MAP_ARRAY(zone_usage, struct nat_usage, NAT_ZONES);

/* Blocks of ports: the hosts', and which words of the bitmaps they take. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct block_key);
	__type(value, struct nat_blocks);
} blocks SEC(".maps");

MAP_ARRAY(block_words, struct nat_block_words, NAT_ADDRESSES);

/* UDP ports that wait after their binding's end; in the order of their time. */
MAP_ARRAY(held, struct nat_ports, NAT_ADDRESSES);
MAP_QUEUE(held_ports, struct nat_held, NAT_HELD_PORTS);

/* Caches: a lost entry costs the rest of one datagram. */
#define MAP_CACHE(name_, key_, value_)               \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_LRU_HASH); \
		__uint(max_entries, 8192);           \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
		__type(key, key_);                   \
		__type(value, value_);               \
	} name_ SEC(".maps")

MAP_CACHE(fragments, struct fragment_key, struct nat_fragment);
MAP_CACHE(origins, struct origin_key, struct nat_origin);

struct sweeper {
	struct bpf_timer timer;
	__u32 busy; /* one walker at a time */
	__u32 cursor; /* next slot */
	__u64 walk_started; /* ns */
};

MAP_ARRAY(sweeper, struct sweeper, 1);

/* What the packet path tells. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_COUNT);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* The same of packets that never came to tc; the daemon adds them up. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_COUNT);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} xdp_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} events_lost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EVENT_SAMPLED_LAST + 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct nat_sampler);
} samplers SEC(".maps");

/* Counters of IPv4 IDs, and behind them a secret: identification.h. */
#define NAT_IDENTIFICATION_BITS 11
#define IDENTIFICATION_SECRET (1 << NAT_IDENTIFICATION_BITS)
MAP_ARRAY(identifications, __u32, IDENTIFICATION_SECRET + 1);

/* ICMP errors of the NAT's own: to the outside, and to inside hosts. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct nat_sampler);
} replies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

#endif /* CONENAT_MAPS_H */
