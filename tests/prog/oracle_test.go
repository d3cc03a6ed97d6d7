// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/rig"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/oracle"
	"github.com/conenat/conenat/tests/packets"
)

// TestOracle drives the programs and the oracle with the same random packets: verdict, reason, the whole packet, bindings
// and sessions must agree after each step, and nothing may be left when all has expired. A failure is shrunk, and says
// how to replay it. More sequences: -rapid.checks.
func TestOracle(t *testing.T) {
	r := rig.New(t, func(o *rig.RigOptions) {
		o.Capacity = dataplane.Capacity{Sessions: oracleSessions, Bindings: oracleBindings}
	})
	setSequences(t)
	rapid.Check(t, func(rt *rapid.T) {
		d := newDuel(rt, r)
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			d.step()
		}
		d.end()
	})
}

// Tables so small that a sequence can fill them.
const (
	oracleSessions = 24
	oracleBindings = 16
)

// What a run of the tests can spend on it, and what a machine in software emulation can.
const (
	sequences     = 1000
	sequencesInVM = 50
)

// setSequences replaces rapid's default where no flag says how many.
func setSequences(t *testing.T) {
	const name = "rapid.checks"
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == name })
	if asked {
		return
	}
	f, n := flag.Lookup(name), sequences
	if os.Getenv("VMTEST_KERNEL") != "" {
		n = sequencesInVM
	}
	before := f.Value.String()
	if err := f.Value.Set(fmt.Sprint(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Value.Set(before) })
}

// duel is one sequence: the dataplane of a rig against a new oracle.
type duel struct {
	*rapid.T
	rig      *rig.Rig
	nat      *oracle.NAT
	counters []dataplane.Counter
}

func newDuel(t *rapid.T, r *rig.Rig) *duel {
	d := &duel{T: t, rig: r}
	behaviors := rapid.SliceOfN(rapid.SampledFrom([]oracle.Behavior{oracle.EndpointIndependent, oracle.AddressDependent,
		oracle.AddressAndPortDependent}), 3, 3).Draw(t, "filtering")
	settings := dataplane.DefaultSettings()
	if rapid.Bool().Draw(t, "few ports") {
		settings.PortLow, settings.PortHigh = 5000, 5003
	}
	settings.SessionsPerBinding = rapid.SampledFrom([]uint32{3, 1000}).Draw(t, "sessions per binding")
	d.nat = oracle.New(oracleConfig(settings, behaviors))
	d.must("configure", func() error {
		if err := r.DP.Configure(settings); err != nil {
			return err
		}
		var filtering [3]dataplane.Behavior
		for i, b := range behaviors {
			filtering[i] = dataplane.Behavior(b)
		}
		for _, n := range rigNetworks {
			n.IfIndex, n.Filtering = r.Ports[n.Name], filtering
			if err := r.DP.PutNetwork(n); err != nil {
				return err
			}
		}
		return nil
	})
	d.clear()
	d.counters = d.count()
	return d
}

// rigNetworks are the rig's, but for what differs from rig to rig.
var rigNetworks = []dataplane.Network{
	{Name: "br0", Gateway: rig.BridgeMAC, Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}},
	{Name: "br1", Gateway: rig.Bridge2, Prefixes: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")}},
}

func oracleConfig(s dataplane.Settings, filtering []oracle.Behavior) oracle.Config {
	c := oracle.Config{
		Networks: map[oracle.Place]oracle.Network{}, External: netip.MustParseAddr(rig.External),
		Local:   []netip.Addr{netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("172.18.0.1")},
		PortLow: s.PortLow, PortHigh: s.PortHigh, SessionsPerBinding: int(s.SessionsPerBinding), Sessions: oracleSessions, Bindings: oracleBindings,
		UDPTimeout: s.UDPTimeout, TCPEstablishedTimeout: s.TCPEstablishedTimeout, TCPPartialOpenTimeout: s.TCPPartialOpenTimeout,
		TCPClosingTimeout: s.TCPClosingTimeout, ICMPTimeout: s.ICMPTimeout,
	}
	for _, n := range rigNetworks {
		c.Networks[oracle.Place(n.Name)] = oracle.Network{Prefixes: n.Prefixes, Filtering: map[oracle.Protocol]oracle.Behavior{
			oracle.UDP: filtering[0], oracle.TCP: filtering[1], oracle.ICMP: filtering[2]}}
	}
	return c
}

