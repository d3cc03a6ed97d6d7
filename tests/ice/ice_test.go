// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

// TestPair: without any NAT two agents find each other, in the family of their server.
func TestPair(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) {
			f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: fam == family.V6})
			stun, err := probe.ServeSTUN(f.Router, 3478)
			if err != nil {
				t.Fatal(err)
			}
			defer stun.Close()
			server := fam.Endpoint(netip.MustParseAddrPort("203.0.113.254:3478"))
			outcomes, err := Pair(t.Context(), f.Topo, [2]*topo.NS{f.Peer1, f.Peer2}, Options{Server: server, GiveUp: patience.For(8 * time.Second)})
			if err != nil {
				t.Fatal(err)
			}
			for i, o := range outcomes {
				if !o.Connected || family.Of(o.Remote.Endpoint.Addr()) != fam {
					t.Errorf("agent %d: %+v", i, o)
				}
			}
		})
	}
}
