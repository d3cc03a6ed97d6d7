// SPDX-License-Identifier: Apache-2.0

// Package budget owns what packets may cost: the committed file, the comparison with a measurement, and how both
// are printed. All of it is pure functions; who measures is package main above it.
package budget
