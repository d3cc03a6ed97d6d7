// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

// tick is the tables' unit of time.
const tick = time.Duration(1 << bpf.TickShift)

// ticksOf rounds up: nothing expires early.
func ticksOf(d time.Duration) uint32 { return uint32((d + tick - 1) / tick) }

func durationOf(ticks uint32) time.Duration { return time.Duration(ticks) * tick }

// clock relates the kernel's monotonic clock, which the tables are in, to wall time.
type clock struct {
	mono uint64 // ns
	wall time.Time
}

// stepped is how far wall time may drift from the monotonic clock before it counts as having been set.
const stepped = time.Second

// now reads both clocks. Their distance is kept from one reading to the next, so that one moment in the
// tables is one time of the day, until somebody sets the clock.
func (d *Dataplane) now() clock {
	var ts unix.Timespec
	// CLOCK_MONOTONIC always exists: the error is for an unknown clock.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	mono, wall := time.Duration(ts.Nano()), time.Now().Round(0)
	if d.opts.VirtualClock {
		var ns uint64
		if d.objs.VirtualNow.Get(&ns) == nil {
			return clock{mono: ns, wall: wall}
		}
	}
	d.epochMu.Lock()
	defer d.epochMu.Unlock()
	if drift := wall.Sub(d.epoch.Add(mono)).Abs(); drift > stepped {
		d.epoch = wall.Add(-mono)
	}
	return clock{mono: uint64(mono), wall: d.epoch.Add(mono)}
}

func (c clock) tick() uint32 { return uint32(c.mono >> bpf.TickShift) }

// wallAt is the wall time of a moment of the monotonic clock, ns.
func (c clock) wallAt(ns uint64) time.Time { return c.wall.Add(-time.Duration(c.mono - ns)) }

// until is the time from now to a tick; never negative.
func (c clock) until(deadline uint32) time.Duration {
	left := int32(deadline - c.tick())
	if left < 0 {
		return 0
	}
	return durationOf(uint32(left))
}

func configOf(s Settings) bpf.Config {
	var c bpf.Config
	c.Timeout[bpf.TimeoutUDP] = ticksOf(s.UDPTimeout)
	c.Timeout[bpf.TimeoutTCPEstablished] = ticksOf(s.TCPEstablishedTimeout)
	c.Timeout[bpf.TimeoutTCPPartialOpen] = ticksOf(s.TCPPartialOpenTimeout)
	c.Timeout[bpf.TimeoutTCPClosing] = ticksOf(s.TCPClosingTimeout)
	c.Timeout[bpf.TimeoutICMP] = ticksOf(s.ICMPTimeout)
	c.Recheck[bpf.L4UDP] = c.Timeout[bpf.TimeoutUDP]
	c.Recheck[bpf.L4ICMP] = c.Timeout[bpf.TimeoutICMP]
	c.Recheck[bpf.L4TCP] = min(c.Timeout[bpf.TimeoutTCPEstablished],
		c.Timeout[bpf.TimeoutTCPPartialOpen], c.Timeout[bpf.TimeoutTCPClosing])
	c.SweepPeriod = uint64(s.SweepPeriod)
	c.PortLow, c.PortHigh = s.PortLow, s.PortHigh
	c.SessionsPerBinding = s.SessionsPerBinding
	return c
}

func settingsOf(c bpf.Config) Settings {
	return Settings{
		UDPTimeout:            durationOf(c.Timeout[bpf.TimeoutUDP]),
		TCPEstablishedTimeout: durationOf(c.Timeout[bpf.TimeoutTCPEstablished]),
		TCPPartialOpenTimeout: durationOf(c.Timeout[bpf.TimeoutTCPPartialOpen]),
		TCPClosingTimeout:     durationOf(c.Timeout[bpf.TimeoutTCPClosing]),
		ICMPTimeout:           durationOf(c.Timeout[bpf.TimeoutICMP]),
		SweepPeriod:           time.Duration(c.SweepPeriod),
		PortLow:               c.PortLow,
		PortHigh:              c.PortHigh,
		SessionsPerBinding:    c.SessionsPerBinding,
	}
}

func (d *Dataplane) config() (bpf.Config, error) {
	var c bpf.Config
	if err := d.objs.Config.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("read settings: %w", err)
	}
	return c, nil
}

func (d *Dataplane) putConfig(c bpf.Config) error {
	if err := d.objs.Config.Put(uint32(0), c); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

// Configure sets what the packet path reads. A session's next check by the sweeper may still be that of the
// settings before.
func (d *Dataplane) Configure(s Settings) error {
	defer d.writes.hold()()
	old, err := d.config()
	if err != nil {
		return err
	}
	c := configOf(s)
	c.Netns, c.MaxSessions, c.MaxBindings, c.ReorderIfindex = old.Netns, old.MaxSessions, old.MaxBindings, old.ReorderIfindex
	return d.putConfig(c)
}

// Settings are those that the packet path reads now; timeouts are rounded up to ticks of 16.8 ms.
func (d *Dataplane) Settings() (Settings, error) {
	c, err := d.config()
	return settingsOf(c), err
}
