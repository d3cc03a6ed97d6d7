// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/conenat/conenat/dataplane"
)

// Dataplane is the fake. The zero value is of no use; call New.
type Dataplane struct {
	// Fail, when set, is asked before each changing call ("put network br0", "attach 7"); an error that it
	// returns is the call's. Set it before the fake is shared.
	Fail func(op string) error

	mu       sync.Mutex
	adopted  bool
	settings dataplane.Settings
	networks map[string]dataplane.Network
	outsides map[string]dataplane.Outside
	owners   map[ownerKey]dataplane.Owner
	links    map[int]dataplane.Link
	bindings map[bindingKey]dataplane.Binding
	sessions map[sessionKey]dataplane.Session
	reserved []Reservation
	counters []dataplane.Counter
	lost     uint64
	mute     bool
	log      []string
	closed   bool

	queue  []dataplane.Event
	queued chan struct{}
}

// Reservation is one call of ReserveHost, or of ReserveForwarded.
type Reservation struct {
	Protocol  dataplane.Protocol
	Endpoint  netip.AddrPort
	Forwarded bool
}

type bindingKey struct {
	protocol dataplane.Protocol
	external netip.AddrPort
}

type ownerKey struct {
	network string
	address netip.Addr
}

type sessionKey struct {
	bindingKey
	remote netip.AddrPort
}

// New is an empty dataplane with default settings.
func New() *Dataplane {
	return &Dataplane{
		settings: dataplane.DefaultSettings(),
		networks: map[string]dataplane.Network{},
		outsides: map[string]dataplane.Outside{},
		owners:   map[ownerKey]dataplane.Owner{},
		links:    map[int]dataplane.Link{},
		bindings: map[bindingKey]dataplane.Binding{},
		sessions: map[sessionKey]dataplane.Session{},
		queued:   make(chan struct{}, 1),
	}
}

// Reopen is what another daemon gets that adopts the state after this one let go of it.
func (d *Dataplane) Reopen() *Dataplane {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := New()
	n.adopted = true
	n.settings, n.networks, n.outsides, n.links = d.settings, d.networks, d.outsides, d.links
	n.owners = d.owners
	n.bindings, n.sessions, n.queue, n.lost = d.bindings, d.sessions, d.queue, d.lost
	return n
}

