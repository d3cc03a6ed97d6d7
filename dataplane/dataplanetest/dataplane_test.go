// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
)

var external = netip.MustParseAddrPort("198.51.100.1:8080")

func ready(t *testing.T) *Dataplane {
	t.Helper()
	d := New()
	must(t, d.PutNetwork(dataplane.Network{Name: "br0", IfIndex: 2, Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}}))
	must(t, d.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: 3, Addresses: []netip.Addr{external.Addr()}}))
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRefusesWhatTheDataplaneRefuses(t *testing.T) {
	internal := netip.MustParseAddrPort("172.17.0.2:80")
	tests := []struct {
		name string
		call func(d *Dataplane) error
		want error
	}{
		{"link_without_owner", func(d *Dataplane) error {
			return d.Attach(dataplane.Link{IfIndex: 9, Kind: dataplane.InsidePort, Owner: "br9"})
		}, dataplane.ErrNotFound},
		{"outside_link_of_a_network", func(d *Dataplane) error {
			return d.Attach(dataplane.Link{IfIndex: 9, Kind: dataplane.OutsideLink, Owner: "br0"})
		}, dataplane.ErrNotFound},
		{"forward_on_a_taken_port", func(d *Dataplane) error {
			_, err := d.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: external, Internal: internal})
			must(t, err)
			_, err = d.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: external, Internal: internal})
			return err
		}, dataplane.ErrPortTaken},
		{"forward_of_no_network", func(d *Dataplane) error {
			_, err := d.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: external, Internal: external})
			return err
		}, dataplane.ErrNotFound},
		{"unknown_forward", func(d *Dataplane) error { return d.RemoveForward(dataplane.TCP, external) }, dataplane.ErrNotFound},
		{"unknown_network", func(d *Dataplane) error { return d.RemoveNetwork("br9") }, dataplane.ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.call(ready(t)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestEndingANetworkTellsItsSessionsThenItsBindings(t *testing.T) {
	d := ready(t)
	b := dataplane.Binding{Protocol: dataplane.UDP, Network: "br0", Internal: netip.MustParseAddrPort("172.17.0.2:5000"), External: external}
	d.OpenBinding(b)
	d.OpenSession(dataplane.Session{Protocol: b.Protocol, Network: b.Network, Internal: b.Internal, External: b.External,
		Remote: netip.MustParseAddrPort("203.0.113.1:1"), State: "active"})
	must(t, d.RemoveNetwork("br0"))

	var got []dataplane.EventType
	for range 4 {
		ev, err := d.ReadEvent(context.Background())
		must(t, err)
		got = append(got, ev.Type)
	}
	want := []dataplane.EventType{dataplane.BindingCreated, dataplane.SessionCreated, dataplane.SessionClosed, dataplane.BindingExpired}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
