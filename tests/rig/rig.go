// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
)

// verdicts of linux/pkt_cls.h.
const (
	Next     = 0xffffffff // TC_ACT_UNSPEC
	Shot     = 2
	Redirect = 7
)

// Rig is a test's fixture while it runs.
type Rig struct {
	*fixture
	T   testing.TB
	Now time.Duration
	// Family is that of its addresses. Packets, endpoints and expected lines are given to its methods in IPv4 in any case: tests/family.
	Family family.Family
}

type Option func(*RigOptions)

type RigOptions struct {
	kind
	mapping   dataplane.Behavior
	filtering dataplane.Behavior
	settings  dataplane.Settings
	mtu       int
	network   func(*dataplane.Network)
}

// In makes it one of a family: its addresses, and the packets that its methods are given.
func In(f family.Family) Option { return func(o *RigOptions) { o.family = f } }

func WithMapping(b dataplane.Behavior) Option { return func(o *RigOptions) { o.mapping = b } }

func WithFiltering(b dataplane.Behavior) Option { return func(o *RigOptions) { o.filtering = b } }

func WithSettings(change func(*dataplane.Settings)) Option {
	return func(o *RigOptions) { change(&o.settings) }
}

// WithNetworks changes what both networks are.
func WithNetworks(change func(*dataplane.Network)) Option {
	return func(o *RigOptions) { o.network = change }
}

func WithMTU(mtu int) Option { return func(o *RigOptions) { o.mtu = mtu } }

// WithTables is for tests that know when the tables are full.
func WithTables(sessions, bindings uint32) Option {
	return func(o *RigOptions) { o.Capacity = dataplane.Capacity{Sessions: sessions, Bindings: bindings} }
}

// WithSmallTables is for tests that fill them.
func WithSmallTables() Option {
	return func(o *RigOptions) { o.Capacity = dataplane.Capacity{Sessions: 16, Bindings: 4} }
}

func WithRealClock() Option { return func(o *RigOptions) { o.realClock = true } }

func WithPorts(low, high uint16) Option {
	return WithSettings(func(s *dataplane.Settings) { s.PortLow, s.PortHigh = low, high })
}

func New(t testing.TB, options ...Option) *Rig {
	t.Helper()
	require.Root(t)
	o := RigOptions{
		kind:      kind{Capacity: dataplane.Capacity{Sessions: 4096, Bindings: 2048}},
		filtering: dataplane.AddressDependent,
		settings:  dataplane.DefaultSettings(),
		mtu:       uplinkMTU,
		network:   func(*dataplane.Network) {},
	}
	for _, set := range options {
		set(&o)
	}
	r := &Rig{fixture: fixtures.take(t, o.kind), T: t, Now: beginning, Family: o.family}
	r.Must("settings", func() error {
		return errors.Join(r.DP.Configure(o.settings), r.putNetworks(o.mapping, o.filtering, o.network))
	})
	if o.mtu != uplinkMTU {
		r.SetMTU("eth0", o.mtu)
	}
	return r
}

// Stay puts the test's own goroutine into the rig's network namespace and onto its CPU until the test ends. It may use DP then
// without Do, which costs two changes of threads each time; but not what pins (Attach, Detach), for mounts are the fixture's own.
func (r *Rig) Stay() {
	r.T.Helper()
	runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
	var netns *os.File
	r.Must("open the network namespace", func() (err error) {
		netns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	defer netns.Close()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		r.T.Fatalf("enter the network namespace: %v", err)
	}
	pinThread(0)
}

// SetMTU changes an interface's until the test ends.
func (r *Rig) SetMTU(dev string, mtu int) {
	r.T.Helper()
	set := func(mtu int) error {
		return r.Do(func() error {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, mtu)
		})
	}
	if err := set(mtu); err != nil {
		r.T.Fatalf("change the MTU of %s: %v", dev, err)
	}
	r.T.Cleanup(func() {
		if err := set(uplinkMTU); err != nil {
			r.T.Errorf("change the MTU of %s back: %v", dev, err)
		}
	})
}

func (r *Rig) Must(what string, f func() error) {
	r.T.Helper()
	if err := r.Do(f); err != nil {
		r.T.Fatalf("%s: %v", what, err)
	}
}

