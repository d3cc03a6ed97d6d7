// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// writeLock serialises what changes several maps at once. Packets do not know of it.
type writeLock struct{ mu sync.Mutex }

func (l *writeLock) hold() (release func()) {
	l.mu.Lock()
	return l.mu.Unlock
}

// Addresses and ports lie in the maps in network byte order.

func addrOf(a bpf.Addr) netip.Addr { return bpf.NetIP(a) }

func rawAddr(a netip.Addr) bpf.Addr { return bpf.AddrOf(a) }

func portOf(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}

func rawPort(p uint16) uint16 { return portOf(p) }

func endpoint(addr bpf.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(addr), portOf(port))
}

func (f *family) pool(id uint32) (used, free uint32, err error) {
	var p bpf.Pool
	if err := f.Pools.Lookup(id, &p); err != nil {
		return 0, 0, fmt.Errorf("read pool %d: %w", id, err)
	}
	limit := f.capacity.Sessions
	if id == bpf.PoolBindings {
		limit = f.capacity.Bindings
	}
	return min(p.Used, limit), uint32(p.Free), nil
}

// Usage counts what is in the tables; the host's own ports count as sessions.
func (d *Dataplane) Usage() (u Usage, err error) {
	if u.Sessions, u.Bindings, err = d.ipv4.usage(); err != nil {
		return u, err
	}
	if f := d.ipv6.Load(); f != nil {
		if u.Sessions6, u.Bindings6, err = f.usage(); err != nil {
			return u, err
		}
	}
	u.EventsLost, err = sumPerCPU(d.objs.EventsLost, 0)
	return u, err
}

func (f *family) usage() (sessions, bindings uint32, err error) {
	used, free, err := f.pool(bpf.PoolSessions)
	if err != nil {
		return 0, 0, err
	}
	sessions = used - min(free, used)
	used, free, err = f.pool(bpf.PoolBindings)
	return sessions, used - min(free, used), err
}

func sumPerCPU(m *ebpf.Map, key uint32) (uint64, error) {
	var values []uint64
	if err := m.Lookup(key, &values); err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	var sum uint64
	for _, v := range values {
		sum += v
	}
	return sum, nil
}

// Counter is how many packets got their verdict for a reason, since the maps were made.
type Counter struct {
	Name    string // as "translated_outbound"
	Verdict string // translated, diverted (and seen once more), passed or dropped
	Packets uint64
	XDP     uint64 // of Packets: those that never came to tc
}

// Counters are all reasons in the order of enum nat_reason, those without packets too.
func (d *Dataplane) Counters() ([]Counter, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	tc, err := reasonCounts(d.objs.Counters, cpus)
	if err != nil {
		return nil, err
	}
	xdp, err := reasonCounts(d.objs.XdpCounters, cpus)
	if err != nil {
		return nil, err
	}
	out := make([]Counter, 0, bpf.ReasonCount)
	for r := bpf.Reason(1); r < bpf.ReasonCount; r++ {
		out = append(out, Counter{Name: bpf.ReasonName(r), Verdict: verdictOf(r), Packets: tc[r] + xdp[r], XDP: xdp[r]})
	}
	return out, nil
}

// reasonCounts are a map's counters, of all CPUs together.
func reasonCounts(m *ebpf.Map, cpus int) ([bpf.ReasonCount]uint64, error) {
	var sums [bpf.ReasonCount]uint64
	keys, values := make([]uint32, bpf.ReasonCount), make([]uint64, cpus*int(bpf.ReasonCount))
	if _, err := m.BatchLookup(new(ebpf.MapBatchCursor), keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return sums, fmt.Errorf("read counters: %w", err)
	}
	for r := range sums {
		for _, n := range values[r*cpus:][:cpus] {
			sums[r] += n
		}
	}
	return sums, nil
}

func verdictOf(r bpf.Reason) string {
	switch {
	case r <= bpf.ReasonLastTranslated:
		return "translated"
	case r <= bpf.ReasonLastDiverted:
		return "diverted"
	case r <= bpf.ReasonLastPassed:
		return "passed"
	}
	return "dropped"
}

// binding is a live element of the bindings array.
type binding struct {
	index uint32
	bpf.Binding
}

func (b binding) references() uint32 { return uint32(b.Word) &^ bpf.BindingDying }

func (b binding) sessions() int {
	n := int(b.references())
	if b.Flags&bpf.BindingStatic != 0 && uint32(b.Word)&bpf.BindingDying == 0 {
		n--
	}
	return max(n, 0)
}

