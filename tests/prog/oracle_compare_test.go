// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/oracle"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// trip is one packet on its way through one program.
type trip struct {
	program  *ebpf.Program
	dev      string
	ctx      rig.SKB
	dst, src net.HardwareAddr
	packet   oracle.Packet
	want     oracle.Result
	out      []byte
	verdict  uint32
}

// fromInside sends a packet of a host's.
func (d *duel) fromInside(from insideHost, p oracle.Packet) {
	d.Helper()
	gateway := rig.BridgeMAC
	if from.place == "br1" {
		gateway = rig.Bridge2
	}
	p.Port = from.port()
	d.run(&trip{program: d.rig.DP.Objects().NatInside, dev: from.dev, dst: gateway, src: rig.C1MAC, packet: p,
		want: d.nat.FromInside(from.place, p)})
}

// fromStack sends one that the host has routed outside, past the inside hooks or as these left it.
func (d *duel) fromStack(from insideHost, p oracle.Packet) {
	d.Helper()
	d.run(&trip{program: d.rig.DP.Objects().NatOutsideEgress, dev: "eth0", dst: rig.RouterMAC, src: rig.UplinkMAC, packet: p,
		ctx: rig.SKB{IngressIfindex: uint32(d.rig.Ports[string(from.place)])}, want: d.nat.FromStack(from.place, p)})
}

func (d *duel) fromOutside(p oracle.Packet) {
	d.Helper()
	d.run(&trip{program: d.rig.DP.Objects().NatOutsideIngress, dev: "eth0", dst: rig.UplinkMAC, src: rig.RouterMAC, packet: p,
		want: d.nat.FromOutside(p)})
}

func (d *duel) fromHost(p oracle.Packet) {
	d.Helper()
	d.run(&trip{program: d.rig.DP.Objects().NatOutsideEgress, dev: "eth0", dst: rig.RouterMAC, src: rig.UplinkMAC, packet: p,
		want: d.nat.FromHost(p)})
}

// run runs the program with the packet, and holds what comes of it to what the oracle says.
func (d *duel) run(t *trip) {
	d.Helper()
	d.Logf("%s: %v: %s", t.dev, t.packet, t.want.Reason)
	t.ctx.Ifindex = uint32(d.rig.Ports[t.dev])
	in := t.frame(t.packet)
	after := rig.SKB{}
	if !d.runXDP(t, in) {
		opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: t.ctx, ContextOut: &after}
		var err error
		t.verdict, err = t.program.Run(&opts)
		d.must("run program", err)
		t.out = opts.DataOut
	}
	d.compareReason(t)
	d.reached[t.want.Reason]++
	d.choose(t)
	if t.verdict == rig.Redirect && d.mayTell(t) && rig.IsReply(in, t.out) {
		return
	}
	if next := t.wantsNext(); t.verdict != next {
		d.Fatalf("%s: %v: verdict %d, want %d for %s", t.dev, t.packet, int32(t.verdict), int32(next), t.want.Reason)
	}
	frame := in
	if t.want.Reason.Translated() {
		frame = rig.Renumbered(in, t.wanted(), t.out)
	}
	if !bytes.Equal(t.out, frame) {
		d.Fatalf("%s: %v: %s (-oracle +dataplane):\n%s", t.dev, t.packet, t.want.Reason, gocmp.Diff(packets.Dump(frame), packets.Dump(t.out)))
	}
	if inside := t.want.Inside.AsSlice(); inside != nil && after.Mark != binary.NativeEndian.Uint32(inside[len(inside)-4:]) {
		d.Fatalf("%s: %v: mark %x, want that of %s", t.dev, t.packet, after.Mark, t.want.Inside)
	}
}

