// SPDX-License-Identifier: Apache-2.0

package judges

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
)

// verdicts are what the judges found of one NAT.
type verdicts struct {
	coturn coturn
	pion   behaviour
	check  checked
	err    error
}

// TestJudges: every configuration of mapping and filtering is told for what it is by coturn and by pion, and `conenat check`
// agrees with them.
func TestJudges(t *testing.T) { family.Each(t, testJudges) }

func testJudges(t *testing.T, fam family.Family) {
	w := newWorld(fam, t)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	type trial struct {
		behavior
		heard chan verdicts
	}
	var trials []trial
	for _, mapping := range behaviors {
		for _, filtering := range behaviors {
			n := w.nat(behavior{mapping, filtering}, quick) // all are judged at the same time, each from when it is there
			heard := make(chan verdicts, 1)
			trials = append(trials, trial{n.behavior, heard})
			go func() { heard <- judge(ctx, fam, n) }()
		}
	}
	for _, trial := range trials {
		t.Run(trial.String(), func(t *testing.T) { (<-trial.heard).compare(t, fam, trial.behavior) })
	}
}

// judge asks all judges at the same time.
func judge(ctx context.Context, fam family.Family, n *nat) (v verdicts) {
	inside := n.containers[0]
	asked := []func() error{
		func() (err error) { v.coturn, err = askCoturn(ctx, fam, inside); return err },
		func() (err error) { v.check, err = askCheck(ctx, fam, inside); return err },
	}
	if fam == family.V4 { // stun-nat-behaviour has no other sockets
		asked = append(asked, func() (err error) { v.pion, err = askPion(ctx, inside); return err })
	}
	v.err = together(len(asked), func(i int) error { return asked[i]() })
	return v
}

func (v verdicts) compare(t *testing.T, fam family.Family, b behavior) {
	t.Helper()
	if v.err != nil {
		t.Fatal(v.err)
	}
	want := coturn{Mapping: b.mapping, Filtering: b.filtering, MappingPadded: b.mapping, FilteringPadded: b.filtering,
		Hairpin: true, HairpinPadded: true, AliveYoung: true}
	if diff := cmp.Diff(want, v.coturn); diff != "" {
		t.Errorf("coturn (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(behaviour{b.mapping, b.filtering}, v.pion); diff != "" && fam == family.V4 {
		t.Errorf("pion (-want +got):\n%s", diff)
	}
	v.check.agrees(t, v.coturn, stable(b))
}

// stable says whether mapping looks the same after packets that nobody asked for, which only `conenat check` asks. What
// endpoint-independent filtering lets in is answered from the external endpoint that it came to, and with address-dependent
// mapping that is another one than the rest of the sender's address is sent to from.
func stable(b behavior) bool { return b != behavior{address, independent} }

// agrees holds `conenat check` against what coturn found, not against the configuration.
func (c checked) agrees(t *testing.T, judge coturn, stable bool) {
	t.Helper()
	want := checked{Mapping: judge.Mapping, Filtering: judge.Filtering, Hairpin: &judge.Hairpin, Source: "external", Stable: &stable,
		Problems: []string{}}
	want.TCP.Mapping, want.Lifetime = judge.Mapping, c.Lifetime
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("conenat check (-coturn +check):\n%s", diff)
	}
	for age, alive := range map[string]bool{youngAge: judge.AliveYoung, oldAge: judge.AliveOld} {
		seconds, _ := strconv.ParseFloat(age, 64)
		if l := c.Lifetime; l.AtLeast == nil || l.Below == nil || alive != (*l.AtLeast >= seconds) || alive != (*l.Below >= seconds) {
			t.Errorf("conenat check: lifetime %+v; to coturn a binding of %s s is alive: %v", l, age, alive)
		}
	}
}

// together does n things at the same time, and returns what went wrong.
func together(n int, do func(i int) error) error {
	errs := make([]error, n)
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { errs[i] = do(i) })
	}
	group.Wait()
	return errors.Join(errs...)
}
