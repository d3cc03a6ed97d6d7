/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sessions: a binding and one remote endpoint, as two halves, one for each
 * direction, each found by one hash lookup with the packet's own addresses and
 * ports. Which half the sweeper finds first is written in a slot of an array.
 */
#ifndef CONENAT_SESSION_H
#define CONENAT_SESSION_H

#include "datagram.h"
#include "filter.h"
#include "identification.h"
#include "mss.h"
#include "slot.h"
#include "translate.h"
#include "verdict.h"

/*
 * A session to be. The reverse half's rewrite is the primary key turned round:
 * answers come from where the first packet went, to where it came from.
 */
struct session_plan {
	struct session_key key; /* of the primary half */
	nat_addr saddr; /* the primary half's rewrite */
	nat_addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 ifindex;
	nat_addr next_hop;
	__u32 reverse_ifindex;
	nat_addr reverse_next_hop;
	__u32 port_ifindex;
	struct binding_ref ref;
	struct binding_ref reverse_ref; /* a hairpin's receiver; else the same */
	__u16 mtu;
	__u16 reverse_mtu;
	__u16 peer_zone; /* that the reverse half's packets come from */
	__u8 target;
	__u8 reverse_target;
	__u8 seen; /* the first packet's TCP flags, in one of the two */
	__u8 reverse_seen;
	__u8 flags; /* HALF_* but HALF_PRIMARY and HALF_FILTER */
	__u8 unrouted; /* the primary half's route is to be looked up */
	__u8 no_refresh; /* as old as the binding's last packet out */
	__u8 unlimited; /* another NAT has it already */
};

SCRATCH(struct session_plan, plan)
SCRATCH(struct session_half, half)

static __always_inline struct session_half *
session_find(const struct session_key *key)
{
	return bpf_map_lookup_elem(&sessions, key);
}

/* The host's socket for a packet, if there is one. */
NAT_GLOBAL int packet_socket(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};

	if (!p)
		return HOST_SOCKET_NONE;
	tuple_set(&tuple, p->saddr, p->sport, p->daddr, p->dport);
	return host_socket(skb, &tuple, p->proto);
}

/* A socket of the host that is connected to just this remote comes first. */
static __always_inline bool packet_is_hosts(const struct nat *n)
{
	return packet_socket(n->skb, &n->p) == HOST_SOCKET_CONNECTED;
}

static __noinline int session_delete(const struct session_key *key)
{
	struct session_key copy = *key;

	return bpf_map_delete_elem(&sessions, &copy);
}

/* The key of the packets that go the other way, after this half's rewrite. */
static __always_inline void session_reverse_key(const struct session_key *key,
						const struct session_half *half,
						struct session_key *reverse)
{
	__builtin_memset(reverse, 0, sizeof(*reverse));
	reverse->saddr = half->daddr;
	reverse->daddr = half->saddr;
	reverse->sport = half->dport;
	reverse->dport = half->sport;
	reverse->proto = key->proto;
	reverse->zone = half->peer_zone;
}

/* The flags seen so far, with one more segment's. */
static __always_inline __u8 tcp_seen_next(__u8 seen, __u8 now)
{
	/* A packet after a RST: it was not the end (tcp_peer_reset). */
	if (!(now & SEEN_RST))
		seen &= ~SEEN_RST;
	/* A SYN after a FIN: the tuple is used again. */
	if (now & SEEN_SYN)
		seen &= ~SEEN_FIN;
	return seen | now;
}

/* RFC 6146 section 3.5.2, as a function of both halves. */
NAT_GLOBAL enum nat_state session_state(__u8 proto, __u8 inside, __u8 outside)
{
	if (proto != IPPROTO_TCP)
		return STATE_ACTIVE;
	if (inside & outside & SEEN_FIN)
		return STATE_FIN_BOTH;
	if ((inside | outside) & SEEN_RST)
		return STATE_TRANS;
	if (inside & SEEN_FIN)
		return STATE_FIN_INSIDE;
	if (outside & SEEN_FIN)
		return STATE_FIN_OUTSIDE;
	/* Both sides' SYN, or a connection that was picked up on both. */
	if (inside && outside && !((inside ^ outside) & SEEN_SYN))
		return STATE_ESTABLISHED;
	return inside ? STATE_INIT_INSIDE : STATE_INIT_OUTSIDE;
}

