// SPDX-License-Identifier: Apache-2.0

// Package stunattr reads and writes the STUN attributes that client and server of the NAT behaviour discovery
// (RFC 5780) share and that pion/stun lacks, or has with other types: CHANGE-REQUEST, RESPONSE-PORT, PADDING,
// UNKNOWN-ATTRIBUTES, and addresses as netip.AddrPort. It looks at every length before it reads a value, for
// both sides read what strangers send.
//
// It owns no state and never touches the network.
package stunattr
