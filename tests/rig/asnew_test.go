// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/patience"
)

// TestRigIsAsNew: whatever a test does to the tables, the kernel's things and what the dataplane remembers, the next
// one finds nothing of it.
func TestRigIsAsNew(t *testing.T) {
	for name, spoil := range map[string]func(*Rig){
		"Tables": (*Rig).spoilTables,
		"Kernel": (*Rig).spoilKernel,
		"Both":   func(r *Rig) { r.spoilTables(); r.spoilKernel() },
		"Socket": func(r *Rig) {
			r.Must("open a socket", func() error {
				c, err := net.ListenPacket("udp4", External+":2000")
				if err == nil {
					t.Cleanup(func() { c.Close() }) // after the next rig
				}
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var before *fixture
			t.Run("Spoil", func(t *testing.T) {
				r := New(t)
				before = r.fixture
				spoil(r)
			})
			t.Run("Next", func(t *testing.T) {
				r := New(t)
				if r.fixture != before {
					t.Error("the rig has another fixture")
				}
				r.asNew()
			})
		})
	}
}

// asNew checks the tables as they are handed out, the timer, and that a packet goes its way.
func (r *Rig) asNew() {
	r.T.Helper()
	if got := r.Events(); len(got) != 0 {
		r.T.Errorf("events %v", got)
	}
	r.WantBindings()
	r.Out(UDP(C1+":2000", Peer1+":53", "x"), UDP(External+":2000", Peer1+":53", "x"))
	r.timerRuns()
	r.Must("bring it back", r.bringBackHere)
	r.Must("look at the tables", func() error {
		got, err := r.readTables()
		return errors.Join(err, r.furnished.same(got))
	})
}

// timerRuns waits until the sweeper's timer has begun a walk.
func (r *Rig) timerRuns() {
	r.T.Helper()
	m := r.Maps().Sweeper
	for deadline := time.Now().Add(patience.For(10 * time.Second)); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		value, err := m.LookupBytes(uint32(0))
		if err != nil {
			r.T.Fatal(err)
		}
		if !bytes.Equal(value, make([]byte, m.ValueSize())) {
			return
		}
	}
	r.T.Error("the sweeper's timer does not run")
}

// spoilTables leaves something in every map and variable, and events in the ring.
func (r *Rig) spoilTables() {
	r.T.Helper()
	r.Inside(UDP(C1+":2000", Peer1+":53", "x"))
	r.Must("spoil", func() error {
		var errs []error
		for _, m := range objectsOf[*ebpf.Map](r.DP) {
			errs = append(errs, spoilMap(m))
		}
		for _, v := range objectsOf[*ebpf.Variable](r.DP) {
			if !v.ReadOnly() {
				errs = append(errs, v.Set(bytes.Repeat([]byte{0x5a}, int(v.Size()))))
			}
		}
		got, err := r.readTables()
		for name, t := range got {
			if gocmp.Equal(t, r.furnished[name]) && !r.untouchable(name) {
				r.T.Errorf("%s is as it was: this test does not spoil it", name)
			}
		}
		return errors.Join(append(errs, err)...)
	})
}

// untouchable are the ring, which has events by now, constants, and the programs for IPv6. The sweeper is written whenever tables are read.
func (r *Rig) untouchable(name string) bool {
	for n, v := range objectsOf[*ebpf.Variable](r.DP) {
		if n == name {
			return v.ReadOnly()
		}
	}
	return name == "Sweeper" || name == "Programs6" || name == "Xdp6" || name == "Events" && r.ring.AvailableBytes() > 0
}

func spoilMap(m *ebpf.Map) error {
	value := bytes.Repeat([]byte{0x5a}, int(m.ValueSize()))
	switch m.Type() {
	case ebpf.RingBuf, ebpf.ProgramArray:
		return nil
	case ebpf.Queue:
		return m.Put(nil, value)
	case ebpf.Hash, ebpf.LRUHash:
		return m.Put(bytes.Repeat([]byte{0x5a}, int(m.KeySize())), value)
	case ebpf.LPMTrie:
		return m.Put(make([]byte, m.KeySize()), value) // everything: no prefix is as long as 0x5a5a5a5a
	case ebpf.PerCPUArray:
		return changeElement(m, []byte(indexKey(m.MaxEntries()-1)), bytes.Repeat([]byte{0x5a}, ebpf.MustPossibleCPU()*perCPUSize(m)))
	}
	return m.Put(m.MaxEntries()-1, value)
}

// spoilKernel does what no test undoes.
func (r *Rig) spoilKernel() {
	r.T.Helper()
	r.Must("spoil", func() error {
		port, err := netlink.LinkByName("p2")
		if err != nil {
			return err
		}
		_, c, err := net.ParseCIDR("192.0.2.0/24")
		return errors.Join(err, netlink.LinkDel(port), r.DP.Detach(r.Ports["q1"]),
			netlink.RouteAdd(&netlink.Route{LinkIndex: r.Ports["br0"], Dst: c}))
	})
}

func TestMain(m *testing.M) { Main(m) }
