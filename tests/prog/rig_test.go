// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/packets"
)

// The rig's addresses, as in experiments of the paper: a bridge network, an uplink, two peers.
const (
	external = "198.51.100.1"
	peer1    = "203.0.113.1"
	peer2    = "203.0.113.2"
	c1       = "172.17.0.2"
	c2       = "172.17.0.3"
	other    = "172.18.0.2" // in the second network
)

var (
	bridgeMAC = net.HardwareAddr{2, 0x42, 0, 0, 0, 1}
	bridge2   = net.HardwareAddr{2, 0x42, 0, 0, 0, 2}
	c1MAC     = net.HardwareAddr{2, 0, 0, 0, 1, 1}
	c2MAC     = net.HardwareAddr{2, 0, 0, 0, 1, 2}
	uplinkMAC = net.HardwareAddr{2, 0, 0, 0, 2, 1}
	routerMAC = net.HardwareAddr{2, 0, 0, 0, 2, 2}
)

// verdicts of linux/pkt_cls.h.
const (
	next     = 0xffffffff // TC_ACT_UNSPEC
	shot     = 2
	redirect = 7
)

// rig is a dataplane in a network and mount namespace of its own, on a thread that ends with it.
type rig struct {
	t     *testing.T
	calls chan func()
	dp    *dataplane.Dataplane
	dir   string
	now   time.Duration
	ports map[string]int // interface -> ifindex
}

type option func(*rigOptions)

type rigOptions struct {
	filtering dataplane.Behavior
	settings  dataplane.Settings
	capacity  dataplane.Capacity
	mtu       int
	realClock bool
	disable   []string
}

func withFiltering(b dataplane.Behavior) option { return func(o *rigOptions) { o.filtering = b } }

func withSettings(change func(*dataplane.Settings)) option {
	return func(o *rigOptions) { change(&o.settings) }
}

func newRig(t *testing.T, options ...option) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
	o := rigOptions{
		filtering: dataplane.AddressDependent,
		settings:  dataplane.DefaultSettings(),
		capacity:  dataplane.Capacity{Sessions: 4096, Bindings: 2048},
		mtu:       1500,
	}
	for _, set := range options {
		set(&o)
	}
	r := &rig{t: t, calls: make(chan func()), dir: t.TempDir(), now: time.Hour, ports: map[string]int{}}
	go r.thread()
	t.Cleanup(func() { close(r.calls) })
	r.must("namespaces", enterNamespaces)
	r.must("bpffs", func() error { return unix.Mount("bpf", r.dir, "bpf", 0, "") })
	r.must("interfaces", func() error { return r.interfaces(o.mtu) })
	r.must("dataplane", func() error { return r.open(o) })
	t.Cleanup(func() { r.must("close", r.dp.Close) })
	return r
}

// thread runs calls until the test ends, on one CPU: what is kept for each CPU is then one. It is never
// unlocked: the thread dies, and its namespaces with it.
func (r *rig) thread() {
	runtime.LockOSThread()
	pinThread(0)
	for call := range r.calls {
		call()
	}
}

func (r *rig) do(f func() error) error {
	done := make(chan error)
	r.calls <- func() { done <- f() }
	return <-done
}

