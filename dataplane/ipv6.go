// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// IPv6's maps are as large as IPv4's again, and larger: they are made when the first network, outside, owner or forward has an
// address of it. Its programs have no hooks of their own; IPv4's call them by programs6.

// pins6 is where its own maps are pinned, under those that all families share.
func (d *Dataplane) pins6() string { return filepath.Join(d.pins, "ipv6") }

// shared are the maps that there is one of for all families.
func (d *Dataplane) shared() map[string]*ebpf.Map {
	o := &d.objs
	return map[string]*ebpf.Map{"config": o.Config, "links": o.Links, "links_overflow": o.LinksOverflow, "programs6": o.Programs6, "xdp6": o.Xdp6,
		"zone_usage": o.ZoneUsage, "counters": o.Counters, "xdp_counters": o.XdpCounters, "events": o.Events, "events_lost": o.EventsLost}
}

// adoptIPv6 loads IPv6's programs where an earlier daemon has left maps of it.
func (d *Dataplane) adoptIPv6() error {
	there, err := exists(d.pins6())
	if err != nil || !there {
		return err
	}
	f, err := d.openIPv6()
	if err == nil {
		err = f.introduce() // it may have been killed half-way
	}
	if err == nil {
		err = d.callIPv6()
	}
	if err == nil {
		d.ipv6.Store(f)
	}
	return err
}

// loadIPv6 makes IPv6's maps, and has all networks and outsides known there before any packet comes.
func (d *Dataplane) loadIPv6() (*family, error) {
	f, err := d.openIPv6()
	if err == nil {
		err = f.arm()
	}
	if err == nil {
		err = f.introduce()
	}
	if err == nil {
		err = d.callIPv6()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load IPv6: %w", err), d.unloadIPv6())
	}
	d.ipv6.Store(f)
	d.log.Info("IPv6 loaded", "sessions", f.capacity.Sessions, "bindings", f.capacity.Bindings)
	return f, nil
}

func (d *Dataplane) openIPv6() (*family, error) {
	spec, err := bpf.Load6()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	if err := d.prepare(spec, ipv6, d.capacity); err != nil {
		return nil, err
	}
	err = pinned(d.pins6(), filepath.Join(d.pins, "ipv6_unfinished"), func(dir string, made bool) error {
		opts := ebpf.CollectionOptions{MapReplacements: d.shared(), Maps: ebpf.MapOptions{PinPath: dir}}
		return spec.LoadAndAssign(&d.objs6, &opts)
	})
	if err != nil {
		return nil, d.loadError(err)
	}
	return d.family6(), d.setClockOfIPv6()
}

func (d *Dataplane) family6() *family {
	return &family{Tables: d.objs6.Tables(), ipVersion: ipv6, d: d, control: d.objs6.NatControl, capacity: d.capacity}
}

// setClockOfIPv6 is for tests, which have set IPv4's.
func (d *Dataplane) setClockOfIPv6() error {
	var now uint64
	if err := d.objs.VirtualNow.Get(&now); err != nil {
		return fmt.Errorf("read virtual clock: %w", err)
	}
	return d.objs6.VirtualNow.Set(now)
}

// introduce has the networks and outsides that only IPv4's tables know, without any address.
func (f *family) introduce() error {
	known, err := f.d.ipv4.names()
	if err != nil {
		return err
	}
	here, err := f.names()
	if err != nil {
		return err
	}
	for id, n := range known.networks() {
		if n.Name == here.zoneName(uint16(id)) {
			continue
		}
		if err := f.putNetwork(uint16(id), n.part(ipv6)); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	for id, r := range known.realms {
		if r.Name == here.realms[id].Name {
			continue
		}
		if err := f.putOutside(id, Outside{Name: nameOf(r.Name), IfIndex: int(r.Ifindex)}); err != nil {
			return fmt.Errorf("outside %s: %w", nameOf(r.Name), err)
		}
	}
	return nil
}

// callIPv6 lets IPv4's programs, at all hooks, call the ones that are loaded.
func (d *Dataplane) callIPv6() error {
	for slot, program := range map[uint32]*ebpf.Program{
		bpf.SlotInside: d.objs6.NatInside, bpf.SlotOutsideIngress: d.objs6.NatOutsideIngress,
		bpf.SlotOutsideEgress: d.objs6.NatOutsideEgress, bpf.SlotFragments: d.objs6.NatFragments,
	} {
		if err := d.objs.Programs6.Put(slot, program); err != nil {
			return fmt.Errorf("call %s: %w", program, err)
		}
	}
	for slot, program := range map[uint32]*ebpf.Program{bpf.SlotXDPInside: d.objs6.NatXdpInside, bpf.SlotXDPOutside: d.objs6.NatXdpOutside} {
		if err := d.objs.Xdp6.Put(slot, program); err != nil {
			return fmt.Errorf("call %s: %w", program, err)
		}
	}
	return nil
}

// unloadIPv6 is for what has failed before any packet was translated.
func (d *Dataplane) unloadIPv6() error {
	err := d.objs6.Close()
	d.objs6 = bpf.Objects6{}
	return errors.Join(err, removePins(d.pins6(), new(RemoveReport)))
}
