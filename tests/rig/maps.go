// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
)

// Consistent checks what must hold between the maps at any time.
func (r *Rig) Consistent() {
	r.T.Helper()
	r.Must("look at the maps", func() error {
		return CheckMaps(r.DP.Objects().ZoneUsage, r.DP.Tables()...)
	})
}

// Maps are those of the family that the rig's packets have.
func (r *Rig) Maps() *bpf.Tables {
	list := r.DP.Tables()
	return list[len(list)-1]
}

// CheckMaps says what is wrong with the maps: every claim's binding is to name the claim, every port bit to have a claim and
// every claim a bit, every internal endpoint to lead to its binding, every half's other half to lead back, every session to
// have its slot, and references to be the sessions that there are.
func CheckMaps(zoneUsage *ebpf.Map, families ...*bpf.Tables) error {
	var errs []error
	networks := map[uint32]usage{}
	for _, t := range families {
		errs = append(errs, checkFamily(t, networks))
	}
	counted, err := usageOfZones(zoneUsage)
	return errors.Join(append(errs, err, compareUsage("networks", networks, counted))...)
}

// checkFamily adds what it finds of each network to networks.
func checkFamily(t *bpf.Tables, networks map[uint32]usage) error {
	var errs []error
	references := map[uint32]int{}
	sessions, err := t.Sessions.Dump()
	if err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	for key, half := range sessions {
		if half.Flags&(bpf.HalfPrimary|bpf.HalfHairpin) != 0 {
			references[half.Binding]++
		}
		back := bpf.SessionKey{Saddr: half.Daddr, Daddr: half.Saddr, Sport: half.Dport, Dport: half.Sport,
			Zone: half.PeerZone, Proto: key.Proto}
		if otherHalf, ok := sessions[back]; !ok {
			errs = append(errs, fmt.Errorf("session %+v has no other half", key))
		} else if otherHalf.Slot != half.Slot {
			errs = append(errs, fmt.Errorf("session %+v: halves of slots %d and %d", key, half.Slot, otherHalf.Slot))
		}
	}
	return errors.Join(append(errs, checkClaims(t, references), checkPortless(t, references), checkInternals(t), checkSlots(t), checkPermissions(t),
		checkUsage(t, networks), checkBlocks(t))...)
}

// SLOT_* of slot.h.
const (
	SlotFree     = 0
	SlotReserved = 1
	SlotLive     = 2
	SlotState    = 3
)

// checkSlots: the sweeper finds every session by its slot, and a session by every slot that is in use.
func checkSlots(t *bpf.Tables) error {
	var errs []error
	named := map[uint32]bool{}
	sessions, err := t.Sessions.Dump()
	if err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	slots, err := t.Slots.Elements(t.Slots.Map().MaxEntries())
	if err != nil {
		return fmt.Errorf("read the slots: %w", err)
	}
	for key, half := range sessions {
		slot := slots[half.Slot]
		named[half.Slot] = true
		if slot.Word&SlotState != SlotLive {
			errs = append(errs, fmt.Errorf("session %+v: its slot %d is not live: %+v", key, half.Slot, slot))
		}
		if half.Flags&bpf.HalfPrimary != 0 && slot.Key != key {
			errs = append(errs, fmt.Errorf("session %+v: its slot %d names %+v", key, half.Slot, slot.Key))
		}
	}
	for i, slot := range slots {
		// A port of the host that a static binding has taken over keeps its slot until the sweeper comes by.
		if slot.Word&SlotState != SlotFree && slot.Key.Zone != bpf.ZoneClaim && !named[uint32(i)] {
			errs = append(errs, fmt.Errorf("slot %d names what is not there: %+v", i, slot))
		}
	}
	return errors.Join(errs...)
}

// halfFilter is HALF_FILTER of abi.h: the session holds a reference on a permission.
const halfFilter = 1 << 3

