// SPDX-License-Identifier: Apache-2.0

// Package firewall owns one question: which rules of others would container traffic meet in the host's
// stack, and so not meet on conenat's direct path? It reads iptables (both back ends), nftables and the xfrm
// policies of the network namespace into one small model, and a pure function, decide, answers. It also
// tells which ports nat rules of others divert, so that no container gets one of them as external port.
//
// What counts: a rule of the hooks prerouting, forward and postrouting or of the bridge family that
// TCP, UDP or ICMP between inside and outside, or between inside networks, can reach and that does anything
// but return. Accept counts: together with a policy or a later drop it is a firewall. What cannot be decoded
// is taken to match. What does not count: Docker's and conenat's own rules (docker.go), rules for interfaces
// or addresses that this traffic cannot have, chains that INPUT or OUTPUT alone reach, NAT of the source
// (that is what conenat replaces), and the netdev family and inet's ingress hook, which see packets at the
// device, before the outside hook, on either path. Translation of the destination of what containers send
// is reported apart (Report.Translated), for packets to the host's own addresses never leave the stack.
//
// The families that the traffic has are followed one after the other, as their packets see the rules; a firewall of one
// family alone decides for both, for the path is one.
//
// What it cannot see: rules of ebtables-legacy, programs of bpf or tc, the kernel's default xfrm action
// (ip xfrm policy setdefault), and what a block list holds: a rule with one counts even if the list is empty.
//
// It never changes a rule, never decides the path, and never takes rules that it could not read for no
// rules: that is an error which names what to install or allow.
//
// Lifecycle: Inspect may be called at any time, of the network namespace of the calling thread. Watch runs
// until its context ends and says "something changed" on Changes. The answer also depends on the host's
// links and addresses, which control/hostnet watches: inspect again when those change.
package firewall
