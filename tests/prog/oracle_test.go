// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/oracle"
	"github.com/conenat/conenat/tests/rig"
)

// How many sequences a run of the tests can spend its time on; CI more, a machine in software emulation less.
const (
	someSequences = 1000
	sequencesInCI = 10000 // and of IPv6, which is the same source, a quarter
	sequencesInVM = 100
)

var sequences = flag.Int("sequences", 0, "how many sequences TestOracle plays; 0: as many as fit the place")

// TestOracle drives the programs and the oracle with the same random steps: packets of all hooks, time, and changes of
// what is configured. Verdict, reason and the whole packet must agree after each; bindings, sessions and counters now and
// then and at the end; and nothing may be left when all has expired. A failure is shrunk, and says how to replay it. (What
// the dataplane draws itself, a port among those that are free, is in no seed: what hangs on it may need several tries.)
func TestOracle(t *testing.T) { family.Each(t, testOracle) }

func testOracle(t *testing.T, fam family.Family) {
	w := newWorld(t, fam)
	n := numberOfSequences(fam)
	setFlag(t, "rapid.checks", fmt.Sprint(n))
	w.play(t, func(*oracle.Config) {})
	for _, reason := range oracle.Reasons {
		t.Logf("%7d %s", w.reached[reason], reason)
		if w.reached[reason] == 0 && n >= sequencesInCI {
			t.Errorf("no packet of %d sequences has got to %s: the steps do not try what they are to", n, reason)
		}
	}
}

// TestOracleXDP is TestOracle with XDP on each link: each packet comes to it first, and to tc if XDP hands it on. What comes of it
// is the same.
func TestOracleXDP(t *testing.T) { family.Each(t, testOracleXDP) }

func testOracleXDP(t *testing.T, fam family.Family) {
	w := newWorld(t, fam)
	w.xdp, w.byXDP = maps.Clone(rig.Gateway), map[oracle.Reason]int{}
	maps.Copy(w.xdp, rig.Containers)
	w.rig.TakeXDP(w.xdp)
	n := numberOfSequences(fam) / 4
	setFlag(t, "rapid.checks", fmt.Sprint(n))
	w.play(t, func(*oracle.Config) {})
	for reason, least := range map[oracle.Reason]int{oracle.TranslatedOutbound: n / 8, oracle.TranslatedInbound: n / 8, oracle.DroppedUnsolicited: n / 200} {
		t.Logf("%7d %s by XDP", w.byXDP[reason], reason)
		if w.byXDP[reason] < least {
			t.Errorf("%d packets of %d sequences were %s by XDP: the steps do not try what they are to", w.byXDP[reason], n, reason)
		}
	}
}

// play has rapid play sequences; tb is told. lie makes another NAT of what the oracle is to be.
func (w *world) play(tb rapid.TB, lie func(*oracle.Config)) {
	w.rig.Stay()
	w.lie = lie
	rapid.Check(tb, func(rt *rapid.T) {
		d := newDuel(rt, w)
		rt.Repeat(d.steps())
		d.end()
	})
}

// Tables so small that a sequence can fill them.
const (
	oracleSessions = 18
	oracleBindings = 12
)

func numberOfSequences(fam family.Family) int {
	switch {
	case *sequences > 0:
		return *sequences
	case os.Getenv("VMTEST_KERNEL") != "":
		return sequencesInVM
	case os.Getenv("CI") != "" && fam == family.V6:
		return sequencesInCI / 4
	case os.Getenv("CI") != "":
		return sequencesInCI
	}
	return someSequences
}

// setFlag sets a flag of rapid's for the rest of the test.
func setFlag(t *testing.T, name, value string) {
	t.Helper()
	before := flag.Lookup(name).Value.String()
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(name, before) })
}

// duel is one sequence: the dataplane of a world against a new oracle.
type duel struct {
	*rapid.T
	*world
	nat     *oracle.NAT
	packets map[string]uint64 // by reason, since the world began
}

func newDuel(t *rapid.T, w *world) *duel {
	d := &duel{T: t, world: w}
	d.must("clear", w.clear())
	d.must("restore the world", w.restore())
	d.must("configure", w.configure(w.drawSetup(t)))
	d.nat = oracle.New(w.oracle())
	d.packets = d.count()
	return d
}

func (d *duel) must(what string, err error) {
	d.Helper()
	if err != nil {
		d.Fatalf("%s: %v", what, err)
	}
}

// steps are what may happen next, and how often in relation to each other.
func (d *duel) steps() map[string]func(*rapid.T) {
	all := map[string]func(*rapid.T){"": func(t *rapid.T) {
		if rapid.IntRange(0, 3).Draw(t, "look at the tables") == 3 {
			d.compareTables()
		}
	}}
	talks := 0
	if d.xdp != nil {
		talks = 6
	}
	for _, step := range []struct {
		name string
		do   func()
		n    int
	}{
		{"talk", d.talk, talks},
		{"inside", d.inside, 4}, {"crowd", d.crowd, 1}, {"hairpin", d.hairpin, 2}, {"outside", d.outside, 2}, {"answer", d.answer, 2}, {"host", d.host, 1},
		{"by the host", d.byTheHost, 1},
		{"error", d.icmpError, 2}, {"fragments", d.fragments, 1}, {"wait", d.passTime, 1}, {"forward", d.forward, 1},
		{"import", d.importSession, 1}, {"owner", d.owner, 1}, {"change", d.change, 1},
	} {
		for i := range step.n {
			all[fmt.Sprint(step.name, i+1)] = func(*rapid.T) { step.do() }
		}
	}
	return all
}

// end compares what there is, and lets all expire.
func (d *duel) end() {
	d.compareTables()
	d.must("look at the maps", rig.CheckMaps(d.rig.DP.Objects().ZoneUsage, d.rig.DP.Tables()...))
	d.must("clear", d.clear())
	d.must("look for what is left", d.nothingLeft())
}
