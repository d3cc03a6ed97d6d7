// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// Overlaps says whether both networks may have hosts with one address.
func (n Network) Overlaps(other Network) bool {
	return slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return slices.ContainsFunc(other.Prefixes, p.Overlaps) })
}

func (n Network) prefixOf(address netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(address) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return n.Prefixes[i], true
}

// putZone writes a zone, and what it means for the others: those that have addresses of its are to know; and the outside's, which
// says whether any excludes destinations, or is reached by addresses of its own.
func (f *family) putZone(known names, id uint16, zone bpf.Zone) error {
	before := known.zones
	after := slices.Clone(before)
	after[id] = zone
	markOverlaps(f.ipVersion, after)
	after[0].Flags = 0
	for _, z := range after[1:] {
		after[0].Flags |= z.Flags & (bpf.ZoneExcludes | bpf.ZoneNPTv6 | bpf.ZoneRouted)
	}
	for i := range after {
		if after[i] == before[i] {
			continue
		}
		if err := f.Zones.Put(uint32(i), after[i]); err != nil {
			return err
		}
	}
	return nil
}

func markOverlaps(v ipVersion, zones []bpf.Zone) {
	networks := map[int]Network{}
	for i := range zones {
		zones[i].Flags &^= bpf.ZoneOverlaps
		if zones[i].Prefixes > 0 {
			networks[i] = networkOf(v, zones[i])
		}
	}
	for i, n := range networks {
		for j, other := range networks {
			if i != j && n.Overlaps(other) {
				zones[i].Flags |= bpf.ZoneOverlaps
			}
		}
	}
}

// exclude makes these a network's excluded destinations, and no others. Errors: ErrFull.
func (f *family) exclude(known names, id uint16, prefixes []netip.Prefix) error {
	want := map[bpf.ExclusionKey]bool{}
	for _, p := range prefixes {
		want[exclusionKey(id, p)] = true
	}
	total := len(want)
	for key := range known.exclusions {
		if uint16(key.Zone) != id {
			total++
		}
	}
	if total > bpf.Exclusions {
		return fmt.Errorf("exclude %d destinations: %w: %d of all networks are the most", len(prefixes), ErrFull, bpf.Exclusions)
	}
	for key := range known.exclusions {
		if uint16(key.Zone) != id || want[key] {
			continue
		}
		if err := f.Exclusions.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("exclude %s no more: %w", prefixOfKey(f.ipVersion, key), err)
		}
	}
	for key := range want {
		if err := f.Exclusions.Put(key, uint32(1)); err != nil {
			return fmt.Errorf("exclude %s: %w", prefixOfKey(f.ipVersion, key), err)
		}
	}
	return nil
}

// zoneBits are those of exclusion_key's zone.
const zoneBits = 32

func exclusionKey(id uint16, p netip.Prefix) bpf.ExclusionKey {
	return bpf.ExclusionKey{Prefixlen: uint32(zoneBits + p.Bits()), Zone: uint32(id), Address: rawAddr(p.Masked().Addr())}
}

func prefixOfKey(v ipVersion, key bpf.ExclusionKey) netip.Prefix {
	return v.prefix(key.Address, int(key.Prefixlen)-zoneBits)
}

// excluded are the excluded destinations by network, in order.
func (n names) excluded() map[uint16][]netip.Prefix {
	out := map[uint16][]netip.Prefix{}
	for key := range n.exclusions {
		out[uint16(key.Zone)] = append(out[uint16(key.Zone)], prefixOfKey(n.version, key))
	}
	for _, list := range out {
		slices.SortFunc(list, netip.Prefix.Compare)
	}
	return out
}
