// SPDX-License-Identifier: Apache-2.0

// Package conntrack owns the view of netfilter's connection tracking, by netlink (nf_conntrack_netlink) in the
// network namespace of the thread that calls: it lists connections, and makes entries for connections that live
// elsewhere, so that netfilter takes them over as they are.
//
// It never deletes or changes an entry but those that Replace and Forget are given flows for, sees TCP and UDP in zone 0 only,
// of IPv4 and IPv6, and never decides which connections are concerned.
//
// Lifecycle: none; each call opens a socket and closes it. An entry that Replace makes is netfilter's own from then on.
package conntrack
