// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/figure3"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// What conenat is for: the NAT of a real Docker turns symmetric for a peer whose packet came first. Should
// this fail one day, then Docker or netfilter changed, and no test "after" proves anything any more. IPv6, which needs no conenat here, is
// always tested.
func TestFigure3DockerTurnsSymmetric(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) { dockerTurnsSymmetric(t, fam) })
	}
}

func dockerTurnsSymmetric(t *testing.T, fam family.Family) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{SymmetricPeer: true, IPv6: fam == family.V6})
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{IPv6: fam == family.V6})
	experiment, err := figure3.OnFamily(fam, f, d.RunForTest(t, docker.Spec{Name: "agent"}).In(fam))
	if err != nil {
		t.Fatal(err)
	}
	experiment.Arrived = figure3.ConntrackEntry(f.Host)
	for i, order := range figure3.Orders {
		t.Run(order.String(), func(t *testing.T) {
			ports := figure3.Ports{Container: uint16(20000 + i), Peer: 40000}
			result, err := experiment.Run(t.Context(), order, ports)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(result)
			if kept := result.SeenBySTUN.Port() == ports.Container; !kept {
				t.Errorf("Docker did not preserve the port for the STUN server: %v", result)
			}
			if !result.Symmetric() || result.Reached {
				t.Errorf("Docker's NAT did not turn symmetric: %v", result)
			}
		})
	}
	t.Run("SymmetricCaller", func(t *testing.T) {
		call, err := experiment.Call(t.Context(), probe.InFamily(fam, f.Peer3), 21000)
		if err != nil {
			t.Fatal(err)
		}
		if call.CameFrom.IsValid() {
			t.Errorf("Docker let a call in from a port that the container never sent to: %+v", call)
		}
	})
}