// runXDP runs the program in front of tc's, if there is one; false: it hands the frame on, and as it was.
func (d *duel) runXDP(t *trip, in []byte) bool {
	d.Helper()
	o := d.rig.DP.Objects()
	program := map[*ebpf.Program]*ebpf.Program{o.NatInside: o.NatXdpInside, o.NatOutsideIngress: o.NatXdpOutside}[t.program]
	if d.xdp == nil || program == nil {
		return false
	}
	verdict, out, err := d.rig.RunXDP(program, t.dev, in)
	d.must("run XDP program", err)
	switch verdict {
	case rig.XDPPass:
		if !bytes.Equal(in, out) {
			d.Fatalf("%s: %v: XDP hands on what it has changed to\n%s", t.dev, t.packet, packets.Dump(out))
		}
		return false
	case rig.XDPDrop:
		t.verdict, t.out = rig.Shot, out
	case rig.XDPRedirect:
		t.verdict, t.out = rig.Redirect, d.rig.AtTC(in, out)
	default:
		d.Fatalf("%s: %v: XDP's verdict is %d", t.dev, t.packet, verdict)
	}
	d.Logf("by XDP")
	d.byXDP[t.want.Reason]++
	return true
}

// wanted is the translated frame. Of IPv6, one that goes in by the kernel has the inside address but for what the mark has of it.
func (t *trip) wanted() []byte {
	p, inside := t.want.Translated(), t.want.Inside
	if !inside.Is6() {
		return t.frame(p)
	}
	p.Dst = netip.AddrPortFrom(inside, p.Dst.Port())
	return rig.ShortOfMark(t.frame(p))
}

// mayTell says whether a packet may have become an ICMP error to its sender: what a router tells, and refusals where the network
// has them. (It does not have to: they are limited in time, which stands still here.)
func (d *duel) mayTell(t *trip) bool {
	switch t.want.Reason {
	case oracle.DroppedTTL:
	case oracle.DroppedPortExhausted, oracle.DroppedRemoteTaken, oracle.DroppedBindingsFull, oracle.DroppedSessionsFull, oracle.DroppedQuota,
		oracle.DroppedHostPorts, oracle.DroppedHostSessions, oracle.DroppedNetworkPorts, oracle.DroppedNetworkSessions:
		if d.setup.refusal == dataplane.RefuseSilently || t.program == d.rig.DP.Objects().NatOutsideIngress {
			return false
		}
	default:
		return false
	}
	return t.packet.Kind != oracle.Error && t.packet.Piece != oracle.Later
}

func (t *trip) wantsNext() uint32 {
	switch {
	case t.want.Reason.Dropped():
		return rig.Shot
	case t.want.Reason.Translated() && !t.want.ByHost:
		return rig.Redirect
	}
	return rig.Next
}

// compareReason: the counter of the oracle's reason has moved by one. Whether another one has moved, too, is seen when the
// tables are compared: to read them all for each packet costs more than all else.
func (d *duel) compareReason(t *trip) {
	d.Helper()
	want := string(t.want.Reason)
	var count uint64
	for _, counters := range []*ebpf.Map{d.rig.DP.Objects().Counters, d.rig.DP.Objects().XdpCounters} {
		var perCPU []uint64
		d.must("read counter", counters.Lookup(reasons[want], &perCPU))
		for _, n := range perCPU {
			count += n
		}
	}
	if d.packets[want]++; count != d.packets[want] {
		d.packets[want]--
		d.Fatalf("%s: %v:\n  dataplane: %s\n  oracle:    %s", t.dev, t.packet, d.moved(), want)
	}
}

// reasons are the counters' indices.
var reasons = func() map[string]uint32 {
	all := map[string]uint32{}
	for r := bpf.Reason(1); r < bpf.ReasonCount; r++ {
		all[bpf.ReasonName(r)] = uint32(r)
	}
	return all
}()

func (d *duel) count() map[string]uint64 {
	all, err := d.rig.DP.Counters()
	d.must("counters", err)
	out := map[string]uint64{}
	for _, c := range all {
		out[c.Name] = c.Packets
	}
	return out
}

// moved are the counters that are not what they have to be.
func (d *duel) moved() string {
	var out []string
	for name, n := range d.count() {
		if n != d.packets[name] {
			out = append(out, fmt.Sprintf("%s%+d", name, int64(n-d.packets[name])))
		}
	}
	slices.Sort(out)
	return strings.TrimSuffix(strings.Join(out, " "), "+1")
}