// do runs change under the lock, unless the test wants op to fail.
func (d *Dataplane) do(op string, change func() error) error {
	if d.Fail != nil {
		if err := d.Fail(op); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := change(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	d.log = append(d.log, op)
	return nil
}

// Log is every changing call that succeeded, in order.
func (d *Dataplane) Log() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// Close notes that the daemon let go.
func (d *Dataplane) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

// Closed says whether Close was called.
func (d *Dataplane) Closed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// Adopted is true for what Reopen made.
func (d *Dataplane) Adopted() bool { return d.adopted }

// Configure keeps s, with a rounded UDPTimeout: the real one rounds durations, too.
func (d *Dataplane) Configure(s dataplane.Settings) error {
	return d.do("configure", func() error {
		s.UDPTimeout = s.UDPTimeout.Truncate(time.Millisecond) + time.Millisecond
		d.settings = s
		return nil
	})
}

// Settings is what Configure kept.
func (d *Dataplane) Settings() (dataplane.Settings, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.settings, nil
}

// PutNetwork creates or updates a network by its name.
func (d *Dataplane) PutNetwork(n dataplane.Network) error {
	return d.do("put network "+n.Name, func() error {
		n.Prefixes, n.Gateway = slices.Clone(n.Prefixes), slices.Clone(n.Gateway)
		d.networks[n.Name] = n
		return nil
	})
}

// RemoveNetwork removes a network with its bindings and sessions.
func (d *Dataplane) RemoveNetwork(name string) error {
	return d.do("remove network "+name, func() error {
		if _, ok := d.networks[name]; !ok {
			return dataplane.ErrNotFound
		}
		shown := d.networks[name].Shown()
		delete(d.networks, name)
		for key := range d.owners {
			if key.network == name {
				delete(d.owners, key)
			}
		}
		d.endBindings(func(b dataplane.Binding) bool { return b.Network == shown })
		return nil
	})
}

// Networks are the networks, by name.
func (d *Dataplane) Networks() ([]dataplane.Network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sorted(d.networks), nil
}

// PutOutside creates or updates an outside by its name, and ends the bindings on addresses that it had.
func (d *Dataplane) PutOutside(o dataplane.Outside) error {
	return d.do("put outside "+o.Name, func() error {
		was := d.outsides[o.Name].Addresses
		d.endBindings(func(b dataplane.Binding) bool {
			return slices.Contains(was, b.External.Addr()) && !slices.Contains(o.Addresses, b.External.Addr())
		})
		d.outsides[o.Name] = o
		return nil
	})
}

// RemoveOutside removes an outside with the bindings on its address.
func (d *Dataplane) RemoveOutside(name string) error {
	return d.do("remove outside "+name, func() error {
		was, ok := d.outsides[name]
		if !ok {
			return dataplane.ErrNotFound
		}
		delete(d.outsides, name)
		d.endBindings(func(b dataplane.Binding) bool { return slices.Contains(was.Addresses, b.External.Addr()) })
		return nil
	})
}

// Outsides are the outsides, by name.
func (d *Dataplane) Outsides() ([]dataplane.Outside, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sorted(d.outsides), nil
}

// Attach puts hooks on an interface whose owner is there.
func (d *Dataplane) Attach(l dataplane.Link) error {
	return d.do(fmt.Sprintf("attach %s %d", l.Kind, l.IfIndex), func() error {
		_, network := d.networks[l.Owner]
		_, outside := d.outsides[l.Owner]
		if (l.Kind == dataplane.OutsideLink && !outside) || (l.Kind != dataplane.OutsideLink && !network) {
			return fmt.Errorf("owner %s: %w", l.Owner, dataplane.ErrNotFound)
		}
		l.Mechanism, l.XDP = "tcx", d.links[l.IfIndex].XDP
		d.links[l.IfIndex] = l
		return nil
	})
}

// Detach takes the hooks off an interface.
func (d *Dataplane) Detach(ifindex int) error {
	return d.do(fmt.Sprintf("detach %d", ifindex), func() error {
		if _, ok := d.links[ifindex]; !ok {
			return dataplane.ErrNotFound
		}
		delete(d.links, ifindex)
		return nil
	})
}

// AttachXDP has XDP used on an interface that has hooks.
func (d *Dataplane) AttachXDP(l dataplane.Link) error {
	return d.changeXDP(fmt.Sprintf("attach XDP %s %d", l.XDP, l.IfIndex), l.IfIndex, l.XDP)
}

// DetachXDP ends that.
func (d *Dataplane) DetachXDP(ifindex int) error {
	return d.changeXDP(fmt.Sprintf("detach XDP %d", ifindex), ifindex, dataplane.XDPNone)
}

func (d *Dataplane) changeXDP(op string, ifindex int, use dataplane.XDPUse) error {
	return d.do(op, func() error {
		l, ok := d.links[ifindex]
		if !ok {
			return dataplane.ErrNotFound
		}
		l.XDP = use
		d.links[ifindex] = l
		return nil
	})
}

// ForgetHops is in the log.
func (d *Dataplane) ForgetHops() error {
	return d.do("forget hops", func() error { return nil })
}

// Links are the interfaces that carry hooks, by index.
func (d *Dataplane) Links() ([]dataplane.Link, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sorted(d.links), nil
}

// Unhooked are the interfaces whose hooks TakeHooks took, by index.
func (d *Dataplane) Unhooked() (out []int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range sorted(d.links) {
		if l.Mechanism == "" {
			out = append(out, l.IfIndex)
		}
	}
	return out, nil
}

// EnsureReordering is no change that a test looks for, and is not in the log.
func (d *Dataplane) EnsureReordering(mtu int) error {
	if d.Fail == nil {
		return nil
	}
	return d.Fail(fmt.Sprintf("ensure reordering %d", mtu))
}

// TakeHooks is somebody else who takes an interface's hooks away.
func (d *Dataplane) TakeHooks(ifindex int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.links[ifindex]
	l.Mechanism = ""
	d.links[ifindex] = l
}

// Bindings are the bindings, in no order.
func (d *Dataplane) Bindings() ([]dataplane.Binding, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return values(d.bindings), nil
}

// Sessions are the sessions, in no order.
func (d *Dataplane) Sessions() ([]dataplane.Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return values(d.sessions), nil
}

// AddForward makes a static binding.
func (d *Dataplane) AddForward(f dataplane.Forward) (dataplane.Binding, error) {
	b := dataplane.Binding{Protocol: f.Protocol, Network: f.Network, Internal: f.Internal, External: f.External, Static: true,
		Published: f.Published}
	err := d.do(fmt.Sprintf("add forward %s/%s", f.Protocol, f.External), func() error {
		if b.Network == "" {
			b.Network = d.networkOf(f.Internal.Addr())
		}
		if !d.hasNetwork(b.Network) {
			return fmt.Errorf("network of %s: %w", f.Internal, dataplane.ErrNotFound)
		}
		if n, ok := d.networks[b.Network]; ok {
			b.Network = n.Shown()
		}
		if !d.hasOutside(f.External.Addr()) {
			return fmt.Errorf("outside with address %s: %w", f.External.Addr(), dataplane.ErrNotFound)
		}
		if _, ok := d.bindings[bindingKey{f.Protocol, f.External}]; ok {
			return dataplane.ErrPortTaken
		}
		d.openBinding(b)
		return nil
	})
	return b, err
}

// RemoveForward ends a static binding and its sessions.
func (d *Dataplane) RemoveForward(p dataplane.Protocol, external netip.AddrPort) error {
	return d.do(fmt.Sprintf("remove forward %s/%s", p, external), func() error {
		if b, ok := d.bindings[bindingKey{p, external}]; !ok || !b.Static {
			return dataplane.ErrNotFound
		}
		d.endBinding(bindingKey{p, external})
		return nil
	})
}

// RemoveForwards ends many at once.
func (d *Dataplane) RemoveForwards(list []dataplane.Forward) (n int, err error) {
	err = d.do(fmt.Sprintf("remove %d forwards", len(list)), func() error {
		for _, f := range list {
			key := bindingKey{f.Protocol, f.External}
			if b, ok := d.bindings[key]; ok && b.Static {
				d.endBinding(key)
				n++
			}
		}
		return nil
	})
	return n, err
}

// IndexForwards does nothing: the fake sends no packets.
func (d *Dataplane) IndexForwards() error { return nil }

// Held counts the bindings.
func (d *Dataplane) Held() (dataplane.Held, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := dataplane.Held{Dynamic: map[netip.Addr]int{}}
	for _, b := range d.bindings {
		if !b.Static {
			h.Dynamic[b.External.Addr()]++
			continue
		}
		h.Forwards = append(h.Forwards, dataplane.Forward{Protocol: b.Protocol, Network: d.nameOf(b.Network), External: b.External,
			Internal: b.Internal, Published: b.Published})
	}
	return h, nil
}

// PutOwner remembers whose an address is.
func (d *Dataplane) PutOwner(o dataplane.Owner) error {
	return d.do(fmt.Sprintf("put owner %s %s", o.Network, o.Address), func() error {
		if _, ok := d.networks[o.Network]; !ok {
			return dataplane.ErrNotFound
		}
		d.owners[ownerKey{o.Network, o.Address}] = o
		return nil
	})
}

// RemoveOwner forgets it, and ends the address's bindings.
func (d *Dataplane) RemoveOwner(network string, address netip.Addr) error {
	return d.do(fmt.Sprintf("remove owner %s %s", network, address), func() error {
		if _, ok := d.owners[ownerKey{network, address}]; !ok {
			return dataplane.ErrNotFound
		}
		delete(d.owners, ownerKey{network, address})
		shown := d.networks[network].Shown()
		d.endBindings(func(b dataplane.Binding) bool { return b.Network == shown && b.Internal.Addr() == address })
		return nil
	})
}

// ForgetOwner forgets it, and leaves its bindings.
func (d *Dataplane) ForgetOwner(network string, address netip.Addr) error {
	return d.do(fmt.Sprintf("forget owner %s %s", network, address), func() error {
		delete(d.owners, ownerKey{network, address})
		return nil
	})
}

// Owners are those that were put, in no order.
func (d *Dataplane) Owners() ([]dataplane.Owner, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return values(d.owners), nil
}

// ImportSession opens a session, and a binding where there is none.
func (d *Dataplane) ImportSession(s dataplane.Session) error {
	return d.do(fmt.Sprintf("import %s %s", s.External, s.Remote), func() error {
		key := bindingKey{s.Protocol, s.External}
		if b, ok := d.bindings[key]; ok && b.Internal != s.Internal {
			return dataplane.ErrPortTaken
		} else if !ok {
			d.openBinding(dataplane.Binding{Protocol: s.Protocol, Network: s.Network, Internal: s.Internal, External: s.External})
		}
		d.sessions[sessionKey{key, s.Remote}] = s
		return nil
	})
}

// ReserveHost remembers the endpoint; see Reserved.
func (d *Dataplane) ReserveHost(p dataplane.Protocol, endpoint netip.AddrPort) error {
	return d.reserve(Reservation{Protocol: p, Endpoint: endpoint})
}

// ReserveForwarded remembers the endpoint; see Reserved.
func (d *Dataplane) ReserveForwarded(p dataplane.Protocol, endpoint netip.AddrPort) error {
	return d.reserve(Reservation{Protocol: p, Endpoint: endpoint, Forwarded: true})
}

func (d *Dataplane) reserve(one Reservation) error {
	return d.do(fmt.Sprintf("reserve %s/%s", one.Protocol, one.Endpoint), func() error {
		d.reserved = append(d.reserved, one)
		return nil
	})
}

// Reserved is what ReserveHost and ReserveForwarded were called with.
func (d *Dataplane) Reserved() []Reservation {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.reserved)
}

// SetCounters makes Counters return c.
func (d *Dataplane) SetCounters(c ...dataplane.Counter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters = c
}

// Counters is what SetCounters was given.
func (d *Dataplane) Counters() ([]dataplane.Counter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.counters), nil
}

