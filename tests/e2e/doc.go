// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the real conenat binary with real packets: in the network namespaces of Figure 3, and
// under a real dockerd. Each test makes its own machines and takes them away.
//
// What a family has a part in runs in both, from one table (family.Each): traffic, hairpins, forwards, fragments, errors and path
// MTUs, the stack path and its rules, uplinks and routes that move, pools, zones, excluded destinations, Docker's networks, published ports
// and isolation, takeover, adoption, detach, expiry, check, XDP, what is unsolicited. Cases that differ in something else, such as the kind of hook, are left out
// in IPv6 (both). What IPv6 alone has is in ipv6_test.go. In IPv4 alone run: bad input, the kernel's floor, limits, the guard's kinds of
// rules (control/firewall reads both families'), labels but for external addresses, a Docker that goes, comes and fails, many ports and many
// interfaces, hooks that others take away: it is the daemon that is tested there, and it does the same for both; and what there is in
// IPv4 alone: rp_filter, datagrams that routers fragment.
//
// On another kernel, in a virtual machine, the programs are built before, for a guest compiles very slowly:
//
//	CGO_ENABLED=0 go build -o bin/vm/ ./cmd/conenat ./tests/cmd/cnprobe ./tests/demo
//	bin/vmtest test --kernel 6.1 --env CONENAT_BINARIES=$PWD/bin/vm ./tests/e2e -- -run TestDetach -v
//
// Beside two other machines on two CPUs, in software emulation, TestDetach took 38 s there, TestDockerTraffic 312 s.
package e2e