func (r *rig) must(what string, f func() error) {
	r.t.Helper()
	if err := r.do(f); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

func enterNamespaces() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// pinThread puts the calling thread on one of the CPUs that it may use.
func pinThread(n int) {
	var may, one unix.CPUSet
	if unix.SchedGetaffinity(0, &may) != nil {
		return
	}
	var cpus []int
	for cpu := range 1024 {
		if may.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	one.Set(cpus[n%len(cpus)])
	_ = unix.SchedSetaffinity(0, &one)
}

func (r *rig) interfaces(mtu int) error {
	// The interfaces' own chatter would move the counters.
	for _, which := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0); err != nil {
			return err
		}
	}
	for _, b := range []struct {
		name, addr string
		mac        net.HardwareAddr
	}{{"br0", "172.17.0.1/16", bridgeMAC}, {"br1", "172.18.0.1/16", bridge2}} {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: b.name, HardwareAddr: b.mac}}
		if err := r.add(l, b.addr); err != nil {
			return err
		}
	}
	for _, port := range []string{"p1", "p2", "q1"} {
		master := r.ports["br0"]
		if port == "q1" {
			master = r.ports["br1"]
		}
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: master}, PeerName: port + "c"}
		if err := r.add(v, ""); err != nil {
			return err
		}
	}
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", HardwareAddr: uplinkMAC, MTU: mtu}, PeerName: "wire"}
	if err := r.add(up, external+"/24"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	}
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: r.ports["eth0"], Gw: net.ParseIP("198.51.100.254")})
}

func (r *rig) add(l netlink.Link, addr string) error {
	name := l.Attrs().Name
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	r.ports[name] = made.Attrs().Index
	if v, ok := l.(*netlink.Veth); ok {
		peer, err := netlink.LinkByName(v.PeerName)
		if err == nil {
			err = netlink.LinkSetUp(peer)
		}
		if err != nil {
			return err
		}
	}
	if addr != "" {
		a, err := netlink.ParseAddr(addr)
		if err == nil {
			err = netlink.AddrAdd(made, a)
		}
		if err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	return netlink.LinkSetUp(made)
}

func (r *rig) open(o rigOptions) error {
	var err error
	r.dp, err = dataplane.Open(dataplane.Options{StateDir: filepath.Join(r.dir, "conenat"), Capacity: o.capacity,
		VerifierLog: true, VirtualClock: !o.realClock, DisableFeatures: o.disable})
	if err != nil {
		return err
	}
	if !o.realClock {
		if err := r.dp.SetClock(uint64(r.now)); err != nil {
			return err
		}
	}
	f := [3]dataplane.Behavior{o.filtering, o.filtering, o.filtering}
	return errors.Join(
		r.dp.Configure(o.settings),
		r.dp.PutNetwork(dataplane.Network{Name: "br0", IfIndex: r.ports["br0"], Gateway: bridgeMAC,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}, Filtering: f}),
		r.dp.PutNetwork(dataplane.Network{Name: "br1", IfIndex: r.ports["br1"], Gateway: bridge2,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")}, Filtering: f}),
		r.dp.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.ports["eth0"], Address: netip.MustParseAddr(external)}),
		r.link("br0", dataplane.InsideDevice, "br0"), r.link("p1", dataplane.InsidePort, "br0"),
		r.link("p2", dataplane.InsidePort, "br0"), r.link("br1", dataplane.InsideDevice, "br1"),
		r.link("q1", dataplane.InsidePort, "br1"), r.link("eth0", dataplane.OutsideLink, "eth0"),
	)
}

