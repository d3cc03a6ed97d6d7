// SPDX-License-Identifier: Apache-2.0

// Package client owns the other end of package api: it asks a daemon over its unix socket.
//
// It never starts a daemon, and formats nothing for people.
//
// Lifecycle: a Client has no connection of its own; every call makes one.
package client
