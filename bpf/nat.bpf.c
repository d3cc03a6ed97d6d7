// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * conenat's packet path: the entry points and nothing else. Each builds a
 * struct nat, asks the headers, and turns the reason into a verdict.
 */
#include "control.h"
#include "fragment.h"
#include "host.h"
#include "icmp.h"
#include "inbound.h"
#include "nptv6.h"
#include "outbound.h"
#include "reached.h"
#include "xdp.h"

/* Types that only Go reads by name: so that the object's BTF has them. */
struct nat_abi {
	enum nat_reason reason;
	enum nat_event_type event_type;
	enum nat_state state;
	enum nat_timeout timeout;
	enum nat_link_kind link_kind;
	enum nat_behavior behavior;
	enum nat_l4 l4;
	enum nat_program program;
	enum nat_xdp_program xdp_program;
	enum nat_command command;
	enum nat_answer answer;
	enum nat_pool_id pool;
	enum nat_fragment_way way;
	enum session_target target;
	struct nat_request request;
	struct nat_event event;
};
const struct nat_abi *nat_abi __attribute__((unused));

/*
 * On the stack path, what is no hairpin goes to the kernel, and is translated at
 * egress. 0: it is a hairpin, or may open one.
 */
static __always_inline int inside_stack(const struct nat *n,
					const struct session_half *half)
{
	if (half ? half->flags & HALF_HAIRPIN :
		   !!bpf_map_lookup_elem(&addresses, &n->p.daddr))
		return 0;
	return source_is_stolen(n) ? -REASON_DROPPED_SPOOFED :
				     -REASON_PASSED_STACK;
}

/*
 * From inside to a known session, or one that this packet opens. Where hosts have another
 * prefix, what is of no session is as any protocol without ports: for nptv6.h.
 */
static __always_inline int translate_inside(struct nat *n)
{
	struct session_half *half;
	struct session_key key;
	int rc;

	packet_key(&n->p, n->zone, &key);
	half = session_find(&key);
	if (!half && zone_has_nptv6(n->zone))
		return -REASON_PASSED_PROTOCOL;
	if (n->stack) {
		rc = inside_stack(n, half);
		if (rc < 0)
			goto out;
	}
	if (!half) {
		rc = inside_miss(n);
		if (rc < 0)
			goto out;
		half = session_find(&key);
		if (!half) {
			rc = -REASON_DROPPED_CONFLICT;
			goto out;
		}
	}
	rc = session_forward(n, &key, half);
out:
	if (n->p.flags & PACKET_FIRST_FRAGMENT)
		rc = fragment_settle(n, rc);
	return rc;
}

static __always_inline int translate_outside(struct nat *n)
{
	struct session_half *half;
	struct session_key key;
	int rc;

	packet_key(&n->p, NAT_ZONE_OUTSIDE, &key);
	half = session_find(&key);
	if (!half) {
		rc = inbound_miss(n);
		if (rc == -REASON_PASSED_UNBOUND)
			rc = inbound_excluded(n);
		if (rc < 0)
			return rc;
		half = session_find(&key);
		if (!half)
			return -REASON_DROPPED_CONFLICT;
	} else if (inbound_is_netfilters(n, half)) {
		session_touch(n, &key, half);
		return -REASON_PASSED_CONNTRACK;
	}
	return session_forward(n, &key, half);
}

/* For what opens no session: the reason, but to an excluded destination. */
static __always_inline int unless_excluded(const struct nat *n, int rc)
{
	if (zone_has_nptv6(n->zone))
		return -REASON_PASSED_PROTOCOL;
	return destination_is_excluded(n->zone, addr_arg(n->p.daddr)) ?
		       -REASON_PASSED_DESTINATION :
		       rc;
}

