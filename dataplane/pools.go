// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// A set is the external addresses that a network or an owner has named. It is in the tables once for all who name the same,
// under a number that another list of addresses does not get: a host that is paired with an address of a set is paired
// for good. Numbers below bpf.Realms are those of the outsides' default pools.

// external is what a network or an owner has named.
func (n names) external(id uint16) (list []netip.Addr) {
	s := n.sets[uint32(id)]
	if id == 0 {
		return nil
	}
	for _, a := range s.Address[:min(s.Count, bpf.Addresses)] {
		list = append(list, addrOf(a))
	}
	return list
}

// internSet is the number of a set that holds these addresses, made if there is none; 0: there are no addresses.
func (f *family) internSet(list []netip.Addr) (uint16, error) {
	if len(list) == 0 {
		return 0, nil
	}
	want, err := rawSet(list)
	if err != nil {
		return 0, err
	}
	known, err := f.names()
	if err != nil {
		return 0, err
	}
	if len(known.sets) >= bpf.Sets {
		return 0, fmt.Errorf("%w: %d sets of external addresses are there already", ErrFull, bpf.Sets)
	}
	id := setNumber(want)
	for ; ; id = max(id+1, bpf.Realms) {
		is, ok := known.sets[uint32(id)]
		if ok && is == want {
			return id, nil
		}
		if !ok {
			break
		}
	}
	if err := f.Sets.Put(uint32(id), want); err != nil {
		return 0, fmt.Errorf("write set of external addresses: %w", err)
	}
	f.forgetNames()
	return id, nil
}

// setNumber is the first one to try for a set: another one's is most likely another.
func setNumber(s bpf.Set) uint16 {
	h := fnv.New32a()
	for _, a := range s.Address[:s.Count] {
		b := addrOf(a).AsSlice()
		h.Write(b) // never fails
	}
	return uint16(bpf.Realms + h.Sum32()%(1<<16-bpf.Realms))
}

func rawSet(list []netip.Addr) (s bpf.Set, err error) {
	raw, err := rawAddresses(inOrderOf(list))
	if err == nil && len(raw) > bpf.Addresses {
		err = fmt.Errorf("%d external addresses: want at most %d", len(raw), bpf.Addresses)
	}
	if err != nil {
		return s, err
	}
	s.Count = uint32(copy(s.Address[:], raw))
	return s, nil
}

func inOrderOf(list []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(list), netip.Addr.Compare)
}

// ownerSet is the set of an owner, and its flag in flags. Error: ErrAddressTaken.
func (f *family) ownerSet(key bpf.OwnerKey, o Owner, flags *uint8) (uint16, error) {
	if o.OneToOne && len(o.External) != 1 {
		return 0, fmt.Errorf("1:1 with %d external addresses: want one", len(o.External))
	}
	known, err := f.names()
	if err != nil {
		return 0, err
	}
	for _, a := range o.External {
		if !f.has(a) {
			return 0, fmt.Errorf("external address %s is not %s", a, f.ipVersion)
		}
		if by := known.ownedBy(rawAddr(a), key); by != "" && o.OneToOne {
			return 0, fmt.Errorf("%w: %s is of %s", ErrAddressTaken, a, by)
		}
	}
	set, err := f.internSet(o.External)
	if err == nil && o.OneToOne {
		*flags |= bpf.OwnerOneToOne
	}
	return set, err
}

// ownedBy is who but an owner has all of an address. (Who has merely named it gets nothing there then.)
func (n names) ownedBy(address bpf.Addr, owner bpf.OwnerKey) string {
	for key, o := range n.owners {
		if key != owner && o.Flags&bpf.OwnerOneToOne != 0 && n.sets[uint32(o.Set)].Address[0] == address {
			return fmt.Sprintf("%s in network %s", addrOf(key.Address), n.zoneName(key.Zone))
		}
	}
	return ""
}

// networkMoved lets a network whose set has changed have the new one's addresses alone.
func (f *family) networkMoved(zone uint16) error {
	if err := f.settleAddresses(); err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	set := known.zones[zone].Set
	if set == 0 {
		return nil // what is there goes on
	}
	may := known.sets[uint32(set)]
	return f.kill(func(b binding) bool {
		own := known.owners[bpf.OwnerKey{Address: b.Internal, Zone: zone}].Set
		return b.Zone == zone && own == 0 && b.Flags&bpf.BindingStatic == 0 && !slices.Contains(may.Address[:may.Count], b.External)
	})
}

