// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/binary"
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

// checkUsage: what is counted for each host and network are the bindings and sessions that there are.
func checkUsage(o *bpf.Objects) error {
	bindings, err := livingBindings(o)
	if err != nil {
		return err
	}
	hosts, zones := map[bpf.OwnerKey]usage{}, map[uint32]usage{}
	for _, b := range bindings {
		if b.Flags&bpf.BindingCounted == 0 || b.Zone > bpf.ZoneLast {
			continue
		}
		hosts[bpf.OwnerKey{Address: b.Internal, Zone: b.Zone}] = hosts[bpf.OwnerKey{Address: b.Internal, Zone: b.Zone}].plus(1, 0)
		zones[uint32(b.Zone)] = zones[uint32(b.Zone)].plus(1, 0)
	}
	var key bpf.SessionKey
	var half bpf.SessionHalf
	for it := o.Sessions4.Iterate(); it.Next(&key, &half); {
		if half.Flags&bpf.HalfPrimary == 0 || key.Zone == 0 || key.Zone > bpf.ZoneLast {
			continue
		}
		hosts[bpf.OwnerKey{Address: key.Saddr, Zone: key.Zone}] = hosts[bpf.OwnerKey{Address: key.Saddr, Zone: key.Zone}].plus(0, 1)
		zones[uint32(key.Zone)] = zones[uint32(key.Zone)].plus(0, 1)
	}
	return errors.Join(compareUsage("hosts", hosts, o.Hosts4), compareUsage("networks", zones, o.ZoneUsage))
}

func (u usage) plus(ports, sessions int) usage {
	return usage{Ports: u.Ports + ports, Sessions: u.Sessions + sessions}
}

func compareUsage[K comparable](what string, want map[K]usage, m *ebpf.Map) error {
	got := map[K]usage{}
	var key K
	value := make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&key, &value); {
		word := binary.NativeEndian.Uint64(value) // the first member of both structs
		if m.Type() != ebpf.Array || word != 0 {
			got[key] = usageOf(word)
		}
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(bpf.OwnerKey{})); diff != "" {
		return fmt.Errorf("usage of %s (-tables +counted):\n%s", what, diff)
	}
	return nil
}

// livingBindings are those that a session or a static binding's own reference holds.
func livingBindings(o *bpf.Objects) (living []bpf.Binding, err error) {
	all := make([]bpf.Binding, o.Bindings4.MaxEntries())
	indices := make([]uint32, len(all))
	if _, err := o.Bindings4.BatchLookup(new(ebpf.MapBatchCursor), indices, all, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
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
func checkBlocks(o *bpf.Objects) error {
	bindings, err := livingBindings(o)
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
	var key bpf.BlockKey
	var blocks bpf.Blocks
	for it := o.Blocks4.Iterate(); it.Next(&key, &blocks); {
		got[key] = blocks.References
		for _, block := range blocks.Block {
			marked += int(block&0xffff) / 64
		}
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(bpf.BlockKey{})); diff != "" {
		errs = append(errs, fmt.Errorf("blocks (-bindings +map):\n%s", diff))
	}
	words, err := bitsOf(o.BlockWords)
	if words != marked {
		errs = append(errs, fmt.Errorf("%d words are marked, the blocks have %d", words, marked))
	}
	return errors.Join(append(errs, err)...)
}
