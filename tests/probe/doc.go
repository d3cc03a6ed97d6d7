// SPDX-License-Identifier: Apache-2.0

// Package probe is a test's hands and eyes at the ends of the network: UDP sockets that say who sent what,
// STUN queries (RFC 8489 binding requests), ICMP echo, and TCP transfers whose content is checked by hash.
//
// A Host is a place where all of that can be done: In makes one of a network namespace, Remote one of a
// process that speaks the protocol of Serve on its standard input and output (tests/cmd/cnprobe, in a real
// container). A test is written against Host and does not see the difference.
package probe