/* Where a packet of no session would go: what to do if that is outside. */
static __noinline int inside_unknown(const struct nat *n, int outside)
{
	struct nat_zone *zone = zone_get(n->zone);
	struct route r = {};
	int rc;

	if (zone_has_nptv6(n->zone))
		return -REASON_PASSED_PROTOCOL;
	if (n->stack)
		return -REASON_PASSED_STACK;
	if (!zone || addr_never_routed(n->p.daddr) ||
	    bpf_map_lookup_elem(&addresses, &n->p.daddr))
		return -REASON_PASSED_LOCAL;
	rc = route_resolve(n->skb, &n->p, n->egress, zone->ifindex, &r);
	if (rc < 0)
		return rc;
	if (source_admitted(n) == -REASON_PASSED_EXCLUDED)
		return -REASON_PASSED_EXCLUDED;
	return unless_excluded(n, outside);
}

/*
 * A later fragment that comes before the first: what might be translated, a hairpin
 * too, is put in order.
 */
static __noinline int inside_early(struct nat *n)
{
	int rc;

	if (zone_has_nptv6(n->zone))
		return -REASON_PASSED_PROTOCOL;
	if (bpf_map_lookup_elem(&addresses, &n->p.daddr))
		return fragment_early(n, n->stack ? -REASON_PASSED_STACK :
						    -REASON_PASSED_LOCAL);
	rc = inside_unknown(n, -LOOK_AGAIN);
	if (rc == -REASON_PASSED_DESTINATION) /* a session may have it */
		return fragment_early(n, rc);
	return rc == -LOOK_AGAIN ? fragment_early(n, -REASON_DROPPED_FRAGMENT) :
				   rc;
}

static __always_inline int inside_packet(struct nat *n)
{
	if (n->p.flags & PACKET_LATER_FRAGMENT) /* no session to check it */
		return source_is_stolen(n) ? -REASON_DROPPED_SPOOFED :
					     fragment_forward(n, inside_early);
	if (n->p.flags & PACKET_ERROR)
		return error_forward(
			n, inside_unknown(n, -REASON_DROPPED_ICMP_NO_SESSION));
	if (n->p.flags & PACKET_OTHER)
		return inside_unknown(n, other_refused(&n->p));
	return translate_inside(n);
}

/*
 * Whether a frame is for the router, and not for another port of the bridge. A
 * port sees every frame as another host's; the bridge device knows its own MAC
 * better than the daemon, which may be late with it.
 */
static __always_inline bool is_routed(struct __sk_buff *skb,
				      const struct nat_link *link)
{
	struct hdr_cursor cursor = { .pos = (void *)(long)skb->data };
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth;

	if (link->flags & LINK_LAYER3)
		return true;
	if (link->kind == LINK_INSIDE_DEVICE)
		return skb->pkt_type == PACKET_HOST;
	if (parse_ethernet(&cursor, end, &eth) < 0)
		return false;
	return __builtin_memcmp(eth->h_dest, link->mac, ETH_ALEN) == 0;
}

/*
 * A packet of the other family: its own program has it from here on, if there is one.
 * At each hook is the program for IPv4; that for IPv6 never comes here with IPv4.
 */
static __always_inline int other_family(struct __sk_buff *skb,
					const struct nat *n,
					enum nat_program program, int otherwise)
{
	if (NAT_FAMILY == AF_INET && skb->protocol == bpf_htons(ETH_P_IPV6))
		bpf_tail_call(skb, &programs6, program);
	return verdict(n, otherwise);
}

static __always_inline __u32 link_l3(const struct nat_link *link)
{
	__u32 ethernet = ~link->flags & LINK_LAYER3;

	barrier_var(ethernet); /* no branch for the verifier to follow */
	return ethernet * (ETH_HLEN / LINK_LAYER3);
}

SEC("tc")
int nat_inside(struct __sk_buff *skb)
{
	struct nat n = { .skb = skb, .action = TC_ACT_SHOT };
	struct nat_link *link = link_get(skb->ifindex);
	int rc;

	if (!link_is_inside(link))
		return verdict(&n, -REASON_PASSED_NO_LINK);
	if (skb->tc_index ==
	    DIRECT_PATH_MARK) /* of a conenat in the container */
		skb->tc_index = 0;
	if (skb->protocol != NAT_ETHERTYPE)
		return other_family(skb, &n, PROGRAM_INSIDE,
				    -REASON_PASSED_NOT_IP);
	if (!is_routed(skb, link))
		return verdict(&n, -REASON_PASSED_BRIDGED);
	n.tick = clock_tick();
	n.zone = link->owner;
	n.stack = link->flags & LINK_STACK;
	n.from_port = link->kind == LINK_INSIDE_PORT;
	rc = packet_parse(skb, link_l3(link), &n.p);
	if (rc == 0)
		rc = inside_packet(&n);
	if (rc == -REASON_PASSED_PROTOCOL && zone_has_nptv6(n.zone))
		rc = nptv6_inside(&n);
	return verdict(&n, rc);
}

