// SPDX-License-Identifier: Apache-2.0

// Package judges asks programs that are not conenat's which NAT conenat is: coturn's turnutils_natdiscovery, pion's
// stun-nat-behaviour and pion's ICE agents, all against coturn's turnserver, in network namespaces, with the real conenat; and holds
// `conenat check` against them. Each configuration of mapping and filtering has to be told for what it is.
//
// What each judge asks, and what it said, is in docs/judges.md.
package judges
