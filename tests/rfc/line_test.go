// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/rig"
)

// places are where packets come from and go to: the rig's endpoints, which are given to it in IPv4 whatever its family
// (tests/family).
type places struct {
	c1, c2, other          string // inside: two hosts of one network, and one of another
	external, peer1, peer2 string
	router                 string   // outside, and no end of any session
	more                   string   // the first of many hosts in the network of c1 and c2
	pool                   []string // external addresses that are not contiguous, external among them
}

var ipv4 = places{c1: rig.C1, c2: rig.C2, other: rig.Other, external: rig.External, peer1: rig.Peer1, peer2: rig.Peer2,
	router: "192.0.2.99", more: "172.17.2.1", pool: []string{rig.External, "198.51.100.77", "192.0.2.77", "198.18.7.7"}}

// host is one of as many as a test wants, beside c1 and c2, counted from 0.
func (f places) host(n int) string {
	address := netip.MustParseAddr(f.more)
	for range n {
		address = address.Next()
	}
	return address.String()
}

// at is an endpoint.
func at(address string, port int) string {
	return netip.AddrPortFrom(netip.MustParseAddr(address), uint16(port)).String()
}

// line is a requirement while its test runs.
type line struct {
	*testing.T
	places
	family family.Family // that it is tested in
	Requirement
	*told
}

// told is what a requirement's test has said of it, its parts included.
type told struct {
	shown   []string
	lacking string
	notHere bool // it says nothing of this family
}

type conformance = map[string]func(*line)

// ipv4Only is a test that is about what IPv6 has not, or that is not written for it yet. The page says in which families a requirement
// was shown.
func ipv4Only(test func(*line)) func(*line) {
	return func(l *line) {
		if l.notHere = l.family != family.V4; !l.notHere {
			test(l)
		}
	}
}

// conform runs the test of each of a document's lines. There is a test for each line, and a line for each test.
func conform(t *testing.T, d Document, tests conformance) {
	if t.Name() != d.Test() {
		t.Errorf("the test of %s is to be called %s", d.Name, d.Test())
	}
	items := map[string]bool{}
	for _, r := range d.Lines {
		items[r.Item] = true
		test, ok := tests[r.Item]
		if !ok {
			t.Errorf("%s %s has no test", d.Name, r.Item)
			continue
		}
		t.Run(r.Item, func(t *testing.T) {
			var all []Result
			defer func() { results.put(d, r.Item, merged(all)) }()
			family.Each(t, func(t *testing.T, f family.Family) {
				l := &line{T: t, places: ipv4, family: f, Requirement: r, told: &told{}}
				defer func() { all = append(all, l.result()) }()
				if test(l); !l.notHere {
					l.compare()
				}
			})
		})
	}
	for item := range tests {
		if !items[item] {
			t.Errorf("a test of %s %s, which is no line of its table", d.Name, item)
		}
	}
}

// compare is of what the test has seen with what the table says.
func (l *line) compare() {
	lacks := l.Outcome == DoesNotHold || l.Outcome == Later
	switch {
	case lacks && l.lacking == "":
		l.Errorf("the table says %q, but it holds: mend the table", l.Outcome)
	case !lacks && l.lacking != "":
		l.Errorf("does not hold: %s", l.lacking)
	}
}

func (l *line) result() Result {
	slices.Sort(l.shown)
	r := Result{Outcome: l.Outcome, Shown: slices.Compact(l.shown)}
	if !l.notHere {
		r.Families = []string{l.family.String()}
	}
	if l.Failed() {
		r.Outcome = Failed
	}
	return r
}

// lacks says that the requirement does not hold, and what was seen of that.
func (l *line) lacks(seen string) {
	l.lacking = seen
	l.Logf("does not hold: %s", seen)
}

// rig is a rig for the rest of the test; the page says that the requirement was shown by it.
func (l *line) rig(options ...rig.Option) *rig.Rig {
	l.Helper()
	l.shown = append(l.shown, "rig")
	return rig.New(l.T, append([]rig.Option{rig.In(l.family)}, options...)...)
}

// part is one of several parts of a requirement, with a rig of its own if it asks for one.
func (l *line) part(name string, test func(*line)) {
	l.Run(name, func(t *testing.T) {
		part := *l
		part.T = t
		test(&part)
	})
}
