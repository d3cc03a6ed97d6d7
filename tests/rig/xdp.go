// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
)

// verdicts of linux/bpf.h.
const (
	XDPDrop     = 1
	XDPPass     = 2
	XDPRedirect = 4
)

// OtherMAC is that of the host in the second network.
var OtherMAC = net.HardwareAddr{2, 0, 0, 0, 1, 3}

// The neighbours that packets are sent to, by interface.
var neighbours = map[string]map[string]net.HardwareAddr{
	"eth0": {"198.51.100.254": RouterMAC}, "br0": {C1: C1MAC, C2: C2MAC}, "br1": {Other: OtherMAC},
}

// Gateway has the links of a gateway: XDP on both bridges' devices, as if they were cards, and on the uplink.
var Gateway = map[string]uint8{"br0": bpf.LinkXDP, "br1": bpf.LinkXDP, "eth0": bpf.LinkXDP}

// Containers has XDP on the uplink, and on bridge ports that take what it redirects.
var Containers = map[string]uint8{"p1": bpf.LinkXDP | bpf.LinkXDPPeer, "p2": bpf.LinkXDP | bpf.LinkXDPPeer,
	"q1": bpf.LinkXDP | bpf.LinkXDPPeer, "eth0": bpf.LinkXDP}

// TakeXDP gives links their flags of XDP, and the kernel the neighbours that these packets are sent to.
func (r *Rig) TakeXDP(flags map[string]uint8) {
	r.T.Helper()
	for dev, hosts := range neighbours {
		for address, mac := range hosts {
			r.Neighbour(dev, address, mac)
		}
	}
	r.Must("set the links' flags", func() error { return r.XDPLinks(flags) })
}

