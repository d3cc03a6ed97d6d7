// SPDX-License-Identifier: Apache-2.0

// Package reorder owns the private network namespace in which the kernel puts fragments in order: a veth, the routes and
// sysctls that send back what comes in, and an nftables table that turns the defragmenter on and conntrack off.
//
// It never loads or attaches a program, and knows of no state directory: package dataplane says where the mount is that
// holds the namespace, and what runs on the veth's end on the host's side.
//
// Lifecycle: New makes a namespace that ends with its last file descriptor; a mount of File makes it last. Open finds it by that
// mount, Configure makes it what it should be, Remove takes away what is outside of it.
package reorder