// ownerMoved is the same of an owner. At an address that is all his, nobody else keeps a dynamic binding, and neither does he
// one with another port.
func (f *family) ownerMoved(key bpf.OwnerKey) error {
	if err := f.settleAddresses(); err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	owner := known.owners[key]
	if owner.Set == 0 {
		return nil
	}
	set := known.sets[uint32(owner.Set)]
	all := owner.Flags&bpf.OwnerOneToOne != 0
	return f.kill(func(b binding) bool {
		own := b.Zone == key.Zone && b.Internal == key.Address
		at := slices.Contains(set.Address[:set.Count], b.External)
		switch {
		case b.Flags&bpf.BindingStatic != 0 || b.Zone == bpf.ZoneHost:
			return false
		case own && at:
			return all && b.Flags&bpf.BindingOwn == 0 && b.InternalPort != b.ExternalPort
		}
		return own || at && all
	})
}

// distribution is who has which external address: what the tables are to hold.
type distribution struct {
	externals []bpf.External
	sets      map[uint32]bpf.Set
	realms    []bpf.Realm
}

// settleAddresses brings the tables to what follows from the outsides' addresses and from who has named which. What is not on
// the outside that a packet leaves by is nobody's there.
func (f *family) settleAddresses() error {
	have, slots, err := f.addressTables()
	if err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	want := known.distribute(have, slots)
	defer f.forgetNames()
	return f.writeDistribution(known, slots, want)
}

func (n names) distribute(have map[bpf.Addr]bpf.Address, slots []bpf.External) distribution {
	to := distribution{externals: slices.Clone(slots), sets: map[uint32]bpf.Set{}, realms: slices.Clone(n.realms)}
	named := map[bpf.Addr]bool{}
	use := func(id uint16) bpf.Set {
		s := n.sets[uint32(id)]
		if id == 0 {
			return bpf.Set{}
		}
		to.sets[uint32(id)] = s
		for _, a := range s.Address[:s.Count] {
			named[a] = true
		}
		return s
	}
	for _, z := range n.zones {
		use(z.Set)
	}
	alone := map[bpf.Addr]bpf.OwnerKey{}
	for key, o := range n.owners {
		if s := use(o.Set); o.Flags&bpf.OwnerOneToOne != 0 {
			alone[s.Address[0]] = key
		}
	}
	for address, a := range have {
		e := &to.externals[a.Slot]
		e.Internal, e.Zone = alone[address].Address, alone[address].Zone
		e.Flags = 0
		if named[address] {
			e.Flags = bpf.ExternalNamed
		}
	}
	to.defaults(have, named)
	return to
}

// defaults are the realms' default pools: what nobody has named.
func (to *distribution) defaults(have map[bpf.Addr]bpf.Address, named map[bpf.Addr]bool) {
	for id := range to.realms {
		r := &to.realms[id]
		var free []bpf.Addr
		for address, a := range have {
			if int(a.Realm) == id && !named[address] {
				free = append(free, address)
			}
		}
		slices.SortFunc(free, func(a, b bpf.Addr) int { return addrOf(a).Compare(addrOf(b)) })
		r.Pool, r.Slot = uint16(len(free)), 0
		if len(free) == 0 {
			continue
		}
		r.Slot = have[free[0]].Slot
		s := bpf.Set{Count: uint32(len(free))}
		copy(s.Address[:], free)
		to.sets[uint32(id)] = s
	}
}

// writeDistribution writes what differs: first what an address is, then who gets it, last what nobody uses any more.
func (f *family) writeDistribution(known names, slots []bpf.External, to distribution) error {
	var errs []error
	for slot, e := range to.externals {
		if e != slots[slot] {
			errs = append(errs, f.putExternal(slot, e))
		}
	}
	for id, s := range to.sets {
		if is, ok := known.sets[id]; !ok || is != s {
			errs = append(errs, f.Sets.Put(id, s))
		}
	}
	for id, r := range to.realms {
		if r != known.realms[id] {
			errs = append(errs, f.Realms.Put(uint32(id), r))
		}
	}
	for id := range known.sets {
		if _, ok := to.sets[id]; !ok {
			errs = append(errs, f.Sets.Delete(id))
		}
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("write who has which external address: %w", err)
	}
	return nil
}