// choose tells the oracle which port the dataplane has chosen. Where the packet does not say, it went elsewhere, the tables do.
func (d *duel) choose(t *trip) {
	d.Helper()
	if t.want.Choice == nil {
		return
	}
	port := externalPort(t.out)
	if !t.want.Reason.Translated() {
		port = d.newPort(t.packet)
	}
	if err := t.want.Choice.Chose(port); err != nil {
		d.Fatalf("%s: %v: %v", t.dev, t.packet, err)
	}
}

// newPort is the external port of the binding of a packet's sender that the oracle knows only half of.
func (d *duel) newPort(p oracle.Packet) uint16 {
	known := map[string]bool{}
	for _, b := range d.nat.Bindings() {
		known[fmt.Sprint(b.Protocol, b.External)] = true
	}
	all, err := d.rig.DP.Bindings()
	d.must("bindings", err)
	for _, b := range all {
		if b.Internal == p.Src && !known[fmt.Sprint(protocolOf(b.Protocol), b.External)] {
			return b.External.Port()
		}
	}
	d.Fatalf("%v has no binding", p)
	return 0
}

// externalPort is a frame's source port, or the identifier of its query.
func externalPort(frame []byte) uint16 {
	ports, isICMP := transportOf(frame)
	if isICMP {
		return binary.BigEndian.Uint16(frame[ports+4:])
	}
	return binary.BigEndian.Uint16(frame[ports:])
}

// transportOf is where a frame's transport header begins, of a packet that is whole or a first fragment.
func transportOf(frame []byte) (at int, isICMP bool) {
	const ip, fragment = 14, 44
	switch {
	case frame[ip]>>4 == 4:
		return ip + int(frame[ip]&15)*4, frame[ip+9] == 1
	case frame[ip+6] == fragment:
		return ip + 48, frame[ip+40] == 58
	}
	return ip + 40, frame[ip+6] == 58
}

// pieceSize is how much a fragment has: a multiple of 8.
const pieceSize = 320

// frame is the packet as it is on that wire.
func (t *trip) frame(p oracle.Packet) []byte {
	s := specOf(p).With(func(s *packets.Spec) { s.DstMAC, s.SrcMAC = t.dst, t.src })
	switch p.Piece {
	case oracle.First:
		return s.Fragments(pieceSize)[0]
	case oracle.Later:
		return s.Fragments(pieceSize)[1]
	}
	frame := s.Bytes()
	damage(frame, p)
	return frame
}

// damage makes the checksums of an error wrong that are to be.
func damage(frame []byte, p oracle.Packet) {
	if p.Kind != oracle.Error {
		return
	}
	icmp, _ := transportOf(frame)
	if p.About.Damaged && p.Src.Addr().Is4() { // IPv6's header has no checksum
		frame[icmp+8+10] ^= 0x55
		frame[icmp+2], frame[icmp+3] = 0, 0
		binary.BigEndian.PutUint16(frame[icmp+2:], packets.Checksum(frame[icmp:]))
	}
	if p.Damaged {
		frame[icmp+2] ^= 0x55
	}
}

var someOptions = []byte{1, 1, 1, 0} // no operation, thrice, and the end

// specOf is the packet with the headers that the oracle does not look at.
func specOf(p oracle.Packet) packets.Spec {
	s := shortSpecOf(p)
	return s.With(func(s *packets.Spec) {
		s.TTL, s.ID = p.TTL, p.ID
		if p.Options {
			s.Options = someOptions
		}
		if p.Piece != oracle.Whole {
			s.Payload = []byte(long)
		}
	})
}

