// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
)

// Tables are bindings (without counts) and sessions, as the maps have them.
func (r *Rig) Tables() (bindings, sessions []string) {
	r.T.Helper()
	r.Must("read bindings", func() error {
		all, err := r.DP.Bindings()
		for _, b := range all {
			line := fmt.Sprintf("%s %s %s %s", b.Protocol, b.Network, b.Internal, b.External)
			if b.Static {
				line += " static"
			}
			bindings = append(bindings, line)
		}
		return err
	})
	slices.Sort(bindings)
	return bindings, r.Sessions()
}

// Anything sends one packet of a few endpoints, so that many meet.
func (r *Rig) Anything(rnd *rand.Rand) {
	r.T.Helper()
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	in := pick(C1, C2) + pick(":40001", ":40002", ":80", ":5000")
	remote := pick(Peer1, Peer2) + pick(":1", ":2", ":3")
	ext := External + pick(":40001", ":40002", ":40003", ":80")
	flags := pick("S", "S", "A", "FA", "R", "SA")
	switch rnd.IntN(8) {
	case 0, 1:
		r.Inside(packets.UDP(in, remote, "x"))
	case 2, 3:
		r.Inside(packets.TCP(in, remote, flags, "x"))
	case 4:
		r.Outside(packets.TCP(remote, ext, flags, "x"))
	case 5:
		r.Outside(packets.UDP(remote, ext, "x"))
	case 6:
		r.Inside(pickSpec(rnd, packets.UDP(in, ext, "x"), packets.TCP(in, ext, flags, "x")))
	case 7:
		r.Egress("", pickSpec(rnd, packets.UDP(ext, remote, "x"), packets.TCP(ext, remote, flags, "x"), packets.Ping(ext, Peer1)))
	}
}

func pickSpec(rnd *rand.Rand, of ...packets.Spec) packets.Spec { return of[rnd.IntN(len(of))] }

// The targets of abi.h, in the order of enum session_target.
var targets = []string{"TARGET_OUTSIDE", "TARGET_DEVICE", "TARGET_PORT", "TARGET_HOST"}

// WantTarget checks where the session half of a packet from outside leads.
func (r *Rig) WantTarget(s packets.Spec, want string) {
	r.T.Helper()
	r.Must("look up session", func() error {
		sessions, err := r.Maps().Sessions.Dump()
		if err != nil {
			return err
		}
		for key, half := range sessions {
			if key.Zone == 0 && rawPortOf(s.Dst) == key.Dport && rawPortOf(s.Src) == key.Sport {
				if got := targets[half.Target]; got != want {
					r.T.Errorf("the session's target is %s, want %s", got, want)
				}
				return nil
			}
		}
		r.T.Errorf("no session of %s to %s", s.Src, s.Dst)
		return nil
	})
}

func rawPortOf(endpoint string) uint16 {
	p := packets.Endpoint(endpoint).Port()
	return p<<8 | p>>8 // the tests run on little-endian machines alone
}

// Hook is one of the entry points with the context of its packets.
type Hook struct {
	Name    string
	Program *ebpf.Program
	XDP     *ebpf.Program // in front of it; nil: none
	Dev     string
	Change  func(*SKB)
}

func (r *Rig) Hooks() []Hook {
	o := r.DP.Objects()
	forwarded := func(c *SKB) { c.IngressIfindex = uint32(r.Ports["br0"]) }
	return []Hook{{"Inside", o.NatInside, o.NatXdpInside, "p1", nil}, {"Outside", o.NatOutsideIngress, o.NatXdpOutside, "eth0", nil},
		{"EgressForwarded", o.NatOutsideEgress, nil, "eth0", forwarded}, {"EgressHost", o.NatOutsideEgress, nil, "eth0", nil}}
}

// After gives a program that does something to the packet's metadata and goes on with another program:
// BPF_PROG_RUN takes neither tc_index nor a VLAN tag.
func (r *Rig) After(program *ebpf.Program, first ...asm.Instruction) *ebpf.Program {
	r.T.Helper()
	var made *ebpf.Program
	r.Must("load wrapper", func() error {
		array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			return err
		}
		r.T.Cleanup(func() { array.Close() })
		ins := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, first...)
		ins = append(ins, asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, array.FD()), asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(), asm.Mov.Imm(asm.R0, 99), asm.Return())
		made, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: ins, License: "GPL"})
		if err != nil {
			return err
		}
		r.T.Cleanup(func() { made.Close() })
		return array.Put(uint32(0), program)
	})
	return made
}