/*
 * The same from outside. On the stack path the host's defragmenter does it, while the
 * destination is the external address: in IPv6 the first one's is not any more.
 */
static __noinline int outside_early(struct nat *n)
{
	if (!zone_is_routed(zone_of_prefix(addr_arg(n->p.daddr))) &&
	    (of_family(n->stack, false) ||
	     !bpf_map_lookup_elem(&addresses, &n->p.daddr)))
		return -REASON_PASSED_UNBOUND;
	return fragment_early(n, -REASON_PASSED_UNBOUND);
}

SEC("tc")
int nat_outside_ingress(struct __sk_buff *skb)
{
	struct nat n = { .skb = skb, .action = TC_ACT_SHOT };
	struct nat_link *link = link_get(skb->ifindex);
	__u16 first = 0;
	int rc;

	if (!link || link->kind != LINK_OUTSIDE)
		return verdict(&n, -REASON_PASSED_NO_LINK);
	if (skb->protocol != NAT_ETHERTYPE)
		return other_family(skb, &n, PROGRAM_OUTSIDE_INGRESS,
				    -REASON_PASSED_NOT_IP);
	n.tick = clock_tick();
	n.zone = NAT_ZONE_OUTSIDE;
	n.stack = link->flags & LINK_STACK;
	n.drop_unsolicited = link->flags & LINK_DROP_UNSOLICITED;
	rc = packet_parse(skb, link_l3(link), &n.p);
	/* What is odd may be the host's: it judges. */
	if (rc <= -REASON_DROPPED_MALFORMED)
		rc = -REASON_PASSED_MALFORMED;
	else if (rc == 0 && n.p.flags & PACKET_LATER_FRAGMENT)
		rc = fragment_forward(&n, outside_early);
	else if (rc == 0 && n.p.flags & PACKET_ERROR)
		rc = error_forward(&n, -REASON_PASSED_UNBOUND);
	else if (rc == 0 && n.p.flags & PACKET_OTHER)
		rc = other_passed(&n.p, -REASON_PASSED_UNBOUND);
	else if (rc == 0) {
		rc = translate_outside(&n);
		first = n.p.flags & PACKET_FIRST_FRAGMENT;
	}
	if (rc == -REASON_PASSED_UNBOUND || rc == -REASON_PASSED_PROTOCOL)
		rc = reached_inbound(&n, rc);
	if (rc == -REASON_PASSED_UNBOUND && n.drop_unsolicited &&
	    packet_is_unsolicited(skb, &n.p))
		rc = -REASON_DROPPED_UNSOLICITED;
	if (first) /* its later ones go the same way */
		rc = fragment_settle(&n, rc);
	return verdict(&n, rc);
}

/* The kernel forwards what comes in order by conenat, or is reassembled. */
static __always_inline int egress_early(struct nat *n)
{
	return zone_has_nptv6(n->zone) ? -REASON_PASSED_PROTOCOL :
					 -REASON_DROPPED_FRAGMENT;
}

/* An error of the host's own: about a packet to an inside host, or not. */
static __noinline int egress_error(struct nat *n)
{
	int rc = error_of_host(n);

	return rc == -REASON_PASSED_HOST && zone_has_nptv6(n->zone) ?
		       nptv6_host_error(n) :
		       rc;
}

/*
 * Whose network's what is about to leave is. Of the fragments that the kernel makes of an
 * IPv6 packet it says of the first alone where that came from (ip6_copy_metadata).
 */
static __always_inline __u16 egress_zone(const struct nat *n)
{
	struct nat_link *from;

	if (of_family(false, n->p.flags & PACKET_LATER_FRAGMENT))
		return zone_of_route(n->skb, addr_arg(n->p.saddr));
	from = link_get(n->skb->ingress_ifindex);
	return link_is_inside(from) ? from->owner : NAT_ZONE_OUTSIDE;
}

