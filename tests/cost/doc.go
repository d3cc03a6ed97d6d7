// SPDX-License-Identifier: Apache-2.0

// Command cost counts the instructions that a packet costs on its way through conenat, and through what it is
// compared with, and holds them against the committed budget.
//
//	cost check     # measure, compare with budget.yaml, fail on growth
//	cost update    # measure, compare, and write budget.yaml and docs/cost.md
//	cost show CONTENDER...  # measure those alone, and print: while one works on a case
//	cost measure   # in a machine whose clock counts instructions: what the other two run there
//
// The machine is vmtest's with --accel icount. docs/cost.md says what is counted and what is not.
//
// The files: main.go the command line, guest.go the way into the machine; measure.go goes through the contenders,
// cases.go is what is measured of each, batch.go how; inject.go sends and reads the clock, frame.go builds what is
// sent, expiry.go measures the sweeper, which no packet starts; gateway.go
// measures frames between plain interfaces. Package budget compares and prints.
package main
