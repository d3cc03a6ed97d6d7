// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the real conenat binary with real packets: in the network namespaces of Figure 3, and
// under a real dockerd. Each test makes its own machines and takes them away.
package e2e
