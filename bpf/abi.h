/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What crosses between the packet path and Go: every struct and enum, with its
 * size. A change of any of them, or of a map's meaning, raises NAT_ABI_VERSION;
 * the version is part of the pin path, so that no program ever reads another
 * version's maps.
 *
 * Addresses and ports are in network byte order (nat_addr, __be16); all else is
 * in host byte order. This header is compiled once for each address family:
 * what family4.h and family6.h give a name that ends in 4 or 6 is there twice.
 */
#ifndef CONENAT_ABI_H
#define CONENAT_ABI_H

#include "family.h"

#define NAT_ABI_VERSION 5

#define NAT_NAME_LEN 16 /* IFNAMSIZ: names of zones and realms */
#define NAT_LABEL_LEN 64 /* what people call a zone */
#define NAT_ZONES 256
#define NAT_REALMS 64
#define NAT_PREFIXES 4 /* per zone */
#define NAT_EXCLUSIONS 4096 /* of all zones */
#define NAT_LINKS 16384 /* direct-mapped by ifindex */
#define NAT_ADDRESSES 256 /* external addresses */
#define NAT_SETS 1024 /* of external addresses */
#define NAT_HOST_PAIRS 4 /* outsides where a host keeps its address */
#define NAT_PROTOCOLS 3 /* that have ports: enum nat_l4 */
#define NAT_PORT_WORDS 1024 /* 65536 ports / 64 bits */
#define NAT_HOST_BLOCKS 8 /* of ports, of one host at one external address */
#define NAT_BLOCK_MAX 4096 /* ports */
#define NAT_HOLD_TICKS 7153 /* 120 s: RFC 6888 REQ-8 */
#define NAT_HELD_PORTS 65536 /* at once, of all external addresses */

/*
 * Time in the tables is in ticks of 2^24 ns (16.8 ms) of CLOCK_MONOTONIC, in 32
 * bits: compared by signed difference, exact while nothing is older than 1.1
 * years; the longest timeout is 30 days and the sweeper sees each session more
 * often than that.
 */
#define NAT_TICK_SHIFT 24

/*
 * Zones: 0 is the outside, 1 to NAT_ZONE_LAST the inside networks. NAT_ZONE_HOST
 * holds packets of the host itself whose source port a binding holds.
 * NAT_ZONE_CLAIM marks a slot of the sweep array that holds a port of the host.
 */
#define NAT_ZONE_OUTSIDE 0
#define NAT_ZONE_LAST 253
#define NAT_ZONE_HOST 254
#define NAT_ZONE_CLAIM 255

/* Programs for IPv6, by what calls them: those of IPv4 do, which the hooks have. */
enum nat_program {
	PROGRAM_INSIDE,
	PROGRAM_OUTSIDE_INGRESS,
	PROGRAM_OUTSIDE_EGRESS,
	PROGRAM_FRAGMENTS,
	PROGRAM_COUNT,
};

/* The same of what is called at XDP hooks. */
enum nat_xdp_program {
	XDP_PROGRAM_INSIDE,
	XDP_PROGRAM_OUTSIDE,
	XDP_PROGRAM_COUNT,
};

/* Indices of per-protocol tables. */
enum nat_l4 {
	NAT_L4_UDP,
	NAT_L4_TCP,
	NAT_L4_ICMP,
};

/* Mapping and filtering behaviours (RFC 4787 sections 4.1 and 5). */
enum nat_behavior {
	NAT_ENDPOINT_INDEPENDENT,
	NAT_ADDRESS_DEPENDENT,
	NAT_ADDRESS_AND_PORT_DEPENDENT,
};

/*
 * Why a packet got its verdict: the index of its counter. Up to
 * REASON_LAST_TRANSLATED the packet was translated, up to REASON_LAST_DIVERTED it
 * went to the namespace of reorder.h or came from there and is seen once more, up
 * to REASON_LAST_PASSED it went on untouched, the others were dropped.
 */
