// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

// twinHost has a bridge twin (index 7) with the addresses of docker0 (index 3), which the host's routing leads to.
func twinHost() *fakeHost {
	h := dockerHost()
	docker0, _ := h.snapshot.Link("docker0")
	h.snapshot.Links = append(h.snapshot.Links, hostnet.Link{Index: 7, Name: "twin", Kind: "bridge", Addresses: docker0.Addresses})
	h.snapshot.Shared = []hostnet.Shared{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Links: []int{3, 7}, Routed: 3}}
	return h
}

func names(t *testing.T, w *world) (list []string) {
	t.Helper()
	networks, err := w.dp.Networks()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		list = append(list, n.Name)
	}
	return list
}

// TestOverlappingNetworks: both on the direct path, where the rules for the host's NAT tell them apart; on the stack path the one
// that routing leads to alone, which is said.
func TestOverlappingNetworks(t *testing.T) {
	forward := dataplane.Forward{Protocol: dataplane.TCP, Network: "twin", External: external, Internal: internal}
	cfg := config.Config{Inside: []string{"docker0", "twin"}, Path: config.PathDirect, Forwards: []dataplane.Forward{forward}}
	w := worldOf(cfg, twinHost(), dataplanetest.New())
	w.start(t)
	both := func(when string) {
		t.Helper()
		if diff := cmp.Diff([]string{"docker0", "twin"}, names(t, w)); diff != "" || len(w.View().Problems) != 0 || len(w.View().LeftAlone) != 0 {
			t.Errorf("%s: %s%q %+v", when, diff, w.View().Problems, w.View().LeftAlone)
		}
		from := map[int]int{}
		for _, p := range w.exc.pairs {
			from[p.From]++
		}
		if len(w.exc.pairs) != 2 || from[3] != 1 || from[7] != 1 {
			t.Errorf("%s: rules of %+v", when, w.exc.pairs)
		}
		if forwards, err := w.Forwards(); err != nil || len(forwards) != 1 || !forwards[0].Active {
			t.Errorf("%s: forwards %+v, %v", when, forwards, err)
		}
	}
	both("direct")
	w.cfg.Path = config.PathStack
	w.again()
	alone := w.View().LeftAlone
	if diff := cmp.Diff([]string{"docker0"}, names(t, w)); diff != "" || len(alone) != 1 || alone[0].Interface != "twin" {
		t.Errorf("stack: %s%+v", diff, alone)
	}
	if p := w.View().Problems; !slices.ContainsFunc(p, func(s string) bool {
		return strings.Contains(s, "network twin is not translated") && strings.Contains(s, "docker0")
	}) {
		t.Errorf("stack: problems %q", p)
	}
	if slices.Contains(w.links(), "twin") {
		t.Errorf("stack: hooks on %v", w.links())
	}
	if forwards, err := w.Forwards(); err != nil || len(forwards) != 1 || forwards[0].Active {
		t.Errorf("stack: forwards %+v, %v", forwards, err)
	}
	w.host.snapshot.Shared[0].Routed = 7
	w.again()
	if diff := cmp.Diff([]string{"twin"}, names(t, w)); diff != "" {
		t.Errorf("stack, routing has moved: %s", diff)
	}
	w.cfg.Path = config.PathDirect
	w.again()
	both("direct again")
	w.host.snapshot.Shared[0].Routed = 3
	w.host.edit("twin", func(l *hostnet.Link) { l.StrictSource = true })
	w.host.edit("docker0", func(l *hostnet.Link) { l.StrictSource = true })
	w.again()
	if p := w.View().Problems; len(p) != 1 || !strings.Contains(p[0], "net.ipv4.conf.twin.rp_filter=2") {
		t.Errorf("strict: problems %q", p)
	}
}

// TestTakeoverOfOverlappingNetworks: conntrack knows no networks; its connections are those of the one that routing leads to.
func TestTakeoverOfOverlappingNetworks(t *testing.T) {
	prefix := netip.MustParsePrefix("172.17.0.0/16")
	s := plan.State{Outsides: []dataplane.Outside{{Name: "eth0", Addresses: []netip.Addr{external.Addr()}}},
		Networks: []dataplane.Network{{Name: "twin", IfIndex: 7, Prefixes: []netip.Prefix{prefix}}, {Name: "docker0", IfIndex: 3, Prefixes: []netip.Prefix{prefix}}}}
	remote := netip.MustParseAddrPort("203.0.113.1:53")
	f := conntrack.Flow{Protocol: dataplane.UDP, SourceNAT: true, Original: conntrack.Tuple{Src: internal, Dst: remote},
		Reply: conntrack.Tuple{Src: remote, Dst: external}}
	for routed, want := range map[int]string{3: "docker0", 7: "twin", 0: ""} {
		host := twinHost().snapshot
		host.Shared[0].Routed = routed
		out, got := sortFlows([]conntrack.Flow{f}, s, host), ""
		if len(out.sessions) > 0 {
			got = out.sessions[0].Network
		}
		if got != want || (want == "") != (len(out.others) == 1) {
			t.Errorf("routed by %d: of network %q, want %q; %+v", routed, got, want, out.others)
		}
	}
}