static __always_inline enum nat_timeout state_timeout(__u8 proto,
						      enum nat_state state)
{
	if (proto == PROTO_ICMP)
		return TIMEOUT_ICMP;
	if (proto != IPPROTO_TCP)
		return TIMEOUT_UDP;
	switch (state) {
	case STATE_ESTABLISHED:
	case STATE_FIN_INSIDE:
	case STATE_FIN_OUTSIDE:
		return TIMEOUT_TCP_ESTABLISHED;
	case STATE_FIN_BOTH:
	case STATE_TRANS:
		return TIMEOUT_TCP_CLOSING;
	default:
		return TIMEOUT_TCP_PARTIAL_OPEN;
	}
}

/* Ticks. */
static __always_inline __u32 state_lifetime(__u8 proto, enum nat_state state)
{
	struct nat_config *cfg = config_get();
	__u32 which = state_timeout(proto, state);

	if (!cfg || which >= TIMEOUT_COUNT)
		return 0;
	return cfg->timeout[which];
}

struct session_change {
	__u8 type; /* enum nat_event_type */
	__u8 state;
	__u8 old_state;
};

/* The remote endpoint is what the half's own side sends to. */
NAT_GLOBAL int event_session(const struct session_change *c,
			     const struct session_key *key,
			     const struct session_half *half)
{
	struct nat_binding *b = half ? binding_at(half->binding) : NULL;
	struct nat_event *e;

	if (!b || !c || !key)
		return 0;
	e = event_begin(c->type);
	if (!e)
		return 0;
	event_binding_fields(e, b);
	e->state = c->state;
	e->old_state = c->old_state;
	e->lifetime = state_lifetime(key->proto, c->state);
	e->remote_port = key->dport;
	addr_to_event(e->remote, key->daddr);
	if (half->flags & HALF_HAIRPIN)
		e->flags |= EVENT_FLAG_HAIRPIN;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* A primary half's session, and a hairpin's second one, to the daemon. */
NAT_GLOBAL int event_sessions(const struct session_change *c,
			      const struct session_key *key,
			      const struct session_half *half,
			      const struct session_key *reverse_key,
			      const struct session_half *reverse)
{
	if (!half)
		return 0;
	event_session(c, key, half);
	if (!(half->flags & HALF_HAIRPIN) || half->flags & HALF_SELF)
		return 0;
	return event_session(c, reverse_key, reverse);
}

/*
 * What a segment means for the other side's RST: it was not the end (RFC 6146
 * section 3.5.2.2, TRANS). theirs is what that side has sent; so it is from now on.
 */
static __always_inline __u8 tcp_peer_reset(struct session_half *half,
					   struct session_half *other,
					   __u8 seen, __u8 theirs)
{
	if (seen & SEEN_RST) {
		other->peer_reset = 1;
		return theirs;
	}
	half->peer_reset = 0;
	theirs &= ~SEEN_RST;
	if (other->seen != theirs)
		other->seen = theirs;
	return theirs;
}

/* The state of a session, one of whose halves has seen this and the other that. */
static __always_inline enum nat_state
half_state(const struct session_half *half, __u8 seen, __u8 theirs)
{
	return half->flags & HALF_PRIMARY ?
		       session_state(IPPROTO_TCP, seen, theirs) :
		       session_state(IPPROTO_TCP, theirs, seen);
}

/*
 * Whether a segment opens a connection between the endpoints of one that is over:
 * all that was seen of that one is forgotten (RFC 9293 section 3.6.1).
 */
static __always_inline bool tcp_begins_anew(const struct packet *p,
					    enum nat_state state)
{
	return packet_opens(p) &&
	       (state == STATE_FIN_BOTH || state == STATE_TRANS);
}

static __always_inline void tcp_forget(struct session_half *half)
{
	half->seen = 0;
	half->peer_reset = 0;
}

static __always_inline void tcp_close(struct session_half *half,
				      struct session_half *other, bool closed)
{
	if (half->closed == closed)
		return;
	half->closed = closed;
	other->closed = closed;
}

/*
 * A segment brought a flag that its half had not seen, or followed a RST of the
 * other side's.
 */
NAT_GLOBAL int session_tcp_change(const struct session_key *key,
				  struct session_half *half,
				  const struct packet *p)
{
	struct session_key reverse;
	struct session_half *other;
	struct session_change c = { .type = EVENT_SESSION_STATE };
	__u8 seen, theirs;

	if (!key || !half || !p)
		return 0;
	session_reverse_key(key, half, &reverse);
	other = half->flags & HALF_SELF ? half : session_find(&reverse);
	if (!other) { /* the session is being made, or ended */
		half->seen = tcp_seen_next(half->seen, p->seen);
		return 0;
	}
	theirs = other->seen;
	c.old_state = half_state(half, half->seen, theirs);
	if (tcp_begins_anew(p, c.old_state)) {
		theirs = 0;
		tcp_forget(other);
		tcp_forget(half);
		half->last_seen = clock_tick();
	}
	seen = tcp_seen_next(half->seen, p->seen);
	theirs = tcp_peer_reset(half, other, seen, theirs);
	half->seen = seen;
	c.state = half_state(half, seen, theirs);
	tcp_close(half, other, c.state == STATE_FIN_BOTH);
	if (c.state == c.old_state)
		return 0;
	if (half->flags & HALF_PRIMARY)
		return event_sessions(&c, key, half, &reverse, other);
	return event_sessions(&c, &reverse, other, key, half);
}

/*
 * The first RST starts the time that the session is held from then on (RFC 7857
 * section 2.3); those that follow it do not refresh (section 7.1), and neither
 * does what follows both sides' FIN (RFC 6146 section 3.5.2.2).
 */
static __always_inline void session_refresh(const struct nat *n,
					    struct session_half *half)
{
	if (half->last_seen != n->tick && !half->closed &&
	    !(n->p.seen & half->seen & SEEN_RST)) {
		half->last_seen = n->tick;
		if (half->flags & HALF_PRIMARY && n->p.proto == IPPROTO_UDP)
			binding_touch(half->binding, n->tick);
	}
}

/* Whether a segment is news to its half: session_tcp_change. */
static __always_inline bool session_tcp_changes(const struct session_half *half,
						const struct packet *p)
{
	if (p->proto != IPPROTO_TCP || !p->seen)
		return false;
	return tcp_seen_next(half->seen, p->seen) != half->seen ||
	       half->peer_reset;
}

/* What a packet of the session leaves behind in its half; most write nothing. */
static __always_inline void session_touch(const struct nat *n,
					  const struct session_key *key,
					  struct session_half *half)
{
	session_refresh(n, half);
	if (session_tcp_changes(half, &n->p))
		session_tcp_change(key, half, &n->p);
}

/*
 * The route of the answers of a session that was opened from outside, where the
 * inside host's own packets would leave by another uplink: as a host with two
 * uplinks answers, from the address that it was called by, and by that address's
 * uplink if the routing has a way there.
 */
static __always_inline int session_answers(struct __sk_buff *skb,
					   const struct packet *p,
					   const struct session_half *half,
					   const struct nat_binding *b,
					   struct route *r)
{
	struct route back = {};

	if (!(half->flags & HALF_INBOUND))
		return -REASON_DROPPED_ROUTE_MOVED;
	if (route_by_realm(skb, p, b->realm, addr_arg(b->external), &back) == 0)
		*r = back;
	return 0;
}

/*
 * The route once more. A session whose binding lives on another outside's address
 * cannot follow the route there: it is not refreshed any more, and what opens in
 * its place gets a binding of that outside.
 */
NAT_GLOBAL int session_route(struct __sk_buff *skb, const struct packet *p,
			     struct session_half *half, __u32 zone_id,
			     bool egress)
{
	struct nat_zone *zone = zone_get(zone_id);
	struct nat_binding *b;
	struct route r = {};
	int rc;

	if (!zone || !p || !half)
		return -REASON_PASSED_NO_ROUTE;
	rc = route_resolve(skb, p, egress, zone->ifindex, &r);
	if (rc < 0)
		return rc;
	b = binding_at(half->binding);
	if (b && b->address != NAT_NO_SLOT && b->realm != r.realm) {
		rc = session_answers(skb, p, half, b, &r);
		if (rc < 0)
			return rc;
	}
	half->ifindex = r.ifindex;
	half->next_hop = r.next_hop;
	half->mtu = r.mtu;
	half->resolved = clock_tick();
	half->hop_epoch = 0; /* XDP is to ask for the neighbour */
	if (r.unknown_hop)
		half->resolved -= ROUTE_TICKS + 1;
	return 0;
}

/* On the kernel's way: another interface than the last packet's. */
static __always_inline int session_leaves(struct nat *n,
					  struct session_half *half)
{
	if (half->ifindex == n->skb->ifindex)
		return 0;
	if (half->flags & HALF_INBOUND && half->ifindex &&
	    tick_diff(n->tick, half->resolved) <= ROUTE_TICKS)
		return 0;
	return session_route(n->skb, &n->p, half, n->zone, n->egress);
}

/*
 * On the kernel's way, an answer that is to leave by another uplink than the
 * kernel has chosen. One that is too large for it leaves by the kernel's.
 */
static __always_inline bool session_turns(const struct nat *n,
					  const struct session_half *half)
{
	return n->egress && half->flags & HALF_INBOUND &&
	       half->target == TARGET_OUTSIDE && half->ifindex &&
	       half->ifindex != n->skb->ifindex &&
	       (!half->mtu || n->p.segment <= half->mtu);
}

/* The stack path: of what comes from inside, hairpins alone are translated. */
static __always_inline bool session_takes_stack(const struct nat *n,
						const struct session_half *half)
{
	return n->stack && n->zone != NAT_ZONE_OUTSIDE &&
	       !(half->flags & HALF_HAIRPIN);
}

/* What must go the kernel's way instead of straight outside. */
static __always_inline int session_exceptions(struct nat *n,
					      struct session_half *half)
{
	const struct packet *p = &n->p;

	if (tick_diff(n->tick, half->resolved) > ROUTE_TICKS) {
		int rc = session_route(n->skb, &n->p, half, n->zone, n->egress);

		if (rc < 0)
			return rc;
	}
	if (p->ttl <= 1)
		return -REASON_PASSED_TTL;
	if (p->flags & PACKET_OPTIONS)
		return -REASON_PASSED_STACK;
	if (half->mtu && p->segment > half->mtu) {
		n->p.mtu = half->mtu;
		return p->flags & PACKET_DF ? -REASON_PASSED_TOO_BIG :
					      -REASON_PASSED_STACK;
	}
	return 0;
}

static __always_inline int send_to_neighbour(const struct session_half *half)
{
	struct bpf_redir_neigh next = {};
	__u32 ifindex = half->ifindex;
	struct nat_zone *zone;

	/* Also: no Ethernet header to hand to a veth, or the port has gone. */
	if (half->target != TARGET_OUTSIDE) {
		zone = zone_get(half->peer_zone);
		if (!zone)
			return TC_ACT_SHOT;
		ifindex = zone->ifindex;
	}
	if (addr_is_any(
		    half->next_hop)) /* a next hop of the other family (RFC 5549) */
		return bpf_redirect_neigh(ifindex, NULL, 0, 0);
	neighbour_set(&next, half->next_hop);
	return bpf_redirect_neigh(ifindex, &next, sizeof(next), 0);
}

/*
 * From outside to an inside host, by the kernel's way: its routing and the
 * host's FORWARD rules. The nft table `ip conenat` sets the destination address,
 * which it takes from the mark, after raw PREROUTING: what Docker drops there, as
 * sent to a container's own address, did come so from outside.
 */
static __always_inline bool session_enters(const struct nat *n,
					   const struct session_half *half)
{
	return n->stack && n->zone == NAT_ZONE_OUTSIDE &&
	       half->target != TARGET_HOST;
}

static __always_inline void rewrite_for_stack(struct nat *n, struct rewrite *to)
{
	nat_addr external = n->p.daddr;
	struct nat_external *e;
	__u32 mark;

	if (addr_equal(to->daddr, external)) { /* routed: it came to that */
		e = outside_external(n->skb);
		if (e)
			external = e->address;
	}
	to->daddr = addr_to_mark(to->daddr, external, &mark);
	to->by_mark = true;
	n->skb->mark = mark;
}

/* Sends a translated packet where its half says; sets the action. */
static __always_inline int session_send(struct nat *n,
					const struct session_half *half)
{
	struct __sk_buff *skb = n->skb;

	if ((n->egress && !session_turns(n, half)) ||
	    half->target == TARGET_HOST || session_enters(n, half)) {
		n->action = VERDICT_NEXT;
		return 0;
	}
	if (half->target == TARGET_PORT && n->p.l3 && link_get(half->ifindex)) {
		/* A bridge port sees its frames as another host's. */
		if (skb->pkt_type != PACKET_HOST &&
		    bpf_skb_change_type(skb, PACKET_HOST) < 0)
			return -REASON_DROPPED_REWRITE;
		n->action = bpf_redirect_peer(half->ifindex, 0);
	} else {
		/* bpf_redirect_neigh drops what has no Ethernet header. */
		if (!n->p.l3 && bpf_skb_change_head(skb, ETH_HLEN, 0) < 0)
			return -REASON_DROPPED_REWRITE;
		skb->tc_index = DIRECT_PATH_MARK;
		n->action = send_to_neighbour(half);
	}
	return n->action == TC_ACT_REDIRECT ? 0 : -REASON_DROPPED_REWRITE;
}

static __always_inline int session_reason(const struct nat *n,
					  const struct session_half *half)
{
	if (half->flags & HALF_HAIRPIN)
		return -REASON_TRANSLATED_HAIRPIN;
	if (half->target == TARGET_HOST)
		return -REASON_TRANSLATED_HOST;
	if (n->egress || session_enters(n, half))
		return -REASON_TRANSLATED_STACK;
	if (half->target == TARGET_OUTSIDE)
		return -REASON_TRANSLATED_OUTBOUND;
	return -REASON_TRANSLATED_INBOUND;
}

/* Whether conenat is the router that takes one from this packet's TTL. */
static __always_inline bool session_routes(const struct nat *n,
					   const struct session_half *half)
{
	return !n->egress && half->target != TARGET_HOST &&
	       !session_enters(n, half);
}

/* The device of the network that a half's packets are sent to. */
static __always_inline __u32 session_device(const struct session_half *half)
{
	struct nat_zone *zone = zone_get(half->peer_zone);

	return zone ? zone->ifindex : 0;
}

/*
 * Larger than what the inside device took when the session began: asked once more,
 * as it may have been changed. 0: it fits now.
 */
static __noinline int inbound_too_big(struct nat *n, struct session_half *half)
{
	half->mtu = route_mtu(n->skb, session_device(half));
	if (!half->mtu || n->p.segment <= half->mtu)
		return 0;
	n->p.mtu = half->mtu;
	return n->p.flags & PACKET_DF ? -REASON_DROPPED_TOO_BIG :
					reorder_cut(n, -REASON_DROPPED_UNCUT);
}

/*
 * What no router may pass on. A bridge drops in silence what its ports do not take;
 * bpf_redirect_peer delivers it whole.
 */
static __always_inline int session_limits(struct nat *n,
					  struct session_half *half,
					  bool routed)
{
	if (!routed)
		return 0;
	if (n->p.ttl <= 1)
		return -REASON_DROPPED_TTL;
	if (half->target == TARGET_DEVICE && half->mtu &&
	    n->p.segment > half->mtu)
		return inbound_too_big(n, half);
	return 0;
}

/* What gets another source and is no atomic datagram gets an ID, too. */
static __always_inline void session_identify(struct nat *n, nat_addr saddr,
					     nat_addr daddr)
{
	__u32 segments = n->skb->gso_segs;

	if (!addr_equal(saddr, n->p.saddr))
		n->id = identification(saddr, daddr, n->p.proto,
				       segments ? segments : 1);
}

/* The MTU of the way outside, as far as it is known at a packet of either way. */
static __always_inline __u16
session_outside_mtu(const struct nat *n, const struct session_half *half)
{
	struct session_key key = { .proto = n->p.proto }, reverse;

	if (n->zone != NAT_ZONE_OUTSIDE)
		return half->mtu ? half->mtu : route_mtu(n->skb, half->ifindex);
	session_reverse_key(&key, half, &reverse);
	half = session_find(&reverse);
	return half && half->mtu ? half->mtu :
				   route_mtu(n->skb, n->skb->ifindex);
}

/* A SYN of either way between an inside host and outside. */
static __noinline int session_clamp(const struct nat *n,
				    const struct session_half *half)
{
	bool inbound = n->zone == NAT_ZONE_OUTSIDE;
	struct nat_zone *zone = zone_get(inbound ? half->peer_zone : n->zone);

	if (!zone || !(zone->flags & ZONE_MSS_CLAMP) ||
	    half->flags & HALF_HAIRPIN)
		return 0;
	return mss_clamp(n->skb, &n->p, session_outside_mtu(n, half));
}

/* Rewrites a packet as its half says and sends it on. */
static __always_inline int session_translate(struct nat *n,
					     const struct session_half *half,
					     bool routed)
{
	struct rewrite to = {
		.saddr = half->saddr,
		.daddr = half->daddr,
		.sport = half->sport,
		.dport = half->dport,
		.decrement_ttl = routed,
		.id = n->id,
	};
	int rc;

	if (session_enters(n, half))
		rewrite_for_stack(n, &to);
	rc = rewrite_packet(n->skb, &n->p, &to);
	if (rc == 0 && n->p.tcp & TCP_SYN)
		rc = session_clamp(n, half);
	if (rc < 0)
		return rc;
	rc = session_send(n, half);
	return rc < 0 ? rc : session_reason(n, half);
}

/* Whether a bridge port is just the one of the inside host with that address. */
static __always_inline bool port_is_owners(const struct session_key *key,
					   __u32 port)
{
	struct nat_owner *owner = owner_of(key->zone, key->saddr);
	struct nat_link *link = link_get(port);

	return owner && owner->ifindex == port && link &&
	       link->kind == LINK_INSIDE_PORT && link->flags & LINK_PEER;
}

/*
 * The return path leads to the port that the session was opened from. A packet
 * of the session from elsewhere (a container started anew, or a spoofer): from
 * now on the bridge's own tables say where the address is, unless the port is
 * known for the address's own. A session that was opened from outside learns its
 * port by its first packet.
 */
NAT_GLOBAL int session_port_changed(const struct session_key *key,
				    struct session_half *half, __u32 port)
{
	struct session_half *other;
	struct session_key reverse;

	if (!key || !half)
		return 0;
	half->port_ifindex = port;
	session_reverse_key(key, half, &reverse);
	other = session_find(&reverse);
	if (!other)
		return 0;
	other->hop_epoch = 0; /* another host's interface, by all appearances */
	/* One byte turns it: packets on other CPUs read this half meanwhile. */
	if (port_is_owners(key, port)) {
		__sync_lock_test_and_set(&other->ifindex, port); /* a barrier */
		*(volatile __u8 *)&other->target = TARGET_PORT;
	} else if (other->target == TARGET_PORT) {
		*(volatile __u8 *)&other->target = TARGET_DEVICE;
	}
	return 0;
}

/* At the bridge device itself, and at egress, nobody knows the port. */
static __always_inline int session_check_port(const struct nat *n,
					      const struct session_key *key,
					      struct session_half *half)
{
	__u32 port;

	if (n->zone == NAT_ZONE_OUTSIDE || n->egress)
		return 0;
	port = n->from_port ? n->skb->ifindex : 0;
	if (half->port_ifindex == port)
		return 0;
	if (source_is_stolen(n))
		return -REASON_DROPPED_SPOOFED;
	return session_port_changed(key, half, port);
}

/*
 * What may be cut, or was: of a first fragment, the later ones are to know. Without
 * ports one host alone sends such to the remote: its own ID will do.
 */
static __always_inline int session_datagram(struct nat *n,
					    const struct session_key *key,
					    const struct session_half *half)
{
	if (n->p.flags & PACKET_PORTLESS)
		return 0;
	session_identify(n, half->saddr, half->daddr);
	return n->p.flags & PACKET_FIRST_FRAGMENT ?
		       fragment_claim(n, key, FRAGMENT_TRANSLATE) :
		       0;
}

/* A packet of a known session. */
static family_inline int session_forward(struct nat *n,
					 const struct session_key *key,
					 struct session_half *half)
{
	bool routed = session_routes(n, half);
	int rc;

	if (half->target == TARGET_OUTSIDE) {
		rc = n->egress ? session_leaves(n, half) :
				 session_exceptions(n, half);
		if (rc < 0) {
			/* Egress translates it, and needs the session. */
			if (rc == -REASON_PASSED_STACK)
				session_touch(n, key, half);
			return kernel_answers(n, rc);
		}
	}
	/* Not before: what passes here comes to the bridge device, too. */
	rc = session_check_port(n, key, half);
	if (rc < 0)
		return rc;
	session_touch(n, key, half);
	rc = session_limits(n, half, routed);
	if (rc == 0 && !packet_is_atomic(&n->p))
		rc = session_datagram(n, key, half);
	return rc < 0 ? rc : session_translate(n, half, routed);
}

static __always_inline void half_ref(const struct session_half *half,
				     struct binding_ref *ref)
{
	ref->binding = half->binding;
	ref->generation = half->generation;
}

/* What a session holds. */
struct session_held {
	struct binding_ref ref;
	struct binding_ref reverse_ref; /* a hairpin's receiver */
	bool filter;
	bool receiver;
};

static __always_inline void session_holds(const struct session_half *primary,
					  const struct session_half *reverse,
					  struct session_held *held)
{
	half_ref(primary, &held->ref);
	held->filter = primary->flags & HALF_FILTER;
	held->receiver = primary->flags & HALF_HAIRPIN &&
			 !(primary->flags & HALF_SELF) && reverse;
	if (held->receiver)
		half_ref(reverse, &held->reverse_ref);
}

/* Gives back what a session that is gone has held. */
static __always_inline int session_release(const struct session_key *key,
					   const struct session_held *held)
{
	if (held->filter)
		permission_drop(&held->ref, addr_arg(key->daddr));
	usage_give(key->zone, addr_arg(key->saddr), USAGE_SESSION);
	binding_drop(held->ref.binding, held->ref.generation);
	if (held->receiver)
		binding_drop(held->reverse_ref.binding,
			     held->reverse_ref.generation);
	return 0;
}

static __always_inline __u32 plan_last_seen(const struct session_plan *plan)
{
	struct nat_binding *b = binding_at(plan->ref.binding);

	return plan->no_refresh && b ? b->outbound : clock_tick();
}

static __always_inline void plan_primary(const struct session_plan *plan,
					 struct session_half *half)
{
	half->saddr = plan->saddr;
	half->daddr = plan->daddr;
	half->sport = plan->sport;
	half->dport = plan->dport;
	half->ifindex = plan->ifindex;
	half->next_hop = plan->next_hop;
	half->port_ifindex = plan->port_ifindex;
	half->binding = plan->ref.binding;
	half->generation = plan->ref.generation;
	half->peer_zone = plan->peer_zone;
	half->mtu = plan->mtu;
	half->target = plan->target;
	half->flags = plan->flags | HALF_PRIMARY;
	half->seen = plan->seen;
	half->last_seen = plan_last_seen(plan);
	half->created = clock_seconds();
	/* Opened from outside: its first packet out looks for the route. */
	half->resolved = clock_tick();
	if (plan->unrouted)
		half->resolved -= ROUTE_TICKS + 1;
}

static __always_inline void plan_reverse(const struct session_plan *plan,
					 struct session_half *half)
{
	half->saddr = plan->key.daddr;
	half->daddr = plan->key.saddr;
	half->sport = plan->key.dport;
	half->dport = plan->key.sport;
	half->ifindex = plan->reverse_ifindex;
	half->next_hop = plan->reverse_next_hop;
	half->binding = plan->reverse_ref.binding;
	half->generation = plan->reverse_ref.generation;
	half->peer_zone = plan->key.zone;
	half->mtu = plan->reverse_mtu;
	half->target = plan->reverse_target;
	half->flags = plan->flags & ~HALF_FILTER;
	half->seen = plan->reverse_seen;
	half->last_seen = clock_tick();
	half->created = clock_seconds();
}

static __noinline int plan_insert_primary(const struct session_plan *plan,
					  __u32 slot)
{
	struct session_key key = plan->key;
	struct session_half *half = half_new();

	if (!half)
		return -ENOMEM;
	plan_primary(plan, half);
	half->slot = slot;
	return bpf_map_update_elem(&sessions, &key, half, BPF_NOEXIST);
}

static __always_inline void plan_reverse_key(const struct session_plan *plan,
					     struct session_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = plan->daddr;
	key->daddr = plan->saddr;
	key->sport = plan->dport;
	key->dport = plan->sport;
	key->proto = plan->key.proto;
	key->zone = plan->peer_zone;
}

static __noinline int plan_insert_reverse(const struct session_plan *plan,
					  __u32 slot)
{
	struct session_half *half = half_new();
	struct session_key key;

	if (!half)
		return -ENOMEM;
	plan_reverse_key(plan, &key);
	plan_reverse(plan, half);
	half->slot = slot;
	return bpf_map_update_elem(&sessions, &key, half, BPF_NOEXIST);
}

/* Both halves, or none. */
static __always_inline int plan_insert(const struct session_plan *plan,
				       __u32 slot)
{
	int rc = plan_insert_primary(plan, slot);

	if (rc < 0 || plan->flags & HALF_SELF)
		return rc;
	rc = plan_insert_reverse(plan, slot);
	if (rc < 0)
		session_delete(&plan->key);
	return rc;
}

static __noinline int plan_remove(const struct session_plan *plan)
{
	struct session_key reverse;

	session_delete(&plan->key);
	if (plan->flags & HALF_SELF)
		return 0;
	plan_reverse_key(plan, &reverse);
	return bpf_map_delete_elem(&sessions, &reverse);
}

/*
 * Puts both halves of a plan into the table; it holds one reference on each
 * half's binding. -LOOK_AGAIN: another CPU has opened the same session.
 */
static __always_inline int session_insert(const struct session_plan *plan)
{
	struct slot_ref slot = {};
	int rc;

	if (slot_reserve(&plan->key, &slot) < 0)
		return -REASON_DROPPED_SESSIONS_FULL;
	rc = plan_insert(plan, slot.index);
	if (rc < 0) {
		slot_abandon(&slot);
		return rc == -EEXIST ? -LOOK_AGAIN :
				       -REASON_DROPPED_SESSIONS_FULL;
	}
	rc = slot_confirm(&slot);
	if (rc < 0)
		plan_remove(plan);
	return rc;
}

static __always_inline bool half_is_dying(const struct session_half *half)
{
	struct nat_binding *b = binding_at(half->binding);

	return !b || b->word >> 32 != half->generation ||
	       b->word & BINDING_DYING;
}

/*
 * The binding was marked while its session was made: the walk that ends its
 * sessions may have missed this one, so the timer's next one is to look.
 */
static __always_inline void session_expedite(const struct session_half *half)
{
	struct session_slot *slot = slot_at(half->slot);

	if (slot)
		slot->check = clock_tick();
}

/*
 * What filtering means for the session. One that is opened from outside is as old
 * as the binding's last packet out, where inbound packets do not refresh (RFC 7857
 * section 7): else anybody keeps the binding by sending from one port after the
 * other.
 */
static __always_inline int plan_filtering(struct session_plan *plan)
{
	struct nat_binding *b = binding_at(plan->ref.binding);
	const struct session_key *key = &plan->key;
	int rc;

	switch (filtering_of(key->zone, addr_arg(key->saddr), key->proto)) {
	case NAT_ENDPOINT_INDEPENDENT:
		plan->no_refresh = plan->flags & HALF_INBOUND &&
				   key->proto == IPPROTO_UDP && b &&
				   !(b->flags & BINDING_STATIC);
		return 0;
	case NAT_ADDRESS_DEPENDENT:
		rc = permission_hold(&plan->ref, addr_arg(key->daddr));
		if (rc == 0)
			plan->flags |= HALF_FILTER;
		return rc;
	default:
		return 0;
	}
}

/* Gives back what the plan of a session that did not come about has held. */
static __always_inline void plan_release(const struct session_plan *plan)
{
	if (plan->flags & HALF_FILTER)
		permission_drop(&plan->ref, addr_arg(plan->key.daddr));
	binding_drop(plan->ref.binding, plan->ref.generation);
	if (plan->flags & HALF_HAIRPIN && !(plan->flags & HALF_SELF))
		binding_drop(plan->reverse_ref.binding,
			     plan->reverse_ref.generation);
}

/* A session that is in the table now, and a hairpin's second one. */
static __always_inline int plan_announce(const struct session_plan *plan)
{
	struct session_key key = plan->key, reverse_key;
	struct session_half *half = session_find(&key), *reverse;
	struct session_change c = { .type = EVENT_SESSION_CREATED };
	struct nat_binding *b = binding_at(plan->ref.binding);

	if (b && !b->used)
		b->used = 1;
	/* Its first packet leaves by the binding, and is no news to the session. */
	if (b && !(plan->flags & HALF_INBOUND))
		b->outbound = clock_tick();
	if (!half)
		return 0;
	session_reverse_key(&plan->key, half, &reverse_key);
	reverse = session_find(&reverse_key);
	c.state = session_state(plan->key.proto, plan->seen,
				plan->reverse_seen);
	event_sessions(&c, &plan->key, half, &reverse_key, reverse);
	if (half_is_dying(half) || (reverse && half_is_dying(reverse)))
		session_expedite(half);
	return 0;
}

/* The host, or its network, has as many sessions as it may. */
static __noinline int session_refused(const struct session_plan *plan, int rc)
{
	struct event_packet e = {
		.internal = plan->key.saddr,
		.internal_port = plan->key.sport,
		.remote = plan->key.daddr,
		.remote_port = plan->key.dport,
		.zone = plan->key.zone,
		.proto = plan->key.proto,
	};
	struct nat_binding *b = binding_at(plan->ref.binding);

	if (b) {
		e.external = b->external;
		e.external_port = b->external_port;
	}
	event_refused(&e, rc);
	return rc;
}

/*
 * Opens the planned session, whose references the caller has taken: they are
 * the session's from now on, or given back.
 */
NAT_GLOBAL int session_open(struct session_plan *plan)
{
	int rc;

	if (!plan)
		return -REASON_DROPPED_RACE;
	rc = usage_take(plan->key.zone, addr_arg(plan->key.saddr),
			USAGE_SESSION, plan->unlimited);
	if (rc == 0) {
		rc = plan_filtering(plan);
		if (rc == 0)
			rc = session_insert(plan);
		if (rc == 0)
			return plan_announce(plan);
		usage_give(plan->key.zone, addr_arg(plan->key.saddr),
			   USAGE_SESSION);
	} else {
		session_refused(plan, rc);
	}
	plan_release(plan);
	return rc;
}

#endif /* CONENAT_SESSION_H */
