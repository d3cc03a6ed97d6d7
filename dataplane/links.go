// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
)

var linkKinds = map[LinkKind]uint8{
	InsideDevice: bpf.LinkInsideDevice,
	InsidePort:   bpf.LinkInsidePort,
	OutsideLink:  bpf.LinkOutside,
}

// Attach makes an interface known to the packet path and puts its hooks on it. It may be called again, for a
// link that changed or to take hooks of an earlier daemon over to this program. Error: ErrNotFound, where the interface is
// gone by now.
func (d *Dataplane) Attach(l Link) error {
	defer d.writes.hold()()
	err := d.attach(l)
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("attach %s hooks to %s (ifindex %d): %w", l.Kind, l.Name, l.IfIndex, err)
	}
	return nil
}

func (d *Dataplane) attach(l Link) error {
	raw, err := d.rawLink(l)
	if err != nil {
		return err
	}
	before, known, err := d.lookupLink(uint32(l.IfIndex))
	if err != nil {
		return err
	}
	if known && (before.Kind == bpf.LinkOutside) != (raw.Kind == bpf.LinkOutside) {
		return fmt.Errorf("it is on the other side already: detach it first")
	}
	if !known {
		// Known, so that its hooks are found again, and of no kind yet: nothing may leave by an outside before what
		// comes back is translated.
		if err := d.putLink(bpf.Link{Ifindex: raw.Ifindex}); err != nil {
			return err
		}
	}
	if known { // AttachXDP's
		raw.Flags |= before.Flags & (bpf.LinkXDP | bpf.LinkXDPPeer | bpf.LinkGROSwitched)
	}
	raw.Epoch = nextEpoch(before.Epoch)
	if err := d.attachHooks(l); err != nil {
		if !known {
			err = errors.Join(err, d.detachHooks(l.IfIndex), d.deleteLink(raw.Ifindex))
		}
		return err
	}
	return d.putLink(raw)
}

func (d *Dataplane) rawLink(l Link) (bpf.Link, error) {
	kind, ok := linkKinds[l.Kind]
	if !ok || l.IfIndex <= 0 {
		return bpf.Link{}, fmt.Errorf("kind %d, ifindex %d: not a link", l.Kind, l.IfIndex)
	}
	known, err := d.ipv4.names()
	if err != nil {
		return bpf.Link{}, err
	}
	raw := bpf.Link{Ifindex: uint32(l.IfIndex), Kind: kind}
	if l.Peer {
		raw.Flags |= bpf.LinkPeer
	}
	if l.Layer3 {
		raw.Flags |= bpf.LinkLayer3
	}
	if l.Stack {
		raw.Flags |= bpf.LinkStack
	}
	if l.DropUnsolicited {
		raw.Flags |= bpf.LinkUnsolicited
	}
	if l.Kind == OutsideLink {
		copy(raw.Mac[:], l.MAC)
		id, _ := known.realmID(l.Owner)
		if id < 0 {
			return raw, fmt.Errorf("outside %s: %w", l.Owner, ErrNotFound)
		}
		raw.Owner = uint16(id)
		return raw, nil
	}
	id, _ := known.zoneID(l.Owner)
	if id == 0 {
		return raw, fmt.Errorf("network %s: %w", l.Owner, ErrNotFound)
	}
	raw.Owner = id
	raw.Mac = known.zones[id].Mac
	return raw, nil
}

// Interfaces lie in an array by the low bits of their index; one that finds its place taken by another goes
// to a hash (link_get of config.h).

func (d *Dataplane) lookupLink(ifindex uint32) (bpf.Link, bool, error) {
	var l bpf.Link
	if err := d.objs.Links.Lookup(ifindex%bpf.Links, &l); err != nil {
		return l, false, fmt.Errorf("read link: %w", err)
	}
	if l.Ifindex == ifindex {
		return l, true, nil
	}
	err := d.objs.LinksOverflow.Lookup(ifindex, &l)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return bpf.Link{}, false, nil
	}
	return l, err == nil, err
}

func (d *Dataplane) putLink(l bpf.Link) error {
	if err := d.writeLink(l); err != nil {
		return err
	}
	d.noteLink(l.Ifindex, &l)
	return nil
}

func (d *Dataplane) writeLink(l bpf.Link) error {
	var at bpf.Link
	index := l.Ifindex % bpf.Links
	if err := d.objs.Links.Lookup(index, &at); err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	if at.Ifindex == 0 || at.Ifindex == l.Ifindex {
		if err := d.objs.Links.Put(index, l); err != nil {
			return fmt.Errorf("write link: %w", err)
		}
		return nil
	}
	if err := d.objs.LinksOverflow.Put(l.Ifindex, l); err != nil {
		return fmt.Errorf("write link: %w", err)
	}
	return nil
}

func (d *Dataplane) deleteLink(ifindex uint32) error {
	if err := d.eraseLink(ifindex); err != nil {
		return err
	}
	d.noteLink(ifindex, nil)
	return nil
}

func (d *Dataplane) eraseLink(ifindex uint32) error {
	var at bpf.Link
	index := ifindex % bpf.Links
	if err := d.objs.Links.Lookup(index, &at); err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	if at.Ifindex == ifindex {
		if err := d.objs.Links.Put(index, bpf.Link{}); err != nil {
			return fmt.Errorf("delete link: %w", err)
		}
		return nil
	}
	if err := d.objs.LinksOverflow.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete link: %w", err)
	}
	return nil
}

