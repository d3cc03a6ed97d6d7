// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is an entry of netfilter's connection tracking.
type Flow struct {
	Protocol  uint8
	Src, Dst  netip.AddrPort // of the first packet, before translation
	ReplySrc  netip.AddrPort // of the reply that netfilter expects
	ReplyDst  netip.AddrPort // the translated source, if there was a translation
	ExpiresIn uint32         // seconds
}

// Conntrack lists the flows that netfilter tracks in the namespace.
func (ns *NS) Conntrack() (flows []Flow, err error) {
	for _, f := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		entries, err := ns.nl.ConntrackTableList(netlink.ConntrackTable, f)
		if err != nil {
			return nil, fmt.Errorf("list conntrack entries in namespace %s: %w", ns.Name, err)
		}
		for _, e := range entries {
			flows = append(flows, Flow{
				Protocol:  e.Forward.Protocol,
				Src:       addrPort(e.Forward.SrcIP, e.Forward.SrcPort),
				Dst:       addrPort(e.Forward.DstIP, e.Forward.DstPort),
				ReplySrc:  addrPort(e.Reverse.SrcIP, e.Reverse.SrcPort),
				ReplyDst:  addrPort(e.Reverse.DstIP, e.Reverse.DstPort),
				ExpiresIn: e.TimeOut,
			})
		}
	}
	return flows, nil
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
