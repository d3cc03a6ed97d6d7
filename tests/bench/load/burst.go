// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// BurstBatch is how many frames the kernel sends at once; MaxBatches are timed at the most.
const (
	BurstBatch = 64
	MaxBatches = 64
)

// The bytes of a burst's frame.
const (
	minBurst = 60
	maxBurst = 74
)

// Burst sends one frame many times.
type Burst struct {
	objs    burstObjects
	frame   []byte
	ifindex int
}

// NewBurst loads what sends a frame by an interface.
func NewBurst(ifindex int, frame []byte) (*Burst, error) {
	if len(frame) < minBurst || len(frame) > maxBurst || len(frame)%2 != 0 {
		return nil, fmt.Errorf("make a burst: a frame of %d bytes, want an even number from %d to %d", len(frame), minBurst, maxBurst)
	}
	b := &Burst{frame: frame, ifindex: ifindex}
	if err := loadBurstObjects(&b.objs, nil); err != nil {
		return nil, fmt.Errorf("load the burst: %w", err)
	}
	var padded [maxBurst]uint8
	copy(padded[:], frame)
	if err := b.objs.Frame.Set(padded); err != nil {
		return nil, errors.Join(fmt.Errorf("set the burst's frame: %w", err), b.Close())
	}
	return b, nil
}

// Send sends the frame n times, in the namespace of the interface, and says what each batch but the last took, until the next one
// began. More than n would be sent if a signal interrupted it: that is an error.
func (b *Burst) Send(n int) (took []int64, err error) {
	if n < 1 || n > MaxBatches*BurstBatch {
		return nil, fmt.Errorf("send a frame %d times: want at most %d", n, MaxBatches*BurstBatch)
	}
	if err := b.objs.Made.Set(uint32(0)); err != nil {
		return nil, fmt.Errorf("reset the burst: %w", err)
	}
	ctx := xdpMD{DataEnd: uint32(len(b.frame)), IngressIfindex: uint32(b.ifindex)}
	if _, err := b.objs.Emit.Run(&ebpf.RunOptions{Data: b.frame, Context: ctx, Repeat: uint32(n), Flags: liveFrames}); err != nil {
		return nil, fmt.Errorf("send a frame %d times: %w", n, err)
	}
	var made uint32
	var marks [MaxBatches]uint64
	if err := errors.Join(b.objs.Made.Get(&made), b.objs.Marks.Get(&marks)); err != nil {
		return nil, fmt.Errorf("read the burst's clock: %w", err)
	}
	if int(made) != n {
		return nil, fmt.Errorf("a frame was sent %d times, want %d", made, n)
	}
	for i := 1; i < (n+BurstBatch-1)/BurstBatch; i++ {
		took = append(took, int64(marks[i]-marks[i-1]))
	}
	return took, nil
}

// Close unloads it.
func (b *Burst) Close() error { return b.objs.Close() }

// End ends what arrives at an interface, of both families, and counts what has the right addresses and protocol.
type End struct {
	objs burstObjects
	hook io.Closer
}

// NewEnd is at tc, or at XDP. It is called in the namespace of the interface.
func NewEnd(ifindex int, xdp bool) (*End, error) {
	e := new(End)
	if err := loadBurstObjects(&e.objs, nil); err != nil {
		return nil, fmt.Errorf("load the burst's end: %w", err)
	}
	var err error
	if xdp {
		e.hook, err = attachXDP(ifindex, e.objs.EndXdp)
	} else {
		e.hook, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: e.objs.EndTc, Attach: ebpf.AttachTCXIngress})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the burst's end: %w", err), e.objs.Close())
	}
	return e, nil
}

// Aim counts from 0 what is from one address to the other.
func (e *End) Aim(protocol uint8, src, dst netip.Addr) error {
	want := burstBurstWant{Protocol: protocol}
	if src.Is6() {
		want.Ipv6 = 1
	}
	for i, both := 0, append(src.AsSlice(), dst.AsSlice()...); len(both) > 0; i, both = i+1, both[4:] {
		want.Addresses[i] = binary.NativeEndian.Uint32(both)
	}
	if err := errors.Join(e.objs.Want.Set(want), e.objs.Arrived.Set(uint64(0))); err != nil {
		return fmt.Errorf("aim the burst's end: %w", err)
	}
	return nil
}

// Count is how many have come since Aim.
func (e *End) Count() (arrived uint64, err error) {
	if err := e.objs.Arrived.Get(&arrived); err != nil {
		return 0, fmt.Errorf("read the burst's counter: %w", err)
	}
	return arrived, nil
}

// Close takes it away.
func (e *End) Close() error { return errors.Join(e.hook.Close(), e.objs.Close()) }