// XDPLinks puts flags of XDP, the first epoch and the uplink's MAC straight into the table of links, as the daemon would.
func (f *fixture) XDPLinks(flags map[string]uint8) error {
	for dev, flags := range flags {
		err := f.ChangeLink(dev, func(l *bpf.Link) {
			l.Flags |= flags
			l.Epoch = max(l.Epoch, 1)
			if dev == "eth0" {
				l.Mac = [6]uint8(UplinkMAC)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ChangeLink changes what the packet path knows of an interface; one that it does not know stays unknown.
func (f *fixture) ChangeLink(dev string, change func(*bpf.Link)) error {
	var l bpf.Link
	links, index := f.DP.Objects().Links, uint32(f.Ports[dev])
	if err := links.Lookup(index, &l); err != nil {
		return fmt.Errorf("read link %s: %w", dev, err)
	}
	was := l
	if change(&l); l.Ifindex != index || l == was {
		return nil
	}
	if err := links.Put(index, l); err != nil {
		return fmt.Errorf("write link %s: %w", dev, err)
	}
	return nil
}

// Neighbour makes the kernel know one, or no more (nil).
func (r *Rig) Neighbour(dev, address string, mac net.HardwareAddr) {
	r.T.Helper()
	kernels := map[family.Family]int{family.V4: netlink.FAMILY_V4, family.V6: netlink.FAMILY_V6}
	n := &netlink.Neigh{LinkIndex: r.Ports[dev], Family: kernels[r.Family], State: netlink.NUD_PERMANENT, IP: r.Address(address).AsSlice(), HardwareAddr: mac}
	change := netlink.NeighSet
	if mac == nil {
		change = netlink.NeighDel
	}
	if err := r.Do(func() error { return change(n) }); err != nil {
		r.T.Fatalf("neighbour %s on %s: %v", address, dev, err)
	}
}

// xdpMD is struct xdp_md, which BPF_PROG_RUN takes as context.
type xdpMD struct {
	Data, DataEnd, DataMeta, IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// linear is how much of a frame the first of several buffers has; a frame that is not longer has one.
const linear = 2000

// RunXDP runs one of XDP's programs with a frame on an interface. Where the first buffer ends, Linux is told since 6.18; before,
// it is told how long the frame is.
func (f *fixture) RunXDP(program *ebpf.Program, dev string, frame []byte) (verdict uint32, out []byte, err error) {
	for _, end := range []int{min(len(frame), linear), len(frame)} {
		opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256),
			Context: xdpMD{DataEnd: uint32(end), IngressIfindex: uint32(f.Ports[dev])}}
		verdict, err = program.Run(&opts)
		if out = opts.DataOut; !errors.Is(err, unix.EINVAL) || end == len(frame) {
			break
		}
	}
	return verdict, out, err
}

// xdpResult is what became of a frame at XDP.
type xdpResult struct {
	result
	rig *Rig
}

// XDP sends a frame to one of XDP's programs. Its counters are to move where it does not pass the frame on, and tc's never.
func (r *Rig) XDP(program *ebpf.Program, dev string, frame []byte) xdpResult {
	r.T.Helper()
	res := xdpResult{result{t: r.T, in: frame, family: r.Family}, r}
	before := r.counters()
	r.Must("run program", func() (err error) {
		res.Verdict, res.out, err = r.RunXDP(program, dev, frame)
		return err
	})
	for i, after := range r.counters() {
		if after.Packets-before[i].Packets != after.XDP-before[i].XDP {
			r.T.Errorf("counter %s of tc has moved", after.Name)
		}
		for range after.XDP - before[i].XDP {
			res.Reason += after.Name
		}
	}
	return res
}

// XDPInside sends a packet of an inside host to the XDP program at its interface.
func (r *Rig) XDPInside(dev string, s packets.Spec) xdpResult {
	r.T.Helper()
	return r.XDP(r.DP.Objects().NatXdpInside, dev, r.Frame(r.fromHost(dev, s)))
}

func (r *Rig) XDPOutside(s packets.Spec) xdpResult {
	r.T.Helper()
	return r.XDP(r.DP.Objects().NatXdpOutside, "eth0", r.Frame(FromOutside(s)))
}

// Redirected checks that the frame leaves as want, one TTL older, from the interface of one MAC to the host of another.
func (res xdpResult) Redirected(reason string, src, dst net.HardwareAddr, want packets.Spec) {
	res.t.Helper()
	want = want.Hop()
	want.SrcMAC, want.DstMAC = src, dst
	res.Check(XDPRedirect, "translated_"+reason, want.In(res.family).Bytes())
}

// Out checks what goes by the uplink to its router.
func (res xdpResult) Out(want packets.Spec) {
	res.t.Helper()
	res.Redirected("outbound", UplinkMAC, RouterMAC, want)
}

// In checks what goes to the first host of the first network.
func (res xdpResult) In(want packets.Spec) {
	res.t.Helper()
	res.Redirected("inbound", BridgeMAC, C1MAC, want)
}

// HandedOn checks that the frame goes on to tc as it came, and is counted there alone.
func (res xdpResult) HandedOn() {
	res.t.Helper()
	res.Check(XDPPass, "", res.in)
}

// Dropped checks that it ends here.
func (res xdpResult) Dropped(reason string) {
	res.t.Helper()
	res.Check(XDPDrop, "dropped_"+reason, res.in)
}

// AtTC is what tc would have made of a frame that XDP has redirected: it leaves the frame's own MACs to the kernel. Of one that
// was sent by a way that there is none of, it is the frame as it is.
func (r *Rig) AtTC(in, out []byte) []byte {
	for _, way := range ways {
		if bytes.HasPrefix(out, slices.Concat(way.dst, way.src)) {
			return slices.Concat(in[:12], out[12:])
		}
	}
	return out
}

// ways are those that XDP may send by: from whom, and to whom.
var ways = []struct{ src, dst net.HardwareAddr }{
	{UplinkMAC, RouterMAC}, {BridgeMAC, C1MAC}, {BridgeMAC, C2MAC}, {Bridge2, OtherMAC},
}