// SKB is the part of struct __sk_buff that BPF_PROG_RUN takes as context.
type SKB struct {
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
	FlowKeys       uint64
	Tstamp         uint64
	WireLen        uint32
	GSOSegs        uint32
	_              uint64
	GSOSize        uint32
	_              uint32
	HWTstamp       uint64
}

// result is what became of a packet.
type result struct {
	t       testing.TB
	Verdict uint32
	in, out []byte
	Reason  string
	family  family.Family
}

// Send runs a program with a frame on an interface, and checks that just one counter moved, by one.
func (r *Rig) Send(program *ebpf.Program, dev string, frame []byte, change func(*SKB)) result {
	r.T.Helper()
	res := result{t: r.T, in: frame, out: make([]byte, len(frame)+256), family: r.Family}
	before := r.counters()
	r.Must("run program", func() error {
		ctx := SKB{Ifindex: uint32(r.Ports[dev])}
		if change != nil {
			change(&ctx)
		}
		opts := ebpf.RunOptions{Data: frame, DataOut: res.out, Context: ctx}
		verdict, err := program.Run(&opts)
		res.Verdict, res.out = verdict, opts.DataOut
		return err
	})
	after := r.counters()
	for i := range after {
		n := after[i].Packets - before[i].Packets
		if n == 0 {
			continue
		}
		if n != 1 || res.Reason != "" {
			r.T.Errorf("counter %s moved by %d, after %q", after[i].Name, n, res.Reason)
		}
		res.Reason = after[i].Name
	}
	return res
}

func (r *Rig) counters() (out []dataplane.Counter) {
	r.T.Helper()
	r.Must("counters", func() (err error) {
		out, err = r.DP.Counters()
		return err
	})
	return out
}

// Frame is a packet in the rig's family.
func (r *Rig) Frame(s packets.Spec) []byte { return s.In(r.Family).Bytes() }

// Inside sends a packet of a container through its port's hook.
func (r *Rig) Inside(s packets.Spec) result {
	r.T.Helper()
	return r.Send(r.DP.Objects().NatInside, "p1", r.Frame(FromContainer(s)), nil)
}

func FromContainer(s packets.Spec) packets.Spec {
	if s.DstMAC == nil {
		s.DstMAC = BridgeMAC
	}
	s.SrcMAC = C1MAC
	return s
}

func FromOutside(s packets.Spec) packets.Spec {
	s.DstMAC, s.SrcMAC = UplinkMAC, RouterMAC
	return s
}

func (r *Rig) Outside(s packets.Spec) result {
	r.T.Helper()
	return r.Send(r.DP.Objects().NatOutsideIngress, "eth0", r.Frame(FromOutside(s)), nil)
}

// Egress sends a packet of the host itself; from is the interface it was forwarded from, or "".
func (r *Rig) Egress(from string, s packets.Spec) result {
	r.T.Helper()
	s.DstMAC, s.SrcMAC = RouterMAC, UplinkMAC
	return r.Send(r.DP.Objects().NatOutsideEgress, "eth0", r.Frame(s), func(c *SKB) { c.IngressIfindex = uint32(r.Ports[from]) })
}

// Translated checks verdict, reason and the whole packet; the frame's MACs are as they came.
func (res result) Translated(reason string, want packets.Spec) {
	res.t.Helper()
	want.DstMAC, want.SrcMAC = res.in[0:6], res.in[6:12]
	verdict := uint32(Redirect)
	if reason == "translated_host" || reason == "translated_stack" {
		verdict = Next
	}
	res.Check(verdict, reason, want.In(res.family).Bytes())
}

// Frame is what came out.
func (res result) Frame() []byte { return res.out }

func (res result) Check(verdict uint32, reason string, want []byte) {
	res.t.Helper()
	if res.Verdict != verdict || res.Reason != reason {
		res.t.Errorf("verdict %d for %s, want %d for %s", int32(res.Verdict), res.Reason, int32(verdict), reason)
	}
	packets.Same(res.t, res.out, Renumbered(res.in, want, res.out))
}

