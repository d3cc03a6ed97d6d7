// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/bpf"
)

// The bounds of Network.BlockSize.
const (
	MinBlockSize = 64
	MaxBlockSize = bpf.BlockMax
)

// Limits are what a network's inside hosts may have (RFC 6888 REQ-4 and REQ-5); 0: as much as there is. Who is at a limit gets
// no more, and what there is goes on.
type Limits struct {
	HostPorts       uint32 // external ports and ICMP identifiers of one host, of all protocols together; without static ones
	HostSessions    uint32
	NetworkPorts    uint32 // the same of all hosts of the network together
	NetworkSessions uint32
}

// NetworkUsage is what a network has of what Limits bounds.
type NetworkUsage struct {
	Ports, Sessions uint32
	Hosts           []HostUsage // by address
}

// HostUsage is an inside host's part of it.
type HostUsage struct {
	Address         netip.Addr
	Ports, Sessions uint32
	Blocks          []Block // in the order in which it got them
}

// Block is a block of ports that one inside host has for itself (RFC 7422).
type Block struct {
	External    netip.Addr
	First, Last uint16
}

// checkBlockSize: what a block has to be so that one atomic operation takes it.
func checkBlockSize(ports uint32) error {
	if ports == 0 || ports >= MinBlockSize && ports <= MaxBlockSize && ports&(ports-1) == 0 {
		return nil
	}
	return fmt.Errorf("block of %d ports: want a power of two from %d to %d, or 0", ports, MinBlockSize, MaxBlockSize)
}

// usageOf takes a nat_usage.word apart.
func usageOf(word uint64) (ports, sessions uint32) {
	const dying = 1 << 63
	return uint32(word), uint32(word &^ dying >> 32)
}

// NetworkUsages are those of all networks, by Network.Name. The counts of a network and of its hosts are not of one moment.
func (d *Dataplane) NetworkUsages() (map[string]NetworkUsage, error) {
	known, err := d.ipv4.names()
	if err != nil {
		return nil, err
	}
	zones, err := bpf.TableOf[uint32, uint64](d.objs.ZoneUsage).Elements(bpf.Zones)
	if err != nil {
		return nil, fmt.Errorf("read what networks use: %w", err)
	}
	hosts := map[uint16][]HostUsage{}
	if err := d.each(func(f *family) error { return f.hostUsages(hosts) }); err != nil {
		return nil, err
	}
	out := map[string]NetworkUsage{}
	for id, z := range known.zones {
		if z.Name[0] == 0 {
			continue
		}
		u := NetworkUsage{Hosts: hosts[uint16(id)]}
		u.Ports, u.Sessions = usageOf(zones[id])
		out[nameOf(z.Name)] = u
	}
	return out, nil
}

// hostUsages adds those of each zone's hosts to out.
func (f *family) hostUsages(out map[uint16][]HostUsage) error {
	hosts, err := f.Hosts.Dump()
	if err != nil {
		return fmt.Errorf("read what hosts use: %w", err)
	}
	blocks, err := f.Blocks.Dump()
	if err != nil {
		return fmt.Errorf("read blocks of ports: %w", err)
	}
	of := map[bpf.OwnerKey][]Block{}
	for key, b := range blocks {
		host := bpf.OwnerKey{Address: key.Address, Zone: key.Zone}
		of[host] = append(of[host], blocksOf(b)...)
	}
	for key, h := range hosts {
		u := HostUsage{Address: addrOf(key.Address), Blocks: of[key]}
		u.Ports, u.Sessions = usageOf(h.Word)
		out[key.Zone] = append(out[key.Zone], u)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b HostUsage) int { return a.Address.Compare(b.Address) })
	}
	return nil
}

// blocksOf are a host's blocks at one external address.
func blocksOf(b bpf.Blocks) (list []Block) {
	for _, block := range b.Block {
		if block == 0 {
			break
		}
		first := uint16(block >> 16)
		list = append(list, Block{External: addrOf(b.External), First: first, Last: first + uint16(block) - 1})
	}
	return list
}
