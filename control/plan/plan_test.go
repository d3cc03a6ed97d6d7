// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

var (
	prefixA = netip.MustParsePrefix("172.17.0.0/16")
	prefixB = netip.MustParsePrefix("172.18.0.0/16")
	addr    = netip.MustParseAddr("198.51.100.1")
)

func settings(variant int64) dataplane.Settings {
	s := dataplane.DefaultSettings()
	s.SessionsPerBinding += uint32(variant)
	return s
}

// fast is full() with XDP on the outside and on a port.
func fast() State {
	s := full()
	s.Links[2].XDP, s.Links[3].XDP = dataplane.XDPTranslate, dataplane.XDPTranslate
	return s
}

func full() State {
	return State{
		Settings: settings(0),
		Outsides: []dataplane.Outside{{Name: "eth0", IfIndex: 2, Addresses: []netip.Addr{addr}}},
		Networks: []dataplane.Network{{Name: "br0", IfIndex: 3, Gateway: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Prefixes: []netip.Prefix{prefixA}}},
		Forwards: []dataplane.Forward{{Protocol: dataplane.TCP, Network: "br0", External: netip.AddrPortFrom(addr, 8080), Internal: netip.MustParseAddrPort("172.17.0.2:80")}},
		Links: []dataplane.Link{
			{IfIndex: 3, Name: "br0", Kind: dataplane.InsideDevice, Owner: "br0"},
			{IfIndex: 5, Name: "veth1", Kind: dataplane.InsidePort, Owner: "br0", Peer: true},
			{IfIndex: 4, Name: "veth0", Kind: dataplane.InsidePort, Owner: "br0", Peer: true},
			{IfIndex: 2, Name: "eth0", Kind: dataplane.OutsideLink, Owner: "eth0"},
		},
	}
}

