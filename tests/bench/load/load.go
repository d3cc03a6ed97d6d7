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
	g := &Generator{frame: s.frame()}
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

// chunk is how many packets one system call makes: some 30 ms, so that little of it is the call's own beginning and end.
const chunk = 1 << 15

// For sends for a time, and says how many packets it has sent and how long that took. It is called in the namespace of the
// stream's interface, as Send is.
func (g *Generator) For(d time.Duration) (sent int, took time.Duration, err error) {
	n := chunk
	if d < 100*time.Millisecond {
		n /= 16
	}
	begin := time.Now()
	for took < d && err == nil {
		err = g.Send(n)
		sent += n
		took = time.Since(begin)
	}
	return sent, took, err
}

// Send sends n packets.
func (g *Generator) Send(n int) error {
	_, err := g.objs.Generate.Run(&ebpf.RunOptions{Data: g.frame, Context: g.ctx, Repeat: uint32(n), Flags: liveFrames})
	if err != nil {
		return fmt.Errorf("send %d packets: %w", n, err)
	}
	return nil
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
