// SPDX-License-Identifier: Apache-2.0

// Package fuzz owns the fuzz targets of the packet path: any bytes through each entry point by BPF_PROG_RUN, on a rig
// with a few bindings and sessions. What must hold of every packet: the kernel runs the program without an error; what is
// passed or dropped is as it came; what is translated has right checksums wherever it had, embedded ones too; and the
// answer to it gets back to where it came from, as from where it went. What must hold of every request: an answer, and
// tables that agree with each other.
//
// It never looks into the programs: what a packet is to become is the business of tests/prog and of the oracle.
//
// Lifecycle: `go test` runs the seeds and the corpus of testdata/fuzz in seconds; .ci/fuzz fuzzes. One rig serves all
// inputs of a target; before each, all but the static bindings has expired, and is opened anew.
package fuzz
