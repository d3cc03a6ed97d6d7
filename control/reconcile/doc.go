// SPDX-License-Identifier: Apache-2.0

// Package reconcile owns the loop that makes the dataplane follow the configuration and the host: a snapshot
// of the host gives what is desired, package plan gives the difference to what is, and each action of it is
// executed.
//
// It never reads netlink, writes nftables or knows a map: it is given a Host, an Exceptions and a Dataplane.
// An action that fails is logged, shown in the status and tried again; the others go on.
//
// Lifecycle: Check says before anything is made whether the configuration fits the host; Start makes the
// first pass, which has to succeed; Run follows changes until its context ends, and leaves the dataplane as
// it is then.
package reconcile
