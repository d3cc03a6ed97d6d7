// SPDX-License-Identifier: Apache-2.0

// Package docker runs a real dockerd in a network namespace of its own, and containers in it that a test
// drives (tests/probe). The machine's own Docker, if it has one, is neither used nor touched: sockets, data,
// cgroups, /etc/docker and /run of this dockerd are private, and all of it goes away with the topology.
//
// The daemon is spoken to by its HTTP API, so no version of the docker command line matters; CLI is there for
// tests of what a user types.
package docker