// Capacity is a small one.
func (d *Dataplane) Capacity() dataplane.Capacity {
	return dataplane.Capacity{Sessions: 1024, Bindings: 512}
}

// Features are those of a recent kernel.
func (d *Dataplane) Features() dataplane.Features {
	return dataplane.Features{TCX: true, FIBSkipNeigh: true, KernelRelease: "6.18.0"}
}

// Usage counts the tables.
func (d *Dataplane) Usage() (dataplane.Usage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return dataplane.Usage{Sessions: uint32(len(d.sessions)), Bindings: uint32(len(d.bindings)), EventsLost: d.lost}, nil
}

// NetworkUsages counts the bindings and sessions that there are.
func (d *Dataplane) NetworkUsages() (map[string]dataplane.NetworkUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]dataplane.NetworkUsage{}
	for name := range d.networks {
		out[name] = dataplane.NetworkUsage{}
	}
	for _, b := range d.bindings {
		if u := out[d.nameOf(b.Network)]; !b.Static {
			u.Ports++
			out[d.nameOf(b.Network)] = u
		}
	}
	for _, s := range d.sessions {
		u := out[d.nameOf(s.Network)]
		u.Sessions++
		out[d.nameOf(s.Network)] = u
	}
	return out, nil
}

func (d *Dataplane) networkOf(addr netip.Addr) string {
	for _, n := range sorted(d.networks) {
		for _, p := range n.Prefixes {
			if p.Contains(addr) {
				return n.Shown()
			}
		}
	}
	return ""
}

