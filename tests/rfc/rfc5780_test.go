// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/control/natcheck"
	"github.com/conenat/conenat/control/stunserver"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

func TestRFC5780(t *testing.T) {
	conform(t, rfc5780, conformance{
		"mapping":   mappingIsFound,
		"filtering": filteringIsFound,
		"hairpin":   hairpinIsFound,
		"lifetime":  lifetimeIsFound,
	})
}

var alternate = netip.MustParseAddr("203.0.113.9") // peer 1's second address

// serveSTUN runs conenat's server at peer 1 until the test ends.
func (l *lab) serveSTUN() {
	l.T.Helper()
	if err := l.Peer1.AddAddr("eth0", alternate.String()+"/24"); err != nil {
		l.T.Fatal(err)
	}
	var server *stunserver.Server
	err := l.Peer1.Do(func() (err error) {
		server, err = stunserver.Listen(stunserver.Config{Primary: l.family.Addr(topo.Peer1Addr), Alternate: l.family.Addr(alternate),
			PrimaryPort: 3478, AlternatePort: 3479})
		return err
	})
	if err != nil {
		l.T.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	l.T.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.T.Errorf("STUN server: %v", err)
		}
	})
	l.reachAlternate()
}

// reachAlternate returns once the router has found the new address. Linux joins an IPv6 address's multicast group a moment after it
// was given; who asks for its neighbour before that asks again a second later, which is longer than a check waits.
func (l *lab) reachAlternate() {
	l.T.Helper()
	if _, err := l.UDP(l.probe(l.Router), 0).Mapped(l.family.At(alternate, 3478), probe.Timeout); err != nil {
		l.T.Fatalf("the router asks the STUN server's second address: %v", err)
	}
}

// discover is what RFC 5780's tests say in the first container. lifetime: as natcheck.Options has it.
func (l *lab) discover(lifetime time.Duration) natcheck.Report {
	l.T.Helper()
	report, err := natcheck.Run(l.T.Context(), natcheck.Options{
		Server: l.family.At(topo.Peer1Addr, 3478), Lifetime: lifetime,
		RTO: 100 * time.Millisecond, Timeout: patience.For(800 * time.Millisecond), Open: l.Containers[0].Do})
	if err != nil {
		l.T.Errorf("check: %v; it said %+v", err, report)
	}
	return report
}

// discovered is what is found of a conenat with a configuration.
func (l *line) discovered(config string, lifetime time.Duration) natcheck.Report {
	l.Helper()
	lab := l.lab(topo.Figure3Config{Containers: 1}, config)
	lab.serveSTUN()
	return lab.discover(lifetime)
}

func mappingIsFound(l *line) {
	for _, b := range behaviors {
		l.part(b.String(), func(l *line) {
			got := l.discovered(fmt.Sprintf("mapping: %s\n", b), 0)
			if string(got.Mapping) != b.String() || string(got.TCP.Mapping) != b.String() {
				l.Errorf("found %s over UDP and %s over TCP", got.Mapping, got.TCP.Mapping)
			}
		})
	}
}

func filteringIsFound(l *line) {
	for _, b := range behaviors {
		l.part(b.String(), func(l *line) {
			if got := l.discovered(fmt.Sprintf("filtering: %s\n", b), 0); string(got.Filtering) != b.String() {
				l.Errorf("found %s", got.Filtering)
			}
		})
	}
}

func hairpinIsFound(l *line) {
	if got := l.discovered("", 0); got.Hairpin == nil || !*got.Hairpin || got.HairpinSource != "external" {
		l.Errorf("found %v from %q", got.Hairpin, got.HairpinSource)
	}
}

func lifetimeIsFound(l *line) {
	got := l.discovered("timeouts:\n  udp: 2s\n  sweep: 100ms\n", 6400*time.Millisecond).Lifetime
	if got.AtLeast == nil || got.Below == nil || *got.AtLeast >= *got.Below || *got.AtLeast < 1.5 || *got.Below > 3 {
		l.Errorf("configured 2 s, found %v to %v", got.AtLeast, got.Below)
	}
}