enum nat_reason {
	REASON_NONE,
	REASON_TRANSLATED_OUTBOUND,
	REASON_TRANSLATED_INBOUND,
	REASON_TRANSLATED_HAIRPIN,
	REASON_TRANSLATED_ICMP_ERROR,
	REASON_TRANSLATED_STACK, /* on the kernel's way, in or out */
	REASON_TRANSLATED_HOST, /* the host's own, its port being bound */
	REASON_LAST_TRANSLATED = REASON_TRANSLATED_HOST,

	REASON_DIVERTED_FRAGMENT, /* to be put in order */
	REASON_DIVERTED_TOO_BIG, /* to be cut to the inside MTU */
	REASON_DIVERTED_BACK, /* from there to where it came from */
	REASON_LAST_DIVERTED = REASON_DIVERTED_BACK,

	REASON_PASSED_NO_LINK, /* no entry for the interface */
	REASON_PASSED_NOT_IP, /* neither IPv4 nor, where that is translated, IPv6 */
	REASON_PASSED_BRIDGED, /* addressed to another port of the bridge */
	REASON_PASSED_LOCAL, /* to the host, multicast, broadcast, nowhere */
	REASON_PASSED_NOT_OUTSIDE, /* the route leads elsewhere */
	REASON_PASSED_NO_ROUTE, /* the kernel answers */
	REASON_PASSED_PROTOCOL, /* of none that is translated: the host's */
	REASON_PASSED_UNBOUND, /* no bound external endpoint */
	REASON_PASSED_HOST, /* the host's own endpoint */
	REASON_PASSED_CONNTRACK, /* answers a connection of the kernel's way */
	REASON_PASSED_TTL, /* the kernel answers Time Exceeded */
	REASON_PASSED_TOO_BIG, /* the kernel answers Fragmentation Needed */
	REASON_PASSED_STACK, /* the kernel's way; egress translates */
	REASON_PASSED_TRANSLATED, /* at egress, after the direct path */
	REASON_PASSED_EXCLUDED, /* an inside host, or a network's whole family, that is left to the host's NAT */
	REASON_PASSED_DESTINATION, /* RFC 6888 REQ-6: not translated, by nobody */
	REASON_PASSED_MALFORMED, /* from outside: the host's to judge */
	REASON_LAST_PASSED = REASON_PASSED_MALFORMED,

	REASON_DROPPED_MALFORMED,
	REASON_DROPPED_SPOOFED, /* source not of the network, or another's */
	REASON_DROPPED_FILTERED, /* RFC 4787 section 5 */
	REASON_DROPPED_UNSOLICITED, /* to a port of the NAT's that nobody has */
	REASON_DROPPED_ISOLATED, /* hairpin to another network's binding */
	REASON_DROPPED_NO_ADDRESS, /* the outside has none for this host now */
	REASON_DROPPED_PORT_EXHAUSTED,
	REASON_DROPPED_PROTOCOL, /* of none that is translated: protocol.h */
	REASON_DROPPED_REMOTE_TAKEN, /* without ports: another one talks to it */
	REASON_DROPPED_BINDINGS_FULL,
	REASON_DROPPED_SESSIONS_FULL,
	REASON_DROPPED_QUOTA, /* sessions per binding */
	REASON_DROPPED_HOST_PORTS, /* struct nat_limits */
	REASON_DROPPED_HOST_SESSIONS,
	REASON_DROPPED_NETWORK_PORTS,
	REASON_DROPPED_NETWORK_SESSIONS,
	REASON_DROPPED_TCP_NO_SESSION, /* not a SYN, and of no session */
	REASON_DROPPED_FRAGMENT, /* a later one whose first was dropped or is unknown */
	REASON_DROPPED_ICMP_TYPE, /* neither query nor error */
	REASON_DROPPED_ICMP_CHECKSUM, /* RFC 5508 REQ-3 */
	REASON_DROPPED_ICMP_NO_SESSION, /* RFC 5508 REQ-4 */
	REASON_DROPPED_UNMAPPED, /* RFC 6296: an address that the other prefix has none for */
	REASON_DROPPED_ROUTE_MOVED, /* to an outside with another address */
	REASON_DROPPED_TTL, /* would expire at the NAT, which says so */
	REASON_DROPPED_TOO_BIG, /* DF: the NAT says so */
	REASON_DROPPED_NO_ROUTE, /* the NAT says so: ZONE_OVERLAPS */
	REASON_DROPPED_UNCUT, /* the same without DF: would need fragmenting */
	REASON_DROPPED_CONFLICT, /* its endpoints talk by another binding */
	REASON_DROPPED_RACE, /* the entry was ending on another CPU */
	REASON_DROPPED_REWRITE, /* a kernel helper refused */
	REASON_COUNT,
};

