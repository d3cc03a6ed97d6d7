// SPDX-License-Identifier: Apache-2.0

// Package report is what becomes of the benchmark's measurements: lines of JSON, medians and ratios, the table, the plots, and
// docs/benchmarks.md with what was to be reached. It measures nothing and judges nothing but the targets of the issue.
package report
