// SPDX-License-Identifier: Apache-2.0

// Package family lets one test run in both address families.
//
// A test is written in IPv4. Each of its addresses is a place's name (198.51.100.1 is the host), and a Family says which
// address that place has in it: itself in IPv4, and in IPv6 one of the same network and host number (2001:db8:100::1). So a test
// becomes one of both families by a loop, Each, around what it was; topologies, packets and expected lines of text follow by
// Addr, Endpoint, Prefix and Text. Addresses that are IPv6 already stay what they are.
//
// The package knows nothing of namespaces and packets. Which families are tested is Tested's to say.
package family
