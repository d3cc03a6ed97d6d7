// SPDX-License-Identifier: Apache-2.0

// Package lint holds the project's own rules, those that no linter knows: licence lines, who may import
// whom, the length of a C function, what stands at the top of the repository, who may skip a test.
//
// A rule is a function from the tracked files to the problems found. TestRepository runs every rule on this
// repository; TestRules shows each of them, on a few lines of input, what it must find and what it must not.
// The rules read files and never run or build anything but `git ls-files`.
package lint