// noteLink is called after each write of a link; nil: it is deleted.
func (d *Dataplane) noteLink(ifindex uint32, l *bpf.Link) {
	d.linkedMu.Lock()
	defer d.linkedMu.Unlock()
	switch {
	case d.linked == nil:
	case l == nil:
		delete(d.linked, ifindex)
	default:
		d.linked[ifindex] = l
	}
}

// rawLinks are the tables', by index. They are read once: this process is the only one that writes them, and the array
// is large.
func (d *Dataplane) rawLinks() ([]bpf.Link, error) {
	d.linkedMu.Lock()
	defer d.linkedMu.Unlock()
	if d.linked == nil {
		linked, err := d.readLinks()
		if err != nil {
			return nil, err
		}
		d.linked = linked
	}
	out := make([]bpf.Link, 0, len(d.linked))
	for _, l := range d.linked {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b bpf.Link) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	return out, nil
}

func (d *Dataplane) readLinks() (map[uint32]*bpf.Link, error) {
	all, err := bpf.TableOf[uint32, bpf.Link](d.objs.Links).Elements(bpf.Links)
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	more, err := bpf.TableOf[uint32, bpf.Link](d.objs.LinksOverflow).Dump()
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	out := map[uint32]*bpf.Link{}
	for _, l := range all {
		if l.Ifindex != 0 {
			out[l.Ifindex] = &l
		}
	}
	for index, l := range more {
		out[index] = &l
	}
	return out, nil
}

// Detach takes the hooks off an interface, which may be gone already. Error: ErrNotFound.
func (d *Dataplane) Detach(ifindex int) error {
	defer d.writes.hold()()
	l, known, err := d.lookupLink(uint32(ifindex))
	if err == nil && !known {
		err = ErrNotFound
	}
	if err == nil {
		err = d.detachXDP(l)
	}
	if err == nil { // before its hooks are off: nothing leaves by it that cannot come back
		err = d.putLink(bpf.Link{Ifindex: l.Ifindex})
	}
	if err == nil {
		err = d.detachHooks(int(l.Ifindex))
	}
	if err == nil {
		err = d.deleteLink(l.Ifindex)
	}
	if err != nil {
		return fmt.Errorf("detach hooks of interface %d: %w", ifindex, err)
	}
	return nil
}

// Links are the interfaces that have hooks, those that are gone and were not detached too.
func (d *Dataplane) Links() ([]Link, error) {
	raw, err := d.rawLinks()
	if err != nil {
		return nil, err
	}
	known, err := d.ipv4.names()
	if err != nil {
		return nil, err
	}
	present, err := interfaceNames()
	if err != nil {
		return nil, err
	}
	deaf, err := deafPorts(raw)
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, r := range raw {
		l := Link{
			IfIndex: int(r.Ifindex),
			Kind:    kindOf(r),
			Peer:    r.Flags&bpf.LinkPeer != 0,
			Layer3:  r.Flags&bpf.LinkLayer3 != 0,
			Stack:   r.Flags&bpf.LinkStack != 0,

			DropUnsolicited: r.Flags&bpf.LinkUnsolicited != 0,
			XDP:             d.xdpUse(r),
		}
		l.Owner = known.zoneName(r.Owner)
		if l.Kind == OutsideLink {
			l.Owner = nameOf(known.realms[r.Owner%bpf.Realms].Name)
			l.MAC = macOf(r)
		}
		if deaf[r.Ifindex] {
			l.XDP = XDPNone
		}
		l.Name = present[l.IfIndex]
		if l.Mechanism, err = d.mechanism(l); err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// Unhooked are the indices of interfaces whose TCX hooks, or XDP, somebody else took away, which the kernel announces to nobody
// (of clsact filters it does: RTNLGRP_TC), or that are gone. It costs two system calls for each hook.
func (d *Dataplane) Unhooked() ([]int, error) {
	raw, err := d.rawLinks()
	if err != nil {
		return nil, err
	}
	deaf, err := deafPorts(raw)
	if err != nil {
		return nil, err
	}
	ids := map[*ebpf.Program]ebpf.ProgramID{}
	var out []int
	for _, r := range raw {
		lost := d.lostXDP(r) || deaf[r.Ifindex]
		if !lost && d.features.TCX {
			if lost, err = d.lostHooks(Link{IfIndex: int(r.Ifindex), Kind: kindOf(r)}, ids); err != nil {
				return nil, err
			}
		}
		if lost {
			out = append(out, int(r.Ifindex))
		}
	}
	return out, nil
}

func (d *Dataplane) lostHooks(l Link, ids map[*ebpf.Program]ebpf.ProgramID) (bool, error) {
	if d.queryHooks(l, ids) {
		return false, nil
	}
	by, err := d.mechanism(l) // another daemon's programs, or clsact after all
	if err != nil {
		return false, fmt.Errorf("look at the hooks of interface %d: %w", l.IfIndex, err)
	}
	return by == "", nil
}

// macOf is nil for a link without Ethernet header.
func macOf(l bpf.Link) net.HardwareAddr {
	if l.Mac == [6]uint8{} {
		return nil
	}
	return net.HardwareAddr(l.Mac[:])
}

func kindOf(l bpf.Link) (kind LinkKind) {
	for k, raw := range linkKinds {
		if raw == l.Kind {
			kind = k
		}
	}
	return kind
}

// interfaceNames are those of all interfaces, by index: net.InterfaceByIndex lists all of them for each.
func interfaceNames() (map[int]string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	names := make(map[int]string, len(list))
	for _, i := range list {
		names[i.Index] = i.Name
	}
	return names, nil
}
