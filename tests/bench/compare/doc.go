// SPDX-License-Identifier: Apache-2.0

// Command compare is `make bench`: all contenders of tests/bench in one run, in turn, round by round. Each figure has a file here;
// what becomes of the measurements is package report's.
//
//	compare                                       # a chosen few, some minutes
//	compare -full                                 # all, and docs/benchmarks.md with its plots
//	compare -merge -figures packets -loads 1:60:out -contenders nftables,conenat-direct
//	compare -render                               # the table, of what was measured before
//
// A contender that fails fails alone: the others are measured, and the command then ends with an error.
package main
