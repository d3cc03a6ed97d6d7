// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

func lastHop(s *Spec)  { s.TTL = 1 }
func dontCut(s *Spec)  { s.DF = true }
func routed(s *Spec)   { s.TTL = 63 } // what the kernel has forwarded
func optioned(s *Spec) { s.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} }

// TestTTL: what would expire here is the kernel's to answer (outbound), or dropped (inbound: nobody but the
// container's side could answer it).
func TestTTL(t *testing.T) {
	r := newRig(t)
	s := UDP(c1+":2000", peer1+":53", "x")
	r.inside(s.With(lastHop)).passed("ttl")
	r.wantBindings()
	r.inside(s)
	r.inside(s.With(lastHop)).passed("ttl")
	r.outside(UDP(peer1+":53", external+":2000", "x").With(lastHop)).dropped("ttl")
	two := func(s *Spec) { s.TTL = 2 }
	r.out(s.With(two), UDP(external+":2000", peer1+":53", "x").With(two))
	r.in(UDP(peer1+":53", external+":2000", "x").With(two), UDP(peer1+":53", c1+":2000", "x").With(two))
	r.outside(UDP(peer1+":53", external+":2001", "x").With(lastHop)).passed("unbound")
}

// TestTooBig: DF and larger than the route's MTU goes to the kernel, which answers Fragmentation Needed.
func TestTooBig(t *testing.T) {
	r := newRig(t, withMTU(1400))
	fits, big := string(bytes.Repeat([]byte("x"), 1400-28)), string(bytes.Repeat([]byte("x"), 1401-28))
	r.inside(UDP(c1+":2000", peer1+":53", big).With(dontCut)).passed("too_big")
	r.wantBindings()
	for range 2 { // of no session, and of one
		r.out(UDP(c1+":2000", peer1+":53", fits).With(dontCut), UDP(external+":2000", peer1+":53", fits).With(dontCut))
	}
	r.inside(UDP(c1+":2000", peer1+":53", big).With(dontCut)).passed("too_big")
	r.in(UDP(peer1+":53", external+":2000", big).With(dontCut), UDP(peer1+":53", c1+":2000", big).With(dontCut))
}

// TestStackPath: what the kernel must do more to than route it: the inside hook opens the session, and the
// outside egress hook translates, without a second hop.
func TestStackPath(t *testing.T) {
	big := string(bytes.Repeat([]byte("x"), 1500))
	for name, c := range map[string]struct {
		payload string
		change  func(*Spec)
	}{"Oversize": {big, func(*Spec) {}}, "Options": {"x", optioned}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s, want := UDP(c1+":2000", peer1+":53", c.payload).With(c.change), UDP(external+":2000", peer1+":53", c.payload).With(c.change)
			for range 2 {
				r.inside(s).passed("stack")
				r.from("br0", s).passed("stack")
				r.egress("br0", s.With(routed)).translated("translated_stack", want.With(routed))
			}
			r.wantBindings("udp br0 " + c1 + ":2000 " + external + ":2000 1")
			r.wantTarget(UDP(peer1+":53", external+":2000", "x"), "TARGET_PORT")
			r.in(UDP(peer1+":53", external+":2000", "x"), UDP(peer1+":53", c1+":2000", "x"))
		})
	}
}

// The targets of abi.h, in the order of enum session_target.
var targets = []string{"TARGET_OUTSIDE", "TARGET_DEVICE", "TARGET_PORT", "TARGET_HOST"}

// wantTarget checks where the session half of a packet from outside leads.
func (r *rig) wantTarget(s Spec, want string) {
	r.t.Helper()
	r.must("look up session", func() error {
		var key bpf.SessionKey
		var half bpf.SessionHalf
		for it := r.dp.Objects().Sessions4.Iterate(); it.Next(&key, &half); {
			if key.Zone == 0 && rawPortOf(s.Dst) == key.Dport && rawPortOf(s.Src) == key.Sport {
				if got := targets[half.Target]; got != want {
					r.t.Errorf("the session's target is %s, want %s", got, want)
				}
				return nil
			}
		}
		r.t.Errorf("no session of %s to %s", s.Src, s.Dst)
		return nil
	})
}

func rawPortOf(endpoint string) uint16 {
	p := Endpoint(endpoint).Port()
	return p<<8 | p>>8 // the tests run on little-endian machines alone
}

