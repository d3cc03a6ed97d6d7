// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// What nat_control answers, as errors.
var (
	errBusy    = errors.New("the sweeper is at work")
	errRefused = errors.New("refused")
	errFailed  = errors.New("the packet path failed")
)

var answers = map[bpf.Answer]error{
	bpf.AnswerOK:         nil,
	bpf.AnswerBadRequest: errRefused,
	bpf.AnswerNoAddress:  fmt.Errorf("%w: not an external address of an outside", ErrNotFound),
	bpf.AnswerTaken:      ErrPortTaken,
	bpf.AnswerHostSocket: ErrHostSocket,
	bpf.AnswerNotFound:   ErrNotFound,
	bpf.AnswerFull:       ErrFull,
	bpf.AnswerBusy:       errBusy,
	bpf.AnswerFailed:     errFailed,
}

// request runs nat_control; r comes back as the program left it.
func (f *family) request(r *bpf.Request) error {
	in, err := f.Requests.Encode(*r)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+64)}
	answer, err := f.control.Run(&opts)
	if err != nil {
		return fmt.Errorf("run nat_control: %w", err)
	}
	if *r, err = f.Requests.Decode(opts.DataOut); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	if err, known := answers[bpf.Answer(answer)]; known {
		return err
	}
	return fmt.Errorf("nat_control answers %d", answer)
}

// checkEndpoints: all of them are of one IP version.
func checkEndpoints(list ...netip.AddrPort) error {
	for _, e := range list {
		if err := checkAddress(e.Addr()); err != nil {
			return fmt.Errorf("endpoint %s: %w", e, err)
		}
		if e.Port() == 0 {
			return fmt.Errorf("endpoint %s: want a port from 1 to 65535", e)
		}
		if e.Addr().Is4() != list[0].Addr().Is4() {
			return fmt.Errorf("endpoints %s and %s: want both of IPv4 or both of IPv6", list[0], e)
		}
	}
	return nil
}

// mappingRequest speaks of an internal endpoint's mapping to an external one.
func mappingRequest(command uint8, p Protocol, zone uint16, internal, external netip.AddrPort) bpf.Request {
	return bpf.Request{
		Command:      command,
		Proto:        uint8(p),
		Zone:         zone,
		Internal:     rawAddr(internal.Addr()),
		InternalPort: rawPort(internal.Port()),
		External:     rawAddr(external.Addr()),
		ExternalPort: rawPort(external.Port()),
	}
}

// requestWhenIdle waits for the sweeper's goes, which are short.
func (f *family) requestWhenIdle(r *bpf.Request) error {
	deadline := time.Now().Add(time.Minute)
	for {
		err := f.request(r)
		if !errors.Is(err, errBusy) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(sweepRetry)
	}
}

// AddForward makes a static binding. What its internal endpoint opens from now on leaves by it. Errors: ErrPortTaken, ErrHostSocket, ErrNotFound (no such network, or
// the external address is none of an outside), ErrFull.
func (d *Dataplane) AddForward(f Forward) (Binding, error) {
	defer d.writes.hold()()
	b, err := d.addForward(f)
	if err != nil {
		return Binding{}, fmt.Errorf("forward %s %s to %s: %w", f.Protocol, f.External, f.Internal, err)
	}
	return b, nil
}

func (d *Dataplane) addForward(f Forward) (Binding, error) {
	if f.Protocol != TCP && f.Protocol != UDP {
		return Binding{}, fmt.Errorf("protocol %s cannot be forwarded: want tcp or udp", f.Protocol)
	}
	if err := checkEndpoints(f.External, f.Internal); err != nil {
		return Binding{}, err
	}
	zone, name, err := d.zoneOf(f.Network, f.Internal.Addr())
	if err != nil {
		return Binding{}, err
	}
	r := mappingRequest(bpf.CommandBind, f.Protocol, zone, f.Internal, f.External)
	if f.OverHostSocket {
		r.Flags |= bpf.BindOverSocket
	}
	if f.Published {
		r.Flags |= bpf.BindPublished
	}
	if err := d.loadedOf(f.Internal.Addr()).requestWhenIdle(&r); err != nil {
		return Binding{}, err
	}
	return Binding{Protocol: f.Protocol, Network: name, Internal: f.Internal, External: f.External,
		Static: true, Published: f.Published, Created: time.Now()}, nil
}

