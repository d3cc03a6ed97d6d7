// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/conenat/conenat/tests/require"
)

// family is one of the two objects that the C is compiled to. Its programs are in the budget by their names and the suffix.
type family struct {
	name, suffix string
	load         func() (*ebpf.CollectionSpec, error)
}

var families = []family{{"IPv4", "", Load}, {"IPv6", "6", Load6}}

// TestLoadsWithEveryConstant loads the objects with each combination of their boolean constants: a branch behind a
// constant that is never set is never verified. What the verifier looks at is held to the kernel's budget.
func TestLoadsWithEveryConstant(t *testing.T) {
	require.Root(t)
	largest := counts{}
	var mu sync.Mutex
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			constants := f.booleanConstants(t)
			if len(constants) < 3 {
				t.Fatalf("the object has the boolean constants %q; there were three", constants)
			}
			for bits := range 1 << len(constants) {
				t.Run(fmt.Sprintf("%0*b", len(constants), bits), func(t *testing.T) {
					t.Parallel()
					verified := f.verify(t, constants, bits)
					mu.Lock()
					defer mu.Unlock()
					largest.raise(verified)
				})
			}
		})
	}
	checkBudget(t, largest)
}

// booleanConstants are what the object has, so that none is left out that is added.
func (f family) booleanConstants(t *testing.T) []string {
	t.Helper()
	spec, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, v := range spec.Variables {
		if isBoolean(v) && v.Constant() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func isBoolean(v *ebpf.VariableSpec) bool {
	if v.Type == nil {
		return false
	}
	i, ok := btf.UnderlyingType(v.Type.Type).(*btf.Int)
	return ok && i.Encoding == btf.Bool
}

// verify loads the programs with the constants whose bits are set, and says how much of each was verified.
func (f family) verify(t *testing.T, constants []string, bits int) counts {
	t.Helper()
	spec, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var set []string
	for i, name := range constants {
		value := bits&(1<<i) != 0
		if err := spec.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
		set = append(set, fmt.Sprintf("%s=%t", name, value))
	}
	coll, err := ebpf.NewCollection(spec)
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		t.Fatalf("with %s: %+v", strings.Join(set, ", "), verifier)
	}
	if err != nil {
		t.Fatalf("with %s: %v", strings.Join(set, ", "), err)
	}
	defer coll.Close()
	verified := counts{}
	for _, name := range slices.Sorted(maps.Keys(coll.Programs)) {
		info, err := coll.Programs[name].Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if !ok {
			t.Fatalf("%s: the kernel does not say how much it has verified", name)
		}
		verified[name+f.suffix] = int(n)
	}
	return verified
}
