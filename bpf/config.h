/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Constants of a load, the operator's settings, and the clock. */
#ifndef CONENAT_CONFIG_H
#define CONENAT_CONFIG_H

#include "maps.h"
#include "protocol.h"

/* bpf_fib_lookup knows BPF_FIB_LOOKUP_SKIP_NEIGH (Linux 6.3). */
volatile const bool fib_skip_neigh = false;
/* bpf_skb_ct_lookup is there: nf_conntrack is built in, or loaded (Linux 6.0). */
volatile const bool have_conntrack = false;
/* Tests: time is what virtual_now says. */
volatile const bool clock_is_virtual = false;

__u64 virtual_now = 0; /* ns */

/* ns of CLOCK_MONOTONIC, as of the last timer interrupt. */
static __always_inline __u64 clock_ns(void)
{
	if (clock_is_virtual)
		return virtual_now;
	return bpf_ktime_get_coarse_ns();
}

static __always_inline __u32 clock_tick(void)
{
	return clock_ns() >> NAT_TICK_SHIFT;
}

static __always_inline __u32 clock_seconds(void)
{
	return clock_ns() / 1000000000ULL;
}

/* a - b, right across the wrap of 32 bits. */
static __always_inline __s32 tick_diff(__u32 a, __u32 b)
{
	return (__s32)(a - b);
}

/*
 * Beside the reasons: another CPU was faster with the same; what it made is
 * there to be looked up. (-EEXIST would be a reason's number.)
 */
#define LOOK_AGAIN 1000
_Static_assert(LOOK_AGAIN > REASON_COUNT, "LOOK_AGAIN is a reason");

static __always_inline struct nat_config *config_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline struct nat_zone *zone_get(__u32 zone)
{
	return bpf_map_lookup_elem(&zones, &zone);
}

static __always_inline struct nat_realm *realm_get(__u32 realm)
{
	return bpf_map_lookup_elem(&realms, &realm);
}

/*
 * What is known of an interface. No hash: an array, direct-mapped by the low
 * bits of ifindex; two interfaces that share them are told apart by the second
 * one's entry in a small hash.
 */
static __always_inline struct nat_link *link_get(__u32 ifindex)
{
	__u32 index = ifindex % NAT_LINKS;
	struct nat_link *link;

	link = bpf_map_lookup_elem(&links, &index);
	if (link && link->ifindex == ifindex)
		return link;
	return bpf_map_lookup_elem(&links_overflow, &ifindex);
}

static __always_inline bool link_is_inside(const struct nat_link *link)
{
	return link && (link->kind == LINK_INSIDE_DEVICE ||
			link->kind == LINK_INSIDE_PORT);
}

/*
 * Mapping behaviour (RFC 4787 section 4.1) of a network. The host's own packets
 * have none to ask: endpoint-independent. Without ports it is the remote that tells
 * whose a packet is.
 */
NAT_GLOBAL enum nat_behavior mapping_of(__u32 zone, __u8 proto)
{
	struct nat_zone *z = zone > NAT_ZONE_LAST ? NULL : zone_get(zone);
	int l4 = l4_index(proto);

	if (protocol_is_portless(proto))
		return NAT_ADDRESS_DEPENDENT;
	if (!z || l4 < 0 || l4 >= NAT_PROTOCOLS)
		return NAT_ENDPOINT_INDEPENDENT;
	return z->mapping[l4];
}

/* An inside host: of owners, and of hosts, which counts what it has. */
static __always_inline void owner_key_of(__u32 zone, nat_addr address,
					 struct owner_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->address = address;
	key->zone = zone;
}

NAT_GLOBAL bool address_in_zone(__u32 zone, nat_addr_arg arg)
{
	struct nat_zone *z = zone_get(zone);
	nat_addr address = addr_of(arg);
	int i;

	if (!z)
		return false;
	for (i = 0; i < NAT_PREFIXES; i++) {
		if (i >= z->prefixes)
			break;
		if (addr_in_prefix(address, z->prefix[i].address,
				   z->prefix[i].mask))
			return true;
	}
	return false;
}

/* The same of a host, which the gateway is not, nor a network or broadcast address. */
NAT_GLOBAL bool host_in_zone(__u32 zone, nat_addr_arg arg)
{
	nat_addr address = addr_of(arg);
	struct nat_zone *z = zone_get(zone);
	struct nat_prefix *p;
	int i;

	if (!z || addr_equal(address, z->gateway))
		return false;
	for (i = 0; i < NAT_PREFIXES; i++) {
		p = &z->prefix[i];
		if (i < z->prefixes &&
		    addr_in_prefix(address, p->address, p->mask))
			return addr_is_host(address, p->address, p->mask);
	}
	return false;
}

/*
 * Whether an address of the network is another one's, too: the kernel's routing knows
 * only one of them.
 */
static __always_inline bool zone_overlaps(__u32 zone)
{
	struct nat_zone *z = zone_get(zone);

	return z && z->flags & ZONE_OVERLAPS;
}

/* Whether any network has excluded destinations: the outside's entry says so. */
static __always_inline bool destinations_are_excluded(void)
{
	struct nat_zone *z = zone_get(NAT_ZONE_OUTSIDE);

	return z && z->flags & ZONE_EXCLUDES;
}

static __always_inline struct nat_external *external_at(__u32 slot)
{
	return bpf_map_lookup_elem(&externals, &slot);
}

/* The address that an outside's interface is known by. */
static __always_inline struct nat_external *
outside_external(struct __sk_buff *skb)
{
	struct nat_link *link = link_get(skb->ifindex);
	struct nat_realm *realm = link ? realm_get(link->owner) : NULL;

	return realm ? external_at(realm->first) : NULL;
}

/* Whether a network's hosts have another prefix outside (RFC 6296), and no bindings. */
static __always_inline bool zone_has_nptv6(__u32 zone)
{
	struct nat_zone *z = NAT_FAMILY == AF_INET6 ? zone_get(zone) : NULL;

	return z && z->flags & ZONE_NPTV6;
}

/* Whether a network's external endpoints are its internal ones. */
static __always_inline bool zone_is_routed(__u32 zone)
{
	struct nat_zone *z = zone_get(zone);

	return z && z->flags & ZONE_ROUTED;
}

/* The network that is reached by an address itself; NAT_ZONE_OUTSIDE: none is. */
NAT_GLOBAL __u32 zone_of_prefix(nat_addr_arg address)
{
	struct nat_zone *outside = zone_get(NAT_ZONE_OUTSIDE);
	struct exclusion_key key = {
		.prefixlen = 8 * (sizeof(key.zone) + sizeof(key.address)),
		.zone = NAT_ZONE_OUTSIDE,
		.address = addr_of(address),
	};
	__u32 *zone;

	if (!outside || !(outside->flags & (ZONE_NPTV6 | ZONE_ROUTED)))
		return NAT_ZONE_OUTSIDE;
	zone = bpf_map_lookup_elem(&exclusions, &key);
	return zone ? *zone : NAT_ZONE_OUTSIDE;
}

/* Destinations that a network's hosts reach untranslated (RFC 6888 REQ-6). */
NAT_GLOBAL bool destination_is_excluded(__u32 zone, nat_addr_arg address)
{
	struct nat_zone *z = zone_get(zone);
	struct exclusion_key key = {
		.prefixlen = 8 * (sizeof(key.zone) + sizeof(key.address)),
		.zone = zone,
		.address = addr_of(address),
	};

	return z && z->flags & ZONE_EXCLUDES &&
	       bpf_map_lookup_elem(&exclusions, &key);
}

#endif /* CONENAT_CONFIG_H */