// Refused checks that a forward is refused, for a reason or (nil) for any, and changes nothing.
func (r *Rig) Refused(why error, p dataplane.Protocol, network, ext, in string) {
	r.T.Helper()
	before := len(r.Bindings())
	err := r.Do(func() error {
		_, err := r.DP.AddForward(dataplane.Forward{Protocol: p, Network: network,
			External: r.Endpoint(ext), Internal: r.Endpoint(in)})
		return err
	})
	if err == nil || (why != nil && !errors.Is(err, why)) {
		r.T.Errorf("forward %s %s to %s %s: %v, want %v", p, ext, network, in, err, why)
	}
	if after := len(r.Bindings()); after != before {
		r.T.Errorf("%d bindings, were %d", after, before)
	}
	r.Consistent()
}

func (r *Rig) RemoveForward(p dataplane.Protocol, ext string) error {
	return r.Do(func() error { return r.DP.RemoveForward(p, r.Endpoint(ext)) })
}

// Empty checks that no table holds anything.
func (r *Rig) Empty() {
	r.T.Helper()
	r.WantBindings()
	r.WantSessions()
	r.Must("count", func() error {
		u, err := r.DP.Usage()
		if u.Sessions != 0 || u.Bindings != 0 || u.Sessions6 != 0 || u.Bindings6 != 0 {
			r.T.Errorf("usage %+v", u)
		}
		for _, t := range r.DP.Tables() {
			err = errors.Join(err, r.emptyFamily(t))
		}
		return err
	})
}

func (r *Rig) emptyFamily(t *bpf.Tables) error {
	marked, err := bitsOf(t.Ports)
	held, err2 := bitsOf(t.Held)
	for name, n := range map[string]int{"sessions": MapLen(t.Sessions.Map()), "claims": MapLen(t.Claims.Map()),
		"internals": MapLen(t.Internals.Map()), "permissions": MapLen(t.Permissions.Map()), "port bits": marked - held,
		"hosts": MapLen(t.Hosts.Map()), "blocks": MapLen(t.Blocks.Map())} {
		if n != 0 {
			r.T.Errorf("%d %s are left", n, name)
		}
	}
	return errors.Join(err, err2)
}

func Identified(s packets.Spec) packets.Spec { return s.With(func(s *packets.Spec) { s.ID = 0x1234 }) }

// Fragments sends a packet cut into pieces and checks that each comes out as a piece of want.
func (r *Rig) Fragments(h Hook, in, want packets.Spec, reason string) {
	r.T.Helper()
	want.DstMAC, want.SrcMAC = in.DstMAC, in.SrcMAC
	wanted := Identified(want).In(r.Family).Fragments(320)
	for i, frame := range Identified(in).In(r.Family).Fragments(320) {
		verdict := uint32(Redirect)
		if reason == "translated_stack" {
			verdict = Next
		}
		r.Send(h.Program, h.Dev, frame, h.Change).Check(verdict, reason, wanted[i])
	}
}

// Hairpin checks a packet that goes from inside to inside.
func (r *Rig) Hairpin(dev string, in, want packets.Spec) {
	r.T.Helper()
	r.From(dev, in).Translated("translated_hairpin", want.Hop())
}

func (r *Rig) Imported(p dataplane.Protocol, state, in, ext, remote string) error {
	return r.Do(func() error {
		return r.DP.ImportSession(dataplane.Session{Protocol: p, Network: "br0", State: state,
			Internal: r.Endpoint(in), External: r.Endpoint(ext), Remote: r.Endpoint(remote)})
	})
}

func (r *Rig) MustImport(p dataplane.Protocol, state, in, ext, remote string) {
	r.T.Helper()
	if err := r.Imported(p, state, in, ext, remote); err != nil {
		r.T.Fatal(err)
	}
}

// Publish is a forward as Docker's ports are.
func (r *Rig) Publish(p dataplane.Protocol, ext, in string) {
	r.T.Helper()
	r.Must("publish", func() error {
		_, err := r.DP.AddForward(dataplane.Forward{Protocol: p, External: r.Endpoint(ext), Internal: r.Endpoint(in), OverHostSocket: true, Published: true})
		return err
	})
}

// Owner says whose an address of br0 is.
func (r *Rig) Owner(address, port string, change func(*dataplane.Owner)) {
	r.T.Helper()
	o := dataplane.Owner{Network: "br0", Address: r.Address(address), ID: 7, Port: r.Ports[port]}
	if change != nil {
		change(&o)
	}
	r.Must("put owner", func() error { return r.DP.PutOwner(o) })
}

func (r *Rig) RemoveOwner(address string) error {
	return r.Do(func() error { return r.DP.RemoveOwner("br0", r.Address(address)) })
}

// TakePath puts every link on the stack path, or back.
func (r *Rig) TakePath(stack bool) {
	r.T.Helper()
	r.Must("change the path", func() error {
		links, err := r.DP.Links()
		for _, l := range links {
			l.Stack = stack
			err = errors.Join(err, r.DP.Attach(l))
		}
		return err
	})
}

