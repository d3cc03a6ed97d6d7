// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// rangesOf are ranges as in a label.
func rangesOf(t *testing.T, text string) []config.Range {
	t.Helper()
	if text == "" {
		return nil
	}
	list, err := config.ParseRanges(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// poolWorld is dockerHost with more addresses on eth0, in an order that is not theirs.
func poolWorld() *fakeHost {
	h := dockerHost()
	h.edit("eth0", func(l *hostnet.Link) {
		for _, a := range []string{"198.51.100.9", "198.51.100.7", "203.0.113.8", "203.0.113.9"} {
			l.Addresses = append(l.Addresses, netip.MustParsePrefix(a+"/24"))
		}
	})
	return h
}

// TestPools: which addresses an outside has, which of them networks and containers, and what is told.
func TestPools(t *testing.T) {
	const first, second, third = "198.51.100.1", "198.51.100.9", "203.0.113.8"
	for _, tt := range []struct {
		name                    string
		external                string // the configuration's
		network, web            string // labels
		alone, excluded         bool
		was                     []string
		outside, pinned, owners string
		published               string
		problems                []string
	}{
		{name: "first_by_default", outside: first, published: first},
		{name: "all_that_are_named", external: "198.51.100.0/24", outside: first + " 198.51.100.7 " + second, published: first + " 198.51.100.7 " + second},
		{name: "a_range", external: "203.0.113.8-203.0.113.15", outside: third + " 203.0.113.9", published: third + " 203.0.113.9"},
		{name: "first_stays", external: "198.51.100.0/24", was: []string{second}, outside: second + " " + first + " 198.51.100.7", published: second + " " + first + " 198.51.100.7"},
		{name: "of_a_network", network: "203.0.113.0/24", outside: first + " " + third + " 203.0.113.9", pinned: third + " 203.0.113.9", published: third + " 203.0.113.9"},
		{name: "of_a_container", web: third, outside: first + " " + third, owners: "172.17.0.2 " + third, published: third},
		{name: "container_before_network", network: second, web: third, outside: first + " " + second + " " + third, pinned: second, owners: "172.17.0.2 " + third, published: third},
		{name: "one_to_one", web: third, alone: true, outside: first + " " + third, owners: "172.17.0.2 " + third + " alone open", published: third},
		{name: "excluded", web: third, excluded: true, outside: first, owners: "172.17.0.2 " + third},
		{name: "hosts_own", web: first, alone: true, outside: first, owners: "172.17.0.2 " + first, published: first, problems: []string{
			"container web: no 1:1 with 198.51.100.1: it is the host's own",
			"outside interface eth0: networks and containers have named all its external addresses"}},
		{name: "claimed_twice", network: third, web: third, alone: true, outside: first + " " + third, pinned: third, owners: "172.17.0.2 " + third, published: third,
			problems: []string{"container web: no 1:1 with 203.0.113.8: network bridge has named it, too"}},
		{name: "nowhere", web: "192.0.2.9", outside: first, owners: "172.17.0.2 192.0.2.9", problems: []string{
			"container web: no outside interface has the external address 192.0.2.9: what would leave from it is dropped"}},
		{name: "range_nowhere", network: "192.0.2.8/29", outside: first, pinned: "192.0.2.8", problems: []string{
			"network bridge: no outside interface has the external address 192.0.2.8-192.0.2.15"}},
		{name: "configured_and_nowhere", external: first + ",192.0.2.9", outside: first, published: first, problems: []string{
			"external: no outside interface has the external address 192.0.2.9: waiting for it"}},
		{name: "none_left", external: "192.0.2.9", was: []string{"192.0.2.9"}, outside: "192.0.2.9", published: "192.0.2.9", problems: []string{
			"outside interface eth0 does not have the external address 192.0.2.9: waiting for it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := docker.Endpoint{ID: "aa", Name: "web", Address: netip.MustParseAddr("172.17.0.2"), NetNSID: -1, Excluded: tt.excluded,
				External: rangesOf(t, tt.web), OneToOne: tt.alone,
				Published: []docker.Published{{Protocol: dataplane.TCP, Host: netip.IPv4Unspecified(), HostPort: 80, ContainerPort: 80}}}
			p := picture(e)
			p.Problems, p.Networks[0].External = nil, rangesOf(t, tt.network)
			in := inputs{cfg: config.Config{Docker: true, External: rangesOf(t, tt.external)}, host: poolWorld().snapshot, docker: p}
			if tt.was != nil {
				in.actual = plan.State{Outsides: []dataplane.Outside{{Name: "eth0", Addresses: addresses(tt.was...)}}}
			}
			got := desire(in)
			for what, pair := range map[string][2]string{
				"outside": {tt.outside, joined(got.Outsides[0].Addresses)}, "network": {tt.pinned, joined(got.Networks[0].External)},
				"owners": {tt.owners, namedOwners(got.Owners)}, "published": {tt.published, publishedOn(got.Forwards)},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s: %q, want %q", what, pair[1], pair[0])
				}
			}
			if len(got.problems) != len(tt.problems) {
				t.Fatalf("problems %q, want %q", got.problems, tt.problems)
			}
			for i, prefix := range tt.problems {
				if !strings.Contains(strings.Join(got.problems, "\n"), prefix) {
					t.Errorf("problems %q, want %q", got.problems, tt.problems[i])
				}
			}
		})
	}
}

