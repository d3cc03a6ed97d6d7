// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
)

// verdicts of linux/pkt_cls.h.
const (
	next     = 0xffffffff // TC_ACT_UNSPEC
	shot     = 2
	redirect = 7
)

// rig is a test's fixture while it runs.
type rig struct {
	*fixture
	t   *testing.T
	now time.Duration
}

type option func(*rigOptions)

type rigOptions struct {
	kind
	filtering dataplane.Behavior
	settings  dataplane.Settings
	mtu       int
}

func withFiltering(b dataplane.Behavior) option { return func(o *rigOptions) { o.filtering = b } }

func withSettings(change func(*dataplane.Settings)) option {
	return func(o *rigOptions) { change(&o.settings) }
}

func withMTU(mtu int) option { return func(o *rigOptions) { o.mtu = mtu } }

// withSmallTables is for tests that fill them.
func withSmallTables() option {
	return func(o *rigOptions) { o.capacity = dataplane.Capacity{Sessions: 16, Bindings: 4} }
}

func withRealClock() option { return func(o *rigOptions) { o.realClock = true } }

func withPorts(low, high uint16) option {
	return withSettings(func(s *dataplane.Settings) { s.PortLow, s.PortHigh = low, high })
}

func newRig(t *testing.T, options ...option) *rig {
	t.Helper()
	require.Root(t)
	o := rigOptions{
		kind:      kind{capacity: dataplane.Capacity{Sessions: 4096, Bindings: 2048}},
		filtering: dataplane.AddressDependent,
		settings:  dataplane.DefaultSettings(),
		mtu:       uplinkMTU,
	}
	for _, set := range options {
		set(&o)
	}
	r := &rig{fixture: fixtures.take(t, o.kind), t: t, now: beginning}
	r.must("settings", func() error { return errors.Join(r.dp.Configure(o.settings), r.putNetworks(o.filtering)) })
	if o.mtu != uplinkMTU {
		r.setMTU(o.mtu)
		t.Cleanup(func() { r.setMTU(uplinkMTU) })
	}
	return r
}

func (r *rig) setMTU(mtu int) {
	r.t.Helper()
	r.must("change the MTU", func() error {
		uplink, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(uplink, mtu)
	})
}

