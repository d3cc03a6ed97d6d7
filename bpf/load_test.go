// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/tests/require"
)

// TestLoadsWithEveryConstant loads the object with each combination of its constants: a branch behind a
// constant that is never set is never verified.
func TestLoadsWithEveryConstant(t *testing.T) {
	require.Root(t)
	constants := []string{ConstFIBSkipNeigh, ConstHaveConntrack, ConstClockIsVirtual}
	for bits := range 1 << len(constants) {
		spec, err := Load()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinNone
		}
		for i, name := range constants {
			if err := spec.Variables[name].Set(bits&(1<<i) != 0); err != nil {
				t.Fatal(err)
			}
		}
		coll, err := ebpf.NewCollection(spec)
		var verifier *ebpf.VerifierError
		if errors.As(err, &verifier) {
			t.Fatalf("constants %03b: %+v", bits, verifier)
		}
		if err != nil {
			t.Fatalf("constants %03b: %v", bits, err)
		}
		for name, p := range coll.Programs {
			info, err := p.Info()
			if err != nil {
				t.Fatal(err)
			}
			n, _ := info.VerifiedInstructions()
			t.Logf("%s: %d instructions verified", name, n)
		}
		coll.Close()
	}
}