enum nat_event_type {
	EVENT_BINDING_CREATED = 1,
	EVENT_BINDING_EXPIRED,
	EVENT_BINDING_CHANGED,
	EVENT_SESSION_CREATED,
	EVENT_SESSION_STATE,
	EVENT_SESSION_CLOSED,
	EVENT_PORT_EXHAUSTED,
	EVENT_QUOTA_EXCEEDED,
	EVENT_INBOUND_FILTERED,
	EVENT_ADDRESS_MISSING,
	EVENT_SAMPLED_LAST = EVENT_ADDRESS_MISSING,
	EVENT_BLOCK_ALLOCATED,
	EVENT_BLOCK_RELEASED,
};

/* RFC 6146 section 3.5.2, seen from a NAT44: V6 is inside, V4 outside. */
enum nat_state {
	STATE_ACTIVE, /* not TCP */
	STATE_INIT_INSIDE, /* SYN from inside */
	STATE_INIT_OUTSIDE, /* SYN from outside */
	STATE_ESTABLISHED,
	STATE_FIN_INSIDE,
	STATE_FIN_OUTSIDE,
	STATE_FIN_BOTH,
	STATE_TRANS, /* RST seen */
	STATE_COUNT,
};

enum nat_timeout {
	TIMEOUT_UDP,
	TIMEOUT_TCP_ESTABLISHED,
	TIMEOUT_TCP_PARTIAL_OPEN,
	TIMEOUT_TCP_CLOSING,
	TIMEOUT_ICMP,
	TIMEOUT_COUNT,
};

struct nat_config {
	__u32 timeout[TIMEOUT_COUNT]; /* ticks */
	__u32 recheck[NAT_PROTOCOLS]; /* ticks: the protocol's shortest */
	__u64 sweep_period; /* ns */
	__u16 port_low; /* host byte order, inclusive */
	__u16 port_high;
	__u32 sessions_per_binding;
	__u32 max_sessions;
	__u32 max_bindings;
	__u64 netns; /* inode of the network namespace it serves */
	__u32 reorder_ifindex; /* this end of the veth to reorder.h's; 0: none */
	__u32 zero; /* 0, which the verifier does not know: pool.h */
};

enum nat_link_kind {
	LINK_NONE,
	LINK_INSIDE_DEVICE,
	LINK_INSIDE_PORT,
	LINK_OUTSIDE,
};

#define LINK_PEER (1 << 0) /* bpf_redirect_peer may be used */
#define LINK_LAYER3 (1 << 1) /* packets have no Ethernet header */
#define LINK_STACK (1 << 2) /* packets go the kernel's way: path stack */
#define LINK_XDP (1 << 3) /* XDP translates here, and may send by it */
#define LINK_DROP_UNSOLICITED (1 << 4) /* of an outside */
#define LINK_XDP_PEER (1 << 5) /* a port whose peer takes XDP's frames */
#define LINK_GRO_SWITCHED (1 << 6) /* at the peer, by the daemon */

struct nat_link {
	__u32 ifindex;
	__u16 owner; /* zone or realm */
	__u8 kind; /* enum nat_link_kind */
	__u8 flags;
	__u8 mac[6]; /* of the gateway, or outside: what is routed comes to it */
	__u8 epoch; /* of next hops: session_half.hop_epoch; 0: none is good */
	__u8 pad;
};

