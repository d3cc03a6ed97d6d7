// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

// Owner is an inside host that somebody vouches for: a container with its address in a network. Nobody at another
// bridge port may send from the address then.
type Owner struct {
	Network   string // Network.Name
	Address   netip.Addr
	ID        uint64       // of the container; another one with the same address inherits nothing
	Port      int          // ifindex of its bridge port; 0: not known
	Excluded  bool         // not translated: the host's own NAT has it
	Filtering *[3]Behavior // as Network.Filtering; nil: the network's
	External  []netip.Addr // as Network.External, of this host; empty: the network's
	OneToOne  bool         // External is one address, and all of it the host's: every port and protocol

	// Began is when the inside host came into being, since boot (CLOCK_BOOTTIME); 0: not known. It is not kept.
	Began time.Duration
}

// PutOwner says whose an address is, or changes what is known of it. Whoever had the address before keeps its
// bindings until RemoveOwner. Where nobody is known to have had it, bindings that are older than the owner end: they are
// of somebody who was gone again before anybody could tell. Bindings at external addresses that a changed Owner.External
// leaves out end, and so do others' at an address that is the owner's alone. Errors: ErrNotFound (no such network), ErrFull,
// ErrAddressTaken.
func (d *Dataplane) PutOwner(o Owner) error {
	defer d.writes.hold()()
	err := checkAddress(o.Address)
	var f *family
	if err == nil {
		f, err = d.of(o.Address)
	}
	if err == nil {
		err = f.putOwner(o)
	}
	if err != nil {
		return fmt.Errorf("owner of %s in network %s: %w", o.Address, o.Network, err)
	}
	return nil
}

func (f *family) putOwner(o Owner) error {
	key, err := f.ownerKey(o.Network, o.Address)
	if err != nil {
		return err
	}
	raw := bpf.Owner{Id: o.ID, Ifindex: uint32(o.Port)}
	if o.Excluded {
		raw.Flags |= bpf.OwnerExcluded
	}
	if o.Filtering != nil {
		raw.Flags |= bpf.OwnerFiltering
		for i, b := range o.Filtering {
			if b > AddressAndPortDependent {
				return fmt.Errorf("unknown filtering %d", b)
			}
			raw.Filtering[i] = uint8(b)
		}
	}
	if raw.Set, err = f.ownerSet(key, o, &raw.Flags); err != nil {
		return err
	}
	before, err := f.Owners.Lookup(key)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist) && o.Began > 0:
		if err := f.endOlder(key, o.Began); err != nil {
			return err
		}
	case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("read the one before: %w", err)
	}
	err = f.Owners.Put(key, raw)
	f.forgetNames()
	if err != nil || before.Set == raw.Set && (before.Flags^raw.Flags)&bpf.OwnerOneToOne == 0 {
		return err
	}
	return f.ownerMoved(key)
}

// endOlder ends the dynamic bindings of an address that were made before a moment since boot. They have whole seconds of the
// monotonic clock, rounded down, and one that may be younger stays.
func (f *family) endOlder(key bpf.OwnerKey, moment time.Duration) error {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fmt.Errorf("read the time since boot: %w", err)
	}
	age := time.Duration(boot.Nano()) - moment
	mono := time.Duration(f.d.now().mono) - age
	return f.kill(func(b binding) bool {
		return b.Zone == key.Zone && b.Internal == key.Address && b.Flags&bpf.BindingStatic == 0 &&
			time.Duration(b.Created+1)*time.Second <= mono
	})
}

func (f *family) ownerKey(network string, address netip.Addr) (bpf.OwnerKey, error) {
	known, err := f.names()
	if err != nil {
		return bpf.OwnerKey{}, err
	}
	id, _ := known.zoneID(network)
	if id == 0 {
		return bpf.OwnerKey{}, fmt.Errorf("network %s: %w", network, ErrNotFound)
	}
	return bpf.OwnerKey{Address: rawAddr(address), Zone: id}, nil
}

// ForgetOwner forgets whose an address is, and leaves its bindings. Error: ErrNotFound.
func (d *Dataplane) ForgetOwner(network string, address netip.Addr) error {
	defer d.writes.hold()()
	err := ErrNotFound
	if f := d.loadedOf(address); f != nil {
		_, err = f.deleteOwner(network, address)
	}
	if err != nil {
		return fmt.Errorf("forget owner of %s in network %s: %w", address, network, err)
	}
	return nil
}

func (f *family) deleteOwner(network string, address netip.Addr) (bpf.OwnerKey, error) {
	key, err := f.ownerKey(network, address)
	if err != nil {
		return key, err
	}
	known, err := f.names()
	if err != nil {
		return key, err
	}
	set := known.owners[key].Set
	err = f.Owners.Delete(key)
	f.forgetNames()
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = ErrNotFound
	}
	if err == nil && set != 0 {
		err = f.settleAddresses()
	}
	return key, err
}

// RemoveOwner forgets whose an address is, and ends its bindings and sessions. Error: ErrNotFound.
func (d *Dataplane) RemoveOwner(network string, address netip.Addr) error {
	defer d.writes.hold()()
	err := ErrNotFound
	if f := d.loadedOf(address); f != nil {
		err = f.removeOwner(network, address)
	}
	if err != nil {
		return fmt.Errorf("remove owner of %s in network %s: %w", address, network, err)
	}
	return nil
}

func (f *family) removeOwner(network string, address netip.Addr) error {
	key, err := f.deleteOwner(network, address)
	if err == nil {
		err = f.kill(func(b binding) bool { return b.Zone == key.Zone && b.Internal == key.Address })
	}
	return err
}

// Owners are those that were put and not removed, in no order.
func (d *Dataplane) Owners() ([]Owner, error) {
	var out []Owner
	err := d.each(func(f *family) error {
		known, err := f.names()
		for key, raw := range known.owners {
			out = append(out, known.owner(key, raw))
		}
		return err
	})
	return out, err
}

func (n names) owner(key bpf.OwnerKey, raw bpf.Owner) Owner {
	o := Owner{Network: n.zoneName(key.Zone), Address: addrOf(key.Address), ID: raw.Id, Port: int(raw.Ifindex),
		Excluded: raw.Flags&bpf.OwnerExcluded != 0, External: n.external(raw.Set), OneToOne: raw.Flags&bpf.OwnerOneToOne != 0}
	if raw.Flags&bpf.OwnerFiltering != 0 {
		o.Filtering = new([3]Behavior)
		for i, b := range raw.Filtering {
			o.Filtering[i] = Behavior(b)
		}
	}
	return o
}

// removeOwners forgets all of a network that goes.
func (f *family) removeOwners(zone uint16) error {
	known, err := f.names()
	if err != nil {
		return err
	}
	defer f.forgetNames()
	for key := range known.owners {
		if key.Zone != zone {
			continue
		}
		if err := f.Owners.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove owner of %s: %w", addrOf(key.Address), err)
		}
	}
	return nil
}
