// SPDX-License-Identifier: Apache-2.0

// Command conenat is the daemon and its command line. It is wiring only: flags become a configuration
// (package config) or a request to the daemon (package client), and answers become text.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main