func shortSpecOf(p oracle.Packet) packets.Spec {
	src, dst := p.Src.String(), p.Dst.String()
	if p.Protocol == oracle.GRE {
		return packets.Raw(src, dst, 47, []byte("0123456789ab"))
	}
	switch p.Kind {
	case oracle.Syn:
		return packets.TCP(src, dst, "S", "")
	case oracle.SynAck:
		return packets.TCP(src, dst, "SA", "")
	case oracle.Fin:
		return packets.TCP(src, dst, "FA", "")
	case oracle.Rst:
		return packets.TCP(src, dst, "R", "")
	case oracle.Segment:
		return packets.TCP(src, dst, "A", "0123456789")
	case oracle.Query:
		return packets.Ping(src, dst)
	case oracle.Reply:
		return packets.Pong(src, dst)
	case oracle.Error:
		return messageOf(p, specOf(*p.About))
	case oracle.Other:
		return messageOf(p, packets.UDP(src, dst, ""))
	}
	return packets.UDP(src, dst, "0123456789")
}

// messageOf is an ICMP message by the types of its family.
func messageOf(p oracle.Packet, about packets.Spec) packets.Spec {
	src, dst := p.Src.String(), p.Dst.String()
	if p.Src.Addr().Is4() {
		return packets.ICMPError(src, dst, p.Type, p.Code, about, 0)
	}
	return packets.ICMPv6(src, dst, p.Type, p.Code, 0, about.IP())
}

// compareTables holds bindings, sessions and all counters to the oracle's.
func (d *duel) compareTables() {
	d.Helper()
	var want, wantSessions []string
	for _, b := range d.nat.Bindings() {
		want = append(want, bindingLine(b.Protocol, b.Network, b.Internal, b.External, b.Towards(), d.nat.SessionsOf(b), b.Static))
	}
	for _, s := range d.nat.Sessions() {
		wantSessions = append(wantSessions, fmt.Sprintf("%s %s %s %s %s", s.Binding.Protocol, s.Binding.Internal, s.Binding.External, s.Remote, s.State()))
		if s.Receiver != nil && s.Receiver != s.Binding {
			wantSessions = append(wantSessions, fmt.Sprintf("%s %s %s %s %s", s.Binding.Protocol, s.Receiver.Internal, s.Receiver.External, s.Binding.External, s.State()))
		}
	}
	got, gotSessions := d.tables()
	slices.Sort(want)
	slices.Sort(wantSessions)
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		d.Fatalf("bindings (-oracle +dataplane):\n%s", diff)
	}
	if diff := gocmp.Diff(wantSessions, gotSessions, cmpopts.EquateEmpty()); diff != "" {
		d.Fatalf("sessions (-oracle +dataplane):\n%s", diff)
	}
	if moved := d.moved(); moved != "" {
		d.Fatalf("counters that no packet should have moved: %s", moved)
	}
}

// tables are the dataplane's, sorted.
func (d *duel) tables() (bindings, sessions []string) {
	all, err1 := d.rig.DP.Bindings()
	them, err2 := d.rig.DP.Sessions()
	d.must("read the tables", errors.Join(err1, err2))
	for _, b := range all {
		bindings = append(bindings, bindingLine(protocolOf(b.Protocol), oracle.Place(b.Network), b.Internal, b.External, b.Remote, b.Sessions, b.Static))
	}
	for _, s := range them {
		sessions = append(sessions, fmt.Sprintf("%s %s %s %s %s", protocolOf(s.Protocol), s.Internal, s.External, s.Remote, s.State))
	}
	slices.Sort(bindings)
	slices.Sort(sessions)
	return bindings, sessions
}

// protocolOf is the oracle's word: it has one ICMP, of the family that it is in.
func protocolOf(p dataplane.Protocol) oracle.Protocol {
	if p == dataplane.ICMPv6 {
		return oracle.ICMP
	}
	return oracle.Protocol(p.String())
}

func bindingLine(p oracle.Protocol, network oracle.Place, internal, external, towards netip.AddrPort, sessions int, static bool) string {
	line := fmt.Sprintf("%s %s %s %s %d", p, network, internal, external, sessions)
	if towards.IsValid() {
		line += " towards " + towards.String()
	}
	if static {
		line += " static"
	}
	return line
}