struct nat_prefix {
	nat_addr address;
	nat_addr mask;
};

/* What an inside host is told when no mapping or session can be made for it. */
enum nat_refusal {
	REFUSAL_SILENT,
	REFUSAL_HOST_UNREACHABLE, /* ICMP 3/1: RFC 6888 REQ-11 */
	REFUSAL_ADMIN_PROHIBITED, /* ICMP 3/13: RFC 5508 REQ-8 */
};

/* What inside hosts may take (RFC 6888 REQ-4 and REQ-5); 0: no limit. */
struct nat_limits {
	__u32 host_ports; /* external ports and ICMP identifiers of one host */
	__u32 host_sessions;
	__u32 zone_ports; /* of the whole network */
	__u32 zone_sessions;
};

struct nat_zone {
	char name[NAT_NAME_LEN]; /* empty: unused */
	__u32 ifindex; /* of the bridge or plain interface */
	__u8 filtering[NAT_PROTOCOLS]; /* enum nat_behavior by enum nat_l4 */
	__u8 prefixes;
	struct nat_prefix prefix[NAT_PREFIXES];
	__u8 mac[6]; /* of the gateway, as in its links */
	__u8 flags; /* ZONE_* */
	__u8 refusal; /* enum nat_refusal */
	char label[NAT_LABEL_LEN]; /* of the API; empty: the name */
	__u8 mapping[NAT_PROTOCOLS]; /* enum nat_behavior by enum nat_l4 */
	__u8 pad;
	nat_addr gateway; /* the host's address there: ICMP errors come from it */
	struct nat_limits limits;
	__u32 block; /* ports of a block of one host (RFC 7422); 0: no blocks */
	__u16 set; /* of external addresses; 0: the outside's default pool */
	__be16 adjustment; /* ZONE_NPTV6: what makes up for the external prefix */
	nat_addr external; /* ZONE_NPTV6: in place of prefix[0], as long as it */
};

#define ZONE_ISOLATED (1 << 0) /* hosts do not reach each other */
#define ZONE_MSS_CLAMP (1 << 1) /* a SYN's MSS option fits the route */
#define ZONE_OVERLAPS (1 << 2) /* another zone has some of its addresses */
#define ZONE_EXCLUDES (1 << 3) /* destinations; of the outside: some zone */
#define ZONE_NPTV6 (1 << 4) /* prefix translation; of the outside: some zone */
#define ZONE_ROUTED (1 << 5) /* no translation; of the outside: some zone */

/*
 * A prefix of destinations that a network's packets reach untranslated; of the
 * outside, one by which the network that the value says is reached: its external
 * prefix (RFC 6296), or its own.
 */
struct exclusion_key {
	__u32 prefixlen; /* 32 of the zone, and the address's */
	__u32 zone;
	nat_addr address;
};

/*
 * What a host, or a whole network, has: one word, so that one atomic operation
 * both changes it and tells the last one. A session counts for the host that the
 * primary half's packets come from, a port for the host of its binding.
 */
struct nat_usage {
	__u64 word; /* DYING << 63 | sessions << 32 | ports */
};

/*
 * The same of a host, and the external addresses that it keeps as long (RFC 4787
 * REQ-2): a word for each outside, so that one atomic operation sets it.
 */
struct nat_host {
	__u64 word; /* as nat_usage.word */
	__u64 pair[NAT_HOST_PAIRS]; /* pool.h; 0: none */
};

#define USAGE_PORT 1ULL
#define USAGE_SESSION (1ULL << 32)
#define USAGE_DYING (1ULL << 63)

/* A host's blocks of ports at one external address. */
struct block_key {
	nat_addr address; /* of the host */
	__u16 zone;
	__u16 slot; /* nat_address.slot */
};

