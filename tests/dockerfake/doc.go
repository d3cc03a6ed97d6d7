// SPDX-License-Identifier: Apache-2.0

// Package dockerfake is a Docker Engine in memory: it answers on a unix socket what Docker's official client
// asks for networks, containers and events, in the words of Docker 20.10, and does nothing else: a container
// is data. It also fails in the ways of a real Engine, at the moment that a test wants.
//
// Lifecycle: New listens at once; Close ends every connection. All methods may be called at any time.
package dockerfake