func (r *rig) link(name string, kind dataplane.LinkKind, owner string) error {
	return r.dp.Attach(dataplane.Link{IfIndex: r.ports[name], Name: name, Kind: kind, Owner: owner, Peer: kind == dataplane.InsidePort})
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

// consistent checks what must hold between the maps at any time.
func (r *rig) consistent() {
	r.t.Helper()
	r.must("look at the maps", func() error {
		return checkMaps(r.dp.Objects())
	})
}

// checkMaps: every claim's binding names the claim, every port bit has a claim and every claim a bit, every
// half's other half leads back, every session has its slot, and references are the sessions there are.
func checkMaps(o *bpf.Objects) error {
	var errs []error
	references := map[uint32]int{}
	var key bpf.SessionKey
	var half bpf.SessionHalf
	for it := o.Sessions4.Iterate(); it.Next(&key, &half); {
		if half.Flags&(bpf.HalfPrimary|bpf.HalfHairpin) != 0 {
			references[half.Binding]++
		}
		back := bpf.SessionKey{Saddr: half.Daddr, Daddr: half.Saddr, Sport: half.Dport, Dport: half.Sport,
			Zone: half.PeerZone, Proto: key.Proto}
		var otherHalf bpf.SessionHalf
		if err := o.Sessions4.Lookup(back, &otherHalf); err != nil {
			errs = append(errs, fmt.Errorf("session %+v has no other half", key))
		} else if otherHalf.Slot != half.Slot {
			errs = append(errs, fmt.Errorf("session %+v: halves of slots %d and %d", key, half.Slot, otherHalf.Slot))
		}
	}
	return errors.Join(append(errs, checkClaims(o, references), checkSlots(o), checkPermissions(o))...)
}

// checkSlots: the sweeper finds every session by its slot.
func checkSlots(o *bpf.Objects) error {
	var errs []error
	var key bpf.SessionKey
	var half bpf.SessionHalf
	for it := o.Sessions4.Iterate(); it.Next(&key, &half); {
		var slot bpf.SessionSlot
		if err := o.SessionSlots4.Lookup(half.Slot, &slot); err != nil {
			return err
		}
		if half.Flags&bpf.HalfPrimary != 0 && slot.Key != key {
			errs = append(errs, fmt.Errorf("session %+v: its slot %d names %+v", key, half.Slot, slot.Key))
		}
	}
	return errors.Join(errs...)
}

// halfFilter is HALF_FILTER of abi.h: the session holds a reference on a permission.
const halfFilter = 1 << 3

// checkPermissions: each is held by as many sessions as it says.
func checkPermissions(o *bpf.Objects) error {
	want := map[bpf.PermissionKey]uint32{}
	var key bpf.SessionKey
	var half bpf.SessionHalf
	for it := o.Sessions4.Iterate(); it.Next(&key, &half); {
		if half.Flags&bpf.HalfPrimary != 0 && half.Flags&halfFilter != 0 {
			want[bpf.PermissionKey{Binding: half.Binding, Generation: half.Generation, Remote: key.Daddr}]++
		}
	}
	got := map[bpf.PermissionKey]uint32{}
	var permission bpf.PermissionKey
	var references uint32
	for it := o.Permissions4.Iterate(); it.Next(&permission, &references); {
		got[permission] = references
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(bpf.PermissionKey{})); diff != "" {
		return fmt.Errorf("permissions (-sessions +map):\n%s", diff)
	}
	return nil
}

func checkClaims(o *bpf.Objects, references map[uint32]int) error {
	var errs []error
	var key bpf.ClaimKey
	var claim bpf.Claim
	claims := 0
	for it := o.Claims4.Iterate(); it.Next(&key, &claim); claims++ {
		if claim.Binding == bpf.ClaimHost {
			continue
		}
		var b bpf.Binding
		if err := o.Bindings4.Lookup(claim.Binding, &b); err != nil {
			return err
		}
		if b.External != key.Address || b.ExternalPort != key.Port || b.Proto != key.Proto || uint32(b.Word>>32) != claim.Generation {
			errs = append(errs, fmt.Errorf("claim %+v names binding %+v", key, b))
		}
		want := references[claim.Binding]
		if b.Flags&bpf.BindingStatic != 0 {
			want++
		}
		if int(uint32(b.Word)) != want {
			errs = append(errs, fmt.Errorf("binding %+v has %d references, its sessions are %d", b, uint32(b.Word), want))
		}
	}
	if bits := portBits(o); bits != claims {
		errs = append(errs, fmt.Errorf("%d ports are marked, %d are claimed", bits, claims))
	}
	return errors.Join(errs...)
}

func portBits(o *bpf.Objects) int {
	n := 0
	var index uint32
	value := make([]byte, o.Ports.ValueSize())
	for it := o.Ports.Iterate(); it.Next(&index, &value); {
		for _, b := range value {
			for ; b != 0; b &= b - 1 {
				n++
			}
		}
	}
	return n
}

func mapLen(m *ebpf.Map) int {
	n := 0
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&key, &value); {
		n++
	}
	return n
}
