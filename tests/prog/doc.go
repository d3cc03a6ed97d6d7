// SPDX-License-Identifier: Apache-2.0

// Package prog tests the packet path packet by packet, by BPF_PROG_RUN: tables and sequences, on a virtual
// clock, with the whole output packet compared with one that was built from scratch, and every counter that
// moved accounted for. What needs a kernel around the programs (GSO, partial checksums, redirects that
// arrive) is tested in tests/e2e.
// The rig is tests/rig.
package prog