struct nat_blocks {
	__u32 references; /* bindings, and BLOCKS_DYING */
	nat_addr external;
	__u32 block[NAT_HOST_BLOCKS]; /* first port << 16 | ports; 0: none */
};

#define BLOCKS_DYING 0x80000000U

/* The words of an address's port bitmaps that are of somebody's block. */
struct nat_block_words {
	__u64 words[NAT_PORT_WORDS / 64];
};

/* A UDP port that nobody gets for a while after its binding's end. */
struct nat_held {
	__u16 slot; /* nat_address.slot */
	__u16 port;
	__u32 since; /* tick */
};

/* An inside host that somebody (Docker) vouches for. */
struct owner_key {
	nat_addr address;
	__u16 zone;
	__u16 pad;
};

#define OWNER_EXCLUDED (1 << 0) /* not translated: the host's NAT has it */
#define OWNER_FILTERING (1 << 1) /* has a filtering of its own */
#define OWNER_ONE_TO_ONE (1 << 2) /* has all of the addresses of its set */

struct nat_owner {
	__u64 id; /* of the container: a new one inherits nothing */
	__u32 ifindex; /* of its bridge port; 0: not known */
	__u8 filtering[NAT_PROTOCOLS];
	__u8 flags; /* OWNER_* */
	__u16 set; /* of external addresses; 0: its network's */
	__u16 pad[3];
};

struct nat_realm {
	char name[NAT_NAME_LEN]; /* empty: unused */
	__u32 ifindex; /* 0: the interface is away */
	__u16 pool; /* how many addresses its default pool has */
	__u16 slot; /* of one of them */
	__u16 first; /* slot of the one that people are shown */
	__u16 pad;
};

/* External address -> its place in the port bitmaps. */
struct nat_address {
	__u16 realm;
	__u16 slot; /* below NAT_ADDRESSES */
};

/* In place of a slot: the external endpoint is the internal one (ZONE_ROUTED). */
#define NAT_NO_SLOT 0xffff

#define EXTERNAL_NAMED (1 << 0) /* of a set: in no default pool */

/* The external address of a slot. */
struct nat_external {
	nat_addr address; /* 0: the slot is free */
	nat_addr internal; /* 1:1: the host that has all of it; 0: none */
	__u16 zone; /* of internal */
	__u16 realm;
	__u16 generation; /* of the slot: each address has another one */
	__u16 flags; /* EXTERNAL_* */
};

/*
 * External addresses of which a host gets one: below NAT_REALMS the default pool of
 * that realm; else what somebody has named, on whichever outside, and another list
 * of addresses is another set.
 */
struct nat_set {
	__u32 count;
	nat_addr address[NAT_ADDRESSES]; /* sorted */
};

struct nat_ports {
	__u64 words[NAT_PORT_WORDS]; /* a bit is set: the port is claimed */
};

struct session_key {
	nat_addr saddr;
	nat_addr daddr;
	__be16 sport; /* 0 without ports; ICMP query: identifier, and 0 for dport; */
	__be16 dport; /* ICMP reply: the other way round */
	__u16 zone; /* that the packet comes from */
	__u8 proto;
	__u8 pad;
};

enum session_target {
	TARGET_OUTSIDE, /* bpf_redirect_neigh to ifindex and next_hop */
	TARGET_DEVICE, /* the same, to an inside network's device */
	TARGET_PORT, /* bpf_redirect_peer through ifindex */
	TARGET_HOST, /* the host's own: go on */
};

#define HALF_PRIMARY (1 << 0) /* the half that the slot names */
#define HALF_HAIRPIN (1 << 1)
#define HALF_SELF (1 << 2) /* hairpin to itself: the only half */
#define HALF_FILTER (1 << 3) /* holds a reference on a permission */
#define HALF_NETFILTER (1 << 4) /* netfilter may have a NAT entry for it */
#define HALF_INBOUND (1 << 5) /* opened from outside */

#define SEEN_SYN (1 << 0)
#define SEEN_FIN (1 << 1)
#define SEEN_RST (1 << 2)
#define SEEN_OTHER (1 << 3) /* none of these: a connection picked up */

