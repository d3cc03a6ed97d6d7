// SPDX-License-Identifier: Apache-2.0

// Package kernel owns the kernels that a VM can boot: which ones are declared, their Debian packages,
// downloaded with apt-get into a cache and checked against the declared checksum, the uncompressed vmlinux
// out of each, and which of its modules need which others.
//
// A kernel is prepared once, in a directory of its own that one rename makes whole; after that the cache alone
// answers. The package never installs anything, and touches no apt state but its own.
package kernel
