// SPDX-License-Identifier: Apache-2.0

// Package rfc owns what the RFCs require of a NAT, line by line, and a test for each line, named after it: TestRFC4787/REQ-14.
// A test asserts the RFC's behaviour, not how conenat comes to it: on the rig (BPF_PROG_RUN, a virtual clock) or with real
// packets in namespaces, whichever shows it. docs/rfc-compliance.md is written by a run of all of them (go test -update), and
// a run that comes to another page fails.
//
// A line whose behaviour is not there says so in its table, with the reason, and its test shows what is there instead: when
// that is mended, the test fails until the table says that the line holds. A MUST may be missing for a later issue alone.
//
// The tests know an address family by its addresses (type family): IPv6 joins as a second one.
package rfc
