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
	want, err := rawAddresses(o.Addresses)
	if err != nil {
		return err
	}
	known, err := d.names()
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
	realm := known.realms[id]
	realm.Name, realm.Ifindex = rawName(o.Name), uint32(o.IfIndex)
	if err := d.objs.Realms4.Put(uint32(id), realm); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	d.forgetNames()
	if err := d.changeAddresses(uint16(id), want); err != nil {
		return err
	}
	return d.showFirst(uint32(id), want)
}

// rawAddresses refuses what is no list of external addresses.
func rawAddresses(list []netip.Addr) (raw []uint32, err error) {
	for _, a := range list {
		if !a.Is4() {
			return nil, fmt.Errorf("external address %s is not IPv4", a)
		}
		if slices.Contains(raw, rawAddr(a)) {
			return nil, fmt.Errorf("external address %s is there twice", a)
		}
		raw = append(raw, rawAddr(a))
	}
	return raw, nil
}

// showFirst notes which address is shown for the outside.
func (d *Dataplane) showFirst(id uint32, list []uint32) error {
	if len(list) == 0 {
		return nil
	}
	known, err := d.names()
	if err != nil {
		return err
	}
	var first bpf.Address
	if err := d.objs.Addresses4.Lookup(list[0], &first); err != nil {
		return fmt.Errorf("read external address %s: %w", addrOf(list[0]), err)
	}
	realm := known.realms[id]
	realm.First = first.Slot
	if realm == known.realms[id] {
		return nil
	}
	defer d.forgetNames()
	return d.objs.Realms4.Put(id, realm)
}

// changeAddresses gives a realm its external addresses. New ones come first, where there is room for them beside the others.
func (d *Dataplane) changeAddresses(realm uint16, want []uint32) error {
	have, err := d.addresses()
	if err != nil {
		return err
	}
	var added, gone []uint32
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
		if err := d.removeAddresses(gone); err != nil {
			return err
		}
		gone = nil
	}
	if err := d.addAddresses(realm, added); err != nil {
		return err
	}
	return d.removeAddresses(gone)
}

func (d *Dataplane) addAddresses(realm uint16, list []uint32) error {
	for _, a := range list {
		if err := d.addAddress(realm, a); err != nil {
			return err
		}
	}
	return d.settleAddresses()
}

// removeAddresses: first no packet can get one of them any more, then what lives there ends.
func (d *Dataplane) removeAddresses(list []uint32) error {
	for _, a := range list {
		if err := d.objs.Addresses4.Delete(a); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove external address %s: %w", addrOf(a), err)
		}
	}
	return d.endAddresses()
}

func (d *Dataplane) addresses() (map[uint32]bpf.Address, error) {
	have, err := dumpHash[uint32, bpf.Address](d.objs.Addresses4)
	if err != nil {
		return nil, fmt.Errorf("read external addresses: %w", err)
	}
	return have, nil
}

func (d *Dataplane) externals() ([]bpf.External, error) {
	slots, err := dumpArray[bpf.External](d.objs.Externals4, bpf.Addresses)
	if err != nil {
		return nil, fmt.Errorf("read slots of external addresses: %w", err)
	}
	return slots, nil
}

// addressTables are both tables of external addresses: by address, and by slot.
func (d *Dataplane) addressTables() (have map[uint32]bpf.Address, slots []bpf.External, err error) {
	if have, err = d.addresses(); err == nil {
		slots, err = d.externals()
	}
	return have, slots, err
}

func (d *Dataplane) putExternal(slot int, e bpf.External) error {
	if err := d.objs.Externals4.Put(uint32(slot), e); err != nil {
		return fmt.Errorf("write slot of external address %s: %w", addrOf(e.Address), err)
	}
	return nil
}

// noRealm is that of an address which is on its way.
const noRealm = 0xffff