// Passed and dropped check that the packet is as it was.
func (res result) Passed(reason string) {
	res.t.Helper()
	res.Check(Next, "passed_"+reason, res.in)
}

func (res result) Dropped(reason string) {
	res.t.Helper()
	res.Check(Shot, "dropped_"+reason, res.in)
}

// Told checks that a packet was dropped, and became the ICMP error that goes back to its sender.
func (res result) Told(reason string, want packets.Spec) {
	res.t.Helper()
	want.DstMAC, want.SrcMAC = res.in[6:12], res.in[0:6]
	res.Check(Redirect, "dropped_"+reason, want.In(res.family).Bytes())
}

// Wait moves the clock and lets the sweeper walk once.
func (r *Rig) Wait(d time.Duration) {
	r.T.Helper()
	r.Now += d
	r.Must("clock", func() error { return r.DP.SetClock(uint64(r.Now)) })
	r.Must("sweep", r.DP.Sweep)
}

// Bindings are "protocol network internal external sessions", sorted.
func (r *Rig) Bindings() (out []string) {
	r.T.Helper()
	r.Must("bindings", func() error {
		all, err := r.DP.Bindings()
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

// lines are those that a test expects, in the rig's family and sorted as they are there.
func (r *Rig) lines(want []string) []string {
	if r.Family == family.V4 || len(want) == 0 {
		return want
	}
	want = r.texts(want)
	slices.Sort(want)
	return want
}

// texts are expected lines in the rig's family, whose word for ICMP is one of their words.
func (r *Rig) texts(lines []string) (out []string) {
	for _, line := range r.Family.Texts(lines...) {
		words := strings.Split(line, " ")
		for i, word := range words {
			words[i] = r.Protocol(word)
		}
		out = append(out, strings.Join(words, " "))
	}
	return out
}

// Protocol is a protocol's name in the rig's family.
func (r *Rig) Protocol(name string) string {
	if name == dataplane.ICMP.String() && r.Family == family.V6 {
		return dataplane.ICMPv6.String()
	}
	return name
}

func (r *Rig) WantBindings(want ...string) {
	r.T.Helper()
	if diff := gocmp.Diff(r.lines(want), r.Bindings(), cmpopts.EquateEmpty()); diff != "" {
		r.T.Errorf("bindings (-want +got):\n%s", diff)
	}
	r.Consistent()
}

// Sessions are "protocol internal external remote state", sorted.
func (r *Rig) Sessions() (out []string) {
	r.T.Helper()
	r.Must("sessions", func() error {
		all, err := r.DP.Sessions()
		for _, s := range all {
			out = append(out, fmt.Sprintf("%s %s %s %s %s", s.Protocol, s.Internal, s.External, s.Remote, s.State))
		}
		return err
	})
	slices.Sort(out)
	return out
}

func (r *Rig) WantSessions(want ...string) {
	r.T.Helper()
	if diff := gocmp.Diff(r.lines(want), r.Sessions(), cmpopts.EquateEmpty()); diff != "" {
		r.T.Errorf("sessions (-want +got):\n%s", diff)
	}
}

// Endpoint is one of the rig's family.
func (r *Rig) Endpoint(s string) netip.AddrPort { return r.Family.Endpoint(packets.Endpoint(s)) }

// Address is one of the rig's family.
func (r *Rig) Address(s string) netip.Addr { return r.Endpoint(s).Addr() }

// Forward adds a static binding.
func (r *Rig) Forward(network string, p dataplane.Protocol, ext, in string) {
	r.T.Helper()
	r.Must("forward", func() error {
		_, err := r.DP.AddForward(dataplane.Forward{Protocol: p, Network: network,
			External: r.Endpoint(ext), Internal: r.Endpoint(in)})
		return err
	})
}

// ExternalOf is the external endpoint of an internal one; "" when it has none.
func (r *Rig) ExternalOf(proto, internal string) string {
	r.T.Helper()
	internal, proto = r.Family.Text(internal), r.Protocol(proto)
	for _, b := range r.Bindings() {
		f := strings.Fields(b)
		if f[0] == proto && f[2] == internal {
			return f[3]
		}
	}
	return ""
}
