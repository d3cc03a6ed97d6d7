// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// Sessions that expire, each with a binding of its own.
const expiring = 4096

// expiry is what the sweeper takes to end a session and its binding: nat_control's walk, which is the timer's, over
// all slots, less the same walk when all of them are empty.
func expiry(l *bench.Lab) (float64, error) {
	control, sessions, err := sweeperOf(l.Family)
	if err != nil {
		return 0, err
	}
	defer control.Close()
	defer sessions.Close()
	if err := openSessions(l); err != nil {
		return 0, err
	}
	before, err := entries(sessions)
	if err != nil {
		return 0, err
	}
	if before != 2*expiring {
		return 0, fmt.Errorf("%d halves of sessions, want %d", before, 2*expiring)
	}
	time.Sleep(bench.ShortTimeout + time.Second) // that they are due is told by nothing but the clock
	requests := bpf.Requests4
	if l.Family == family.V6 {
		requests = bpf.Requests6
	}
	due, err := sweep(control, requests)
	if err != nil {
		return 0, err
	}
	after, err := entries(sessions)
	if err != nil {
		return 0, err
	}
	if after != 0 {
		return 0, fmt.Errorf("the sweep left %d halves of sessions", after)
	}
	empty, err := sweep(control, requests)
	return float64(due-empty) / expiring, err
}

func openSessions(l *bench.Lab) error {
	inject, err := newInjector(l.Inside, batchPackets)
	if err != nil {
		return err
	}
	defer inject.close()
	for n := 0; n < expiring; n += batchPackets {
		var batch [][]byte
		for i := range batchPackets {
			p := packet{proto: udp.number, src: netip.AddrPortFrom(l.Inside.Addr, uint16(firstInside+n+i)), dst: netip.AddrPortFrom(l.Family.Addr(topo.Peer1Addr), remotePort)}
			batch = append(batch, p.frame(l.Inside))
		}
		othersTurn()
		if _, err := inject.send(batch); err != nil {
			return err
		}
	}
	return nil
}

// sweep walks all slots once and returns what the walk took.
func sweep(control *ebpf.Program, requests bpf.Requests) (took int64, err error) {
	r := bpf.Request{Command: bpf.CommandSweep}
	for {
		othersTurn()
		in, err := requests.Encode(r)
		if err != nil {
			return 0, fmt.Errorf("encode the request: %w", err)
		}
		opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+64)}
		before := instructions()
		answer, err := control.Run(&opts)
		took += instructions() - before
		if err != nil {
			return 0, fmt.Errorf("run nat_control: %w", err)
		}
		if answer != uint32(bpf.AnswerOK) {
			return 0, fmt.Errorf("nat_control answers %d to a sweep", answer)
		}
		if r, err = requests.Decode(opts.DataOut); err != nil {
			return 0, fmt.Errorf("decode the answer: %w", err)
		}
		if r.Cursor == 0 {
			return took, nil
		}
	}
}

// sweeperOf is the daemon's nat_control of a family, and its sessions: the only ones of the machine.
func sweeperOf(f family.Family) (control *ebpf.Program, sessions *ebpf.Map, err error) {
	name := "sessions4"
	if f == family.V6 {
		name = "sessions6"
	}
	var id ebpf.ProgramID
	for {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			return nil, nil, fmt.Errorf("find program nat_control of %s: %w", f, err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("open program %d: %w", id, err)
		}
		info, err := p.Info()
		if err == nil && info.Name == "nat_control" {
			if sessions, err := mapOf(p, name); sessions != nil || err != nil {
				return p, sessions, err
			}
		}
		p.Close()
	}
}

// mapOf is one of a program's maps, by its name; nil: it has none of it.
func mapOf(p *ebpf.Program, name string) (*ebpf.Map, error) {
	info, err := p.Info()
	if err != nil {
		return nil, fmt.Errorf("ask for nat_control's maps: %w", err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, fmt.Errorf("open map %d: %w", id, err)
		}
		if info, err := m.Info(); err == nil && info.Name == name {
			return m, nil
		}
		m.Close()
	}
	return nil, nil
}

// entries counts a map's.
func entries(m *ebpf.Map) (n int, err error) {
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for i := m.Iterate(); ; n++ {
		if !i.Next(&key, &value) {
			return n, i.Err()
		}
	}
}