func (d *duel) must(what string, f func() error) {
	d.Helper()
	if err := d.rig.Do(f); err != nil {
		d.Fatalf("%s: %v", what, err)
	}
}

func (d *duel) count() (out []dataplane.Counter) {
	d.must("counters", func() (err error) {
		out, err = d.rig.DP.Counters()
		return err
	})
	return out
}

// step draws what happens next, and compares.
func (d *duel) step() {
	switch rapid.SampledFrom([]string{"inside", "inside", "inside", "outside", "outside", "answer", "host", "error", "wait", "forward"}).Draw(d.T, "step") {
	case "inside":
		from := rapid.SampledFrom(insideHosts).Draw(d.T, "host")
		p := d.packet(from.addr, rapid.SampledFrom(insidePorts).Draw(d.T, "port"), d.destination())
		d.fromInside(from, p)
	case "outside":
		remote := rapid.SampledFrom(remotes).Draw(d.T, "remote")
		d.fromOutside(d.packet(remote.Addr(), remote.Port(), d.external()))
	case "answer":
		d.answer()
	case "host":
		dst := rapid.SampledFrom(remotes).Draw(d.T, "remote")
		d.fromHost(d.packet(netip.MustParseAddr(rig.External), rapid.SampledFrom(insidePorts).Draw(d.T, "port"), dst))
	case "error":
		d.error()
	case "wait":
		d.wait(rapid.SampledFrom(waits).Draw(d.T, "for"))
	case "forward":
		d.forward()
	}
	d.compareTables()
}

// insideHost is a container, and the hook that its packets come by.
type insideHost struct {
	place oracle.Place
	dev   string
	addr  netip.Addr
}

var (
	insideHosts = []insideHost{
		{"br0", "p1", netip.MustParseAddr(rig.C1)}, {"br0", "p2", netip.MustParseAddr(rig.C2)}, {"br1", "q1", netip.MustParseAddr(rig.Other)},
		{"br0", "p1", netip.MustParseAddr("10.9.9.9")}, // a spoofer
	}
	insidePorts = []uint16{80, 81, 5000, 5001, 6000}
	remotes     = []netip.AddrPort{
		netip.MustParseAddrPort(rig.Peer1 + ":9"), netip.MustParseAddrPort(rig.Peer1 + ":5000"), netip.MustParseAddrPort(rig.Peer2 + ":9"),
	}
	elsewhere = []netip.AddrPort{ // what is not to be translated
		netip.MustParseAddrPort("172.17.0.1:53"), netip.MustParseAddrPort("172.18.0.2:80"), netip.MustParseAddrPort("224.0.0.251:5353"),
	}
	waits = []time.Duration{time.Second, 59 * time.Second, 61 * time.Second, 239 * time.Second, 241 * time.Second,
		299 * time.Second, 301 * time.Second, 7439 * time.Second, 7441 * time.Second}
)

func (d *duel) destination() netip.AddrPort {
	switch rapid.IntRange(0, 9).Draw(d.T, "destination") {
	case 8:
		return rapid.SampledFrom(elsewhere).Draw(d.T, "elsewhere")
	case 9:
		return d.external()
	}
	return rapid.SampledFrom(remotes).Draw(d.T, "remote")
}

// external is an endpoint at the external address: of a binding, if there is one and chance has it.
func (d *duel) external() netip.AddrPort {
	if all := d.nat.Bindings(); len(all) > 0 && rapid.Bool().Draw(d.T, "bound") {
		return all[rapid.IntRange(0, len(all)-1).Draw(d.T, "binding")].External
	}
	return netip.AddrPortFrom(netip.MustParseAddr(rig.External), rapid.SampledFrom(insidePorts).Draw(d.T, "port"))
}

var tcpKinds = []oracle.Kind{oracle.Syn, oracle.Syn, oracle.SynAck, oracle.Segment, oracle.Fin, oracle.Rst}

