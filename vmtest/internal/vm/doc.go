// SPDX-License-Identifier: Apache-2.0

// Package vm owns one run of a virtual machine: QEMU's command line, the ports that the guest talks through, its
// console, the time limits, and what in the end is said to have happened.
//
// A machine lives for one call of Run. QEMU ends with it, and with this process too, however that ends. The
// package never downloads anything, and keeps no file but those that it was given.
package vm
