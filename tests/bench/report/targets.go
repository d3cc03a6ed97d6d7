// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"

	"github.com/conenat/conenat/tests/bench"
)

// Target is a ratio, or a figure of its own, that conenat is to reach.
type Target struct {
	What    string
	AtLeast bool // else at most
	Bound   float64
	Must    bool // else it is worked towards
	measure func(Results) (float64, bool)
}

// The loads of targets.
const (
	oneSession = "1:60:out"
	manySmall  = "100000:60:out"
	million    = "1000000:60:out"
	oneStream  = "1 stream"
	// UnderLoad and Idle are what else the machine does while round trips are measured.
	UnderLoad = "under load"
	Idle      = "idle"
)

// Targets are those of the issue that this benchmark was made for.
func Targets() []Target {
	const direct, xdp = bench.Direct, bench.Gateway + bench.XDP
	gatewayNFT, gatewayXDPLimit := bench.Gateway+bench.NFTables, bench.Gateway+bench.XDPForwarding
	atLeast := func(bound float64, what string, m func(Results) (float64, bool)) Target {
		return Target{what, true, bound, true, m}
	}
	anchor := func(bound float64, what string, m func(Results) (float64, bool)) Target {
		return Target{what, true, bound, false, m}
	}
	return []Target{
		atLeast(2.8, "direct, 1 session, of Docker's path", ratioOf(Packets, oneSession, direct, bench.Docker)),
		atLeast(1.5, "direct, 1 session, of nftables", ratioOf(Packets, oneSession, direct, bench.NFTables)),
		atLeast(2.6, "direct, 100,000 sessions, of Docker's path", ratioOf(Packets, manySmall, direct, bench.Docker)),
		atLeast(1.6, "direct, 100,000 sessions, of nftables", ratioOf(Packets, manySmall, direct, bench.NFTables)),
		atLeast(4.5, "XDP gateway, 1 session, of nftables", ratioOf(Packets, oneSession, xdp, gatewayNFT)),
		atLeast(3, "XDP gateway, 100,000 sessions, of nftables", ratioOf(Packets, manySmall, xdp, gatewayNFT)),
		atLeast(2.5, "direct, new sessions, of nftables", anyLoad(NewSessions, direct, bench.NFTables)),
		{"direct, added latency of a published port, of the userland proxy's (TCP, p50)", false, 0.2, true, addedLatency},
		atLeast(1.3, "direct, TCP bulk, 1 stream, of Docker's path", ratioOf(Bulk, oneStream, direct, bench.Docker)),
		{"kernel memory of an IPv4 session, bytes", false, 320, true, ownFigure(Memory, direct)},
		atLeast(0.95, "throughput while 1,000,000 idle sessions expire, of before", expiryOf(direct)),
		anchor(0.9, "XDP gateway, 1 session, of XDP forwarding without NAT", ratioOf(Packets, oneSession, xdp, gatewayXDPLimit)),
		anchor(0.97, "direct, 1 session, of kernel routing without NAT", ratioOf(Packets, oneSession, direct, bench.Forwarding)),
		anchor(0.6, "XDP gateway, 1,000,000 sessions, of 1 session", ratioOfLoads(xdp)),
		anchor(0.9, "direct, 1,000,000 sessions, of 1 session", ratioOfLoads(direct)),
		{"direct, round trip under load, of Docker's path (UDP, p50)", false, 0.7, false,
			ratioOf(RoundTrip("udp", "p50"), UnderLoad, direct, bench.Docker)},
	}
}

func ratioOf(figure, load, contender, of string) func(Results) (float64, bool) {
	return func(r Results) (float64, bool) { return r.ratio(figure, load, contender, of) }
}

// anyLoad is for figures that were measured under one load, whichever it was.
func anyLoad(figure, contender, of string) func(Results) (float64, bool) {
	return func(r Results) (float64, bool) {
		for _, load := range r.loads(figure) {
			if v, ok := r.ratio(figure, load, contender, of); ok {
				return v, true
			}
		}
		return 0, false
	}
}

func ownFigure(figure, contender string) func(Results) (float64, bool) {
	return func(r Results) (float64, bool) {
		for _, load := range r.loads(figure) {
			if f, ok := r.Find(figure, load, contender); ok {
				return f.Median(), true
			}
		}
		return 0, false
	}
}

func expiryOf(contender string) func(Results) (float64, bool) {
	return func(r Results) (float64, bool) {
		f, ok := r.Find(Expiry, IdleSessions(1_000_000), contender)
		return f.Median(), ok
	}
}

func ratioOfLoads(contender string) func(Results) (float64, bool) {
	return func(r Results) (float64, bool) {
		many, ok := r.Find(Packets, million, contender)
		one, oneOK := r.Find(Packets, oneSession, contender)
		if !ok || !oneOK {
			return 0, false
		}
		return many.Median() / one.Median(), true
	}
}

// addedLatency is what a published port costs beyond the way to the container itself.
func addedLatency(r Results) (float64, bool) {
	figure := Published("tcp", "p50")
	plain, ok := r.Find(figure, Idle, bench.Forwarding)
	own, ownOK := r.Find(figure, Idle, bench.Direct)
	proxy, proxyOK := r.Find(figure, Idle, bench.DockerProxy)
	if !ok || !ownOK || !proxyOK || proxy.Median() <= plain.Median() {
		return 0, false
	}
	return (own.Median() - plain.Median()) / (proxy.Median() - plain.Median()), true
}

// Judge is what was measured, and what that means.
func (t Target) Judge(r Results) (measured, verdict string) {
	v, ok := t.measure(r)
	switch {
	case !ok:
		return "-", "not measured"
	case t.AtLeast && v >= t.Bound, !t.AtLeast && v <= t.Bound:
		verdict = "met"
	default:
		verdict = "**not met**"
	}
	return number(v), verdict
}

func (t Target) bound() string {
	if t.AtLeast {
		return fmt.Sprintf("≥ %v", t.Bound)
	}
	return fmt.Sprintf("≤ %v", t.Bound)
}
