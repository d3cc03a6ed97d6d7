// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the real conenat binary with real packets: in the network namespaces of Figure 3, and
// under a real dockerd. Each test makes its own machines and takes them away.
//
// On another kernel, in a virtual machine, the programs are built before, for a guest compiles very slowly:
//
//	CGO_ENABLED=0 go build -o bin/vm/ ./cmd/conenat ./tests/cmd/cnprobe ./tests/demo
//	bin/vmtest test --kernel 6.1 --env CONENAT_BINARIES=$PWD/bin/vm ./tests/e2e -- -run TestDetach -v
//
// Beside two other machines on two CPUs, in software emulation, TestDetach took 38 s there, TestDockerTraffic 312 s.
package e2e