// checkPermissions: each is held by as many sessions as it says.
func checkPermissions(t *bpf.Tables) error {
	want := map[bpf.PermissionKey]uint32{}
	sessions, err := t.Sessions.Dump()
	if err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	for key, half := range sessions {
		if half.Flags&bpf.HalfPrimary != 0 && half.Flags&halfFilter != 0 {
			want[bpf.PermissionKey{Binding: half.Binding, Generation: half.Generation, Remote: key.Daddr}]++
		}
	}
	got, err := t.Permissions.Dump()
	if err != nil {
		return fmt.Errorf("read the permissions: %w", err)
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(bpf.PermissionKey{}, bpf.Addr{})); diff != "" {
		return fmt.Errorf("permissions (-sessions +map):\n%s", diff)
	}
	return nil
}

func checkClaims(t *bpf.Tables, references map[uint32]int) error {
	var errs []error
	routed := 0 // whose endpoints have no bits
	claims, err := t.Claims.Dump()
	if err != nil {
		return fmt.Errorf("read the claims: %w", err)
	}
	for key, claim := range claims {
		if claim.Binding == bpf.ClaimHost {
			continue
		}
		b, err := t.Bindings.Lookup(claim.Binding)
		if err != nil {
			return err
		}
		if b.External != key.Address || b.ExternalPort != key.Port || b.Proto != key.Proto || uint32(b.Word>>32) != claim.Generation {
			errs = append(errs, fmt.Errorf("claim %+v names binding %+v", key, b))
		}
		if b.Address == bpf.NoSlot {
			routed++
		}
		want := references[claim.Binding]
		if b.Flags&bpf.BindingStatic != 0 {
			want++
		}
		if int(uint32(b.Word)) != want {
			errs = append(errs, fmt.Errorf("binding %+v has %d references, its sessions are %d", b, uint32(b.Word), want))
		}
	}
	marked, err1 := bitsOf(t.Ports)
	held, err2 := bitsOf(t.Held)
	if marked != len(claims)-routed+held {
		errs = append(errs, fmt.Errorf("%d ports are marked, %d are claimed and %d held", marked, len(claims)-routed, held))
	}
	return errors.Join(append(errs, err1, err2)...)
}

// checkPortless: bindings without ports, which have no claims, are held by their sessions.
func checkPortless(t *bpf.Tables, references map[uint32]int) error {
	var errs []error
	all, err := t.Bindings.Elements(t.Bindings.Map().MaxEntries())
	if err != nil {
		return fmt.Errorf("read the bindings: %w", err)
	}
	for i, b := range all {
		if !dataplane.Protocol(b.Proto).HasPorts() && int(uint32(b.Word)) != references[uint32(i)] {
			errs = append(errs, fmt.Errorf("binding %+v has %d references, its sessions are %d", b, uint32(b.Word), references[uint32(i)]))
		}
	}
	return errors.Join(errs...)
}

// checkInternals: the index by internal endpoint leads to a binding that lives and has just that key.
func checkInternals(t *bpf.Tables) error {
	var errs []error
	internals, err := t.Internals.Dump()
	if err != nil {
		return fmt.Errorf("read the index by internal endpoint: %w", err)
	}
	for key, ref := range internals {
		b, err := t.Bindings.Lookup(ref.Binding)
		if err != nil {
			return err
		}
		own := bpf.BindingKey{Address: b.Internal, Port: b.InternalPort, Remote: b.Remote, RemotePort: b.RemotePort,
			Zone: b.Zone, Proto: b.Proto, Realm: uint8(b.Realm)}
		if own != key || uint32(b.Word>>32) != ref.Generation || b.Flags&bpf.BindingIndexed == 0 {
			errs = append(errs, fmt.Errorf("internal %+v leads to %+v, binding %+v", key, ref, b))
		}
	}
	return errors.Join(errs...)
}

// bitsOf counts the bits of all elements of an array.
func bitsOf(m *ebpf.Map) (n int, err error) {
	err = readBatches(m, func(_, value []byte) {
		for ; len(value) >= 8; value = value[8:] {
			n += bits.OnesCount64(binary.NativeEndian.Uint64(value))
		}
	})
	if err != nil {
		return 0, fmt.Errorf("count the bits of %v: %w", m, err)
	}
	return n, nil
}

func MapLen(m *ebpf.Map) int {
	n := 0
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&key, &value); {
		n++
	}
	return n
}
