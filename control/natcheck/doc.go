// SPDX-License-Identifier: Apache-2.0

// Package natcheck tells what the NAT between here and a STUN server does, by the tests of RFC 5780: mapping
// over UDP and TCP, filtering, hairpinning, port preservation and the lifetime of a binding, and the name that
// RFC 3489 had for it.
//
// It also tells whether the NAT stays what it is (RFC 4787, REQ-11): mapping is asked once from a fresh port, and once
// from a port that the server's other endpoints have sent to before. Netfilter's masquerade has one mapping in
// the first case and another one for those endpoints in the second; nothing but that order makes the difference.
// (An INPUT chain that drops hides it, for the packets leave no conntrack entry then.)
//
// Run opens its sockets, asks and closes them; it keeps nothing and changes nothing but the NAT's own state. The tests that
// do not touch each other's ports run at the same time, so that a check takes as long as the one answer that is
// waited for in vain.
package natcheck
