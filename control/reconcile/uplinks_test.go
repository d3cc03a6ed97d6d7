// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/hostnet"
)

// TestBothUplinksAreWaitedFor: a default route with two nexthops goes with one of their interfaces. While there is
// none, both outsides stay, the one without bindings too.
func TestBothUplinksAreWaitedFor(t *testing.T) {
	w := newWorld(t, config.Config{})
	w.host.snapshot.Links = append(w.host.snapshot.Links, hostnet.Link{Index: 7, Name: "eth1", Kind: "device",
		Addresses: []netip.Prefix{netip.MustParsePrefix("198.18.1.1/24")}})
	w.host.snapshot.Default = []int{2, 7}
	w.start(t)
	w.host.drop("eth1")
	w.host.snapshot.Default = nil
	w.again()
	outsides, err := w.dp.Outsides()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, o := range outsides {
		got[o.Name] = o.Address().String()
	}
	if diff := cmp.Diff(map[string]string{"eth0": "198.51.100.1", "eth1": "198.18.1.1"}, got); diff != "" {
		t.Error(diff)
	}
}