// TestMovedContainer: a session's packet from another port: answers follow the bridge's tables then.
func TestMovedContainer(t *testing.T) {
	r := newRig(t)
	s, answer := UDP(c1+":2000", peer1+":53", "x"), UDP(peer1+":53", external+":2000", "x")
	r.inside(s)
	r.wantTarget(answer, "TARGET_PORT")
	r.from("p2", s).translated("translated_outbound", UDP(external+":2000", peer1+":53", "x").Hop())
	r.wantTarget(answer, "TARGET_DEVICE")
	r.in(answer, UDP(peer1+":53", c1+":2000", "x"))
}

// TestEgress: what the kernel forwards and no inside hook has seen is translated at egress; what is not an
// inside host's passes.
func TestEgress(t *testing.T) {
	r := newRig(t, withMTU(1400))
	s, want := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x")
	r.egress("br0", s.With(lastHop)).translated("translated_stack", want.With(lastHop))
	r.in(UDP(peer1+":53", external+":2000", "x"), UDP(peer1+":53", c1+":2000", "x"))
	big := string(bytes.Repeat([]byte("x"), 1500))
	r.egress("br0", UDP(c1+":2001", peer1+":53", big).With(dontCut)).
		translated("translated_stack", UDP(external+":2001", peer1+":53", big).With(dontCut))
	r.egress("br1", s).passed("not_outside") // its source is of another network
	r.egress("eth0", s).passed("not_outside")
	r.egress("br0", UDP(external+":9", peer1+":53", "x")).passed("host") // another NAT's: its port is claimed
	r.egress("br0", Raw(c1, peer1, 47, make([]byte, 8))).passed("protocol")
	r.egress("br0", TCP(c1+":9", peer1+":53", "R", "")).dropped("tcp_no_session")
}

// TestNotForTranslation: destinations that stay with the kernel, untouched.
func TestNotForTranslation(t *testing.T) {
	r := newRig(t)
	r.must("route", func() error {
		_, dst, err := net.ParseCIDR("192.0.2.0/24")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE})
	})
	for name, c := range map[string]struct{ dst, reason string }{
		"Multicast":        {"224.0.0.251:5353", "local"},
		"Broadcast":        {"255.255.255.255:67", "local"},
		"SubnetBroadcast":  {"172.17.255.255:137", "local"},
		"Loopback":         {"127.0.0.1:80", "local"},
		"Gateway":          {"172.17.0.1:53", "local"},
		"OtherGateway":     {"172.18.0.1:53", "local"},
		"OtherNetwork":     {other + ":80", "not_outside"},
		"OwnNetwork":       {c2 + ":80", "not_outside"},
		"External":         {external + ":22", "local"},
		"ZeroNetwork":      {"0.0.0.1:1", "local"},
		"ReservedAddress":  {"240.0.0.1:1", "local"},
		"Blackhole":        {"192.0.2.9:80", "no_route"},
		"OutsideBroadcast": {"198.51.100.255:9", "local"},
	} {
		r.subtest(name, func() {
			r.inside(UDP(c1+":2000", c.dst, "x")).passed(c.reason)
			r.inside(TCP(c1+":2000", c.dst, "S", "")).passed(c.reason)
			r.inside(Ping(c1+":2000", Endpoint(c.dst).Addr().String())).passed(c.reason)
		})
	}
	r.wantBindings()
	r.out(UDP(c1+":2000", "198.51.100.254:53", "x"), UDP(external+":2000", "198.51.100.254:53", "x")) // on the link
}

// TestOtherPackets: frames that are not for the router, and what is neither TCP, UDP nor ICMP over IPv4.
func TestOtherPackets(t *testing.T) {
	r := newRig(t)
	s := UDP(c1+":2000", peer1+":53", "the kernel wants 40 bytes of an IPv6 packet")
	for _, to := range []net.HardwareAddr{c2MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}} {
		r.inside(s.With(func(s *Spec) { s.DstMAC = to })).passed("bridged")
	}
	for _, proto := range []uint8{0, 2, 4, 41, 47, 50, 51, 132, 255} {
		r.inside(Raw(c1, peer1, proto, make([]byte, 24))).passed("protocol")
		r.outside(Raw(peer1, external, proto, make([]byte, 24))).passed("protocol")
		r.egress("", Raw(external, peer1, proto, make([]byte, 24))).passed("protocol")
	}
	for _, etherType := range [][2]byte{{0x08, 0x06}, {0x86, 0xdd}, {0x81, 0x00}, {0x88, 0xa8}, {0x88, 0x47}, {0, 46}} {
		frame := fromContainer(s).Bytes()
		frame[12], frame[13] = etherType[0], etherType[1]
		for _, h := range r.hooks() {
			r.send(h.program, h.dev, frame, h.change).passed("not_ipv4")
		}
	}
	o := r.dp.Objects()
	r.send(o.NatInside, "eth0", fromContainer(s).Bytes(), nil).passed("no_link")
	r.send(o.NatInside, "lo", fromContainer(s).Bytes(), nil).passed("no_link")
	r.send(o.NatOutsideIngress, "p1", fromOutside(s).Bytes(), nil).passed("no_link")
	r.send(o.NatOutsideEgress, "p1", fromOutside(s).Bytes(), nil).passed("no_link")
	r.wantBindings()
}

