// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// burstFrames are the least and the most that a burst has, by the protocol's number.
var burstFrames = map[uint8]packets.Spec{
	17: packets.UDP(local.String(), remote.String(), string(make([]byte, minBurst-headerBytes))),
	6:  packets.TCP("[fd00:17::2]:20000", "[2001:db8:113::1]:3478", "A", ""),
}

func newBurst(t *testing.T, ifindex int, frame []byte) *Burst {
	t.Helper()
	b, err := NewBurst(ifindex, frame)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// TestEmit: a frame is itself again, whatever was made of its page.
func TestEmit(t *testing.T) {
	require.Root(t)
	for protocol, spec := range burstFrames {
		frame := spec.Bytes()
		b := newBurst(t, 1, frame)
		opts := ebpf.RunOptions{Data: bytes.Repeat([]byte{0xa5}, len(frame)), DataOut: make([]byte, len(frame)+64)}
		verdict, err := b.objs.Emit.Run(&opts)
		if err != nil || verdict != xdpTX || !bytes.Equal(opts.DataOut, frame) {
			t.Errorf("protocol %d: verdict %d, %v:\n%s", protocol, verdict, err, packets.Dump(opts.DataOut))
		}
	}
}

// TestBurst: all arrive, are told from others, and each batch is timed.
func TestBurst(t *testing.T) {
	for protocol, spec := range burstFrames {
		frame := spec.Bytes()
		src, dst := burstAddresses(t, frame)
		for _, xdp := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/xdp=%v", protocol, xdp), func(t *testing.T) {
				p := newPath(t)
				if err := p.router.SetGRO("toa", true); err != nil {
					t.Fatal(err)
				}
				end := p.end(t, xdp)
				b := newBurst(t, p.index(t, p.a, "eth0"), frame)
				p.burst(t, b, end, protocol, src, dst, 3*BurstBatch+1)
				p.burst(t, b, end, protocol^1, src, dst, 0)
				p.burst(t, b, end, protocol, dst, src, 0)
			})
		}
	}
}

func burstAddresses(t *testing.T, frame []byte) (src, dst netip.Addr) {
	t.Helper()
	at, size := 26, 4
	if frame[ethernetBytes]>>4 == 6 {
		at, size = 22, 16
	}
	src, _ = netip.AddrFromSlice(frame[at : at+size])
	dst, _ = netip.AddrFromSlice(frame[at+size : at+2*size])
	return src, dst
}

func (p path) end(t *testing.T, xdp bool) (end *End) {
	t.Helper()
	index := p.index(t, p.router, "toa")
	if err := p.router.Do(func() (err error) { end, err = NewEnd(index, xdp); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end.Close() })
	return end
}

// burst sends three batches and a frame, of which so many are to count.
func (p path) burst(t *testing.T, b *Burst, end *End, protocol uint8, src, dst netip.Addr, want uint64) {
	t.Helper()
	const frames = 3*BurstBatch + 1
	if err := end.Aim(protocol, src, dst); err != nil {
		t.Fatal(err)
	}
	var took []int64
	err := p.a.Do(func() error {
		return OnCPU(0, func() (err error) { took, err = b.Send(frames); return err })
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(took) != 3 || min(took[0], took[1], took[2]) <= 0 {
		t.Errorf("the batches took %v", took)
	}
	var arrived uint64
	_ = topo.Poll(t.Context(), 5*time.Second, "wait for the frames", func() (bool, error) {
		var err error
		arrived, err = end.Count()
		return arrived >= want, err
	})
	if arrived != want {
		t.Errorf("%d frames counted of protocol %d from %v to %v, want %d", arrived, protocol, src, dst, want)
	}
}

func TestBurstRefuses(t *testing.T) {
	require.Root(t)
	for _, size := range []int{minBurst - 2, minBurst + 1, maxBurst + 2} {
		if b, err := NewBurst(1, make([]byte, size)); err == nil {
			b.Close()
			t.Errorf("a frame of %d bytes is accepted", size)
		}
	}
	b := newBurst(t, 1, make([]byte, minBurst))
	for _, n := range []int{0, MaxBatches*BurstBatch + 1} {
		if _, err := b.Send(n); err == nil {
			t.Errorf("%d frames are accepted", n)
		}
	}
}
