/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What comes from outside for an address that is an inside host's alone, and for no
 * binding: of a network whose prefix is translated (nptv6.h), or that is routed. There a
 * binding's external endpoint is its internal one (want_itself), and what it does not
 * admit is filtered, as anywhere.
 */
#ifndef CONENAT_REACHED_H
#define CONENAT_REACHED_H

#include "inbound.h"
#include "nptv6.h"

/* A routed network's, but to what never had a session: an excluded destination, or host. */
static __always_inline int routed_unbound(const struct nat *n, __u32 zone)
{
	if (host_is_excluded(zone, n->p.daddr))
		return -REASON_PASSED_EXCLUDED;
	if (destination_is_excluded(zone, addr_arg(n->p.saddr)))
		return -REASON_PASSED_DESTINATION;
	return inbound_filtered(n, n->p.daddr, n->p.dport, zone);
}

/* otherwise: its reason where it is for nobody inside. */
static __noinline int reached_inbound(struct nat *n, int otherwise)
{
	__u32 zone = zone_of_prefix(addr_arg(n->p.daddr));

	if (zone == NAT_ZONE_OUTSIDE || address_is_hosts(n))
		return otherwise;
	if (addr_never_routed(n->p.saddr) ||
	    address_in_zone(zone, addr_arg(n->p.saddr)))
		return -REASON_DROPPED_SPOOFED;
	return zone_has_nptv6(zone) ? nptv6_admitted(n, zone) :
				      routed_unbound(n, zone);
}

#endif /* CONENAT_REACHED_H */