func addresses(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func joined(list []netip.Addr) string { return strings.Trim(fmt.Sprint(list), "[]") }

func namedOwners(list []dataplane.Owner) string {
	var out []string
	for _, o := range list {
		if len(o.External) == 0 {
			continue
		}
		out = append(out, o.Address.String(), joined(o.External))
		if o.OneToOne {
			out = append(out, "alone")
		}
		if o.Filtering != nil && *o.Filtering == everybody {
			out = append(out, "open")
		}
	}
	return strings.Join(out, " ")
}

func publishedOn(list []dataplane.Forward) string {
	var out []string
	for _, f := range list {
		out = append(out, f.External.Addr().String())
	}
	return strings.Join(out, " ")
}

// TestOneToOneTwice: of two containers that want all of one address, nobody has it, and both are kept to it.
func TestOneToOneTwice(t *testing.T) {
	a := docker.Endpoint{ID: "aa", Name: "a", Address: netip.MustParseAddr("172.17.0.2"), NetNSID: -1, External: rangesOf(t, "203.0.113.8"), OneToOne: true}
	b := a
	b.ID, b.Name, b.Address = "bb", "b", netip.MustParseAddr("172.17.0.3")
	p := picture(a, b)
	p.Problems = nil
	got := desire(inputs{cfg: config.Config{Docker: true}, host: poolWorld().snapshot, docker: p})
	if diff := cmp.Diff("172.17.0.2 203.0.113.8 172.17.0.3 203.0.113.8", namedOwners(got.Owners)); diff != "" {
		t.Error(diff)
	}
	if text := strings.Join(got.problems, "\n"); !strings.Contains(text, "container a: no 1:1 with 203.0.113.8: container b has named it, too") || !strings.Contains(text, "container b: no 1:1") {
		t.Errorf("problems %q", got.problems)
	}
}

// TestPoolFollowsTheHost: an address that comes is used, and one that goes is not, while the others stay.
func TestPoolFollowsTheHost(t *testing.T) {
	w := newWorld(t, config.Config{External: rangesOf(t, "198.51.100.0/24")})
	w.start(t)
	pool := func() string {
		outsides, _ := w.dp.Outsides()
		return joined(outsides[0].Addresses)
	}
	if got := pool(); got != "198.51.100.1 198.51.100.9" {
		t.Fatalf("pool %s", got)
	}
	w.host.edit("eth0", func(l *hostnet.Link) { l.Addresses = append(l.Addresses, netip.MustParsePrefix("198.51.100.44/24")) })
	w.again()
	if got := pool(); got != "198.51.100.1 198.51.100.9 198.51.100.44" {
		t.Errorf("pool %s", got)
	}
	w.host.edit("eth0", func(l *hostnet.Link) { l.Addresses = l.Addresses[1:] })
	w.again()
	if got := pool(); got != "198.51.100.9 198.51.100.44" {
		t.Errorf("pool %s", got)
	}
}
