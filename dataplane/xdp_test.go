// SPDX-License-Identifier: Apache-2.0

package dataplane_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// native is how the kernel says that XDP is in the driver (XDP_ATTACHED_DRV).
const native = 1

// xdpOf is what the kernel says of the host's XDP; nil: there is none.
func xdpOf(t *testing.T, f *topo.Figure3, name string) *netlink.LinkXdp {
	t.Helper()
	dev, err := f.Host.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if x := dev.Attrs().Xdp; x != nil && x.Attached {
		return x
	}
	return nil
}

// xdpLab is a lab whose eth0 sends what is redirected to it: a veth does with GRO at its other end.
func xdpLab(t *testing.T) (*topo.Figure3, string) {
	t.Helper()
	f, dir := lab(t)
	must(t, f.Router.SetGRO("wan", true))
	return f, dir
}

// hostLink is an interface of the host's as Links has it.
func hostLink(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane, name string) dataplane.Link {
	t.Helper()
	var links []dataplane.Link
	must(t, f.Host.Do(func() (err error) {
		links, err = d.Links()
		return err
	}))
	i := slices.IndexFunc(links, func(l dataplane.Link) bool { return l.Name == name })
	if i < 0 {
		t.Fatalf("%s is none of %+v", name, links)
	}
	return links[i]
}

// do is a method of the dataplane in the host's namespace, with the link as it is but for a change.
func do(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane, name string, method func(dataplane.Link) error, change func(*dataplane.Link)) error {
	t.Helper()
	l := hostLink(t, f, d, name)
	change(&l)
	return f.Host.Do(func() error { return method(l) })
}

func uses(u dataplane.XDPUse) func(*dataplane.Link) {
	return func(l *dataplane.Link) { l.XDP = u }
}

// TestXDP: native, adopted with its link, kept when the hooks are put on again, and taken away by each of the ways there are.
func TestXDP(t *testing.T) {
	f, dir := xdpLab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	if l := hostLink(t, f, d, "eth0"); l.XDP != dataplane.XDPNone || xdpOf(t, f, "eth0") != nil {
		t.Fatalf("there is XDP that nobody asked for: %+v", l)
	}
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	checkXDP(t, f, d, dataplane.XDPTranslate)
	first := xdpOf(t, f, "eth0").ProgId
	must(t, do(t, f, d, "eth0", d.Attach, func(l *dataplane.Link) {
		l.MAC, l.DropUnsolicited = net.HardwareAddr{2, 0, 0, 0, 0, 9}, true
	}))
	checkXDP(t, f, d, dataplane.XDPTranslate)
	if l := hostLink(t, f, d, "eth0"); l.MAC.String() != "02:00:00:00:00:09" || !l.DropUnsolicited {
		t.Errorf("the link is %+v", l)
	}

	d.Close()
	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	if xdpOf(t, f, "eth0").ProgId != first {
		t.Error("opening the state has changed what is attached")
	}
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPDrop)))
	checkXDP(t, f, d, dataplane.XDPDrop)
	if xdpOf(t, f, "eth0").ProgId == first {
		t.Error("the program is still the first daemon's")
	}

	detach := func(l dataplane.Link) error { return d.DetachXDP(l.IfIndex) }
	must(t, do(t, f, d, "eth0", detach, uses(dataplane.XDPNone)))
	must(t, do(t, f, d, "eth0", detach, uses(dataplane.XDPNone)))
	checkXDP(t, f, d, dataplane.XDPNone)
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	must(t, do(t, f, d, "eth0", func(l dataplane.Link) error { return d.Detach(l.IfIndex) }, uses(dataplane.XDPNone)))
	if x := xdpOf(t, f, "eth0"); x != nil {
		t.Errorf("after Detach there is %+v", x)
	}
	must(t, equip(f, d))
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	d.Close()
	checkRemove(t, f, dir)
	if x := xdpOf(t, f, "eth0"); x != nil {
		t.Errorf("after Remove there is %+v", x)
	}
}

// checkXDP compares what the dataplane says of eth0, what the kernel does, and whether others may redirect there.
func checkXDP(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane, want dataplane.XDPUse) {
	t.Helper()
	l, x := hostLink(t, f, d, "eth0"), xdpOf(t, f, "eth0")
	if l.XDP != want || (x != nil) != (want != dataplane.XDPNone) || x != nil && x.AttachMode != native {
		t.Errorf("use %s, want %s; the kernel has %+v", l.XDP, want, x)
	}
	if raw := rawLink(t, d, l.IfIndex); raw.Flags&bpf.LinkXDP != 0 != (want == dataplane.XDPTranslate) {
		t.Errorf("use %s: the packet path has flags %#x", l.XDP, raw.Flags)
	}
}

