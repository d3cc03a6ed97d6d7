// SPDX-License-Identifier: Apache-2.0

// Package wire owns a machine's wires: a wire is a pair of its network cards that see each other, and nothing else.
//
// QEMU's own hubs and sockets carry bare frames, over which a card has neither checksum offload nor segmentation. A
// TAP device carries what the cards say of their packets as well, so a wire is two of those on a bridge. They are in a
// network namespace without a name, which is held by their descriptors alone: with the last one, QEMU's, it is
// gone, however this process or QEMU ended. The package never touches the namespace that it is called in.
package wire
