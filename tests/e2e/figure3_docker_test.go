// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/figure3"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// Figure 3 under a real dockerd with conenat in the place of Docker's NAT: one endpoint for every peer, in
// every order, whatever the port, and Docker's rules are the same before, during and after.
func TestFigure3ConenatStaysCone(t *testing.T) { family.Each(t, testFigure3ConenatStaysCone) }

func testFigure3ConenatStaysCone(t *testing.T, fam family.Family) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{SymmetricPeer: true, IPv6: fam == family.V6})
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{IPv6: fam == family.V6})
	agent := d.RunForTest(t, docker.Spec{Name: "agent"})
	experiment, err := figure3.OnFamily(fam, f, agent.In(fam))
	if err != nil {
		t.Fatal(err)
	}
	before := rules(t, f)
	conenat := harness.Start(t, f.Topo, f.Host, "--inside", "docker0", "--outside", "eth0")
	for _, order := range figure3.Orders {
		t.Run(order.String(), func(t *testing.T) { manyPorts(t, experiment, order) })
	}
	t.Run("SymmetricCaller", func(t *testing.T) {
		call, err := experiment.Call(t.Context(), probe.InFamily(fam, f.Peer3), 0)
		if err != nil {
			t.Fatal(err)
		}
		if !call.Connected() || call.CameFrom == call.Announced {
			t.Errorf("%+v", call)
		}
	})
	if diff := cmp.Diff(before, rules(t, f)); diff != "" {
		t.Errorf("iptables-save while conenat runs (-before +during):\n%s", diff)
	}
	conenat.Detach()
	if diff := cmp.Diff(before, rules(t, f)); diff != "" {
		t.Errorf("iptables-save after conenat (-before +after):\n%s", diff)
	}
	t.Run("DockerAgain", func(t *testing.T) {
		experiment.Arrived = figure3.ConntrackEntry(f.Host)
		result, err := experiment.Run(t.Context(), figure3.StunFirst, figure3.Ports{Container: 1023})
		if err != nil {
			t.Fatal(err)
		}
		if !result.Symmetric() {
			t.Errorf("after detach it is not Docker's NAT that translates: %v", result)
		}
	})
}

func rules(t *testing.T, f *topo.Figure3) string {
	t.Helper()
	saved, err := topo.SaveRules(t.Context(), f.Host)
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

// manyPorts makes the experiment with 100 random ports of container and peer, none twice.
func manyPorts(t *testing.T, experiment figure3.Experiment, order figure3.Order) {
	const runs = 100
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, seed))
	for _, n := range random.Perm(65536 - 1024)[:runs] {
		ports := figure3.Ports{Container: uint16(1024 + n), Peer: uint16(1024 + random.IntN(65536-1024))}
		result, err := experiment.Run(t.Context(), order, ports)
		if err != nil {
			t.Errorf("seed %d, ports %+v: %v", seed, ports, err)
			continue
		}
		if result.Symmetric() || !result.Reached {
			t.Errorf("seed %d: %v", seed, result)
		}
	}
}