func (r *rig) must(what string, f func() error) {
	r.t.Helper()
	if err := r.do(f); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// skb is the part of struct __sk_buff that BPF_PROG_RUN takes as context.
type skb struct {
	Len            uint32
	PktType        uint32
	Mark           uint32
	QueueMapping   uint32
	Protocol       uint32
	VlanPresent    uint32
	VlanTCI        uint32
	VlanProto      uint32
	Priority       uint32
	IngressIfindex uint32
	Ifindex        uint32
	TCIndex        uint32
	CB             [5]uint32
	Hash           uint32
	TCClassID      uint32
	Data           uint32
	DataEnd        uint32
	NAPIID         uint32
	Family         uint32
	RemoteIP4      uint32
	LocalIP4       uint32
	RemoteIP6      [4]uint32
	LocalIP6       [4]uint32
	RemotePort     uint32
	LocalPort      uint32
	DataMeta       uint32
	_              uint32
	FlowKeys       uint64
	Tstamp         uint64
	WireLen        uint32
	GSOSegs        uint32
	_              uint64
	GSOSize        uint32
	_              [3]uint32
	HWTstamp       uint64
}

// result is what became of a packet.
type result struct {
	t       *testing.T
	verdict uint32
	in, out []byte
	reason  string
}

// send runs a program with a frame on an interface, and checks that just one counter moved, by one.
func (r *rig) send(program *ebpf.Program, dev string, frame []byte, change func(*skb)) result {
	r.t.Helper()
	res := result{t: r.t, in: frame, out: make([]byte, len(frame)+256)}
	before := r.counters()
	r.must("run program", func() error {
		ctx := skb{Ifindex: uint32(r.ports[dev])}
		if change != nil {
			change(&ctx)
		}
		opts := ebpf.RunOptions{Data: frame, DataOut: res.out, Context: ctx}
		verdict, err := program.Run(&opts)
		res.verdict, res.out = verdict, opts.DataOut
		return err
	})
	after := r.counters()
	for i := range after {
		n := after[i].Packets - before[i].Packets
		if n == 0 {
			continue
		}
		if n != 1 || res.reason != "" {
			r.t.Errorf("counter %s moved by %d, after %q", after[i].Name, n, res.reason)
		}
		res.reason = after[i].Name
	}
	return res
}

func (r *rig) counters() (out []dataplane.Counter) {
	r.t.Helper()
	r.must("counters", func() (err error) {
		out, err = r.dp.Counters()
		return err
	})
	return out
}

// inside sends a packet of a container through its port's hook.
func (r *rig) inside(s packets.Spec) result {
	r.t.Helper()
	return r.send(r.dp.Objects().NatInside, "p1", fromContainer(s).Bytes(), nil)
}

func fromContainer(s packets.Spec) packets.Spec {
	if s.DstMAC == nil {
		s.DstMAC = bridgeMAC
	}
	s.SrcMAC = c1MAC
	return s
}

func fromOutside(s packets.Spec) packets.Spec {
	s.DstMAC, s.SrcMAC = uplinkMAC, routerMAC
	return s
}

func (r *rig) outside(s packets.Spec) result {
	r.t.Helper()
	return r.send(r.dp.Objects().NatOutsideIngress, "eth0", fromOutside(s).Bytes(), nil)
}

// egress sends a packet of the host itself; from is the interface it was forwarded from, or "".
func (r *rig) egress(from string, s packets.Spec) result {
	r.t.Helper()
	s.DstMAC, s.SrcMAC = routerMAC, uplinkMAC
	return r.send(r.dp.Objects().NatOutsideEgress, "eth0", s.Bytes(), func(c *skb) { c.IngressIfindex = uint32(r.ports[from]) })
}

// translated checks verdict, reason and the whole packet; the frame's MACs are as they came.
func (res result) translated(reason string, want packets.Spec) {
	res.t.Helper()
	want.DstMAC, want.SrcMAC = res.in[0:6], res.in[6:12]
	verdict := uint32(redirect)
	if reason == "translated_host" || reason == "translated_stack" {
		verdict = next
	}
	res.check(verdict, reason, want.Bytes())
}

func (res result) check(verdict uint32, reason string, want []byte) {
	res.t.Helper()
	if res.verdict != verdict || res.reason != reason {
		res.t.Errorf("verdict %d for %s, want %d for %s", int32(res.verdict), res.reason, int32(verdict), reason)
	}
	packets.Same(res.t, res.out, want)
}

// passed and dropped check that the packet is as it was.
func (res result) passed(reason string) {
	res.t.Helper()
	res.check(next, "passed_"+reason, res.in)
}

func (res result) dropped(reason string) {
	res.t.Helper()
	res.check(shot, "dropped_"+reason, res.in)
}

// wait moves the clock and lets the sweeper walk once.
func (r *rig) wait(d time.Duration) {
	r.t.Helper()
	r.now += d
	r.must("clock", func() error { return r.dp.SetClock(uint64(r.now)) })
	r.must("sweep", r.dp.Sweep)
}

// bindings are "protocol network internal external sessions", sorted.
func (r *rig) bindings() (out []string) {
	r.t.Helper()
	r.must("bindings", func() error {
		all, err := r.dp.Bindings()
		for _, b := range all {
			line := fmt.Sprintf("%s %s %s %s %d", b.Protocol, b.Network, b.Internal, b.External, b.Sessions)
			if b.Static {
				line += " static"
			}
			out = append(out, line)
		}
		return err
	})
	slices.Sort(out)
	return out
}

func (r *rig) wantBindings(want ...string) {
	r.t.Helper()
	if diff := gocmp.Diff(want, r.bindings()); diff != "" {
		r.t.Errorf("bindings (-want +got):\n%s", diff)
	}
	r.consistent()
}

// sessions are "protocol internal external remote state", sorted.
func (r *rig) sessions() (out []string) {
	r.t.Helper()
	r.must("sessions", func() error {
		all, err := r.dp.Sessions()
		for _, s := range all {
			out = append(out, fmt.Sprintf("%s %s %s %s %s", s.Protocol, s.Internal, s.External, s.Remote, s.State))
		}
		return err
	})
	slices.Sort(out)
	return out
}

func (r *rig) wantSessions(want ...string) {
	r.t.Helper()
	if diff := gocmp.Diff(want, r.sessions()); diff != "" {
		r.t.Errorf("sessions (-want +got):\n%s", diff)
	}
}

// forward adds a static binding.
func (r *rig) forward(network string, p dataplane.Protocol, ext, in string) {
	r.t.Helper()
	r.must("forward", func() error {
		_, err := r.dp.AddForward(dataplane.Forward{Protocol: p, Network: network,
			External: netip.MustParseAddrPort(ext), Internal: netip.MustParseAddrPort(in)})
		return err
	})
}

// externalOf is the external endpoint of an internal one; "" when it has none.
func (r *rig) externalOf(proto, internal string) string {
	r.t.Helper()
	for _, b := range r.bindings() {
		f := strings.Fields(b)
		if f[0] == proto && f[2] == internal {
			return f[3]
		}
	}
	return ""
}
