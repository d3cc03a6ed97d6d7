// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// XDP is how it stands with native XDP on an interface where it has been asked for.
type XDP struct {
	Link   dataplane.Link // its XDP: what is to be done there
	Reason string         // why nothing is; empty: the dataplane tries it
}

// Action is what fails where the dataplane cannot do it.
func (x XDP) Action() string { return plan.Action{Verb: plan.AttachXDP, Link: x.Link}.String() }

// chooseXDP sets what is done at XDP of each link. The path has been chosen.
func (t *target) chooseXDP(cfg config.Config, host hostnet.Snapshot) {
	for i, l := range t.Links {
		dev, _ := host.LinkAt(l.IfIndex)
		use := useOf(cfg, dev, l)
		if use == dataplane.XDPNone {
			continue
		}
		reason := withoutXDP(cfg, dev, l)
		if reason == "" {
			t.Links[i].XDP = use
		} else if use == dataplane.XDPTranslate && dev.Kind != "bridge" && l.Kind != dataplane.InsidePort {
			t.problem("interface %s is without XDP: %s", l.Name, reason)
		}
		t.xdp = append(t.xdp, XDP{Link: t.Links[i], Reason: reason})
	}
}

// useOf is what the configuration asks of XDP on a link, whether it can be had there or not.
func useOf(cfg config.Config, dev hostnet.Link, l dataplane.Link) dataplane.XDPUse {
	gateway, drops := cfg.XDP.Mode == config.XDPGateway, dropsAtXDP(cfg, l)
	switch {
	case l.Kind == dataplane.InsidePort && !(cfg.XDP.Containers && dev.Kind == "veth" && l.Peer):
		return dataplane.XDPNone
	case gateway && !(l.Stack && drops):
		return dataplane.XDPTranslate
	case drops:
		return dataplane.XDPDrop
	}
	return dataplane.XDPNone
}

func dropsAtXDP(cfg config.Config, l dataplane.Link) bool {
	return cfg.XDP.Mode != config.XDPOff && cfg.DropUnsolicited && l.Kind == dataplane.OutsideLink
}

// withoutXDP is why an interface cannot have native XDP, or should not, as far as that can be seen without trying.
func withoutXDP(cfg config.Config, dev hostnet.Link, l dataplane.Link) string {
	switch {
	case l.Stack && !dropsAtXDP(cfg, l):
		return "packets take the host's stack, which XDP would bypass (path)"
	case l.Kind == dataplane.InsidePort:
		return ""
	case l.Layer3:
		return "its packets have no Ethernet header"
	case dev.Kind == "bridge":
		return "a bridge has no native XDP: its ports' packets are translated by their hooks"
	case dev.Kind == "vlan":
		return "a VLAN has no native XDP"
	case dev.Kind == "bond":
		return "a bond's packets come to XDP as its ports', which are nobody's"
	case dev.Kind == "tun":
		return "a TAP's packets may have half a checksum, which XDP could not complete"
	case dev.Kind == "veth" && !cfg.XDP.Veth:
		return "packets of a veth pair may have half a checksum, which XDP could not complete (xdp.veth is for peers that compute theirs)"
	}
	return ""
}

// FollowHops has the dataplane forget next hops that may have changed, until ctx ends, whose error it returns.
func (r *Reconciler) FollowHops(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.host.Hops():
		}
		if err := r.dp.ForgetHops(); err != nil {
			r.log.Warn("next hops that may have changed are used for up to a second more", "error", err)
		}
	}
}
