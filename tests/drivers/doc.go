// SPDX-License-Identifier: Apache-2.0

// Package drivers tests conenat on network cards, not on veth pairs: with the checksum offloads, segmentation and
// receive queues of their drivers.
//
//	vmtest test --kernel 6.12 --wire virtio-net-pci --wire virtio-net-pci ./tests/drivers
//
// The first wire leads from a peer to a port of the host's bridge, as a container's veth pair would; the second one from the
// host's uplink to another peer. All of them are namespaces of the machine that the test runs in.
//
//	a ──wire 0── port0 ─ docker0 ─ host ─ uplink0 ──wire 1── b
//	172.17.0.2        172.17.0.1   198.51.100.1    203.0.113.1, .2
//	c ── veth-c ──┘
//	172.17.0.3
//
// Without wires the tests are skipped, with too few they fail. A card goes back to the machine's own namespace at
// a test's end, as it was. TestXDP… want `--wire virtio-net-pci,queues=4 --cpus 2`, for queues of XDP's own (vmtest's README), and
// with fewer, or with another model, show that it works all the same.
package drivers
