// SPDX-License-Identifier: Apache-2.0

// Package dataplanetest owns an in-memory stand-in for a dataplane, for tests of what drives one: it keeps
// what was put, refuses what the real one refuses, and plays the packet path when a test tells it to.
//
// It never touches the kernel, and translates no packet.
//
// Lifecycle: New makes an empty one; a test drives it through the dataplane's methods on one side, and
// through OpenBinding, OpenSession and the like (what packets would have done) on the other.
package dataplanetest
