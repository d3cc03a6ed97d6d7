// SPDX-License-Identifier: Apache-2.0

// Package bench is what the measurements of conenat share: the ways to carry a packet from inside to outside
// that are compared (Contenders), the topology that all of them get (Lab), and the place where a packet is
// counted and dropped at its end (Sink).
//
// It sends nothing and measures nothing: tests/cost counts instructions, tests/benchvm packets in a second by pktgen, and
// tests/bench/compare, which is `make bench`, all figures that users ask for.
//
// Lifecycle: NewLab builds the topology in a topo.Topo, a contender's Start puts its translation into it, Sinks are
// aimed for each measurement, and the Close of the Topo takes all of it away. A contender that is started has the
// lab for itself until then.
package bench