// addAddress takes a free slot. Who gets which address is settled afterwards.
func (d *Dataplane) addAddress(realm uint16, address uint32) error {
	slots, err := d.externals()
	if err != nil {
		return err
	}
	slot := slices.IndexFunc(slots, func(e bpf.External) bool { return e.Address == 0 })
	if slot < 0 {
		return fmt.Errorf("external address %s: %w: %d are there already", addrOf(address), ErrFull, bpf.Addresses)
	}
	if err := d.clearPorts(slot); err != nil {
		return err
	}
	// In no default pool before it is known that nobody has named it.
	e := bpf.External{Address: address, Realm: realm, Generation: slots[slot].Generation + 1, Flags: bpf.ExternalNamed}
	if err := d.putExternal(slot, e); err != nil {
		return err
	}
	if err := d.objs.Addresses4.Update(address, bpf.Address{Realm: realm, Slot: uint16(slot)}, ebpf.UpdateNoExist); err != nil {
		return fmt.Errorf("add external address %s: %w", addrOf(address), err)
	}
	return nil
}

// clearPorts frees every port of an address that is not in use, those that wait too: the sweeper would free the next address's.
func (d *Dataplane) clearPorts(slot int) error {
	clear := func(m *ebpf.Map, index int) error { return m.Put(uint32(index), make([]byte, m.ValueSize())) }
	err := errors.Join(clear(d.objs.Held, slot), clear(d.objs.BlockWords, slot))
	for l4 := range bpf.Protocols {
		err = errors.Join(err, clear(d.objs.Ports, slot*bpf.Protocols+l4))
	}
	if err != nil {
		return fmt.Errorf("clear port bitmaps: %w", err)
	}
	return nil
}

// endAddresses ends what lives on addresses that are no outside's any more, all at once, and frees their slots. The walk that
// ends the sessions gives up the host's claims there, too, and cannot say where their bits are.
func (d *Dataplane) endAddresses() error {
	have, slots, err := d.addressTables()
	if err != nil {
		return err
	}
	gone := map[uint32]bool{}
	for slot, e := range slots {
		if is, ok := have[e.Address]; e.Address == 0 || ok && int(is.Slot) == slot {
			continue
		}
		gone[e.Address] = true
		e.Realm, e.Internal = noRealm, 0 // no host is paired with it any more
		if err := d.putExternal(slot, e); err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := d.settleAddresses(); err != nil {
		return err
	}
	if err := d.killAll(func(b binding) bool { return gone[b.External] }); err != nil {
		return err
	}
	for slot, e := range slots {
		if !gone[e.Address] {
			continue
		}
		if err := d.clearPorts(slot); err != nil {
			return err
		}
		if err := d.putExternal(slot, bpf.External{Realm: noRealm, Generation: e.Generation}); err != nil {
			return err
		}
	}
	return nil
}

// RemoveOutside ends an outside with the bindings on its external addresses. Its link must be detached before.
func (d *Dataplane) RemoveOutside(name string) error {
	defer d.writes.hold()()
	known, err := d.names()
	if err != nil {
		return err
	}
	id, _ := known.realmID(name)
	if id < 0 {
		return fmt.Errorf("remove outside %s: %w", name, ErrNotFound)
	}
	if err := d.refuseLinked(name, uint16(id), true); err != nil {
		return err
	}
	err = d.changeAddresses(uint16(id), nil)
	if err == nil {
		err = d.objs.Realms4.Put(uint32(id), bpf.Realm{})
		d.forgetNames()
	}
	if err != nil {
		return fmt.Errorf("remove outside %s: %w", name, err)
	}
	return nil
}

// Outsides are those that were put and not removed.
func (d *Dataplane) Outsides() ([]Outside, error) {
	known, err := d.names()
	if err != nil {
		return nil, err
	}
	have, err := d.addresses()
	if err != nil {
		return nil, err
	}
	var out []Outside
	for id, r := range known.realms {
		if r.Name[0] == 0 {
			continue
		}
		o := Outside{Name: nameOf(r.Name), IfIndex: int(r.Ifindex)}
		var first netip.Addr
		for address, a := range have {
			if int(a.Realm) != id {
				continue
			}
			o.Addresses = append(o.Addresses, addrOf(address))
			if a.Slot == r.First {
				first = addrOf(address)
			}
		}
		slices.SortFunc(o.Addresses, func(a, b netip.Addr) int {
			return cmp.Or(boolOrder(a == first, b == first), a.Compare(b))
		})
		out = append(out, o)
	}
	return out, nil
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