// zoneOf is the network that an internal address lies in; it must be the named one, if one is named, by name or
// label. shown is what it is called.
func (d *Dataplane) zoneOf(network string, internal netip.Addr) (id uint16, shown string, err error) {
	known, err := d.namesFor(internal)
	if err != nil {
		return 0, "", err
	}
	found := network == ""
	var in netip.Prefix
	for i, z := range known.zones {
		if z.Name[0] == 0 || (network != "" && nameOf(z.Name) != network && shownZone(z) != network) {
			continue
		}
		found = true
		p, contains := networkOf(known.version, z).prefixOf(internal)
		switch {
		case !contains:
		case id != 0:
			return 0, "", fmt.Errorf("internal address %s lies in the networks %s and %s: name the network", internal, shown, shownZone(z))
		default:
			id, shown, in = uint16(i), shownZone(z), p
		}
	}
	switch {
	case id != 0 && !isHostAddress(in, internal):
		return 0, "", fmt.Errorf("internal address %s is the network or broadcast address of %s", internal, in)
	case id != 0:
		return id, shown, nil
	case !found:
		return 0, "", fmt.Errorf("network %s: %w", network, ErrNotFound)
	case network != "":
		return 0, "", fmt.Errorf("internal address %s does not lie in network %s: %w", internal, network, ErrNotFound)
	}
	return 0, "", fmt.Errorf("internal address %s lies in no network of conenat's: %w", internal, ErrNotFound)
}

// namesFor are those of an address's family; where it is not loaded, IPv4's, which have no prefix for it.
func (d *Dataplane) namesFor(a netip.Addr) (names, error) {
	if f := d.loadedOf(a); f != nil {
		return f.names()
	}
	return d.ipv4.names()
}

// isHostAddress: of a prefix that has more than two, the first address is the network's (IPv6: of all its routers, RFC 4291 section
// 2.6.1), and IPv4's last one broadcast.
func isHostAddress(p netip.Prefix, a netip.Addr) bool {
	if p.Bits() >= a.BitLen()-1 {
		return true
	}
	return a != p.Masked().Addr() && (a.Is6() || p.Contains(a.Next()))
}

// RemoveForward ends a static binding and its sessions. Error: ErrNotFound, also for a dynamic binding.
func (d *Dataplane) RemoveForward(p Protocol, external netip.AddrPort) error {
	n, err := d.RemoveForwards([]Forward{{Protocol: p, External: external}})
	if err == nil && n == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("remove forward %s/%s: %w", p, external, err)
	}
	return nil
}

// RemoveForwards ends many static bindings and their sessions at once, and says how many of them there were.
// Protocol and External are read.
func (d *Dataplane) RemoveForwards(list []Forward) (int, error) {
	ids, found := map[forwardID]bool{}, map[forwardID]bool{}
	for _, f := range list {
		ids[forwardID{f.Protocol, f.External}] = true
	}
	defer d.writes.hold()()
	err := d.each(func(f *family) error {
		return f.kill(func(b binding) bool {
			i := forwardID{Protocol(b.Proto), endpoint(b.External, b.ExternalPort)}
			match := b.Flags&bpf.BindingStatic != 0 && ids[i]
			if match {
				found[i] = true
			}
			return match
		})
	})
	return len(found), err
}

// forwardID is what no two static bindings have both.
type forwardID struct {
	protocol Protocol
	external netip.AddrPort
}

// IndexForwards makes static bindings the ones of what their internal endpoints send, where a dynamic binding was
// that has ended since.
func (d *Dataplane) IndexForwards() error {
	defer d.writes.hold()()
	return d.each((*family).indexForwards)
}

func (f *family) indexForwards() error {
	live, err := f.liveBindings()
	if err != nil {
		return err
	}
	for _, b := range live {
		if b.Flags&bpf.BindingStatic == 0 || b.Flags&bpf.BindingIndexed != 0 {
			continue
		}
		r := bpf.Request{Command: bpf.CommandIndex}
		r.Binding.Binding, r.Binding.Generation = b.index, uint32(b.Word>>32)
		err := f.request(&r)
		if err != nil && !errors.Is(err, ErrPortTaken) && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("index forward %s: %w", endpoint(b.External, b.ExternalPort), err)
		}
	}
	return nil
}

