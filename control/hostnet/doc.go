// SPDX-License-Identifier: Apache-2.0

// Package hostnet owns the view of the host's network: its links, addresses, default routes, forwarding
// switches and sockets, of IPv4 and IPv6, read by netlink from the network namespace that the process runs in.
//
// It never changes anything on the host, and decides nothing: a Snapshot is plain data.
//
// Lifecycle: a Host is opened once; Snapshot and Sockets may be called at any time; Watch runs until its
// context ends and says "something changed" on Changes, at most once per few milliseconds, also after a
// socket that overflowed or broke: who hears it takes a new Snapshot, so nothing is missed.
package hostnet
