// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// An external address is in two tables: by itself, where packets find it, and by its slot, which says whose port bitmaps it
// has. One that is by its slot alone is on its way: a daemon that was killed has got just so far.

// PutOutside makes an outside, or changes the one of that name. Bindings on an address that it no longer has end. Errors:
// ErrFull, ErrAddressTaken.
func (d *Dataplane) PutOutside(o Outside) error {
	if err := checkName("outside", o.Name); err != nil {
		return err
	}
	defer d.writes.hold()()
	if err := d.putOutside(o); err != nil {
		return fmt.Errorf("outside %s: %w", o.Name, err)
	}
	return nil
}

func (d *Dataplane) putOutside(o Outside) error {
	if _, err := rawAddresses(o.Addresses); err != nil {
		return err
	}
	known, err := d.ipv4.names()
	if err != nil {
		return err
	}
	id, free := known.realmID(o.Name)
	if id < 0 {
		id = free
	}
	if id < 0 {
		return fmt.Errorf("%w: %d outsides are there already", ErrFull, bpf.Realms)
	}
	families, err := d.familiesFor(o.Addresses)
	if err != nil {
		return err
	}
	for _, f := range families {
		if err := f.putOutside(id, Outside{o.Name, o.IfIndex, only(o.Addresses, f.has)}); err != nil {
			return err
		}
	}
	return nil
}

// putOutside is given a family's part of the outside.
func (f *family) putOutside(id int, o Outside) error {
	want, err := rawAddresses(o.Addresses)
	if err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	realm := known.realms[id]
	realm.Name, realm.Ifindex = rawName(o.Name), uint32(o.IfIndex)
	if err := f.Realms.Put(uint32(id), realm); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	f.forgetNames()
	if err := f.changeAddresses(uint16(id), want); err != nil {
		return err
	}
	return f.showFirst(uint32(id), want)
}

// rawAddresses refuses what is no list of external addresses.
func rawAddresses(list []netip.Addr) (raw []bpf.Addr, err error) {
	for _, a := range list {
		if err := checkAddress(a); err != nil {
			return nil, fmt.Errorf("external address: %w", err)
		}
		if slices.Contains(raw, rawAddr(a)) {
			return nil, fmt.Errorf("external address %s is there twice", a)
		}
		raw = append(raw, rawAddr(a))
	}
	return raw, nil
}

// showFirst notes which address is shown for the outside.
func (f *family) showFirst(id uint32, list []bpf.Addr) error {
	if len(list) == 0 {
		return nil
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	first, err := f.Addresses.Lookup(list[0])
	if err != nil {
		return fmt.Errorf("read external address %s: %w", addrOf(list[0]), err)
	}
	realm := known.realms[id]
	realm.First = first.Slot
	if realm == known.realms[id] {
		return nil
	}
	defer f.forgetNames()
	return f.Realms.Put(id, realm)
}

// changeAddresses gives a realm its external addresses. New ones come first, where there is room for them beside the others.
func (f *family) changeAddresses(realm uint16, want []bpf.Addr) error {
	have, err := f.addresses()
	if err != nil {
		return err
	}
	var added, gone []bpf.Addr
	for _, a := range want {
		is, ok := have[a]
		if ok && is.Realm != realm {
			return fmt.Errorf("%w: %s belongs to another outside (%d)", ErrAddressTaken, addrOf(a), is.Realm)
		}
		if !ok {
			added = append(added, a)
		}
	}
	for address, a := range have {
		if a.Realm == realm && !slices.Contains(want, address) {
			gone = append(gone, address)
		}
	}
	if len(have)+len(added) > bpf.Addresses {
		if err := f.removeAddresses(gone); err != nil {
			return err
		}
		gone = nil
	}
	if err := f.addAddresses(realm, added); err != nil {
		return err
	}
	return f.removeAddresses(gone)
}

func (f *family) addAddresses(realm uint16, list []bpf.Addr) error {
	for _, a := range list {
		if err := f.addAddress(realm, a); err != nil {
			return err
		}
	}
	return f.settleAddresses()
}

// removeAddresses: first no packet can get one of them any more, then what lives there ends.
func (f *family) removeAddresses(list []bpf.Addr) error {
	for _, a := range list {
		if err := f.Addresses.Delete(a); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove external address %s: %w", addrOf(a), err)
		}
	}
	return f.endAddresses()
}

func (f *family) addresses() (map[bpf.Addr]bpf.Address, error) {
	have, err := f.Addresses.Dump()
	if err != nil {
		return nil, fmt.Errorf("read external addresses: %w", err)
	}
	return have, nil
}

func (f *family) externals() ([]bpf.External, error) {
	slots, err := f.Externals.Elements(bpf.Addresses)
	if err != nil {
		return nil, fmt.Errorf("read slots of external addresses: %w", err)
	}
	return slots, nil
}

// addressTables are both tables of external addresses: by address, and by slot.
func (f *family) addressTables() (have map[bpf.Addr]bpf.Address, slots []bpf.External, err error) {
	if have, err = f.addresses(); err == nil {
		slots, err = f.externals()
	}
	return have, slots, err
}

func (f *family) putExternal(slot int, e bpf.External) error {
	if err := f.Externals.Put(uint32(slot), e); err != nil {
		return fmt.Errorf("write slot of external address %s: %w", addrOf(e.Address), err)
	}
	return nil
}

