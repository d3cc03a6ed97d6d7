// SPDX-License-Identifier: Apache-2.0

// Package oracle owns a NAT as the RFCs describe it: a small pure model with a clock, that knows nothing of maps,
// of programs, or of how the dataplane does anything. Tests drive the model and the dataplane with the same packets
// and compare verdicts, packets, bindings and sessions.
//
// The model is simple before it is fast: bindings and sessions lie in slices that are searched from end to end, and a
// session is two ends, each with the packets that it sends. Where the RFCs leave a choice to chance (a random port), the
// model says what is allowed and is told what was chosen. Addresses are netip's, of either family.
//
// It never decides what conenat's defaults are: Config says everything. Reasons carry the names of conenat's counters,
// so that a difference reads like a line of `conenat status`.
package oracle