/*
 * One direction of a session: one cache line (IPv6: two), written by its own direction
 * only. Nothing is written for most packets: last_seen moves once a tick.
 */
struct session_half {
	nat_addr saddr; /* the packet's new addresses and ports */
	nat_addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 last_seen; /* tick of the last packet that refreshes */
	__u32 ifindex; /* where to */
	nat_addr next_hop;
	__u32 resolved; /* tick of the route lookup */
	__u32 port_ifindex; /* inside port its packets come from; 0: unknown */
	__u32 slot; /* in the sweep array */
	__u32 binding;
	__u32 generation; /* of the binding */
	__u32 created; /* s of CLOCK_MONOTONIC */
	__u16 peer_zone; /* that the other half's packets come from */
	__u16 mtu; /* of the route, or the inside device; 0: unknown */
	__u8 target; /* enum session_target */
	__u8 flags;
	__u8 seen; /* TCP flags so far */
	__u8 peer_reset; /* the other half's side has sent a RST since */
	__u8 closed; /* both sides have sent FIN: no packet refreshes */
	__u8 pad[HALF_PAD]; /* of IPv4 none */
	__u8 hop_epoch; /* of the link that XDP sends by, when it wrote hop */
	__u8 hop[6]; /* MAC of the next hop, for XDP; zeros: tc sends */
};

/* What the sweeper walks: an array beside the hash. */
struct session_slot {
	struct session_key key; /* of the primary half */
	__u32 check; /* tick before which it cannot have expired */
	__u32 word; /* generation and state: slot.h */
};

struct binding_key {
	nat_addr address;
	nat_addr remote; /* 0, and 0: the mapping does not depend on it */
	__be16 port;
	__be16 remote_port;
	__u16 zone;
	__u8 proto;
	__u8 realm; /* below NAT_REALMS */
};

struct binding_ref {
	__u32 binding;
	__u32 generation;
};

#define BINDING_STATIC (1 << 0)
#define BINDING_INDEXED (1 << 1) /* found by its internal endpoint too */
#define BINDING_PUBLISHED (1 << 2) /* static, and Docker's, not an operator's */
#define BINDING_RETIRED (1 << 3) /* a static one has its endpoint now */
#define BINDING_COUNTED (1 << 4) /* a port of its host's: nat_usage */
#define BINDING_IN_BLOCK (1 << 5) /* holds a reference on its host's blocks */
#define BINDING_OWN (1 << 6) /* at an address that is its host's alone: 1:1 */

/* Set in nat_binding.word: no new session; the sweeper ends what there is. */
#define BINDING_DYING (1ULL << 31)

struct nat_binding {
	__u64 word; /* generation << 32 | dying << 31 | references */
	nat_addr internal;
	nat_addr external;
	__be16 internal_port;
	__be16 external_port;
	__u16 zone;
	__u8 proto;
	__u8 flags;
	__u16 realm;
	__u16 address; /* nat_address.slot */
	__u32 created; /* s of CLOCK_MONOTONIC */
	__u32 outbound; /* UDP: tick of the last packet that left by it */
	nat_addr remote; /* as in its key of internals */
	__be16 remote_port;
	__u8 used; /* a session of it has come about */
	__u8 pad[BINDING_PAD];
};