func (f *family) liveBindings() ([]binding, error) {
	used, _, err := f.pool(bpf.PoolBindings)
	if err != nil {
		return nil, err
	}
	all, err := f.Bindings.Elements(used)
	if err != nil {
		return nil, fmt.Errorf("read bindings: %w", err)
	}
	var live []binding
	for i, b := range all {
		if v := (binding{uint32(i), b}); v.references() > 0 {
			live = append(live, v)
		}
	}
	return live, nil
}

// Held is what the external addresses are held by.
type Held struct {
	Forwards []Forward          // the static bindings, in no order, by Network.Name; OverHostSocket is not kept
	Dynamic  map[netip.Addr]int // how many dynamic bindings live on an external address
}

// Held reads the bindings alone, not the sessions: for a loop that wants to know often.
func (d *Dataplane) Held() (Held, error) {
	h := Held{Dynamic: map[netip.Addr]int{}}
	err := d.each(func(f *family) error { return f.addHeld(&h) })
	return h, err
}

func (f *family) addHeld(h *Held) error {
	live, err := f.liveBindings()
	if err != nil {
		return err
	}
	known, err := f.names()
	if err != nil {
		return err
	}
	for _, b := range live {
		if b.Flags&bpf.BindingStatic == 0 {
			h.Dynamic[addrOf(b.External)]++
			continue
		}
		h.Forwards = append(h.Forwards, Forward{Protocol: Protocol(b.Proto), Network: known.zoneName(b.Zone),
			External: endpoint(b.External, b.ExternalPort), Internal: endpoint(b.Internal, b.InternalPort),
			Published: b.Flags&bpf.BindingPublished != 0})
	}
	return nil
}

// Bindings are those that live now, in no order. One that a published port has displaced is none any more; its sessions
// are there until they end.
func (d *Dataplane) Bindings() (out []Binding, err error) {
	err = d.each(func(f *family) error {
		list, err := f.shownBindings()
		out = append(out, list...)
		return err
	})
	return out, err
}

func (f *family) shownBindings() ([]Binding, error) {
	live, err := f.liveBindings()
	if err != nil {
		return nil, err
	}
	sessions, err := f.sessionTable()
	if err != nil {
		return nil, err
	}
	expires := map[uint32]time.Duration{}
	for _, s := range sessions.all() {
		expires[s.half.Binding] = max(expires[s.half.Binding], s.expiresIn)
	}
	out := make([]Binding, 0, len(live))
	for _, b := range live {
		if b.Flags&bpf.BindingRetired == 0 { // else its external endpoint is a static one's; its sessions go on
			out = append(out, sessions.binding(b, expires[b.index]))
		}
	}
	return out, nil
}

func (t *sessionTable) binding(b binding, expiresIn time.Duration) Binding {
	v := Binding{
		Protocol:  Protocol(b.Proto),
		Network:   t.names.zone(b.Zone),
		Internal:  endpoint(b.Internal, b.InternalPort),
		External:  endpoint(b.External, b.ExternalPort),
		Remote:    endpoint(b.Remote, b.RemotePort),
		Static:    b.Flags&bpf.BindingStatic != 0,
		Published: b.Flags&bpf.BindingPublished != 0,
		Sessions:  b.sessions(),
		Created:   t.clock.wallAt(uint64(b.Created) * uint64(time.Second)),
	}
	if !v.Static {
		v.ExpiresIn = expiresIn
	}
	return v
}

// Sessions are those that live now, in no order. A hairpin between two endpoints is a session of each.
func (d *Dataplane) Sessions() (out []Session, err error) {
	err = d.each(func(f *family) error {
		table, err := f.sessionTable()
		if err != nil {
			return err
		}
		for _, s := range table.all() {
			out = append(out, table.shown(s))
		}
		return nil
	})
	return out, err
}

func (t *sessionTable) shown(s session) Session {
	return Session{
		Protocol:  Protocol(s.key.Proto),
		Network:   t.names.zone(s.key.Zone),
		Internal:  endpoint(s.key.Saddr, s.key.Sport),
		External:  endpoint(s.half.Saddr, s.half.Sport),
		Remote:    endpoint(s.key.Daddr, s.key.Dport),
		Hairpin:   s.half.Flags&bpf.HalfHairpin != 0,
		State:     stateNames[s.state],
		Created:   t.clock.wallAt(uint64(s.half.Created) * uint64(time.Second)),
		ExpiresIn: s.expiresIn,
	}
}
