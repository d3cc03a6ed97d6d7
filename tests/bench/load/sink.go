// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Want is what a packet has to be for a sink to count it. What is not valid, or 0, is any.
type Want struct {
	Src, Dst   netip.AddrPort
	OthersPass bool // others go on, else they are dropped as well
}

// Sink ends what arrives at an interface, and counts it.
type Sink struct {
	objs loadObjects
	hook io.Closer
}

// NewSink puts a sink at tc. It is called in the namespace of the interface.
func NewSink(ifindex int, want Want) (*Sink, error) {
	return newSink(want, func(s *Sink) (io.Closer, error) {
		return link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: s.objs.Sink, Attach: ebpf.AttachTCXIngress})
	})
}

// NewXDPSink puts a sink at XDP.
func NewXDPSink(ifindex int, want Want) (*Sink, error) {
	return newSink(want, func(s *Sink) (io.Closer, error) { return attachXDP(ifindex, s.objs.SinkXdp) })
}

// attachXDP is in the driver alone: generic XDP comes after what it is to spare.
func attachXDP(ifindex int, program *ebpf.Program) (io.Closer, error) {
	return link.AttachXDP(link.XDPOptions{Interface: ifindex, Program: program, Flags: link.XDPDriverMode})
}

func newSink(want Want, attach func(*Sink) (io.Closer, error)) (*Sink, error) {
	s := new(Sink)
	if err := loadLoadObjects(&s.objs, nil); err != nil {
		return nil, fmt.Errorf("load the sink: %w", err)
	}
	err := s.objs.Want.Set(want.encode())
	if err == nil {
		s.hook, err = attach(s)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the sink: %w", err), s.objs.Close())
	}
	return s, nil
}

func (w Want) encode() (to loadLoadWant) {
	raw := func(a netip.Addr) uint32 {
		if !a.IsValid() {
			return 0
		}
		return binary.NativeEndian.Uint32(a.AsSlice())
	}
	port := func(p uint16) uint16 { return p<<8 | p>>8 }
	to.Saddr, to.Daddr = raw(w.Src.Addr()), raw(w.Dst.Addr())
	to.Sport, to.Dport = port(w.Src.Port()), port(w.Dst.Port())
	if w.OthersPass {
		to.OthersPass = 1
	}
	return to
}

// Count is how many have arrived as they have to, and how many others, since the last call.
func (s *Sink) Count() (arrived, others uint64, err error) {
	err = errors.Join(s.objs.Arrived.Get(&arrived), s.objs.Others.Get(&others),
		s.objs.Arrived.Set(uint64(0)), s.objs.Others.Set(uint64(0)))
	if err != nil {
		return 0, 0, fmt.Errorf("read the sink's counters: %w", err)
	}
	return arrived, others, nil
}

// Close takes it away.
func (s *Sink) Close() error { return errors.Join(s.hook.Close(), s.objs.Close()) }

// Forward gives an interface an XDP program that sends what arrives to another interface, with these MACs and a TTL that is
// one less: a router's least. It is called in the namespace of both.
func Forward(from, to int, source, destination net.HardwareAddr) (io.Closer, error) {
	var objs loadObjects
	if err := loadLoadObjects(&objs, nil); err != nil {
		return nil, fmt.Errorf("load the forwarder: %w", err)
	}
	way := loadLoadWay{Ifindex: uint32(to)}
	copy(way.Source[:], source)
	copy(way.Destination[:], destination)
	err := objs.Way.Set(way)
	var hook io.Closer
	if err == nil {
		hook, err = attachXDP(from, objs.Forward)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach the forwarder to interface %d: %w", from, err), objs.Close())
	}
	return closers{hook, &objs}, nil
}

type closers []io.Closer

func (c closers) Close() (err error) {
	for _, each := range c {
		err = errors.Join(err, each.Close())
	}
	return err
}