// Enters checks a packet from outside on the stack path: its destination address stays, and the mark has the inside
// address, as it lies in memory.
func (r *Rig) Enters(in, want packets.Spec, inside string) {
	r.T.Helper()
	ctx, after := SKB{Ifindex: uint32(r.Ports["eth0"])}, SKB{}
	frame := r.Frame(FromOutside(in))
	out := make([]byte, len(frame)+256)
	r.Must("run program", func() error {
		opts := ebpf.RunOptions{Data: frame, DataOut: out, Context: ctx, ContextOut: &after}
		verdict, err := r.DP.Objects().NatOutsideIngress.Run(&opts)
		out = opts.DataOut
		if err == nil && verdict != Next {
			r.T.Errorf("verdict %d, want %d", int32(verdict), int32(-1))
		}
		return err
	})
	address := r.Address(inside + ":1").AsSlice()
	wanted := r.Frame(FromOutside(want))
	if r.Family == family.V6 {
		wanted = r.shortOf(FromOutside(want), inside)
	}
	packets.Same(r.T, out, wanted)
	if got := binary.NativeEndian.AppendUint32(nil, after.Mark); string(got) != string(address[len(address)-4:]) {
		r.T.Errorf("mark %v, want the end of %v", got, address)
	}
}

// shortOf is a packet to an inside address whose last 32 bits the mark has, for the nft table to set: zeros are there in the
// packet, and its checksum is right when they are set.
func (r *Rig) shortOf(s packets.Spec, inside string) []byte {
	s.Dst = netip.AddrPortFrom(packets.Endpoint(inside+":1").Addr(), packets.Endpoint(s.Dst).Port()).String()
	return ShortOfMark(r.Frame(s))
}

// ShortOfMark clears what the mark has of the destination of an IPv6 packet.
func ShortOfMark(frame []byte) []byte {
	clear(frame[L3+36 : L3+40])
	return frame
}

// Opened sends a first packet of a protocol and gives the external port that it got.
func (r *Rig) Opened(proto, internal string) int {
	r.T.Helper()
	s := packets.UDP(internal, Peer1+":3478", "x")
	switch proto {
	case "tcp":
		s = packets.TCP(internal, Peer1+":3478", "S", "")
	case "icmp":
		s = packets.Ping(internal, Peer1)
	}
	if res := r.Inside(s); res.Reason != "translated_outbound" {
		r.T.Fatalf("%s from %s: %s", proto, internal, res.Reason)
	}
	return int(netip.MustParseAddrPort(r.ExternalOf(proto, internal)).Port())
}

// HostListens opens sockets of the host in the rig's namespace until the test ends.
func (r *Rig) HostListens(addr string) {
	r.T.Helper()
	r.Must("listen", func() error {
		u, err := net.ListenPacket(r.Family.Network("udp"), r.Family.Text(addr))
		if err != nil {
			return err
		}
		r.T.Cleanup(func() { u.Close() })
		l, err := net.Listen(r.Family.Network("tcp"), r.Family.Text(addr))
		if err != nil {
			return err
		}
		r.T.Cleanup(func() { l.Close() })
		return nil
	})
}

// Second is the address of a second uplink.
const Second = "192.0.2.1"

func (r *Rig) SecondUplink() error {
	up := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "wire1"}
	return errors.Join(r.add(up, r.Family.Text(Second+"/24")),
		r.DP.PutOutside(dataplane.Outside{Name: "eth1", IfIndex: r.Ports["eth1"], Addresses: []netip.Addr{r.Address(Second)}}),
		r.link("eth1", dataplane.OutsideLink, "eth1"))
}

func (r *Rig) DefaultBy(dev, gateway string) error {
	return netlink.RouteReplace(&netlink.Route{LinkIndex: r.Ports[dev], Gw: r.Address(gateway).AsSlice()})
}

const (
	TcpInside  = C1 + ":20000"
	TcpOutside = External + ":20000"
	TcpRemote  = Peer1 + ":443"
)

// Segments sends ">S" from inside and "<SA" from outside, and checks that every one goes through.
func (r *Rig) Segments(sequence string) {
	r.T.Helper()
	for _, step := range strings.Fields(sequence) {
		if step[0] == '>' {
			r.Out(packets.TCP(TcpInside, TcpRemote, step[1:], "x"), packets.TCP(TcpOutside, TcpRemote, step[1:], "x"))
			continue
		}
		r.In(packets.TCP(TcpRemote, TcpOutside, step[1:], "x"), packets.TCP(TcpRemote, TcpInside, step[1:], "x"))
	}
}
