// SPDX-License-Identifier: Apache-2.0

// Package pktgen is shell scripts for a second host, README.md that says how to read them, and their test.
package pktgen
