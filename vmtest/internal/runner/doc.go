// SPDX-License-Identifier: Apache-2.0

// Package runner owns what a user asks of vmtest: a command, or this repository's tests, on one declared kernel or
// on each. It puts kernel, initramfs and machine together, says on stderr what goes on, and keeps the cache in
// order.
//
// The cache directory is all that it writes to. What a run needs is in a directory there that goes with the run, or, where the
// process was killed, at the start of the next one; the last console of each kernel stays.
package runner
