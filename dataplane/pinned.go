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

// maps are what Sessions and what it gives names by are read from, by the names of their pins.
func (p *Pinned) maps() map[string]**ebpf.Map {
	o := &p.d.objs
	return map[string]**ebpf.Map{bpf.MapSessions: &o.Sessions4, "config": &o.Config, "zones4": &o.Zones4, "realms4": &o.Realms4,
		"owners4": &o.Owners4, "exclusions4": &o.Exclusions4, "sets4": &o.Sets4}
}

func (p *Pinned) open() (err error) {
	for name, m := range p.maps() {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(p.d.pins, name), nil); err != nil {
			return fmt.Errorf("open pinned map %s: %w", name, err)
		}
	}
	return nil
}

// Close closes the maps; what is pinned stays.
func (p *Pinned) Close() error {
	var errs []error
	for _, m := range p.maps() {
		errs = append(errs, (*m).Close()) // of a nil map, too
	}
	return errors.Join(errs...)
}

// Sessions are those that live now, in no order.
func (p *Pinned) Sessions() ([]Session, error) { return p.d.Sessions() }

// Yield marks all sessions: packets that netfilter has a NAT entry for are netfilter's from now on, wherever they
// come by its way. A session that is opened later is not marked.
func (p *Pinned) Yield() error {
	halves, err := dumpHash[bpf.SessionKey, bpf.SessionHalf](p.d.objs.Sessions4)
	if err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	for key, half := range halves {
		half.Flags |= bpf.HalfNetfilter
		err := p.d.objs.Sessions4.Update(key, half, ebpf.UpdateExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // it has ended meanwhile
			return fmt.Errorf("mark session: %w", err)
		}
	}
	return nil
}
