// SPDX-License-Identifier: Apache-2.0

// Package thread runs what changes an OS thread for good: its namespaces, its view of file systems.
package thread
