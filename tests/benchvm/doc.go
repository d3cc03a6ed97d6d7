// SPDX-License-Identifier: Apache-2.0

// Command benchvm sends with the kernel's pktgen through conenat, nftables and plain routing, in one virtual machine,
// and compares how many packets come out in a second.
//
//	benchvm                 # starts the machine and prints JSON lines, then a table
//	benchvm measure CONENAT # in the machine: what the former runs there, JSON lines alone
//
// In software emulation the figures are good for ratios alone; docs/cost.md says how to read them. The files: main.go
// the command line, measure.go the rounds, pktgen.go the kernel's generator, table.go results, medians and ratios.
package main
