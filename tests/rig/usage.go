// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/bpf"
)

// usage is a host's or a network's ports and sessions.
type usage struct{ Ports, Sessions int }

// usageOf reads a nat_usage.word.
func usageOf(word uint64) usage { return usage{Ports: int(uint32(word)), Sessions: int(word >> 32)} }

// checkUsage: what is counted for each host are the bindings and sessions that there are. Networks', of all families, go to zones.
func checkUsage(t *bpf.Tables, zones map[uint32]usage) error {
	bindings, err := livingBindings(t)
	if err != nil {
		return err
	}
	hosts := map[bpf.OwnerKey]usage{}
	for _, b := range bindings {
		if b.Flags&bpf.BindingCounted == 0 || b.Zone > bpf.ZoneLast {
			continue
		}
		hosts[bpf.OwnerKey{Address: b.Internal, Zone: b.Zone}] = hosts[bpf.OwnerKey{Address: b.Internal, Zone: b.Zone}].plus(1, 0)
		zones[uint32(b.Zone)] = zones[uint32(b.Zone)].plus(1, 0)
	}
	sessions, err := t.Sessions.Dump()
	if err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	for key, half := range sessions {
		if half.Flags&bpf.HalfPrimary == 0 || key.Zone == 0 || key.Zone > bpf.ZoneLast {
			continue
		}
		hosts[bpf.OwnerKey{Address: key.Saddr, Zone: key.Zone}] = hosts[bpf.OwnerKey{Address: key.Saddr, Zone: key.Zone}].plus(0, 1)
		zones[uint32(key.Zone)] = zones[uint32(key.Zone)].plus(0, 1)
	}
	counted, err := t.Hosts.Dump()
	if err != nil {
		return fmt.Errorf("read the hosts: %w", err)
	}
	gotHosts := map[bpf.OwnerKey]usage{}
	for key, h := range counted {
		gotHosts[key] = usageOf(h.Word)
	}
	return compareUsage("hosts", hosts, gotHosts)
}

func (u usage) plus(ports, sessions int) usage {
	return usage{Ports: u.Ports + ports, Sessions: u.Sessions + sessions}
}

func usageOfZones(m *ebpf.Map) (map[uint32]usage, error) {
	got := map[uint32]usage{}
	var zone uint32
	var word uint64
	it := m.Iterate()
	for it.Next(&zone, &word) {
		if word != 0 {
			got[zone] = usageOf(word)
		}
	}
	return got, it.Err()
}

func compareUsage[K comparable](what string, want, got map[K]usage) error {
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(bpf.OwnerKey{}, bpf.Addr{})); diff != "" {
		return fmt.Errorf("usage of %s (-tables +counted):\n%s", what, diff)
	}
	return nil
}

// livingBindings are those that a session or a static binding's own reference holds.
func livingBindings(t *bpf.Tables) (living []bpf.Binding, err error) {
	all, err := t.Bindings.Elements(t.Bindings.Map().MaxEntries())
	if err != nil {
		return nil, fmt.Errorf("read the bindings: %w", err)
	}
	for _, b := range all {
		if uint32(b.Word)&^bpf.BindingDying != 0 {
			living = append(living, b)
		}
	}
	return living, nil
}

// checkBlocks: a host's blocks are held by the bindings that have a port of them, and each word of the port bitmaps that is
// marked is of just one block.
func checkBlocks(t *bpf.Tables) error {
	bindings, err := livingBindings(t)
	if err != nil {
		return err
	}
	var errs []error
	want := map[bpf.BlockKey]uint32{}
	for _, b := range bindings {
		if b.Flags&bpf.BindingInBlock != 0 {
			want[bpf.BlockKey{Address: b.Internal, Zone: b.Zone, Slot: b.Address}]++
		}
	}
	got, marked := map[bpf.BlockKey]uint32{}, 0
	all, err := t.Blocks.Dump()
	if err != nil {
		return fmt.Errorf("read the blocks: %w", err)
	}
	for key, blocks := range all {
		got[key] = blocks.References
		for _, block := range blocks.Block {
			marked += int(block&0xffff) / 64
		}
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(bpf.BlockKey{}, bpf.Addr{})); diff != "" {
		errs = append(errs, fmt.Errorf("blocks (-bindings +map):\n%s", diff))
	}
	words, err := bitsOf(t.BlockWords)
	if words != marked {
		errs = append(errs, fmt.Errorf("%d words are marked, the blocks have %d", words, marked))
	}
	return errors.Join(append(errs, err)...)
}
