// SPDX-License-Identifier: Apache-2.0

// Package api owns what conenat says to the outside: HTTP with JSON over a unix socket, the names of its
// fields, its status codes. The command line is a client of it (package client), and curl can be another.
//
// It never decides anything: every answer is a Backend's.
//
// Lifecycle: Listen takes the socket, which fails while another conenat has it; Serve answers until its
// context ends, ends the event streams, and removes the socket.
package api
