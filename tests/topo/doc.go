// SPDX-License-Identifier: Apache-2.0

// Package topo makes network topologies out of Linux network namespaces: namespaces, veth pairs, bridges,
// addresses, routes, sysctls, and the processes and sockets that live in them.
//
// Everything belongs to a Topo and carries its name (cn-PID-N), and Close takes all of it away again: sockets
// and processes, namespaces, mounts, the directory. What a run that was killed could not take away, the next
// one does: each Topo holds a lock on its directory, and a directory that nobody holds is swept by New.
//
// The package needs root, never touches the namespace it was started in, and needs no *testing.T: `make demo`
// uses it too. ForTest and AssertClean are the glue for tests. The kernel's usual offloads stay on, so that
// GSO packets and partial checksums reach the code under test as they do on a real host.
//
// NewFigure3 builds the topology of nearly every test, after the figure 3 of Amirante and Romano (IEEE Internet
// Computing, 2020): containers on a bridge, a host, a router, two peers, and a third behind a symmetric NAT.
// AddUplink gives the host further ways to the peers, by an interface of another kind or a router of its own.
package topo
