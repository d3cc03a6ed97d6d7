// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
)

// Pinned is the state that a daemon has left: its maps, without any program. Packets go on meanwhile.
type Pinned struct{ d *Dataplane }

// OpenPinned opens the maps of a state directory. Errors: ErrNotFound, where none of this version are; ErrABI, where
// there are those of another one.
func OpenPinned(stateDir string) (*Pinned, error) {
	dir, err := hostMounts().path(stateDir)
	if err != nil {
		return nil, err
	}
	if there, err := exists(dir); err != nil || !there {
		return nil, errors.Join(err, fmt.Errorf("open state in %s: %w", stateDir, ErrNotFound))
	}
	there, err := checkPins(dir)
	if err == nil && !there {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("open state in %s: %w", stateDir, err)
	}
	p := &Pinned{d: &Dataplane{loaded: loaded{pins: pinDir(dir)}}}
	if err := p.open(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// maps are what Sessions and what it gives names by are read from, by the paths of their pins.
func (p *Pinned) maps() map[string]**ebpf.Map {
	o := &p.d.objs
	return map[string]**ebpf.Map{"config": &o.Config, "sessions4": &o.Sessions4, "zones4": &o.Zones4, "realms4": &o.Realms4,
		"owners4": &o.Owners4, "exclusions4": &o.Exclusions4, "sets4": &o.Sets4}
}

// maps6 are the same of IPv6.
func (p *Pinned) maps6() map[string]**ebpf.Map {
	o := &p.d.objs6
	return map[string]**ebpf.Map{"sessions6": &o.Sessions6, "zones6": &o.Zones6, "realms6": &o.Realms6,
		"owners6": &o.Owners6, "exclusions6": &o.Exclusions6, "sets6": &o.Sets6}
}

func (p *Pinned) open() error {
	if err := loadPins(p.d.pins, p.maps()); err != nil {
		return err
	}
	p.d.ipv4 = p.d.family4()
	there, err := exists(p.d.pins6())
	if err != nil || !there {
		return err
	}
	if err := loadPins(p.d.pins6(), p.maps6()); err != nil {
		return err
	}
	p.d.ipv6.Store(p.d.family6())
	return nil
}

func loadPins(dir string, maps map[string]**ebpf.Map) (err error) {
	for name, m := range maps {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return fmt.Errorf("open pinned map %s: %w", name, err)
		}
	}
	return nil
}

// Close closes the maps; what is pinned stays.
func (p *Pinned) Close() error {
	var errs []error
	for _, maps := range []map[string]**ebpf.Map{p.maps(), p.maps6()} {
		for _, m := range maps {
			errs = append(errs, (*m).Close()) // of a nil map, too
		}
	}
	return errors.Join(errs...)
}

// Sessions are those that live now, in no order.
func (p *Pinned) Sessions() ([]Session, error) { return p.d.Sessions() }

// Yield marks all sessions: packets that netfilter has a NAT entry for are netfilter's from now on, wherever they
// come by its way. A session that is opened later is not marked.
func (p *Pinned) Yield() error { return p.d.each((*family).yield) }

func (f *family) yield() error {
	halves, err := f.Sessions.Dump()
	if err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	for key, half := range halves {
		half.Flags |= bpf.HalfNetfilter
		err := f.Sessions.Update(key, half, ebpf.UpdateExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // it has ended meanwhile
			return fmt.Errorf("mark session: %w", err)
		}
	}
	return nil
}
