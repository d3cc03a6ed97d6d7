// SPDX-License-Identifier: Apache-2.0

// Package initramfs owns what a VM runs before the command: the archive with busybox, the modules and the two
// scripts that turn the host's file system into the guest's root, and the words that the guest says to the host.
//
// It writes the archive and never starts anything. The guest's side is init.sh (in the archive, until the root is
// there) and guest.sh (in the root, until the command has ended).
package initramfs
