// SPDX-License-Identifier: Apache-2.0

// Package watch owns the events: it reads them from the dataplane, keeps a history, and hands them to
// subscribers.
//
// Its promise: replaying the whole history (Replay) gives the bindings and sessions that live. To keep it,
// the history begins with what lives when the watcher starts, an event that the bounded history drops is
// folded into that beginning, and after a loss the tables are read and the difference is told as events.
//
// It never blocks on a subscriber: one that does not keep up gets one events.lost with a count in place of
// what it missed. It never changes the dataplane.
//
// Lifecycle: New, then Run until its context ends; Subscribe and History at any time between.
package watch