// nameOf is the name of the network that is shown so.
func (d *Dataplane) nameOf(shown string) string {
	for _, n := range d.networks {
		if n.Shown() == shown {
			return n.Name
		}
	}
	return shown
}

func (d *Dataplane) hasNetwork(name string) bool {
	for _, n := range d.networks {
		if n.Name == name || n.Shown() == name {
			return true
		}
	}
	return false
}

func (d *Dataplane) hasOutside(addr netip.Addr) bool {
	for _, o := range d.outsides {
		if slices.Contains(o.Addresses, addr) {
			return true
		}
	}
	return false
}

// ReadEvent waits for the next event.
func (d *Dataplane) ReadEvent(ctx context.Context) (dataplane.Event, error) {
	for {
		if ev, ok := d.pop(); ok {
			return ev, nil
		}
		select {
		case <-ctx.Done():
			return dataplane.Event{}, ctx.Err()
		case <-d.queued:
		}
	}
}

func (d *Dataplane) pop() (dataplane.Event, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) == 0 {
		return dataplane.Event{}, false
	}
	ev := d.queue[0]
	d.queue = d.queue[1:]
	return ev, true
}

func sorted[K cmp.Ordered, V any](m map[K]V) []V {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := make([]V, 0, len(m))
	for _, k := range keys {
		out = append(out, m[k])
	}
	return out
}

func values[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}
