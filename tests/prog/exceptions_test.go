// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"net"
	"testing"

	"github.com/conenat/conenat/tests/rig"

	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
)

func lastHop(s *Spec)  { s.TTL = 1 }
func dontCut(s *Spec)  { s.DF = true }
func routed(s *Spec)   { s.TTL = 63 } // what the kernel has forwarded
func optioned(s *Spec) { s.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} }

// TestTTL: what would expire here is the kernel's to answer (outbound), or ours (inbound: reply_test.go).
func TestTTL(t *testing.T) { family.Each(t, testTTL) }

func testTTL(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "x")
	r.Inside(s.With(lastHop)).Passed("ttl")
	r.WantBindings()
	r.Inside(s)
	r.Inside(s.With(lastHop)).Passed("ttl")
	expired := UDP(rig.Peer1+":53", rig.External+":2000", "x").With(lastHop)
	r.Outside(expired).Told("ttl", Told(rig.External, 11, 0, 0, expired))
	two := func(s *Spec) { s.TTL = 2 }
	r.Out(s.With(two), UDP(rig.External+":2000", rig.Peer1+":53", "x").With(two))
	r.In(UDP(rig.Peer1+":53", rig.External+":2000", "x").With(two), UDP(rig.Peer1+":53", rig.C1+":2000", "x").With(two))
	r.Outside(UDP(rig.Peer1+":53", rig.External+":2001", "x").With(lastHop)).Passed("unbound")
}

// TestTooBig: DF and larger than the route's MTU goes to the kernel, which answers Fragmentation Needed.
func TestTooBig(t *testing.T) { family.Each(t, testTooBig) }

func testTooBig(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMTU(1400))
	fits, big := sized(fam, 1400), sized(fam, 1401)
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", big).With(dontCut)).Passed("too_big")
	r.WantBindings()
	for range 2 { // of no session, and of one
		r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", fits).With(dontCut), UDP(rig.External+":2000", rig.Peer1+":53", fits).With(dontCut))
	}
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", big).With(dontCut)).Passed("too_big")
	r.In(UDP(rig.Peer1+":53", rig.External+":2000", big).With(dontCut), UDP(rig.Peer1+":53", rig.C1+":2000", big).With(dontCut))
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
			r := rig.New(t)
			s, want := UDP(rig.C1+":2000", rig.Peer1+":53", c.payload).With(c.change), UDP(rig.External+":2000", rig.Peer1+":53", c.payload).With(c.change)
			for range 2 {
				r.Inside(s).Passed("stack")
				r.From("br0", s).Passed("stack")
				r.Egress("br0", s.With(routed)).Translated("translated_stack", want.With(routed))
			}
			r.WantBindings("udp br0 " + rig.C1 + ":2000 " + rig.External + ":2000 1")
			r.WantTarget(UDP(rig.Peer1+":53", rig.External+":2000", "x"), "TARGET_PORT")
			r.In(UDP(rig.Peer1+":53", rig.External+":2000", "x"), UDP(rig.Peer1+":53", rig.C1+":2000", "x"))
		})
	}
}

// TestMovedContainer: a session's packet from another port: answers follow the bridge's tables then.
func TestMovedContainer(t *testing.T) { family.Each(t, testMovedContainer) }

func testMovedContainer(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	s, answer := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.Peer1+":53", rig.External+":2000", "x")
	r.Inside(s)
	r.WantTarget(answer, "TARGET_PORT")
	r.From("p2", s).Translated("translated_outbound", UDP(rig.External+":2000", rig.Peer1+":53", "x").Hop())
	r.WantTarget(answer, "TARGET_DEVICE")
	r.In(answer, UDP(rig.Peer1+":53", rig.C1+":2000", "x"))
}

// TestEgress: what the kernel forwards and no inside hook has seen is translated at egress; what is not an
// inside host's passes.
func TestEgress(t *testing.T) { family.Each(t, testEgress) }

func testEgress(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithMTU(1400))
	s, want := UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Egress("br0", s.With(lastHop)).Translated("translated_stack", want.With(lastHop))
	r.In(UDP(rig.Peer1+":53", rig.External+":2000", "x"), UDP(rig.Peer1+":53", rig.C1+":2000", "x"))
	big := string(bytes.Repeat([]byte("x"), 1500))
	r.Egress("br0", UDP(rig.C1+":2001", rig.Peer1+":53", big).With(dontCut)).
		Translated("translated_stack", UDP(rig.External+":2001", rig.Peer1+":53", big).With(dontCut))
	r.Egress("br1", s).Passed("not_outside") // its source is of another network
	r.Egress("eth0", s).Passed("not_outside")
	r.Egress("br0", UDP(rig.External+":9", rig.Peer1+":53", "x")).Passed("host") // another NAT's: its port is claimed
	r.Egress("br0", Raw(rig.C1, rig.Peer1, 51, make([]byte, 8))).Dropped("protocol")
	r.Egress("br0", TCP(rig.C1+":9", rig.Peer1+":53", "R", "")).Dropped("tcp_no_session")
}