func (d *duel) packet(src netip.Addr, port uint16, dst netip.AddrPort) oracle.Packet {
	p := oracle.Packet{Protocol: rapid.SampledFrom([]oracle.Protocol{oracle.UDP, oracle.TCP, oracle.ICMP}).Draw(d.T, "protocol"),
		Kind: oracle.Datagram, Src: netip.AddrPortFrom(src, port), Dst: dst, TTL: d.ttl()}
	switch p.Protocol {
	case oracle.TCP:
		p.Kind = rapid.SampledFrom(tcpKinds).Draw(d.T, "segment")
	case oracle.ICMP:
		p.Kind = rapid.SampledFrom([]oracle.Kind{oracle.Query, oracle.Query, oracle.Reply}).Draw(d.T, "message")
		if p.Kind == oracle.Query {
			p.Dst = netip.AddrPortFrom(dst.Addr(), 0)
		} else {
			p.Src = netip.AddrPortFrom(src, 0)
		}
	}
	return p
}

func (d *duel) ttl() uint8 { return rapid.SampledFrom([]uint8{64, 64, 64, 64, 2, 1}).Draw(d.T, "ttl") }

// someSession is one that lives; false: there is none.
func (d *duel) someSession() (*oracle.Session, bool) {
	all := d.nat.Sessions()
	if len(all) == 0 {
		return nil, false
	}
	return all[rapid.IntRange(0, len(all)-1).Draw(d.T, "session")], true
}

// answer is a packet from outside that belongs to a session.
func (d *duel) answer() {
	s, ok := d.someSession()
	if !ok || s.Receiver != nil {
		return
	}
	p := oracle.Packet{Protocol: s.Binding.Protocol, Kind: oracle.Datagram, Src: s.Remote, Dst: s.Binding.External, TTL: d.ttl()}
	switch p.Protocol {
	case oracle.TCP:
		p.Kind = rapid.SampledFrom(tcpKinds[1:]).Draw(d.T, "segment")
	case oracle.ICMP:
		p.Kind = oracle.Reply
	}
	d.fromOutside(p)
}

// error is an ICMP error about a packet of a session, or about one that was never sent.
func (d *duel) error() {
	s, ok := d.someSession()
	if !ok || s.Binding.Network == oracle.Host {
		return
	}
	port := s.Binding.External.Port()
	if rapid.IntRange(0, 4).Draw(d.T, "of no session") == 0 {
		port = 7777
	}
	p := oracle.Packet{Protocol: oracle.ICMP, Kind: oracle.Error, TTL: d.ttl()}
	about := &oracle.Packet{Protocol: s.Binding.Protocol, TTL: 60}
	p.About = about
	if s.Receiver == nil && rapid.Bool().Draw(d.T, "from outside") {
		p.Src = rapid.SampledFrom([]netip.AddrPort{netip.AddrPortFrom(s.Remote.Addr(), 0), netip.MustParseAddrPort("192.0.2.9:0")}).Draw(d.T, "router")
		p.Dst = netip.AddrPortFrom(s.Binding.External.Addr(), 0)
		about.Src, about.Dst, about.Kind = netip.AddrPortFrom(s.Binding.External.Addr(), port), s.Remote, embeddedKind(about.Protocol, oracle.Query)
		d.fromOutside(p)
		return
	}
	from := hostOf(s.Binding.Internal.Addr())
	p.Src, p.Dst = netip.AddrPortFrom(from.addr, 0), netip.AddrPortFrom(s.Remote.Addr(), 0)
	about.Src, about.Dst, about.Kind = s.Remote, s.Binding.Internal, embeddedKind(about.Protocol, oracle.Reply)
	if port == 7777 {
		about.Dst = netip.AddrPortFrom(about.Dst.Addr(), port)
	}
	d.fromInside(from, p)
}

func embeddedKind(p oracle.Protocol, icmp oracle.Kind) oracle.Kind {
	switch p {
	case oracle.TCP:
		return oracle.Segment
	case oracle.ICMP:
		return icmp
	}
	return oracle.Datagram
}

func hostOf(addr netip.Addr) insideHost {
	return insideHosts[slices.IndexFunc(insideHosts, func(h insideHost) bool { return h.addr == addr })]
}

func (d *duel) wait(by time.Duration) {
	d.nat.Wait(by)
	d.rig.Now += by
	d.must("clock", func() error { return d.rig.DP.SetClock(uint64(d.rig.Now)) })
	d.must("sweep", d.rig.DP.Sweep)
}

