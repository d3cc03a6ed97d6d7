// SPDX-License-Identifier: Apache-2.0

// Package exceptions owns conenat's one nftables table, "ip conenat". Packets that only the kernel can handle
// (IP options, DF=0 and larger than the MTU) leave an inside network through the host's stack, and are
// translated at the outside interface's egress; the table's chain runs just before Docker's MASQUERADE and
// translates their source to itself, so that MASQUERADE leaves them alone.
//
// It never touches another table, and never decides which networks and interfaces are concerned.
//
// Lifecycle: Ensure makes the table what it should be, in one transaction, and does nothing when it is that
// already; Remove takes it away. The table outlives the daemon, like the hooks it belongs to.
package exceptions