func rawLink(t *testing.T, d *dataplane.Dataplane, index int) (raw bpf.Link) {
	t.Helper()
	must(t, d.Objects().Links.Lookup(uint32(index%bpf.Links), &raw))
	return raw
}

// TestXDPTakenAway: who takes the program off, or the interface, leaves nothing that others are told to redirect to.
func TestXDPTakenAway(t *testing.T) {
	f, dir := xdpLab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	index := hostLink(t, f, d, "eth0").IfIndex
	unhooked := func() (out []int) {
		must(t, f.Host.Do(func() (err error) {
			out, err = d.Unhooked()
			return err
		}))
		return out
	}
	if list := unhooked(); len(list) > 0 {
		t.Errorf("unhooked: %v", list)
	}
	must(t, f.Host.Do(func() error { return detachXDPLink(index) }))
	if l := hostLink(t, f, d, "eth0"); l.XDP != dataplane.XDPNone {
		t.Errorf("its use is %s", l.XDP)
	}
	if list := unhooked(); !slices.Equal(list, []int{index}) {
		t.Errorf("unhooked: %v, want [%d]", list, index)
	}
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	checkXDP(t, f, d, dataplane.XDPTranslate)

	gone := hostLink(t, f, d, "eth0")
	must(t, f.Uplink().Delete())
	err := f.Host.Do(func() error { return d.AttachXDP(gone) })
	if !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("attach to an interface that is gone: %v", err)
	}
	must(t, f.Host.Do(func() error { return d.Detach(index) }))
	if err := d.DetachXDP(index); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("detach from an interface that nobody knows: %v", err)
	}
	if left := slices.DeleteFunc(tree(t, dir), func(name string) bool { return !strings.Contains(name, "_xdp") }); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// detachXDPLink is `bpftool link detach` of an interface's XDP.
func detachXDPLink(index int) error {
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		info, err := links.Link.Info()
		if err != nil || info.XDP() == nil || int(info.XDP().Ifindex) != index {
			continue
		}
		if here, err := isHere(info.Program, index); err != nil || !here { // of another network namespace
			continue
		}
		return links.Link.Detach()
	}
	return errors.Join(errors.New("no XDP link"), links.Err())
}

func isHere(program ebpf.ProgramID, index int) (bool, error) {
	dev, err := netlink.LinkByIndex(index)
	return err == nil && dev.Attrs().Xdp != nil && dev.Attrs().Xdp.ProgId == uint32(program), err
}

// TestXDPRefused: where there is no native XDP, or somebody else's, nothing is changed, and the error says what to do.
func TestXDPRefused(t *testing.T) {
	f, dir := xdpLab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	err := do(t, f, d, "docker0", d.AttachXDP, uses(dataplane.XDPTranslate))
	if err == nil || !strings.Contains(err.Error(), "XDP on docker0") || !strings.Contains(err.Error(), "driver bridge has no native XDP") {
		t.Errorf("on a bridge: %v", err)
	}
	if raw := rawLink(t, d, hostLink(t, f, d, "docker0").IfIndex); raw.Flags&bpf.LinkXDP != 0 {
		t.Error("others may redirect to docker0")
	}

	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	must(t, err)
	defer other.Close()
	for _, mode := range []link.XDPAttachFlags{link.XDPDriverMode, link.XDPGenericMode} {
		index := hostLink(t, f, d, "eth0").IfIndex
		var theirs link.Link
		must(t, f.Host.Do(func() (err error) {
			theirs, err = link.AttachXDP(link.XDPOptions{Program: other, Interface: index, Flags: mode})
			return err
		}))
		before := xdpOf(t, f, "eth0")
		err := do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate))
		if !errors.Is(err, dataplane.ErrOtherXDP) {
			t.Errorf("mode %d: %v, want %v", mode, err, dataplane.ErrOtherXDP)
		}
		if after := xdpOf(t, f, "eth0"); after == nil || after.ProgId != before.ProgId {
			t.Errorf("mode %d: theirs was %+v, and is %+v", mode, before, after)
		}
		must(t, theirs.Close())
	}
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	checkXDP(t, f, d, dataplane.XDPTranslate)
}