/* What is not just the host's; -LOOK_AGAIN: it is, or of a NAT of its own. */
static __always_inline int egress_forwarded(struct nat *n)
{
	if (bpf_map_lookup_elem(&addresses, &n->p.saddr))
		return n->p.flags & PACKET_ERROR && !n->skb->ingress_ifindex ?
			       egress_error(n) :
			       -LOOK_AGAIN;
	if (!n->skb->ingress_ifindex &&
	    !of_family(false, n->p.flags & PACKET_LATER_FRAGMENT))
		return packet_opens(&n->p) ? -LOOK_AGAIN : host_as_inside(n);
	n->zone = egress_zone(n);
	if (n->zone == NAT_ZONE_OUTSIDE ||
	    !address_in_zone(n->zone, addr_arg(n->p.saddr)))
		return n->skb->ingress_ifindex ? -REASON_PASSED_NOT_OUTSIDE :
						 -LOOK_AGAIN;
	if (n->p.flags & PACKET_LATER_FRAGMENT)
		return fragment_forward(n, egress_early);
	if (n->p.flags & PACKET_ERROR)
		return error_forward(
			n, unless_excluded(n, -REASON_DROPPED_ICMP_NO_SESSION));
	if (n->p.flags & PACKET_OTHER)
		return unless_excluded(n, other_refused(&n->p));
	return translate_inside(n);
}

/*
 * At the outside interface's egress: packets of the direct path once more, what
 * the kernel has routed for inside hosts (exceptions), and the host's own. Those
 * in one place, as the verifier follows each call.
 */
static __always_inline int egress_packet(struct nat *n)
{
	int rc = egress_forwarded(n);

	return rc == -LOOK_AGAIN ? host_outbound(n) : rc;
}

SEC("tc")
int nat_outside_egress(struct __sk_buff *skb)
{
	struct nat n = {
		.skb = skb,
		.action = TC_ACT_SHOT,
		.egress = 1,
	};
	struct nat_link *link;
	int rc;

	if (skb->tc_index == DIRECT_PATH_MARK)
		return verdict(&n, -REASON_PASSED_TRANSLATED);
	link = link_get(skb->ifindex);
	if (!link || link->kind != LINK_OUTSIDE)
		return verdict(&n, -REASON_PASSED_NO_LINK);
	if (skb->protocol != NAT_ETHERTYPE)
		return other_family(skb, &n, PROGRAM_OUTSIDE_EGRESS,
				    -REASON_PASSED_NOT_IP);
	n.tick = clock_tick();
	n.stack_egress = link->flags & LINK_STACK;
	rc = packet_parse(skb, link_l3(link), &n.p);
	if (rc <= -REASON_DROPPED_MALFORMED)
		rc = -REASON_PASSED_MALFORMED;
	else if (rc == 0)
		rc = egress_packet(&n);
	if (rc == -REASON_PASSED_PROTOCOL && nptv6_leaves(&n))
		rc = nptv6_outbound(&n);
	return verdict(&n, rc);
}

/* What comes from the namespace of reorder.h, and nothing of it to the host. */
SEC("tc")
int nat_fragments(struct __sk_buff *skb)
{
	struct nat n = { .skb = skb, .action = TC_ACT_SHOT };

	if (skb->protocol != NAT_ETHERTYPE)
		return other_family(skb, &n, PROGRAM_FRAGMENTS,
				    -REASON_DROPPED_MALFORMED);
	n.tick = clock_tick();
	return verdict(&n, reorder_return(&n));
}

SEC("tc")
int nat_control(struct __sk_buff *skb)
{
	return control(skb);
}

SEC("xdp.frags")
int nat_xdp_inside(struct xdp_md *ctx)
{
	return xdp_inside(ctx);
}

SEC("xdp.frags")
int nat_xdp_outside(struct xdp_md *ctx)
{
	return xdp_outside(ctx);
}

char __license[] SEC("license") = "Dual BSD/GPL";