func (d *duel) forward() {
	ext := netip.AddrPortFrom(netip.MustParseAddr(rig.External), rapid.SampledFrom(insidePorts).Draw(d.T, "external"))
	in := netip.AddrPortFrom(netip.MustParseAddr(rig.C2), rapid.SampledFrom(insidePorts).Draw(d.T, "internal"))
	p := rapid.SampledFrom([]oracle.Protocol{oracle.UDP, oracle.TCP}).Draw(d.T, "protocol")
	want := d.nat.Forward("br0", p, ext, in)
	protocol, err := dataplane.ParseProtocol(string(p))
	if err != nil {
		d.Fatal(err)
	}
	err = d.rig.Do(func() error {
		_, err := d.rig.DP.AddForward(dataplane.Forward{Protocol: protocol, Network: "br0", External: ext, Internal: in})
		return err
	})
	if (err == nil) != want {
		d.Fatalf("forward %s %s to %s: error %v, the oracle says it is taken: %v", p, ext, in, err, !want)
	}
}

func (d *duel) fromInside(from insideHost, p oracle.Packet) {
	frame := specOf(p)
	frame.SrcMAC, frame.DstMAC = rig.C1MAC, rig.BridgeMAC
	if from.place == "br1" {
		frame.DstMAC = rig.Bridge2
	}
	d.compare(d.nat.FromInside(from.place, p), p, d.rig.DP.Objects().NatInside, from.dev, frame, nil)
}

func (d *duel) fromOutside(p oracle.Packet) {
	d.compare(d.nat.FromOutside(p), p, d.rig.DP.Objects().NatOutsideIngress, "eth0", rig.FromOutside(specOf(p)), nil)
}

func (d *duel) fromHost(p oracle.Packet) {
	frame := specOf(p)
	frame.DstMAC, frame.SrcMAC = rig.RouterMAC, rig.UplinkMAC
	d.compare(d.nat.FromHost(p), p, d.rig.DP.Objects().NatOutsideEgress, "eth0", frame, &rig.SKB{Ifindex: uint32(d.rig.Ports["eth0"])})
}

// compare runs the program with the frame, and holds what comes of it to what the oracle says.
func (d *duel) compare(want oracle.Result, p oracle.Packet, program *ebpf.Program, dev string, frame packets.Spec, ctx *rig.SKB) {
	d.Helper()
	if ctx == nil {
		ctx = &rig.SKB{Ifindex: uint32(d.rig.Ports[dev])}
	}
	in := frame.Bytes()
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: *ctx}
	var verdict uint32
	d.must("run program", func() (err error) {
		verdict, err = program.Run(&opts)
		return err
	})
	if reason := d.reason(); reason != string(want.Reason) {
		d.Fatalf("%s: %v\n  dataplane: %s\n  oracle:    %s", dev, p, reason, want.Reason)
	}
	if want.Choice != nil {
		if err := want.Choice.Chose(externalPort(opts.DataOut)); err != nil {
			d.Fatalf("%s: %v: %v", dev, p, err)
		}
	}
	if strings.HasPrefix(string(want.Reason), "dropped_") && verdict == rig.Redirect && rig.IsReply(in, opts.DataOut) {
		return // its sender was told
	}
	wantVerdict, wantFrame := expected(want, frame)
	wantFrame = rig.Renumbered(in, wantFrame, opts.DataOut)
	if verdict != wantVerdict {
		d.Fatalf("%s: %v: verdict %d, want %d for %s", dev, p, int32(verdict), int32(wantVerdict), want.Reason)
	}
	if !bytes.Equal(opts.DataOut, wantFrame) {
		d.Fatalf("%s: %v: %s (-oracle +dataplane):\n%s", dev, p, want.Reason, gocmp.Diff(packets.Dump(wantFrame), packets.Dump(opts.DataOut)))
	}
}

// reason is the one counter that has moved, by one.
func (d *duel) reason() string {
	d.Helper()
	var moved []string
	now := d.count()
	for i, c := range now {
		if c.Packets != d.counters[i].Packets {
			moved = append(moved, fmt.Sprintf("%s+%d", c.Name, c.Packets-d.counters[i].Packets))
		}
	}
	d.counters = now
	return strings.TrimSuffix(strings.Join(moved, " "), "+1")
}

func expected(want oracle.Result, frame packets.Spec) (verdict uint32, out []byte) {
	switch {
	case strings.HasPrefix(string(want.Reason), "passed_"):
		return rig.Next, frame.Bytes()
	case strings.HasPrefix(string(want.Reason), "dropped_"):
		return rig.Shot, frame.Bytes()
	}
	translated := specOf(want.Translated())
	translated.SrcMAC, translated.DstMAC = frame.SrcMAC, frame.DstMAC
	if want.Reason == oracle.TranslatedHost {
		return rig.Next, translated.Bytes()
	}
	return rig.Redirect, translated.Bytes()
}