struct claim_key {
	nat_addr address;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

#define CLAIM_HOST 0xffffffffU

/* Who holds an external endpoint. */
struct nat_claim {
	__u32 binding; /* or CLAIM_HOST */
	__u32 generation; /* CLAIM_HOST: slot of the sweep array */
	__u32 last_seen; /* CLAIM_HOST: tick */
	__u8 closing; /* CLAIM_HOST: the host sent FIN or RST */
	__u8 forwarded; /* CLAIM_HOST: by its own NAT, not by itself */
	__u8 pad[2];
};

/* Address-dependent filtering: who may send to a binding. */
struct permission_key {
	__u32 binding;
	__u32 generation;
	nat_addr remote;
};

#define PERMISSION_DYING 0x80000000U

struct permission {
	__u32 references; /* sessions, and PERMISSION_DYING */
};

struct fragment_key {
	nat_addr saddr;
	nat_addr daddr;
	nat_id id;
	__u16 zone;
	__u8 proto;
	__u8 egress; /* at the outside egress hook: the kernel may not reassemble */
	__u8 pad[2];
};

/* Which way the fragments of a datagram go, from the first one that comes. */
enum nat_fragment_way {
	FRAGMENT_TRANSLATE, /* the one with the ports came first */
	FRAGMENT_PASS, /* the same, and it went the kernel's way */
	FRAGMENT_DROP, /* the same, and it was dropped */
	FRAGMENT_REORDER, /* another came first: to the namespace */
};

struct nat_fragment {
	struct session_key session; /* FRAGMENT_TRANSLATE */
	__u32 last_seen; /* tick */
	__u16 next; /* offset of the next one that comes in order: 8 bytes */
	__u8 way; /* enum nat_fragment_way */
	__u8 pad;
	nat_id id; /* of the translated datagram; 0: its own */
	nat_id pad2;
};

/* As the defragmenter tells datagrams apart: id is ip_origin_id. */
struct origin_key {
	nat_addr saddr;
	nat_addr daddr;
	nat_id id;
	__u8 proto;
	__u8 pad[sizeof(nat_id) - 1];
};

/* Where a datagram came from that is in the namespace of reorder.h. */
struct nat_origin {
	__u32 ifindex;
	__u32 mark;
	__u32 last_seen; /* tick */
	__u16 zone;
	__u8 mac[12]; /* destination and source; layer 3: unused */
	__u8 pad[2];
};

/* A bump counter; what is given back goes through a queue. */
struct nat_pool {
	__u32 used; /* high-water mark */
	__u32 pad;
	__u64 free; /* given back and not taken again */
	__u64 pad2[6];
};

enum nat_pool_id {
	POOL_SESSIONS,
	POOL_BINDINGS,
	POOL_COUNT,
};

struct nat_event {
	__u64 time; /* ns of CLOCK_MONOTONIC */
	__u8 type; /* enum nat_event_type */
	__u8 family; /* AF_INET */
	__u8 proto;
	__u8 flags; /* BINDING_STATIC; HALF_HAIRPIN << 4 */
	__u8 state; /* enum nat_state, after */
	__u8 old_state;
	__u16 zone;
	__u32 session_count; /* of the binding, after */
	__u32 lifetime; /* ticks */
	__u32 count; /* sampled events: since the last one, this included */
	__be16 internal_port;
	__be16 external_port;
	__be16 remote_port;
	__be16 last_port; /* of a block; external_port is its first one */
	__u8 reason; /* quota.exceeded: REASON_DROPPED_* */
	__u8 pad[3];
	__u8 internal[16]; /* IPv4: the first four bytes */
	__u8 external[16];
	__u8 remote[16];
};

#define EVENT_FLAG_STATIC (1 << 0)
#define EVENT_FLAG_HAIRPIN (1 << 1)

/* Samplers of events that an outsider can cause at will: one a tick and CPU. */
struct nat_sampler {
	__u32 last; /* tick */
	__u32 count; /* since the last one sent */
};

/* What the daemon asks of the packet path: the packet data of nat_control. */
enum nat_command {
	COMMAND_ARM = 1, /* start the sweeper's timer with this program */
	COMMAND_BIND, /* a static binding */
	COMMAND_KILL, /* end a binding and its sessions: mark it */
	COMMAND_SWEEP, /* one chunk of a whole walk */
	COMMAND_RESERVE, /* an endpoint that the host uses */
	COMMAND_IMPORT, /* a session that another NAT has made */
	COMMAND_INDEX, /* static bindings for what their hosts send */
};

#define BIND_OVER_SOCKET (1 << 0) /* although the host listens there */
#define BIND_PUBLISHED (1 << 1) /* BINDING_PUBLISHED */
#define RESERVE_FORWARDED (1 << 2) /* of a connection of another NAT's */

struct nat_request {
	__u8 command;
	__u8 flags;
	__u8 proto;
	__u8 pad;
	__u16 zone;
	__be16 internal_port;
	__u32 cursor; /* COMMAND_SWEEP: first slot */
	__u32 no_ethertype; /* 0: BPF_PROG_RUN takes bytes 12 and 13 for one */
	nat_addr internal;
	nat_addr external;
	__be16 external_port;
	__u16 pad2;
	struct binding_ref binding; /* COMMAND_KILL, COMMAND_INDEX */
	nat_addr remote; /* COMMAND_IMPORT */
	__be16 remote_port;
	__u8 seen; /* TCP flags of either side so far: SEEN_* */
	__u8 reverse_seen;
};

/* nat_control's return value: 0, or why not. */
enum nat_answer {
	ANSWER_OK,
	ANSWER_BAD_REQUEST,
	ANSWER_NO_ADDRESS, /* not an external address */
	ANSWER_TAKEN, /* the external endpoint is bound */
	ANSWER_HOST_SOCKET, /* a socket of the host listens there */
	ANSWER_NOT_FOUND,
	ANSWER_FULL,
	ANSWER_BUSY, /* the sweeper is at work: again */
	ANSWER_FAILED,
};

_Static_assert(sizeof(struct nat_link) == 16, "nat_link");
_Static_assert(sizeof(struct nat_origin) == 28, "nat_origin");
_Static_assert(sizeof(struct nat_pool) == 64, "nat_pool");
_Static_assert(sizeof(struct nat_event) == 88, "nat_event");
_Static_assert(sizeof(struct nat_config) == 72, "nat_config");
_Static_assert(sizeof(struct nat_claim) == 16, "nat_claim");
_Static_assert(sizeof(struct nat_held) == 8, "nat_held");
_Static_assert(sizeof(struct nat_owner) == 24, "nat_owner");
_Static_assert(sizeof(struct nat_host) == 40, "nat_host");
_Static_assert(sizeof(struct nat_realm) == 28, "nat_realm");

/* of_family(4, 6): a size for IPv4, and one for IPv6. */
_Static_assert(sizeof(struct session_key) == of_family(16, 40), "session_key");
_Static_assert(sizeof(struct session_half) == of_family(64, 128),
	       "session_half");
_Static_assert(sizeof(struct session_slot) == of_family(24, 48),
	       "session_slot");
_Static_assert(sizeof(struct binding_key) == of_family(16, 40), "binding_key");
_Static_assert(sizeof(struct nat_binding) == of_family(48, 80), "nat_binding");
_Static_assert(sizeof(struct claim_key) == of_family(8, 20), "claim_key");
_Static_assert(sizeof(struct permission_key) == of_family(12, 24),
	       "permission_key");
_Static_assert(sizeof(struct fragment_key) == of_family(16, 44),
	       "fragment_key");
_Static_assert(sizeof(struct nat_fragment) == of_family(28, 56),
	       "nat_fragment");
_Static_assert(sizeof(struct origin_key) == of_family(12, 40), "origin_key");
_Static_assert(sizeof(struct nat_request) == of_family(44, 80), "nat_request");
_Static_assert(sizeof(struct nat_zone) == of_family(164, 284), "nat_zone");
_Static_assert(sizeof(struct nat_external) == of_family(16, 40),
	       "nat_external");
_Static_assert(sizeof(struct owner_key) == of_family(8, 20), "owner_key");
_Static_assert(sizeof(struct exclusion_key) == of_family(12, 24),
	       "exclusion_key");
_Static_assert(sizeof(struct block_key) == of_family(8, 20), "block_key");
_Static_assert(sizeof(struct nat_blocks) == of_family(40, 52), "nat_blocks");

#endif /* CONENAT_ABI_H */