func TestNew(t *testing.T) {
	empty := State{Settings: settings(0)}
	tests := []struct {
		name   string
		change func(s *State) // of the desired state, which is full() before
		actual State
		want   []string
	}{
		{"everything_from_nothing", func(*State) {}, State{}, []string{
			"configure", "put outside eth0", "put network br0", "add forward tcp/198.51.100.1:8080",
			"attach outside hooks, interface eth0 (index 2)",
			"attach inside-port hooks, interface veth0 (index 4)", "attach inside-port hooks, interface veth1 (index 5)",
			"attach inside-device hooks, interface br0 (index 3)",
		}},
		{"nothing_from_everything", func(s *State) { *s = empty }, full(), []string{
			"detach inside-device hooks, interface br0 (index 3)",
			"detach inside-port hooks, interface veth1 (index 5)", "detach inside-port hooks, interface veth0 (index 4)",
			"detach outside hooks, interface eth0 (index 2)",
			"remove forward tcp/198.51.100.1:8080", "remove network br0", "remove outside eth0",
		}},
		{"nothing_to_do", func(*State) {}, full(), nil},
		{"order_means_nothing", func(s *State) { slices.Reverse(s.Links) }, full(), nil},
		{"interface_came_back", func(s *State) { s.Outsides[0].IfIndex, s.Links[3].IfIndex = 9, 9 }, full(), []string{
			"detach outside hooks, interface eth0 (index 2)", "put outside eth0", "attach outside hooks, interface eth0 (index 9)"}},
		{"interface_is_away", func(s *State) { s.Outsides[0].IfIndex = 0; s.Links = s.Links[:3] }, full(), []string{
			"detach outside hooks, interface eth0 (index 2)", "put outside eth0"}},
		{"peer_moved_to_its_container", func(s *State) { s.Links[1].Peer = false }, full(), []string{
			"attach inside-port hooks, interface veth1 (index 5)"}},
		{"port_changed_bridges", func(s *State) {
			s.Networks = append(s.Networks, dataplane.Network{Name: "br1", IfIndex: 8})
			s.Links[1].Owner = "br1"
		}, full(), []string{
			"detach inside-port hooks, interface veth1 (index 5)", "put network br1", "attach inside-port hooks, interface veth1 (index 5)"}},
		{"address_changed", func(s *State) { s.Outsides[0].Addresses = []netip.Addr{addr.Next()} }, full(), []string{"put outside eth0"}},
		{"prefix_joined", func(s *State) { s.Networks[0].Prefixes = []netip.Prefix{prefixB, prefixA} }, full(), []string{"put network br0"}},
		{"gateway_changed", func(s *State) { s.Networks[0].Gateway = net.HardwareAddr{2, 0, 0, 0, 0, 0} }, full(), []string{
			"put network br0", "attach inside-port hooks, interface veth0 (index 4)", "attach inside-port hooks, interface veth1 (index 5)",
			"attach inside-device hooks, interface br0 (index 3)"}},
		{"stale_hooks", func(*State) {}, func() State { s := full(); s.Stale = []int{5, 77}; return s }(), []string{
			"attach inside-port hooks, interface veth1 (index 5)"}},
		{"mapping_changed", func(s *State) { s.Networks[0].Mapping[2] = dataplane.AddressDependent }, full(), []string{"put network br0"}},
		{"filtering_changed", func(s *State) { s.Networks[0].Filtering[1] = dataplane.AddressDependent }, full(), []string{"put network br0"}},
		{"address_of_the_host_changed", func(s *State) { s.Networks[0].Address = addr }, full(), []string{"put network br0"}},
		{"refusal_changed", func(s *State) { s.Networks[0].Refusal = dataplane.RefuseAdminProhibited }, full(), []string{"put network br0"}},
		{"destination_excluded", func(s *State) { s.Networks[0].Exclude = []netip.Prefix{prefixB} }, full(), []string{"put network br0"}},
		{"mss_clamp_changed", func(s *State) { s.Networks[0].MSSClamp = true }, full(), []string{"put network br0"}},
		{"MAC_changed", func(s *State) { s.Links[3].MAC = net.HardwareAddr{2, 0, 0, 0, 0, 7} }, full(), []string{"attach outside hooks, interface eth0 (index 2)"}},
		{"unsolicited_dropped", func(s *State) { s.Links[3].DropUnsolicited = true }, full(), []string{"attach outside hooks, interface eth0 (index 2)"}},
		{"XDP_asked_for", func(s *State) { *s = fast() }, full(), []string{"attach XDP to interface eth0 (index 2)", "attach XDP to interface veth0 (index 4)"}},
		{"XDP_is_there", func(s *State) { *s = fast() }, fast(), nil},
		{"XDP_of_another_use", func(s *State) { s.Links[3].XDP = dataplane.XDPDrop; s.Links[2].XDP = dataplane.XDPTranslate }, fast(), []string{"attach XDP to interface eth0 (index 2)"}},
		{"XDP_not_asked_for", func(*State) {}, fast(), []string{"detach XDP from interface eth0 (index 2)", "detach XDP from interface veth0 (index 4)"}},
		{"XDP_of_an_earlier_daemon", func(s *State) { *s = fast() }, func() State { s := fast(); s.Stale = []int{2, 5}; return s }(), []string{
			"attach outside hooks, interface eth0 (index 2)", "attach inside-port hooks, interface veth1 (index 5)", "attach XDP to interface eth0 (index 2)"}},
		{"XDP_goes_with_its_hooks", func(s *State) { s.Outsides[0].IfIndex, s.Links = 0, s.Links[:3] }, fast(), []string{
			"detach XDP from interface veth0 (index 4)", "detach outside hooks, interface eth0 (index 2)", "put outside eth0"}},
		{"port_with_XDP_changed_bridges", func(s *State) {
			*s = fast()
			s.Networks = append(s.Networks, dataplane.Network{Name: "br1", IfIndex: 8})
			s.Links[2].Owner = "br1"
		}, fast(), []string{"detach inside-port hooks, interface veth0 (index 4)", "put network br1", "attach inside-port hooks, interface veth0 (index 4)",
			"attach XDP to interface veth0 (index 4)"}},
		{"settings_changed", func(s *State) { s.Settings = settings(1) }, full(), []string{"configure"}},
		{"forward_without_network_is_there", func(s *State) { s.Forwards[0].Network = "" }, full(), nil},
		{"forward_goes_elsewhere", func(s *State) { s.Forwards[0].Internal = netip.MustParseAddrPort("172.17.0.3:80") }, full(), []string{
			"remove forward tcp/198.51.100.1:8080", "add forward tcp/198.51.100.1:8080"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			desired := full()
			tt.change(&desired)
			var got []string
			for _, a := range New(desired, tt.actual) {
				got = append(got, a.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPlanningAgainGivesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	d := dataplanetest.New()
	for i := range 2000 {
		desired := random(r)
		for _, a := range New(desired, actual(t, d)) {
			if err := execute(d, a); err != nil {
				t.Fatalf("round %d: %s: %v", i, a, err)
			}
		}
		desired.Settings, _ = d.Settings() // rounded
		if again := New(desired, actual(t, d)); len(again) != 0 {
			t.Fatalf("round %d: planning again gives %v\ndesired %+v\nactual %+v", i, again, desired, actual(t, d))
		}
	}
}

// random is a state that makes sense: owners are there, forwards have a network and an outside.
func random(r *rand.Rand) State {
	s := State{Settings: settings(r.Int64N(3))}
	for i := range 2 {
		if r.IntN(3) == 0 {
			continue
		}
		o := dataplane.Outside{Name: fmt.Sprint("eth", i), IfIndex: r.IntN(2) * (10 + r.IntN(3) + 10*i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(r.IntN(3) + 3*i)})}}
		s.Outsides = append(s.Outsides, o)
		if o.IfIndex != 0 {
			s.Links = append(s.Links, dataplane.Link{IfIndex: o.IfIndex, Kind: dataplane.OutsideLink, Owner: o.Name, Layer3: r.IntN(2) == 0})
		}
	}
	for i := range 3 {
		if r.IntN(3) == 0 {
			continue
		}
		n := dataplane.Network{Name: fmt.Sprint("br", i), IfIndex: 40 + r.IntN(3) + 10*i, Prefixes: []netip.Prefix{prefixA, prefixB}[:r.IntN(3)]}
		s.Networks = append(s.Networks, n)
		s.Links = append(s.Links, dataplane.Link{IfIndex: n.IfIndex, Kind: dataplane.InsideDevice, Owner: n.Name})
		for range r.IntN(4) {
			l := dataplane.Link{IfIndex: 100 + r.IntN(6), Kind: dataplane.InsidePort, Owner: n.Name, Peer: r.IntN(2) == 0}
			if !slices.ContainsFunc(s.Links, func(o dataplane.Link) bool { return o.IfIndex == l.IfIndex }) {
				s.Links = append(s.Links, l)
			}
		}
		if len(s.Outsides) > 0 && r.IntN(2) == 0 {
			f := dataplane.Forward{Protocol: dataplane.UDP, Network: n.Name, External: netip.AddrPortFrom(s.Outsides[0].Address(), uint16(80+i)),
				Internal: netip.AddrPortFrom(prefixA.Addr(), uint16(1+r.IntN(2)))}
			s.Forwards = append(s.Forwards, f)
		}
	}
	for i := range s.Links {
		s.Links[i].XDP = dataplane.XDPUse(r.IntN(3))
	}
	return s
}

func actual(t *testing.T, d *dataplanetest.Dataplane) (s State) {
	t.Helper()
	s.Settings, _ = d.Settings()
	s.Networks, _ = d.Networks()
	s.Outsides, _ = d.Outsides()
	s.Links, _ = d.Links()
	bindings, _ := d.Bindings()
	for _, b := range bindings {
		s.Forwards = append(s.Forwards, dataplane.Forward{Protocol: b.Protocol, Network: b.Network, External: b.External, Internal: b.Internal})
	}
	return s
}

func execute(d *dataplanetest.Dataplane, a Action) error {
	switch a.Verb {
	case DetachXDP:
		return d.DetachXDP(a.Link.IfIndex)
	case AttachXDP:
		return d.AttachXDP(a.Link)
	case Detach:
		return d.Detach(a.Link.IfIndex)
	case RemoveForward:
		return d.RemoveForward(a.Forward.Protocol, a.Forward.External)
	case RemoveNetwork:
		return d.RemoveNetwork(a.Network.Name)
	case RemoveOutside:
		return d.RemoveOutside(a.Outside.Name)
	case Configure:
		return d.Configure(a.Settings)
	case PutOutside:
		return d.PutOutside(a.Outside)
	case PutNetwork:
		return d.PutNetwork(a.Network)
	case AddForward:
		_, err := d.AddForward(a.Forward)
		return err
	case Attach:
		return d.Attach(a.Link)
	}
	return fmt.Errorf("unknown verb %q", a.Verb)
}