// noRealm is that of an address which is on its way.
const noRealm = 0xffff

// addAddress takes a free slot. Who gets which address is settled afterwards.
func (f *family) addAddress(realm uint16, address bpf.Addr) error {
	slots, err := f.externals()
	if err != nil {
		return err
	}
	slot := slices.IndexFunc(slots, func(e bpf.External) bool { return e.Address == (bpf.Addr{}) })
	if slot < 0 {
		return fmt.Errorf("external address %s: %w: %d are there already", addrOf(address), ErrFull, bpf.Addresses)
	}
	if err := f.clearPorts(slot); err != nil {
		return err
	}
	// In no default pool before it is known that nobody has named it.
	e := bpf.External{Address: address, Realm: realm, Generation: slots[slot].Generation + 1, Flags: bpf.ExternalNamed}
	if err := f.putExternal(slot, e); err != nil {
		return err
	}
	if err := f.Addresses.Update(address, bpf.Address{Realm: realm, Slot: uint16(slot)}, ebpf.UpdateNoExist); err != nil {
		return fmt.Errorf("add external address %s: %w", addrOf(address), err)
	}
	return nil
}

// clearPorts frees every port of an address that is not in use, those that wait too: the sweeper would free the next address's.
func (f *family) clearPorts(slot int) error {
	clear := func(m *ebpf.Map, index int) error { return m.Put(uint32(index), make([]byte, m.ValueSize())) }
	err := errors.Join(clear(f.Held, slot), clear(f.BlockWords, slot))
	for l4 := range bpf.Protocols {
		err = errors.Join(err, clear(f.Ports, slot*bpf.Protocols+l4))
	}
	if err != nil {
		return fmt.Errorf("clear port bitmaps: %w", err)
	}
	return nil
}

// endAddresses ends what lives on addresses that are no outside's any more, all at once, and frees their slots. The walk that
// ends the sessions gives up the host's claims there, too, and cannot say where their bits are.
func (f *family) endAddresses() error {
	have, slots, err := f.addressTables()
	if err != nil {
		return err
	}
	gone := map[bpf.Addr]bool{}
	for slot, e := range slots {
		if is, ok := have[e.Address]; e.Address == (bpf.Addr{}) || ok && int(is.Slot) == slot {
			continue
		}
		gone[e.Address] = true
		e.Realm, e.Internal = noRealm, bpf.Addr{} // no host is paired with it any more
		if err := f.putExternal(slot, e); err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := f.settleAddresses(); err != nil {
		return err
	}
	if err := f.killAll(func(b binding) bool { return gone[b.External] }); err != nil {
		return err
	}
	for slot, e := range slots {
		if !gone[e.Address] {
			continue
		}
		if err := f.clearPorts(slot); err != nil {
			return err
		}
		if err := f.putExternal(slot, bpf.External{Realm: noRealm, Generation: e.Generation}); err != nil {
			return err
		}
	}
	return nil
}

// RemoveOutside ends an outside with the bindings on its external addresses. Its link must be detached before.
func (d *Dataplane) RemoveOutside(name string) error {
	defer d.writes.hold()()
	if err := d.removeOutside(name); err != nil {
		return fmt.Errorf("remove outside %s: %w", name, err)
	}
	return nil
}

// removeOutside leaves IPv4's part, which has the name, to the end.
func (d *Dataplane) removeOutside(name string) error {
	known, err := d.ipv4.names()
	if err != nil {
		return err
	}
	id, _ := known.realmID(name)
	if id < 0 {
		return ErrNotFound
	}
	if err := d.refuseLinked(uint16(id), true); err != nil {
		return err
	}
	for _, f := range slices.Backward(d.families()) {
		if err := f.changeAddresses(uint16(id), nil); err != nil {
			return err
		}
		if err := f.Realms.Put(uint32(id), bpf.Realm{}); err != nil {
			return err
		}
		f.forgetNames()
	}
	return nil
}

// Outsides are those that were put and not removed.
func (d *Dataplane) Outsides() ([]Outside, error) {
	known, err := d.ipv4.names()
	if err != nil {
		return nil, err
	}
	of := map[int][]netip.Addr{}
	err = d.each(func(f *family) error {
		shown, err := f.shownAddresses()
		for id, list := range shown {
			of[id] = append(of[id], list...)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []Outside
	for id, r := range known.realms {
		if r.Name[0] != 0 {
			out = append(out, Outside{Name: nameOf(r.Name), IfIndex: int(r.Ifindex), Addresses: of[id]})
		}
	}
	return out, nil
}

// shownAddresses are each outside's, in the order of Outside.Addresses.
func (f *family) shownAddresses() (map[int][]netip.Addr, error) {
	known, err := f.names()
	if err != nil {
		return nil, err
	}
	have, err := f.addresses()
	if err != nil {
		return nil, err
	}
	of, first := map[int][]netip.Addr{}, map[netip.Addr]bool{}
	for address, a := range have {
		id := int(a.Realm)
		of[id] = append(of[id], addrOf(address))
		first[addrOf(address)] = a.Slot == known.realms[id].First
	}
	for _, list := range of {
		slices.SortFunc(list, func(a, b netip.Addr) int { return cmp.Or(boolOrder(first[a], first[b]), a.Compare(b)) })
	}
	return of, nil
}

// boolOrder puts what is true first.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