// ReserveHost says that the host uses an endpoint: no binding takes it before the protocol's idle timeout.
// An endpoint that is held already is no error.
func (d *Dataplane) ReserveHost(p Protocol, external netip.AddrPort) error {
	return d.reserve(p, external, 0)
}

// ReserveForwarded is ReserveHost for a connection of another NAT on the host. It gives way to ImportSession: the
// connection may be one of a network that becomes known later.
func (d *Dataplane) ReserveForwarded(p Protocol, external netip.AddrPort) error {
	return d.reserve(p, external, bpf.ReserveForwarded)
}

func (d *Dataplane) reserve(p Protocol, external netip.AddrPort, flags uint8) error {
	f := d.loadedOf(external.Addr())
	if f == nil {
		return fmt.Errorf("reserve %s/%s: %w", p, external, answers[bpf.AnswerNoAddress])
	}
	err := f.request(&bpf.Request{
		Command:      bpf.CommandReserve,
		Flags:        flags,
		Proto:        uint8(p),
		External:     rawAddr(external.Addr()),
		ExternalPort: rawPort(external.Port()),
	})
	if err != nil && !errors.Is(err, ErrPortTaken) {
		return fmt.Errorf("reserve %s/%s: %w", p, external, err)
	}
	return nil
}

// kill ends the bindings that match now, with their sessions: each is marked, and a walk over all sessions ends those of
// marked bindings. It walks again for what a packet that was on its way has opened meanwhile. What is bound anew while it
// does is not ended: an address may have another owner by then.
func (f *family) kill(match func(binding) bool) error {
	marked, err := f.mark(match)
	for deadline := time.Now().Add(time.Minute); err == nil && len(marked) > 0; {
		if err = f.sweep(); err == nil {
			err = f.forgetEnded(marked)
		}
		if err == nil && len(marked) > 0 && time.Now().After(deadline) {
			err = fmt.Errorf("%d bindings do not end", len(marked))
		}
	}
	return err
}

// killAll is kill where nothing new can match any more but what a packet that was on its way has bound.
func (f *family) killAll(match func(binding) bool) error {
	for {
		left, err := f.liveBindings()
		if err != nil || !slices.ContainsFunc(left, match) {
			return err
		}
		if err := f.kill(match); err != nil {
			return err
		}
	}
}

// forgetEnded leaves those that live, by index and generation.
func (f *family) forgetEnded(marked map[uint32]uint32) error {
	for index, generation := range marked {
		b, err := f.Bindings.Lookup(index)
		if err != nil {
			return fmt.Errorf("read binding: %w", err)
		}
		if uint32(b.Word>>32) != generation {
			delete(marked, index)
		}
	}
	return nil
}

// mark says which there are that match, by index and generation.
func (f *family) mark(match func(binding) bool) (map[uint32]uint32, error) {
	live, err := f.liveBindings()
	if err != nil {
		return nil, err
	}
	marked := map[uint32]uint32{}
	for _, b := range live {
		if !match(b) {
			continue
		}
		generation := uint32(b.Word >> 32)
		r := bpf.Request{Command: bpf.CommandKill}
		r.Binding.Binding, r.Binding.Generation = b.index, generation
		if err := f.request(&r); err != nil && !errors.Is(err, ErrNotFound) {
			return marked, fmt.Errorf("end binding %s: %w", endpoint(b.External, b.ExternalPort), err)
		}
		marked[b.index] = generation
	}
	return marked, nil
}

// sweepRetry is how long a walk waits for the kernel's own; its goes are bounded to well under it.
const sweepRetry = time.Millisecond

// sweep walks all sessions once, and ends what has expired or belongs to a dying binding.
func (f *family) sweep() error {
	deadline := time.Now().Add(time.Minute)
	var cursor uint32
	for {
		r := bpf.Request{Command: bpf.CommandSweep, Cursor: cursor}
		err := f.request(&r)
		switch {
		case errors.Is(err, errBusy) && time.Now().Before(deadline):
			time.Sleep(sweepRetry)
		case err != nil:
			return fmt.Errorf("sweep: %w", err)
		case r.Cursor == 0:
			return nil
		default:
			cursor = r.Cursor
		}
	}
}

// Sweep ends what has expired by now, without waiting for the kernel's timer.
func (d *Dataplane) Sweep() error {
	defer d.writes.hold()()
	return d.each((*family).sweep)
}