// TestNotForTranslation: destinations that stay with the kernel, untouched.
func TestNotForTranslation(t *testing.T) {
	r := rig.New(t)
	r.Must("route", func() error {
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
		"OtherNetwork":     {rig.Other + ":80", "not_outside"},
		"OwnNetwork":       {rig.C2 + ":80", "not_outside"},
		"External":         {rig.External + ":22", "local"},
		"ZeroNetwork":      {"0.0.0.1:1", "local"},
		"ReservedAddress":  {"240.0.0.1:1", "local"},
		"Blackhole":        {"192.0.2.9:80", "no_route"},
		"OutsideBroadcast": {"198.51.100.255:9", "local"},
	} {
		r.Subtest(name, func() {
			r.Inside(UDP(rig.C1+":2000", c.dst, "x")).Passed(c.reason)
			r.Inside(TCP(rig.C1+":2000", c.dst, "S", "")).Passed(c.reason)
			r.Inside(Ping(rig.C1+":2000", Endpoint(c.dst).Addr().String())).Passed(c.reason)
		})
	}
	r.WantBindings()
	r.Out(UDP(rig.C1+":2000", "198.51.100.254:53", "x"), UDP(rig.External+":2000", "198.51.100.254:53", "x")) // on the link
}

// TestOtherPackets: frames that are not for the router, and what is of no protocol that is translated.
func TestOtherPackets(t *testing.T) {
	r := rig.New(t)
	s := UDP(rig.C1+":2000", rig.Peer1+":53", "the kernel wants 40 bytes of an IPv6 packet")
	for _, to := range []net.HardwareAddr{rig.C2MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}} {
		r.Inside(s.With(func(s *Spec) { s.DstMAC = to })).Passed("bridged")
	}
	for _, proto := range []uint8{0, 2, 33, 51, 115, 255} {
		r.Inside(Raw(rig.C1, rig.Peer1, proto, make([]byte, 24))).Dropped("protocol")
		r.Outside(Raw(rig.Peer1, rig.External, proto, make([]byte, 24))).Passed("protocol")
		r.Egress("", Raw(rig.External, rig.Peer1, proto, make([]byte, 24))).Passed("protocol")
	}
	for _, etherType := range [][2]byte{{0x08, 0x06}, {0x86, 0xdd}, {0x81, 0x00}, {0x88, 0xa8}, {0x88, 0x47}, {0, 46}} {
		frame := rig.FromContainer(s).Bytes()
		frame[12], frame[13] = etherType[0], etherType[1]
		for _, h := range r.Hooks() {
			r.Send(h.Program, h.Dev, frame, h.Change).Passed("not_ip")
		}
	}
	o := r.DP.Objects()
	r.Send(o.NatInside, "eth0", rig.FromContainer(s).Bytes(), nil).Passed("no_link")
	r.Send(o.NatInside, "lo", rig.FromContainer(s).Bytes(), nil).Passed("no_link")
	r.Send(o.NatOutsideIngress, "p1", rig.FromOutside(s).Bytes(), nil).Passed("no_link")
	r.Send(o.NatOutsideEgress, "p1", rig.FromOutside(s).Bytes(), nil).Passed("no_link")
	r.WantBindings()
}

// TestSpoofed: an inside source that is not of its network.
func TestSpoofed(t *testing.T) {
	r := rig.New(t)
	for _, src := range []string{"10.0.0.1", "172.18.0.2", rig.External, rig.Peer1, "172.16.255.255", "127.0.0.1"} {
		for _, s := range []Spec{UDP(src+":2000", rig.Peer2+":53", "x"), TCP(src+":2000", rig.Peer2+":53", "S", ""), Ping(src+":2000", rig.Peer2)} {
			res := r.Inside(s)
			if res.Reason == "passed_no_route" || res.Reason == "passed_local" { // the kernel's route lookup refuses it
				continue
			}
			res.Dropped("spoofed")
		}
	}
	r.From("q1", UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Dropped("spoofed")
	r.WantBindings()
}

// TestNoAddress: an outside that has none now.
func TestNoAddress(t *testing.T) { family.Each(t, testNoAddress) }

func testNoAddress(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Must("take address", func() error {
		return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"]})
	})
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Dropped("no_address")
	r.WantBindings()
}

const skbTCIndex = 44 // offset in struct __sk_buff

// TestDirectPathAtEgress: what the direct path has translated passes the egress hook.
func TestDirectPathAtEgress(t *testing.T) {
	r := rig.New(t)
	marked := r.After(r.DP.Objects().NatOutsideEgress,
		asm.Mov.Imm(asm.R2, 0xc07e), asm.StoreMem(asm.R6, skbTCIndex, asm.R2, asm.Word))
	other := r.After(r.DP.Objects().NatOutsideEgress,
		asm.Mov.Imm(asm.R2, 7), asm.StoreMem(asm.R6, skbTCIndex, asm.R2, asm.Word))
	frame := fromStack(UDP(rig.External+":2000", rig.Peer1+":53", "x"))
	r.Send(marked, "eth0", frame, nil).Passed("translated")
	r.Send(other, "eth0", frame, nil).Passed("host")
}

// TestVLANTag: one that the network card has taken out of the frame.
func TestVLANTag(t *testing.T) {
	r := rig.New(t)
	for _, h := range r.Hooks() {
		tagged := r.After(h.Program, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0x0081), asm.Mov.Imm(asm.R3, 5), asm.FnSkbVlanPush.Call())
		frame := rig.FromContainer(UDP(rig.C1+":2000", rig.Peer1+":53", "x")).Bytes()
		res := r.Send(tagged, h.Dev, frame, h.Change)
		if res.Verdict != rig.Next || res.Reason != "passed_not_ip" {
			t.Errorf("%s: verdict %d, %s", h.Name, int32(res.Verdict), res.Reason)
		}
	}
}
