// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"testing"
	"time"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestSlotOfOneHeldUp: a CPU that has reserved a slot is held up for longer than a session lives. The sweeper takes the
// slot back, and what that CPU would confirm is another generation's by then.
func TestSlotOfOneHeldUp(t *testing.T) {
	r := rig.New(t)
	slots := r.Maps().Slots
	slot := func() (s bpf.SessionSlot) {
		r.Must("read the slot", func() (err error) { s, err = slots.Lookup(0); return err })
		return s
	}
	r.Out(packets.UDP(rig.C1+":5000", rig.Peer1+":9", "x"), packets.UDP(rig.External+":5000", rig.Peer1+":9", "x"))
	if got := slot().Word & rig.SlotState; got != rig.SlotLive {
		t.Fatalf("the slot of a session is in state %d, want live", got)
	}
	r.Wait(6 * time.Minute)
	freed := slot()
	if got := freed.Word & rig.SlotState; got != rig.SlotFree {
		t.Fatalf("the slot of a session that has expired is in state %d, want free", got)
	}

	// As slot_reserve leaves it: taken out of the queue, and reserved.
	var index uint32
	r.Must("take the slot", func() error { return r.DP.Objects().SessionFree4.LookupAndDelete(nil, &index) })
	reserved := freed
	reserved.Word = freed.Word + rig.SlotReserved
	reserved.Check += uint32(time.Hour >> bpf.TickShift)
	r.Must("reserve the slot", func() error { return slots.Put(index, reserved) })
	r.Wait(time.Second)
	if got := slot(); got.Word != reserved.Word {
		t.Errorf("a slot that is reserved and not due: %+v, want word %d", got, reserved.Word)
	}
	r.Wait(2 * time.Hour)
	if got := slot(); got.Word&rig.SlotState != rig.SlotFree || got.Word == freed.Word {
		t.Errorf("a slot that is reserved and due: %+v, want a free one of the next generation after word %d", got, freed.Word)
	}
	r.Out(packets.UDP(rig.C1+":5000", rig.Peer1+":9", "x"), packets.UDP(rig.External+":5000", rig.Peer1+":9", "x"))
	r.Consistent()
}
