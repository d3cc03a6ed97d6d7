// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench"
)

// instructions is the clock, where a nanosecond is an instruction.
func instructions() int64 {
	var ts unix.Timespec
	// CLOCK_MONOTONIC always exists. Raw: Go's scheduler shall not hear of it.
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

// undisturbed makes this goroutine's thread the one that nothing but interrupts takes the CPU from, and the runtime
// leave the memory alone. The process is for nothing else, so it is never undone.
func undisturbed() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	param := struct{ priority int32 }{50}
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO, uintptr(unsafe.Pointer(&param)))
	if errno != 0 {
		return fmt.Errorf("take the real-time scheduler: %w", errno)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		return fmt.Errorf("lock the memory: %w", err)
	}
	return nil
}

// alignClocks sets the time of day to whole seconds and the monotonic clock. The kernel's coarse clock, which conenat reads for
// each packet, adds the two clocks' nanoseconds, and a carry is 4 instructions: whether there is one would be chance. The
// machine is for nothing else.
func alignClocks() error {
	var day unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &day); err != nil {
		return fmt.Errorf("read the time of day: %w", err)
	}
	day.Nsec = instructions() % 1e9 // a moment before it is set, so that the difference is no less than 0
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &day); err != nil {
		return fmt.Errorf("set the time of day: %w", err)
	}
	return nil
}

// othersTurn gives the CPU away until what a batch has left to do is done: the daemon's events, RCU's callbacks.
// Nothing tells that.
func othersTurn() {
	pause := unix.Timespec{Nsec: 3e6}
	_ = unix.Nanosleep(&pause, nil)
}

// injector sends frames out of a port. The whole way of each is gone, by softirqs on the one CPU, when the system
// call returns.
type injector struct {
	fd       int
	messages []message
	vectors  []unix.Iovec
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	sent   uint32
	_      uint32
}

func newInjector(p bench.Port, capacity int) (*injector, error) {
	i := &injector{messages: make([]message, capacity), vectors: make([]unix.Iovec, capacity)}
	index, err := p.IfIndex()
	if err != nil {
		return nil, err
	}
	err = p.NS.Do(func() (err error) {
		i.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket in %s: %w", p.NS.Name, err)
	}
	for _, option := range []int{unix.PACKET_QDISC_BYPASS, unix.PACKET_VNET_HDR} {
		if err := unix.SetsockoptInt(i.fd, unix.SOL_PACKET, option, 1); err != nil {
			i.close()
			return nil, fmt.Errorf("set packet socket option %d: %w", option, err)
		}
	}
	// Protocol 0: it receives nothing.
	if err := unix.Bind(i.fd, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		i.close()
		return nil, fmt.Errorf("bind a packet socket to %s: %w", p.Name, err)
	}
	for n := range i.messages {
		i.messages[n].header.Iov = &i.vectors[n]
		i.messages[n].header.Iovlen = 1
	}
	return i, nil
}

func (i *injector) close() { _ = unix.Close(i.fd) }

// send sends the frames by one system call, and returns what that took.
func (i *injector) send(frames [][]byte) (int64, error) {
	for n, f := range frames {
		i.vectors[n] = unix.Iovec{Base: &f[0], Len: uint64(len(f))}
	}
	before := instructions()
	sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(i.fd), uintptr(unsafe.Pointer(&i.messages[0])), uintptr(len(frames)), 0, 0, 0)
	after := instructions()
	if errno != 0 {
		return 0, fmt.Errorf("send packets: %w", errno)
	}
	if int(sent) != len(frames) {
		return 0, fmt.Errorf("%d of %d packets were sent", sent, len(frames))
	}
	return after - before, nil
}
