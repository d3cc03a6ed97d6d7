// SPDX-License-Identifier: Apache-2.0

package figure3

import (
	"testing"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// The experiment must tell a NAT that turns symmetric from one that does not, or it proves nothing: netfilter
// under Docker's rules does, no NAT at all cannot; in IPv6 likewise.
func TestExperimentTellsThemApart(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) { testTellsThemApart(t, fam) })
	}
}

func testTellsThemApart(t *testing.T, fam family.Family) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1, SymmetricPeer: true, IPv6: fam == family.V6})
	experiment, err := OnFamily(fam, f, probe.InFamily(fam, f.Containers[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := topo.DockerRules(t.Context(), f.Host); err != nil {
		t.Fatal(err)
	}
	for i, order := range Orders {
		netfilter := experiment
		netfilter.Arrived = ConntrackEntry(f.Host)
		ports := Ports{Container: uint16(20000 + i), Peer: 40000}
		result, err := netfilter.Run(t.Context(), order, ports)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(result)
		if !result.Symmetric() || result.Reached {
			t.Errorf("under netfilter: %v", result)
		}
		plain := experiment
		plain.Container = probe.InFamily(fam, f.Host)
		ports.Container += 100
		if result, err = plain.Run(t.Context(), order, ports); err != nil {
			t.Fatal(err)
		}
		if result.Symmetric() || !result.Reached {
			t.Errorf("without NAT: %v", result)
		}
	}
	call, err := experiment.Call(t.Context(), probe.InFamily(fam, f.Peer3), 21000)
	if err != nil {
		t.Fatal(err)
	}
	if call.CameFrom.IsValid() {
		t.Errorf("netfilter let a call from an unknown port in: %+v", call)
	}
	experiment.Container = probe.InFamily(fam, f.Host)
	call, err = experiment.Call(t.Context(), probe.InFamily(fam, f.Peer3), 22000)
	if err != nil {
		t.Fatal(err)
	}
	if !call.Connected() || call.CameFrom == call.Announced {
		t.Errorf("call without NAT on this side: %+v", call)
	}
}
