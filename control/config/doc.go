// SPDX-License-Identifier: Apache-2.0

// Package config owns the daemon's configuration: what may be written in its YAML file and on its command
// line, how the two combine (the command line wins), and which values make sense.
//
// It never looks at the host: whether an interface exists is package reconcile's question.
//
// Lifecycle: Parse reads a file into a Layer, the command line fills another one, Merge puts one over the
// other, and Build checks every value and gives the Config, which does not change after that. All four are
// pure functions; every error says where the value stands (file:line:column, or the flag).
package config
