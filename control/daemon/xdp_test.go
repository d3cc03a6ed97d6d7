// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/config"
)

// TestStatusOfXDP: what is there, what is not to be had, and what the driver refuses, as its error says.
func TestStatusOfXDP(t *testing.T) {
	const refused = "driver e1000e has no native XDP"
	for name, tt := range map[string]struct {
		fail error
		want api.XDP // of eth0
	}{
		"Native":  {nil, api.XDP{Interface: "eth0", IfIndex: 2, Kind: "outside", State: "native", Use: "translate"}},
		"Refused": {errors.New(refused), api.XDP{Interface: "eth0", IfIndex: 2, Kind: "outside", State: "none", Use: "none", Reason: "attach XDP translate 2: " + refused}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.XDP = config.XDP{Mode: config.XDPGateway, Containers: true}
			w.dp.Fail = func(op string) error {
				if op == "attach XDP translate 2" {
					return tt.fail
				}
				return nil
			}
			c, _ := w.run(t)
			st, err := c.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := []api.XDP{tt.want,
				{Interface: "br0", IfIndex: 3, Kind: "inside-device", State: "none", Use: "none", Reason: "a bridge has no native XDP: its ports' packets are translated by their hooks"},
				{Interface: "veth0", IfIndex: 4, Kind: "inside-port", State: "native", Use: "translate"}}
			if diff := cmp.Diff(want, st[0].XDP); diff != "" {
				t.Error(diff)
			}
		})
	}
}