// TestXDPWithoutRedirects: an interface that would lose what is redirected to it has no XDP, where the kernel can tell. To drop it may.
func TestXDPWithoutRedirects(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPDrop)))
	checkXDP(t, f, d, dataplane.XDPDrop)
	err := do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate))
	if require.Running(t).Before(require.Version{Major: 6, Minor: 3}) {
		must(t, err)
		return
	}
	if err == nil || !strings.Contains(err.Error(), "driver veth has native XDP, but sends nothing") {
		t.Errorf("on a veth whose other end takes no frames: %v", err)
	}
	checkXDP(t, f, d, dataplane.XDPNone)
	must(t, f.Router.SetGRO("wan", true))
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	checkXDP(t, f, d, dataplane.XDPTranslate)
}

// deafened: who switches the container's GRO off is noticed, where the kernel tells.
func deafened(t *testing.T, f *topo.Figure3, d *dataplane.Dataplane, index int) {
	t.Helper()
	if require.Running(t).Before(require.Version{Major: 6, Minor: 3}) {
		return
	}
	must(t, f.Containers[0].SetGRO("eth0", false))
	if l := hostLink(t, f, d, "veth-c1"); l.XDP != dataplane.XDPNone {
		t.Errorf("its use is %s", l.XDP)
	}
	var list []int
	must(t, f.Host.Do(func() (err error) {
		list, err = d.Unhooked()
		return err
	}))
	if !slices.Contains(list, index) {
		t.Errorf("unhooked: %v, want %d among them", list, index)
	}
}

// TestForgetHops: the epoch that remembered hops are good for ends, where XDP sends by the interface; it is never 0.
func TestForgetHops(t *testing.T) {
	f, dir := xdpLab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	must(t, do(t, f, d, "eth0", d.AttachXDP, uses(dataplane.XDPTranslate)))
	eth0, docker0 := hostLink(t, f, d, "eth0").IfIndex, hostLink(t, f, d, "docker0").IfIndex
	bridge := rawLink(t, d, docker0)
	last := rawLink(t, d, eth0).Epoch
	for range 300 {
		must(t, d.ForgetHops())
		if now := rawLink(t, d, eth0); now.Epoch == 0 || now.Epoch == last || now.Flags&bpf.LinkXDP == 0 {
			t.Fatalf("epoch %d after %d, flags %#x", now.Epoch, last, now.Flags)
		}
		last = rawLink(t, d, eth0).Epoch
	}
	if now := rawLink(t, d, docker0); now != bridge {
		t.Errorf("docker0 has changed from %+v to %+v", bridge, now)
	}
}

// TestXDPIntoContainers: the container's end takes what is redirected to it, and is as it was when that is over.
func TestXDPIntoContainers(t *testing.T) {
	f, dir := lab(t)
	d := mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, equip(f, d))
	index, err := f.Host.IfIndex("veth-c1")
	must(t, err)
	port := dataplane.Link{IfIndex: index, Name: "veth-c1", Kind: dataplane.InsidePort, Owner: "docker0", Peer: true, XDP: dataplane.XDPTranslate}
	attach := func() error { return f.Host.Do(func() error { return errors.Join(d.Attach(port), d.AttachXDP(port)) }) }
	check := func(want bool) {
		t.Helper()
		raw := rawLink(t, d, index)
		gro, err := f.Containers[0].GRO("eth0")
		if err != nil || gro != want || raw.Flags&bpf.LinkXDPPeer != 0 != want || hostLink(t, f, d, "veth-c1").XDP == dataplane.XDPTranslate != want {
			t.Errorf("GRO %v (%v), flags %#x; want %v", gro, err, raw.Flags, want)
		}
	}
	must(t, attach())
	check(true)
	d.Close()
	d = mustOpen(t, f, dataplane.Options{StateDir: dir})
	must(t, attach())
	check(true)
	deafened(t, f, d, index)
	must(t, attach())
	check(true)
	must(t, f.Host.Do(func() error { return d.DetachXDP(index) }))
	check(false)

	must(t, f.Containers[0].SetGRO("eth0", true))
	must(t, attach())
	must(t, f.Host.Do(func() error { return d.DetachXDP(index) }))
	if gro, err := f.Containers[0].GRO("eth0"); err != nil || !gro {
		t.Errorf("GRO that was on before is %v (%v)", gro, err)
	}
	must(t, f.Containers[0].SetGRO("eth0", false))

	must(t, attach())
	d.Close()
	must(t, f.Host.Do(func() error { _, err := dataplane.Remove(dir); return err }))
	if gro, err := f.Containers[0].GRO("eth0"); err != nil || gro {
		t.Errorf("after Remove, GRO is %v (%v)", gro, err)
	}
}
