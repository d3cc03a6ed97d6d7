// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
)

// kind is what a fixture differs by from others: what is of a load, and stays.
type kind struct {
	Capacity  dataplane.Capacity
	realClock bool
	family    family.Family
}

// pool has a fixture of each kind that a test wanted so far: to load the programs costs half a second, and in a
// virtual machine more than ten. It hands one out to one test at a time, as it was when it was new.
type pool struct {
	mu       sync.Mutex
	fixtures map[kind]*fixture
	taken    map[kind]bool
}

var fixtures = pool{fixtures: map[kind]*fixture{}, taken: map[kind]bool{}}

// Main is a package's TestMain: it runs the tests, a *testing.M or what wraps one, in both families, and ends the fixtures.
func Main(m interface{ Run() int }) {
	family.Tested = []family.Family{family.V4, family.V6}
	code := m.Run()
	if err := fixtures.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// take hands a fixture out until the test ends.
func (p *pool) take(t testing.TB, k kind) *fixture {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[k] {
		t.Fatal("the test has a rig of this kind already, or another one runs beside it")
	}
	f, err := p.get(k)
	if err != nil {
		t.Fatal(err)
	}
	p.taken[k] = true
	t.Cleanup(func() { p.giveBack(t, k) })
	return f
}

// get gives a new fixture or one that is as new. One that cannot be brought back fails the test that asked for
// it, and no more.
func (p *pool) get(k kind) (*fixture, error) {
	if f := p.fixtures[k]; f != nil {
		err := f.bringBack()
		if err == nil {
			return f, nil
		}
		delete(p.fixtures, k)
		return nil, errors.Join(fmt.Errorf("bring the fixture back to its beginning: %w", err), f.close())
	}
	f, err := newFixture(k)
	if err != nil {
		return nil, fmt.Errorf("make a fixture: %w", err)
	}
	p.fixtures[k] = f
	return f, nil
}

func (p *pool) giveBack(t testing.TB, k kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken[k] = false
	if err := p.fixtures[k].rest(); err != nil {
		t.Error(err)
	}
}

func (p *pool) close() error {
	var errs []error
	for _, f := range p.fixtures {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}
