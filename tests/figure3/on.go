// SPDX-License-Identifier: Apache-2.0

package figure3

import (
	"context"
	"net/netip"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

const stunPort = 3478

// On is OnFamily in IPv4.
func On(f *topo.Figure3, container probe.Host) (Experiment, error) {
	return OnFamily(family.V4, f, container)
}

// OnFamily makes the experiment for a topology: peer 1 is the STUN server, which is started and ends with the
// topology, peer 2 is the peer. The container has the family's sockets.
func OnFamily(fam family.Family, f *topo.Figure3, container probe.Host) (Experiment, error) {
	server, err := probe.ServeSTUN(f.Peer1, stunPort)
	if err != nil {
		return Experiment{}, err
	}
	f.Defer("stop the STUN server", server.Close)
	return Experiment{
		Container: container,
		Peer:      probe.InFamily(fam, f.Peer2),
		PeerAddr:  fam.Addr(topo.Peer2Addr),
		HostAddr:  fam.Addr(topo.HostAddr),
		STUN:      netip.AddrPortFrom(fam.Addr(topo.Peer1Addr), stunPort),
	}, nil
}

// ConntrackEntry is an Experiment.Arrived for a NAT by netfilter: it waits for the entry that the peer's
// unsolicited packet leaves.
func ConntrackEntry(host *topo.NS) func(context.Context, netip.AddrPort, netip.AddrPort) error {
	return func(ctx context.Context, peer, external netip.AddrPort) error {
		return topo.Poll(ctx, 3*time.Second, "conntrack entry of the peer's packet", func() (bool, error) {
			flows, err := host.Conntrack()
			for _, flow := range flows {
				if flow.Src == peer && flow.Dst == external {
					return true, nil
				}
			}
			return false, err
		})
	}
}