// hook is one of the entry points with the context of its packets.
type hook struct {
	name    string
	program *ebpf.Program
	dev     string
	change  func(*skb)
}

func (r *rig) hooks() []hook {
	o := r.dp.Objects()
	forwarded := func(c *skb) { c.IngressIfindex = uint32(r.ports["br0"]) }
	return []hook{{"Inside", o.NatInside, "p1", nil}, {"Outside", o.NatOutsideIngress, "eth0", nil},
		{"EgressForwarded", o.NatOutsideEgress, "eth0", forwarded}, {"EgressHost", o.NatOutsideEgress, "eth0", nil}}
}

// TestSpoofed: an inside source that is not of its network.
func TestSpoofed(t *testing.T) {
	r := newRig(t)
	for _, src := range []string{"10.0.0.1", "172.18.0.2", external, peer1, "172.16.255.255", "127.0.0.1"} {
		for _, s := range []Spec{UDP(src+":2000", peer2+":53", "x"), TCP(src+":2000", peer2+":53", "S", ""), Ping(src+":2000", peer2)} {
			res := r.inside(s)
			if res.reason == "passed_no_route" || res.reason == "passed_local" { // the kernel's route lookup refuses it
				continue
			}
			res.dropped("spoofed")
		}
	}
	r.from("q1", UDP(c1+":2000", peer1+":53", "x")).dropped("spoofed")
	r.wantBindings()
}

// TestNoAddress: an outside that has none now.
func TestNoAddress(t *testing.T) {
	r := newRig(t)
	r.must("take address", func() error {
		return r.dp.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.ports["eth0"]})
	})
	r.inside(UDP(c1+":2000", peer1+":53", "x")).dropped("no_address")
	r.wantBindings()
}

// after gives a program that does something to the packet's metadata and goes on with another program:
// BPF_PROG_RUN takes neither tc_index nor a VLAN tag.
func (r *rig) after(program *ebpf.Program, first ...asm.Instruction) *ebpf.Program {
	r.t.Helper()
	var made *ebpf.Program
	r.must("load wrapper", func() error {
		array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { array.Close() })
		ins := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, first...)
		ins = append(ins, asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, array.FD()), asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(), asm.Mov.Imm(asm.R0, 99), asm.Return())
		made, err = ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: ins, License: "GPL"})
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { made.Close() })
		return array.Put(uint32(0), program)
	})
	return made
}

const skbTCIndex = 44 // offset in struct __sk_buff

// TestDirectPathAtEgress: what the direct path has translated passes the egress hook.
func TestDirectPathAtEgress(t *testing.T) {
	r := newRig(t)
	marked := r.after(r.dp.Objects().NatOutsideEgress,
		asm.Mov.Imm(asm.R2, 0xc07e), asm.StoreMem(asm.R6, skbTCIndex, asm.R2, asm.Word))
	other := r.after(r.dp.Objects().NatOutsideEgress,
		asm.Mov.Imm(asm.R2, 7), asm.StoreMem(asm.R6, skbTCIndex, asm.R2, asm.Word))
	frame := fromStack(UDP(external+":2000", peer1+":53", "x"))
	r.send(marked, "eth0", frame, nil).passed("translated")
	r.send(other, "eth0", frame, nil).passed("host")
}

// TestVLANTag: one that the network card has taken out of the frame.
func TestVLANTag(t *testing.T) {
	r := newRig(t)
	for _, h := range r.hooks() {
		tagged := r.after(h.program, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0x0081), asm.Mov.Imm(asm.R3, 5), asm.FnSkbVlanPush.Call())
		frame := fromContainer(UDP(c1+":2000", peer1+":53", "x")).Bytes()
		res := r.send(tagged, h.dev, frame, h.change)
		if res.verdict != next || res.reason != "passed_not_ipv4" {
			t.Errorf("%s: verdict %d, %s", h.name, int32(res.verdict), res.reason)
		}
	}
}
