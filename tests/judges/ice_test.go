// SPDX-License-Identifier: Apache-2.0

package judges

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/ice"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

// giveUp is how long an agent looks for a pair: pion gives a pair seven requests, 200 ms apart.
const giveUp = 8 * time.Second

// cell is a pair of places, and whether their agents connect without TURN.
type cell struct {
	a, b     behavior // the zero behavior is no NAT
	connects bool
}

// cells are those of "NAT types in pairs" (Rescorla, How NATs work, part II), and no NAT: where both sides' external ports can be
// foretold, filtering only costs first packets. An external port that nobody can foretell is learned from the packet that it
// sends, if the other side's filtering lets that in. Where it does not, or neither port can be foretold, a relay is needed.
var cells = []cell{
	{behavior{independent, independent}, behavior{}, true},
	{behavior{independent, port}, behavior{}, true},
	{behavior{port, port}, behavior{}, true},
	{behavior{independent, independent}, behavior{independent, independent}, true},
	{behavior{independent, independent}, behavior{independent, port}, true},
	{behavior{independent, address}, behavior{independent, address}, true},
	{behavior{independent, port}, behavior{independent, port}, true},
	{behavior{independent, independent}, behavior{port, port}, true},
	{behavior{independent, address}, behavior{port, port}, true},
	{behavior{independent, address}, behavior{address, address}, true},
	{behavior{independent, port}, behavior{port, port}, false},
	{behavior{independent, port}, behavior{address, address}, false},
	{behavior{port, port}, behavior{port, port}, false},
}

func (c cell) String() string {
	name := func(b behavior) string {
		if b == (behavior{}) {
			return "none"
		}
		return b.String()
	}
	return name(c.a) + "-" + name(c.b)
}

// met is what two agents came to.
type met struct {
	outcomes [2]ice.Outcome
	err      error
}

// TestICE: pion's agents connect, by STUN alone, where the NATs' behaviours let them, and nowhere else.
func TestICE(t *testing.T) { family.Each(t, testICE) }

func testICE(t *testing.T, fam family.Family) {
	w := newWorld(fam, t)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	places := [2]map[behavior]*topo.NS{}
	for side := range places {
		peer, _ := w.host(fmt.Sprintf("peer%d", side))
		places[side] = map[behavior]*topo.NS{{}: peer}
	}
	place := func(side int, b behavior) *topo.NS {
		if places[side][b] == nil {
			places[side][b] = w.nat(b, small).containers[0]
		}
		return places[side][b]
	}
	heard := map[cell]chan met{}
	for _, c := range cells {
		heard[c] = w.meet(ctx, [2]*topo.NS{place(0, c.a), place(1, c.b)}, false)
	}
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			if m := <-heard[c]; m.err != nil {
				t.Error(m.err)
			} else if m.outcomes[0].Connected != c.connects {
				t.Errorf("connected %v, want %v: %+v", m.outcomes[0].Connected, c.connects, m.outcomes)
			}
		})
	}
}

// TestICEHairpin: two agents behind one NAT meet by their external endpoints, having no other (RFC 4787, REQ-9).
func TestICEHairpin(t *testing.T) { family.Each(t, testICEHairpin) }

func testICEHairpin(t *testing.T, fam family.Family) {
	w := newWorld(fam, t)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	for _, filtering := range behaviors {
		n := w.nat(behavior{independent, filtering}, small)
		t.Run(n.String(), func(t *testing.T) {
			m := <-w.meet(ctx, [2]*topo.NS(n.containers), true)
			if m.err != nil {
				t.Fatal(m.err)
			}
			for i, o := range m.outcomes {
				if !o.Connected || o.Remote.Endpoint.Addr() != n.external {
					t.Errorf("agent %d: want a pair to external address %v: %+v", i, n.external, o)
				}
			}
		})
	}
}

// meet lets two agents look for each other.
func (w *world) meet(ctx context.Context, places [2]*topo.NS, reflexiveOnly bool) chan met {
	heard := make(chan met, 1)
	o := ice.Options{Server: w.family.Endpoint(server), ReflexiveOnly: reflexiveOnly, GiveUp: patience.For(giveUp)}
	go func() {
		var m met
		m.outcomes, m.err = ice.Pair(ctx, w.Topo, places, o)
		heard <- m
	}()
	return heard
}