// externalPort is a frame's source port, or the identifier of its query.
func externalPort(frame []byte) uint16 {
	const ip, ports = 14, 34
	if frame[ip+9] == byte(dataplane.ICMP) {
		return binary.BigEndian.Uint16(frame[ports+4:])
	}
	return binary.BigEndian.Uint16(frame[ports:])
}

// specOf is the packet with the headers that the oracle does not look at.
func specOf(p oracle.Packet) packets.Spec {
	var s packets.Spec
	src, dst := p.Src.String(), p.Dst.String()
	switch p.Kind {
	case oracle.Datagram:
		s = packets.UDP(src, dst, "0123456789")
	case oracle.Syn:
		s = packets.TCP(src, dst, "S", "")
	case oracle.SynAck:
		s = packets.TCP(src, dst, "SA", "")
	case oracle.Fin:
		s = packets.TCP(src, dst, "FA", "")
	case oracle.Rst:
		s = packets.TCP(src, dst, "R", "")
	case oracle.Segment:
		s = packets.TCP(src, dst, "A", "0123456789")
	case oracle.Query:
		s = packets.Ping(src, dst)
	case oracle.Reply:
		s = packets.Pong(src, dst)
	case oracle.Error:
		s = packets.ICMPError(src, dst, 3, 1, specOf(*p.About), 0)
	}
	return s.With(func(s *packets.Spec) { s.TTL = p.TTL })
}

// compareTables holds bindings and sessions to the oracle's.
func (d *duel) compareTables() {
	d.Helper()
	var want, wantSessions []string
	for _, b := range d.nat.Bindings() {
		line := fmt.Sprintf("%s %s %s %s %d", b.Protocol, b.Network, b.Internal, b.External, d.nat.SessionsOf(b))
		if b.Static {
			line += " static"
		}
		want = append(want, line)
	}
	for _, s := range d.nat.Sessions() {
		wantSessions = append(wantSessions, fmt.Sprintf("%s %s %s %s %s", s.Binding.Protocol, s.Binding.Internal, s.Binding.External, s.Remote, s.State()))
		if s.Receiver != nil && s.Receiver != s.Binding {
			wantSessions = append(wantSessions, fmt.Sprintf("%s %s %s %s %s", s.Binding.Protocol, s.Receiver.Internal, s.Receiver.External, s.Binding.External, s.State()))
		}
	}
	slices.Sort(want)
	slices.Sort(wantSessions)
	if diff := gocmp.Diff(want, d.rig.Bindings(), cmpopts.EquateEmpty()); diff != "" {
		d.Fatalf("bindings (-oracle +dataplane):\n%s", diff)
	}
	if diff := gocmp.Diff(wantSessions, d.rig.Sessions(), cmpopts.EquateEmpty()); diff != "" {
		d.Fatalf("sessions (-oracle +dataplane):\n%s", diff)
	}
}

// end lets all expire, and looks for what is left.
func (d *duel) end() {
	d.must("look at the maps", func() error { return rig.CheckMaps(d.rig.DP.Objects()) })
	d.clear()
	d.must("look at the maps", func() error { return rig.CheckMaps(d.rig.DP.Objects()) })
	d.must("look for what is left", func() error {
		o := d.rig.DP.Objects()
		for _, m := range []*ebpf.Map{o.Sessions4, o.Internals4, o.Claims4, o.Permissions4} {
			if n := rig.MapLen(m); n != 0 {
				return fmt.Errorf("%d entries are left in %v", n, m)
			}
		}
		return nil
	})
}

// clear lets all expire. It comes before a sequence, too: the one before may have failed.
func (d *duel) clear() {
	d.must("clear", func() error {
		d.rig.Now += 3 * time.Hour
		if err := d.rig.DP.SetClock(uint64(d.rig.Now)); err != nil {
			return err
		}
		all, err := d.rig.DP.Bindings()
		if err != nil {
			return err
		}
		var forwards []dataplane.Forward
		for _, b := range all {
			if b.Static {
				forwards = append(forwards, dataplane.Forward{Protocol: b.Protocol, External: b.External})
			}
		}
		if _, err := d.rig.DP.RemoveForwards(forwards); err != nil {
			return err
		}
		return d.rig.DP.Sweep()
	})
}
