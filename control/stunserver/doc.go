// SPDX-License-Identifier: Apache-2.0

// Package stunserver is a STUN server for NAT behaviour discovery (RFC 5780): two addresses and two ports, over
// UDP and TCP. Listen opens all sockets or none, Serve answers until its context ends and then closes them.
//
// It keeps no state about clients and never speaks first: one request gives at most one answer. What an
// answer is made of is decided by a pure function (answer.go); the rest is sockets.
//
// What it lends to somebody who forges source addresses: an answer of 68 bytes in IPv4 (116 in IPv6) for a
// request of 20, which with IP and UDP headers is twice (2.4 times) what was sent. PADDING is answered
// by as much as came, not by the interface's MTU as RFC 5780 section 6.1 would have it, so it adds nothing; an answer to another address (RFC
// 3489's RESPONSE-ADDRESS) does not exist; RESPONSE-PORT reaches other ports of the request's own source only. TCP
// connections are bounded in number and in idle time.
package stunserver
