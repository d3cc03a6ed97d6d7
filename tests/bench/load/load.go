// SPDX-License-Identifier: Apache-2.0

package load

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Generator makes packets of a stream.
type Generator struct {
	objs  loadObjects
	frame []byte
	ctx   xdpMD
}

// xdpMD is struct xdp_md (linux/bpf.h).
type xdpMD struct{ Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32 }

// NewGenerator loads a generator.
func NewGenerator(s Stream) (*Generator, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("make a generator: %w", err)
	}
	g := &Generator{frame: s.frame(s.Local, s.Remote)}
	g.ctx = xdpMD{DataEnd: uint32(len(g.frame)), IngressIfindex: uint32(s.Interface)}
	if err := loadLoadObjects(&g.objs, nil); err != nil {
		return nil, fmt.Errorf("load the generator: %w", err)
	}
	if err := g.objs.Shape.Set(s.shape(g.frame)); err != nil {
		return nil, errors.Join(fmt.Errorf("set the generator's packets: %w", err), g.Close())
	}
	return g, nil
}

// liveFrames is BPF_F_TEST_XDP_LIVE_FRAMES (linux/bpf.h).
const liveFrames = 1 << 1

// firstPackets are sent to learn the rate. A call has a cost of its own, so that one more is to send the rest.
const firstPackets = 1 << 12

// For sends for a time, and says how many packets it has sent and how long that took. It is called in the namespace of the
// stream's interface, as Send is.
func (g *Generator) For(d time.Duration) (sent int, took time.Duration, err error) {
	for n := firstPackets; took < d && err == nil; {
		var more int
		var time time.Duration
		more, time, err = g.Send(n)
		sent, took = sent+more, took+time
		n = max(firstPackets, int(float64(sent)*float64(d-took)/float64(took)))
	}
	return sent, took, err
}

// markPackets is MARK_PACKETS.
const markPackets = 64

// Send sends n packets, or more if a signal has interrupted it. What it took is told by the packets' own clock: the call's end
// waits for an RCU grace period, some 20 ms in which nothing is sent.
func (g *Generator) Send(n int) (sent int, took time.Duration, err error) {
	if err := errors.Join(g.objs.Made.Set(uint32(0)), g.objs.FirstMark.Set(uint64(0))); err != nil {
		return 0, 0, fmt.Errorf("reset the generator: %w", err)
	}
	begin := time.Now()
	_, err = g.objs.Generate.Run(&ebpf.RunOptions{Data: g.frame, Context: g.ctx, Repeat: uint32(n), Flags: liveFrames})
	if err != nil {
		return 0, 0, fmt.Errorf("send %d packets: %w", n, err)
	}
	took = time.Since(begin)
	var made uint32
	var first, last uint64
	if err := errors.Join(g.objs.Made.Get(&made), g.objs.FirstMark.Get(&first), g.objs.LastMark.Get(&last)); err != nil {
		return 0, 0, fmt.Errorf("read the generator's clock: %w", err)
	}
	if marked := (int(made) - 1) / markPackets * markPackets; marked > 0 {
		took = time.Duration(float64(last-first) * float64(made) / float64(marked))
	}
	return int(made), took, nil
}

// Restart begins with the first session again.
func (g *Generator) Restart() error { return g.objs.Next.Set(uint32(0)) }

// one runs the generator's program once, to see what it makes of a page that something was left in.
func (g *Generator) one(page []byte) ([]byte, error) {
	opts := ebpf.RunOptions{Data: page, DataOut: make([]byte, len(page)+64)}
	verdict, err := g.objs.Generate.Run(&opts)
	if err == nil && verdict != xdpTX {
		err = fmt.Errorf("the generator's verdict is %d", verdict)
	}
	return opts.DataOut, err
}

const xdpTX = 3 // enum xdp_action (linux/bpf.h)

// Close unloads it.
func (g *Generator) Close() error { return g.objs.Close() }

// OnCPU runs fn on one CPU, with what the kernel does in its place there: softirqs of the packets that it sends.
func OnCPU(cpu int, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, only unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("ask for the thread's CPUs: %w", err)
	}
	only.Set(cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return fmt.Errorf("stay on CPU %d: %w", cpu, err)
	}
	err := fn()
	if back := unix.SchedSetaffinity(0, &before); back != nil {
		err = errors.Join(err, fmt.Errorf("leave CPU %d: %w", cpu, back))
	}
	return err
}
