// SPDX-License-Identifier: Apache-2.0

// Package exceptions owns conenat's nftables tables: "ip conenat" and "ip6 conenat", or "conenat-" and eight digits for a
// daemon with a state directory of its own; each is there while there is something of its family. Their chains let packets
// take the host's stack and yet be conenat's:
//
//   - postrouting, just before Docker's MASQUERADE, translates the source of packets from an inside network to
//     itself, so that MASQUERADE leaves them alone: they are translated at the outside interface's egress.
//   - prerouting, between the raw table and connection tracking, gives packets from outside the inside address that
//     the outside interface's ingress left in their mark, and clears the mark. Docker 28 and later drop what is
//     addressed to a container and comes from outside in the raw table, so it cannot have the address before that;
//     connection tracking and the firewall must see it. A mark has 32 bits: of an IPv6 address those are the last ones, and
//     the ingress writes the others.
//   - unclaimed, just after MASQUERADE, drops what would leave by an interface made anew with an inside address as its
//     source: a connection that postrouting has mapped to itself before stays so.
//
// Connections of addresses that a Pair excepts, and new ones by an interface made anew that nobody told conenat of,
// match nothing here, and are the host's own NAT's.
//
// This package never touches another table, and never decides which networks and interfaces are concerned.
//
// Lifecycle: Ensure makes each table what it should be, in one transaction, and does nothing when it is that
// already; Remove takes them away. The tables outlive the daemon, like the hooks they belong to.
package exceptions
