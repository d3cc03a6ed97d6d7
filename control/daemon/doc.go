// SPDX-License-Identifier: Apache-2.0

// Package daemon owns the composition of control's parts into the process that `conenat run` is: host, loop,
// events and API around one dataplane, and what the API answers.
//
// It never decides policy of its own, and touches kernel and network only through what it is given.
//
// Lifecycle: Run checks the configuration against the host, opens the dataplane, makes the first pass, says
// that it is ready, and goes on until its context ends; the dataplane works on after that. A start that
// fails leaves nothing behind that was not there before.
package daemon
