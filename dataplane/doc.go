// SPDX-License-Identifier: Apache-2.0

// Package dataplane owns the meaning of what package bpf lays out: it loads, attaches, pins and adopts the
// programs, and speaks of networks, bindings, sessions and events in net/netip terms. It is the only
// production importer of package bpf and of cilium/ebpf.
//
// It never decides policy (which interfaces, which addresses, which ports are forwarded): that is package
// control's.
//
// Lifecycle: Open loads the programs and makes or adopts the pinned maps under a state directory; the
// caller puts networks, outsides and links; Close lets go of the file descriptors and leaves the pinned
// hooks at work; Remove takes every hook, pin and map away.
package dataplane
