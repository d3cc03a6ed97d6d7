/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whom an inside address belongs to. Where somebody vouches for it (Docker knows
 * its containers), nobody else may send from it, it may be left to the host's own
 * NAT, and it may have a filtering of its own.
 */
#ifndef CONENAT_OWNER_H
#define CONENAT_OWNER_H

#include "route.h"

static __always_inline struct nat_owner *owner_of(__u32 zone, nat_addr address)
{
	struct owner_key key;

	owner_key_of(zone, address, &key);
	return bpf_map_lookup_elem(&owners, &key);
}

/* Filtering behaviour (RFC 4787 section 5) of an inside host's bindings. */
NAT_GLOBAL enum nat_behavior filtering_of(__u32 zone, nat_addr_arg internal,
					  __u8 proto)
{
	struct nat_owner *owner;
	struct nat_zone *z;
	int l4 = l4_settings(proto);

	/* The host's own bindings have no network to ask: as its default. */
	if (zone > NAT_ZONE_LAST)
		return NAT_ADDRESS_DEPENDENT;
	z = zone_get(zone);
	if (!z || l4 < 0 || l4 >= NAT_PROTOCOLS)
		return NAT_ADDRESS_AND_PORT_DEPENDENT;
	owner = owner_of(zone, addr_of(internal));
	if (owner && owner->flags & OWNER_FILTERING)
		return owner->filtering[l4];
	return z->filtering[l4];
}

/* Of an interface that is gone, nobody can tell the MTU. */
static __always_inline bool interface_exists(struct __sk_buff *skb,
					     __u32 ifindex)
{
	__u32 mtu = 0;

	return bpf_check_mtu(skb, ifindex, &mtu, 0, 0) >= 0;
}

/*
 * Whether an address that is sent from is an inside host's at another bridge port. An
 * owner whose port is gone says nothing: a container that has started since may
 * have its address.
 */
NAT_GLOBAL bool address_is_stolen(struct __sk_buff *skb, __u32 zone,
				  nat_addr_arg address)
{
	struct nat_owner *owner = owner_of(zone, addr_of(address));

	return owner && owner->ifindex && owner->ifindex != skb->ifindex &&
	       interface_exists(skb, owner->ifindex);
}

static __always_inline bool source_is_stolen(const struct nat *n)
{
	return n->from_port &&
	       address_is_stolen(n->skb, n->zone, addr_arg(n->p.saddr));
}

/* Whether an inside host is left to the host's own NAT. */
static __always_inline bool host_is_excluded(__u32 zone, nat_addr address)
{
	struct nat_owner *owner = owner_of(zone, address);

	return owner && owner->flags & OWNER_EXCLUDED;
}

/* Whether a network has addresses of this family at all. */
static __always_inline bool zone_has_family(__u32 zone)
{
	struct nat_zone *z = zone_get(zone);

	return z && z->prefixes;
}

/*
 * Anti-spoofing: what comes out of a network has an address of it, and nobody
 * else's. 0, -REASON_DROPPED_SPOOFED or -REASON_PASSED_EXCLUDED.
 */
static __noinline int source_admitted(const struct nat *n)
{
	if (source_is_stolen(n))
		return -REASON_DROPPED_SPOOFED;
	if (!address_in_zone(n->zone, addr_arg(n->p.saddr)))
		return zone_has_family(n->zone) ? -REASON_DROPPED_SPOOFED :
						  -REASON_PASSED_EXCLUDED;
	return host_is_excluded(n->zone, n->p.saddr) ? -REASON_PASSED_EXCLUDED :
						       0;
}

#endif /* CONENAT_OWNER_H */
