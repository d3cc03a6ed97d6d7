// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/control/reconcile"
	"github.com/conenat/conenat/dataplane"
)

// xdp is what was asked for, what there is, and why it is not the same.
func (d *daemon) xdp(view reconcile.View) ([]api.XDP, error) {
	links, err := d.dp.Links()
	if err != nil {
		return nil, err
	}
	is := map[int]dataplane.XDPUse{}
	for _, l := range links {
		is[l.IfIndex] = l.XDP
	}
	failed := map[string]error{}
	for _, f := range view.Failures {
		failed[f.Action] = f.Err
	}
	out := []api.XDP{}
	for _, x := range view.XDP {
		shown := api.XDP{Interface: x.Link.Name, IfIndex: x.Link.IfIndex, Kind: x.Link.Kind.String(), State: "native",
			Use: is[x.Link.IfIndex].String(), Reason: x.Reason}
		if is[x.Link.IfIndex] == dataplane.XDPNone {
			shown.State = "none"
		}
		if err := failed[x.Action()]; err != nil {
			shown.Reason = err.Error()
		}
		out = append(out, shown)
	}
	return out, nil
}
