// SPDX-License-Identifier: Apache-2.0

// Package rig owns a dataplane that tests send packets through by BPF_PROG_RUN: the programs and maps in a namespace of
// their own, with two networks and an uplink, on a virtual clock. Every packet's verdict, counter and bytes are checked;
// Consistent looks at what must hold between the maps at any time.
//
// The verifier takes half a second for the programs, and ten and more in a virtual machine. So tests share loaded ones: New
// takes a fixture out of a pool, brought back to what it was when it was new, byte for byte. TestRigIsAsNew shows that
// nothing is handed on. A package that uses it has Main for its TestMain.
package rig
