// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// TestNPTv6: by the configuration, by a label, which comes first, and as an earlier daemon had it until Docker answers. Where it cannot
// be, IPv6 is left alone, and somebody told.
func TestNPTv6(t *testing.T) {
	asked := netip.MustParsePrefix("2001:db8:1::/64")
	mode, nat := dataplane.ModeNPTv6, dataplane.ModeNAT
	own := func(p netip.Prefix) map[string]config.Network {
		return map[string]config.Network{"bridge": {Mode: dataplane.ModeNPTv6, ExternalPrefix: p}}
	}
	for name, tt := range map[string]struct {
		networks map[string]config.Network
		label    *dataplane.Mode
		prefix   netip.Prefix
		mode     dataplane.Mode
		problem  string
	}{
		"NAT":        {},
		"Configured": {networks: own(asked), mode: mode},
		"Labelled":   {label: &mode, prefix: asked, mode: mode},
		"LabelFirst": {networks: own(asked), label: &nat},
		"Length": {networks: own(netip.MustParsePrefix("2001:db8:1::/48")),
			problem: "network bridge: external prefix 2001:db8:1::/48 is not as long as fd00::/64, which it is to take the place of: its IPv6 is not translated"},
	} {
		t.Run(name, func(t *testing.T) {
			p := docker.Snapshot{Connected: true, Engine: "29.0", Networks: []docker.Network{{ID: "b", Name: "bridge", Driver: "bridge",
				Interface: "docker0", ICC: true, Mode: tt.label, ExternalPrefix: tt.prefix, Endpoints: []docker.Endpoint{dualWeb()}}}}
			got := desire(inputs{cfg: config.Config{Docker: true, Networks: tt.networks}, host: dual(), docker: p})
			if len(got.Networks) != 1 {
				t.Fatalf("%+v", got)
			}
			n := got.Networks[0]
			if n.Mode != tt.mode || n.ExternalPrefix.IsValid() != (tt.mode == mode) || slices.ContainsFunc(n.Prefixes, isIPv6) == (tt.problem != "") {
				t.Errorf("%+v", n)
			}
			if strings.Join(got.problems, "; ") != tt.problem {
				t.Errorf("problems %q", got.problems)
			}
			adopted := desire(inputs{cfg: config.Config{Docker: true}, host: dual(), actual: plan.State{Networks: got.Networks}})
			if len(adopted.Networks) != 1 || adopted.Networks[0].Mode != n.Mode || adopted.Networks[0].ExternalPrefix != n.ExternalPrefix {
				t.Errorf("adopted: %+v", adopted.Networks)
			}
		})
	}
}

// TestNPTv6OfTwoNetworks: an external prefix is one network's.
func TestNPTv6OfTwoNetworks(t *testing.T) {
	t1 := target{}
	want := inside{mode: dataplane.ModeNPTv6, prefix: netip.MustParsePrefix("2001:db8:1::/64")}
	for _, prefix := range []string{"fd00:1::/64", "fd00:2::/64"} {
		n := dataplane.Network{Name: "br" + prefix[3:5], Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}}
		t1.translatePrefix(&n, want)
		t1.Networks = append(t1.Networks, n)
	}
	if len(t1.Networks[1].Prefixes) != 0 || len(t1.problems) != 1 || !strings.Contains(t1.problems[0], "is network br0:'s") {
		t.Errorf("%+v %q", t1.Networks, t1.problems)
	}
}

// TestNPTv6WithoutDockersNAT: who asks for it asks for nothing of Docker's rules.
func TestNPTv6WithoutDockersNAT(t *testing.T) {
	mode := dataplane.ModeNPTv6
	six := docker.Network{Name: "six", Interface: "docker0", Subnets: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}
	asked := six
	asked.Mode, asked.ExternalPrefix = &mode, netip.MustParsePrefix("2001:db8:1::/64")
	w := newWorld(t, config.Config{})
	w.firewall = &fakeFirewall{}
	w.pass = w.newPass()
	got := w.withoutRouted(docker.Snapshot{Networks: []docker.Network{six, asked}}, plan.State{})
	if got.Networks[0].LeftAlone == "" || got.Networks[1].LeftAlone != "" {
		t.Errorf("%+v", got.Networks)
	}
}

// TestRouted: a published port is the container's own, at its own addresses.
func TestRouted(t *testing.T) {
	mode := dataplane.ModeRouted
	p := docker.Snapshot{Connected: true, Engine: "29.0", Networks: []docker.Network{{ID: "b", Name: "bridge", Driver: "bridge",
		Interface: "docker0", ICC: true, Mode: &mode, Endpoints: []docker.Endpoint{dualWeb()}}}}
	got := desire(inputs{cfg: config.Config{Docker: true}, host: dual(), docker: p})
	if len(got.Networks) != 1 || got.Networks[0].Mode != mode || len(got.Networks[0].Prefixes) != 2 || len(got.problems) != 0 {
		t.Errorf("%+v", got)
	}
	var lines []string
	for _, f := range got.Forwards {
		lines = append(lines, join(f.Protocol, f.External, f.Internal, f.Published))
	}
	slices.Sort(lines)
	want := []string{"tcp 172.17.0.2:80 172.17.0.2:80 true", "tcp [fd00::2]:80 [fd00::2]:80 true", "udp 172.17.0.2:53 172.17.0.2:53 true"}
	if !slices.Equal(slices.Compact(lines), want) {
		t.Errorf("%q, want %q", lines, want)
	}
}
