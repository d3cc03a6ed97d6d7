// SPDX-License-Identifier: Apache-2.0

// Package ice lets two of pion's ICE agents find each other, each in a network namespace and a process of its own
// (tests/cmd/iceagent): host and server-reflexive candidates, a STUN server, and no TURN. The test carries what they
// have to tell each other; whether they connect is theirs to say.
//
// It knows nothing of NATs. An agent that finds no pair says so itself, when its own time for that is over.
package ice
