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

// Conntrack lists the IPv4 flows that netfilter tracks in the namespace.
func (ns *NS) Conntrack() ([]Flow, error) {
	entries, err := ns.nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list conntrack entries in namespace %s: %w", ns.Name, err)
	}
	flows := make([]Flow, len(entries))
	for i, e := range entries {
		flows[i] = Flow{
			Protocol:  e.Forward.Protocol,
			Src:       addrPort(e.Forward.SrcIP, e.Forward.SrcPort),
			Dst:       addrPort(e.Forward.DstIP, e.Forward.DstPort),
			ReplySrc:  addrPort(e.Reverse.SrcIP, e.Reverse.SrcPort),
			ReplyDst:  addrPort(e.Reverse.DstIP, e.Reverse.DstPort),
			ExpiresIn: e.TimeOut,
		}
	}
	return flows, nil
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
