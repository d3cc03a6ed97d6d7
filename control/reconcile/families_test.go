// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// dual is dockerHost with IPv6 on all that it has.
func dual() hostnet.Snapshot {
	s := dockerHost().snapshot
	s.Default6, s.IPv6Forward = []int{2}, true
	for i := range s.Links {
		switch l := &s.Links[i]; l.Name {
		case "eth0":
			l.Addresses = append(l.Addresses, netip.MustParsePrefix("2001:db8::1/64"))
		case "docker0":
			l.Tentative = []netip.Prefix{netip.MustParsePrefix("fd00::1/64")}
		}
	}
	return s
}

// dualWeb is web with an IPv6 address, and a port on it.
func dualWeb() docker.Endpoint {
	e := web()
	e.Address6 = netip.MustParseAddr("fd00::2")
	e.Published = append(e.Published, docker.Published{Protocol: dataplane.TCP, Host: netip.IPv6Unspecified(), HostPort: 8080, ContainerPort: 80})
	return e
}

// TestBothFamiliesAreDesired: what the dataplane is to have of a network with both families.
func TestBothFamiliesAreDesired(t *testing.T) {
	tests := []struct {
		name             string
		partly           docker.Partly
		prefixes, owners string
		leftAlone        []LeftAlone
	}{
		{"both", docker.Partly{}, "172.17.0.0/16 fd00::/64", "172.17.0.2 fd00::2", nil},
		{"IPv6_routed", docker.Partly{IPv6: "gateway mode routed"}, "172.17.0.0/16", "172.17.0.2",
			[]LeftAlone{{"bridge", "docker0", "bridge", "IPv6: gateway mode routed"}}},
		{"IPv4_routed", docker.Partly{IPv4: "gateway mode routed"}, "fd00::/64", "fd00::2",
			[]LeftAlone{{"bridge", "docker0", "bridge", "IPv4: gateway mode routed"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config.Config{Settings: dataplane.DefaultSettings()}
			cfg.Docker = true
			p := docker.Snapshot{Connected: true, Engine: "29.0", Networks: []docker.Network{{ID: "b", Name: "bridge", Driver: "bridge",
				Interface: "docker0", ICC: true, Partly: tt.partly, Endpoints: []docker.Endpoint{dualWeb()}}}}
			got := desire(inputs{cfg: cfg, host: dual(), docker: p})
			if len(got.Networks) != 1 || len(got.Outsides) != 1 || len(got.problems) != 0 {
				t.Fatalf("%+v", got)
			}
			outside := []netip.Addr{external.Addr(), netip.MustParseAddr("2001:db8::1")}
			if tt.partly.IPv6 != "" {
				outside = outside[:1]
			}
			if diff := cmp.Diff(outside, got.Outsides[0].Addresses, compareIP); diff != "" {
				t.Error(diff)
			}
			n := got.Networks[0]
			var owners []any
			for _, o := range got.Owners {
				owners = append(owners, o.Address)
			}
			var prefixes []any
			for _, p := range n.Prefixes {
				prefixes = append(prefixes, p)
			}
			if join(prefixes...) != tt.prefixes || join(owners...) != tt.owners {
				t.Errorf("prefixes %v, owners %v", prefixes, owners)
			}
			if n.Address.IsValid() != (tt.partly.IPv4 == "") || n.Address6.IsValid() != (tt.partly.IPv6 == "") {
				t.Errorf("addresses %v and %v", n.Address, n.Address6)
			}
			if diff := cmp.Diff(tt.leftAlone, got.leftAlone); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestAdoptedFamilies: until Docker answers, a network that an earlier daemon had is translated in the families that it was.
func TestAdoptedFamilies(t *testing.T) {
	four, six := netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00::/64")
	for _, had := range [][]netip.Prefix{{four}, {six}, {four, six}} {
		actual := plan.State{Networks: []dataplane.Network{{Name: "docker0", Prefixes: had}}}
		got := desire(inputs{cfg: config.Config{Docker: true}, host: dual(), actual: actual})
		if len(got.Networks) != 1 || !slices.Equal(got.Networks[0].Prefixes, had) {
			t.Errorf("had %v, and has %+v", had, got.Networks)
		}
	}
}

// TestRoutedIPv6IsLeftAlone: where Docker has no NAT of IPv6, nothing of it is translated that is not already.
func TestRoutedIPv6IsLeftAlone(t *testing.T) {
	six := netip.MustParsePrefix("fd00::/64")
	both := docker.Network{Name: "both", Interface: "docker0", Subnets: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), six}}
	only := docker.Network{Name: "six", Interface: "br-six", Subnets: []netip.Prefix{six}}
	four := docker.Network{Name: "four", Interface: "br-four", Subnets: both.Subnets[:1]}
	mode := docker.Network{Name: "mode", Interface: "br-mode", Subnets: both.Subnets, Partly: docker.Partly{IPv6: "gateway mode routed"}}
	for _, tt := range []struct {
		name       string
		nat6       bool
		translated []netip.Prefix // of docker0, by now
		both, six  string
	}{
		{"no_NAT", false, nil, noNAT6, noNAT6},
		{"NAT", true, nil, "", ""},
		{"translated_already", false, []netip.Prefix{six}, "", noNAT6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, config.Config{})
			w.firewall = &fakeFirewall{nat6: tt.nat6}
			w.pass = w.newPass()
			actual := plan.State{Networks: []dataplane.Network{{Name: "docker0", Prefixes: tt.translated}}}
			got := w.withoutRouted(docker.Snapshot{Networks: []docker.Network{both, only, four, mode}}, actual).Networks
			if got[0].Partly.IPv6 != tt.both || got[0].LeftAlone != "" || got[1].LeftAlone != tt.six || got[2].LeftAlone != "" || got[3].Partly != mode.Partly {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestPublishedOnIPv6: a port that is published on :: leads from an external address of IPv6 to the container's own.
func TestPublishedOnIPv6(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	outsides := []dataplane.Outside{{Name: "eth0", IfIndex: 2, Addresses: []netip.Addr{six}}}
	got := inside{name: "docker0"}.forwards(outsides, nil, dualWeb())
	want := []dataplane.Forward{{Protocol: dataplane.TCP, Network: "docker0", External: netip.AddrPortFrom(six, 8080),
		Internal: netip.MustParseAddrPort("[fd00::2]:80"), OverHostSocket: true, Published: true}}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
	only4 := dualWeb()
	only4.Address6 = netip.Addr{}
	if got := (inside{name: "docker0"}).forwards(outsides, nil, only4); got != nil {
		t.Errorf("of a container without IPv6: %v", got)
	}
}

// TestIPv6OfAHostThatNeedsNone: while no network has IPv6, its outsides' addresses are not asked for.
func TestIPv6OfAHostThatNeedsNone(t *testing.T) {
	cfg := config.Config{Settings: dataplane.DefaultSettings(), Exclude: []netip.Prefix{netip.MustParsePrefix("fd01::/64")}}
	cfg.Docker = true
	p := docker.Snapshot{Connected: true, Engine: "29.0", Networks: []docker.Network{{ID: "b", Name: "bridge", Driver: "bridge",
		Interface: "docker0", ICC: true, Partly: docker.Partly{IPv6: "gateway mode routed"}, Endpoints: []docker.Endpoint{dualWeb()}}}}
	got := desire(inputs{cfg: cfg, host: dual(), docker: p})
	for _, o := range got.Outsides {
		if slices.ContainsFunc(o.Addresses, netip.Addr.Is6) {
			t.Errorf("outside %+v", o)
		}
	}
	for _, n := range got.Networks {
		if n.Address6.IsValid() || len(n.Exclude) > 0 {
			t.Errorf("network %+v", n)
		}
	}
}
