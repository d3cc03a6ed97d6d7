// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// The packets of a session, as they are before the NAT and behind it.
var (
	query    = UDP(rig.C1+":2000", rig.Peer1+":53", "query").With(dontCut)
	queryOut = UDP(rig.External+":2000", rig.Peer1+":53", "query").With(dontCut)
	reply    = UDP(rig.Peer1+":53", rig.External+":2000", "answer").With(dontCut)
	replyIn  = UDP(rig.Peer1+":53", rig.C1+":2000", "answer").With(dontCut)
)

// A gateway's second router, and the MAC that a host may get instead of its own.
const router2 = "198.51.100.253"

var newMAC = net.HardwareAddr{2, 0, 0, 0, 9, 9}

// xdpModes are the links that have XDP, and which of them the first host's packets come by.
var xdpModes = map[string]struct {
	dev   string
	links map[string]uint8
}{"Gateway": {"br0", rig.Gateway}, "Containers": {"p1", rig.Containers}}

// eachXDP runs a test in both families and both modes, with the session of query opened by tc.
func eachXDP(t *testing.T, test func(r *rig.Rig, dev string)) {
	family.Each(t, func(t *testing.T, fam family.Family) {
		for name, mode := range xdpModes {
			t.Run(name, func(t *testing.T) {
				r := rig.New(t, rig.In(fam))
				r.TakeXDP(mode.links)
				r.From(mode.dev, query).Translated("translated_outbound", queryOut.Hop())
				test(r, mode.dev)
				r.Consistent()
			})
		}
	})
}

// open has tc open a TCP connection, until its segments are no news any more.
func openTCP(r *rig.Rig, dev string) {
	r.T.Helper()
	r.From(dev, TCP(rig.TcpInside, rig.TcpRemote, "S", ""))
	r.Outside(TCP(rig.TcpRemote, rig.TcpOutside, "SA", ""))
	r.From(dev, TCP(rig.TcpInside, rig.TcpRemote, "A", ""))
	r.Outside(TCP(rig.TcpRemote, rig.TcpOutside, "A", ""))
}

// TestXDPTranslates: packets of sessions that tc has opened, both ways, to the neighbours that the kernel knows.
func TestXDPTranslates(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		openTCP(r, dev)
		for range 2 { // the second one finds the neighbour in its half
			r.XDPInside(dev, query).Out(queryOut)
			r.XDPOutside(reply).In(replyIn)
			r.XDPInside(dev, TCP(rig.TcpInside, rig.TcpRemote, "PA", "data")).Out(TCP(rig.TcpOutside, rig.TcpRemote, "PA", "data"))
			r.XDPOutside(TCP(rig.TcpRemote, rig.TcpOutside, "A", "more")).In(TCP(rig.TcpRemote, rig.TcpInside, "A", "more"))
		}
		r.WantSessions("tcp "+rig.TcpInside+" "+rig.TcpOutside+" "+rig.TcpRemote+" established",
			"udp "+rig.C1+":2000 "+rig.External+":2000 "+rig.Peer1+":53 active")
	})
}

// TestXDPNumbersDatagrams: what may be cut gets an ID of the NAT's, as at tc.
func TestXDPNumbersDatagrams(t *testing.T) {
	r := rig.New(t)
	r.TakeXDP(rig.Gateway)
	seen := map[uint16]bool{0: true, 0x1234: true}
	s := rig.Identified(UDP(rig.C1+":2000", rig.Peer1+":53", "query"))
	r.From("br0", s)
	for range 20 {
		res := r.XDPInside("br0", s)
		res.Out(rig.Identified(UDP(rig.External+":2000", rig.Peer1+":53", "query")))
		if id := idOf(res.Frame()); seen[id] {
			t.Errorf("the ID %#x once more", id)
		} else {
			seen[id] = true
		}
	}
	res := r.XDPOutside(rig.Identified(UDP(rig.Peer1+":53", rig.External+":2000", "answer")))
	if id := idOf(res.Frame()); id != 0x1234 {
		t.Errorf("an inbound datagram's ID became %#x", id)
	}
}

// TestXDPAndTCAgree: to the last byte, also of a checksum that is wrong, or none, or comes out as 0.
func TestXDPAndTCAgree(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		openTCP(r, dev)
		rnd := rand.New(rand.NewPCG(7, 7))
		o := r.DP.Objects()
		for i := range 400 {
			payload := make([]byte, rnd.IntN(60))
			for j := range payload {
				payload[j] = byte(rnd.UintN(256))
			}
			s := []Spec{query, reply, TCP(rig.TcpInside, rig.TcpRemote, "A", ""), TCP(rig.TcpRemote, rig.TcpOutside, "A", "")}[i%4]
			s.Payload, s.TTL, s.TOS, s.DF = payload, uint8(2+rnd.UintN(254)), uint8(rnd.UintN(256)), true
			hook, program, at := rig.Hook{Program: o.NatInside, Dev: dev}, o.NatXdpInside, 14
			if i%2 == 1 {
				hook, program = rig.Hook{Program: o.NatOutsideIngress, Dev: "eth0"}, o.NatXdpOutside
				s = rig.FromOutside(s)
			} else {
				s = rig.FromContainer(s)
			}
			frame := r.Frame(s)
			at += ipHeader(r.Family) + map[bool]int{true: 6, false: 16}[i%4 < 2]
			check := []uint16{binary.BigEndian.Uint16(frame[at:]), 0, 0xffff, uint16(rnd.UintN(65536)), nextZero(r, hook, frame, at)}[rnd.IntN(5)]
			binary.BigEndian.PutUint16(frame[at:], check)
			byTC := r.Send(hook.Program, hook.Dev, frame, nil)
			byXDP := r.XDP(program, hook.Dev, frame)
			if byXDP.Verdict != rig.XDPRedirect || byXDP.Reason != byTC.Reason || !bytes.Equal(byTC.Frame()[12:], byXDP.Frame()[12:]) {
				t.Fatalf("%d: checksum %#x: tc: %s\n%s\nXDP: verdict %d\n%s", i, check, byTC.Reason, Dump(byTC.Frame()), byXDP.Verdict, Dump(byXDP.Frame()))
			}
		}
	})
}

// nextZero is the checksum at an offset from which the NAT's change leads to 0: what tc makes of another one says how far it is.
func nextZero(r *rig.Rig, h rig.Hook, frame []byte, at int) uint16 {
	r.T.Helper()
	frame = bytes.Clone(frame)
	binary.BigEndian.PutUint16(frame[at:], 0x1234)
	after := binary.BigEndian.Uint16(r.Send(h.Program, h.Dev, frame, nil).Frame()[at:])
	sum := uint32(0x1234) + uint32(^after)
	return uint16(sum) + uint16(sum>>16)
}

// TestXDPHandsOn: all that is not plain goes to tc as it came.
func TestXDPHandsOn(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		openTCP(r, dev)
		r.Opened("udp", rig.C2+":4000")
		r.From(dev, UDP(rig.C1+":2000", rig.External+":4000", "x")).Translated("translated_hairpin", UDP(rig.External+":2000", rig.C2+":4000", "x").Hop())
		for name, s := range map[string]Spec{
			"Of no session":         UDP(rig.C1+":2001", rig.Peer1+":53", "x"),
			"To another remote":     UDP(rig.C1+":2000", rig.Peer2+":53", "x"),
			"Ping":                  Ping(rig.C1+":7", rig.Peer1),
			"SYN":                   TCP(rig.TcpInside, rig.TcpRemote, "S", ""),
			"FIN":                   TCP(rig.TcpInside, rig.TcpRemote, "FA", ""),
			"RST":                   TCP(rig.TcpInside, rig.TcpRemote, "R", ""),
			"TTL of 1":              query.With(func(s *Spec) { s.TTL = 1 }),
			"Too big":               UDP(rig.C1+":2000", rig.Peer1+":53", sized(r.Family, 1501)),
			"For another port":      query.With(func(s *Spec) { s.DstMAC = rig.C2MAC }),
			"Hairpin":               UDP(rig.C1+":2000", rig.External+":4000", "x"),
			"Protocol without port": Raw(rig.C1, rig.Peer1, 47, []byte("0123456789ab")),
		} {
			r.Subtest(strings.ReplaceAll(name, " ", ""), func() { r.XDPInside(dev, s).HandedOn() })
		}
		for name, s := range map[string]Spec{
			"From outside of no session": UDP(rig.Peer1+":54", rig.External+":2000", "x"),
			"From outside unbound":       UDP(rig.Peer1+":53", rig.External+":7777", "x"),
			"From outside with FIN":      TCP(rig.TcpRemote, rig.TcpOutside, "FA", ""),
			"From outside TTL of 1":      reply.With(func(s *Spec) { s.TTL = 1 }),
			"From outside too big":       UDP(rig.Peer1+":53", rig.External+":2000", sized(r.Family, 1501)),
		} {
			r.Subtest(strings.ReplaceAll(name, " ", ""), func() { r.XDPOutside(s).HandedOn() })
		}
		r.Subtest("Fragments", func() {
			for _, frame := range rig.FromContainer(UDP(rig.C1+":2000", rig.Peer1+":53", long)).In(r.Family).Fragments(320) {
				r.XDP(r.DP.Objects().NatXdpInside, dev, frame).HandedOn()
			}
		})
		r.Subtest("Damaged", func() { damagedAtXDP(r, dev) })
	})
}

// damagedAtXDP sends frames that are not what they say, or say more than a plain packet does.
func damagedAtXDP(r *rig.Rig, dev string) {
	whole := r.Frame(rig.FromContainer(query))
	segment := r.Frame(rig.FromContainer(TCP(rig.TcpInside, rig.TcpRemote, "A", "data")))
	l4 := rig.L3 + ipHeader(r.Family)
	changed := func(frame []byte, at int, to ...byte) []byte {
		frame = bytes.Clone(frame)
		copy(frame[at:], to)
		return frame
	}
	frames := map[string][]byte{
		"cut":             whole[:len(whole)-1],
		"cut header":      whole[:l4+7],
		"UDP length":      changed(whole, l4+4, 0, 7),
		"TCP offset":      changed(segment, l4+12, 0x40),
		"TCP options":     changed(segment, l4+12, 0xf0),
		"version":         changed(whole, rig.L3, 0x55),
		"other EtherType": changed(whole, rig.L3-2, 0x88, 0xb5),
		"VLAN":            bytes.Join([][]byte{whole[:12], {0x81, 0, 0, 5}, whole[12:]}, nil),
	}
	if r.Family == family.V4 {
		frames["options"] = rig.FromContainer(query.With(func(s *Spec) { s.Options = someOptions })).Bytes()
		frames["header length"] = changed(whole, rig.L3, 0x44)
		frames["total length"] = changed(whole, rig.L3+2, 0, 27)
	} else {
		frames["extension"] = rig.FromContainer(query).In(family.V6).Behind(DestinationOptions(1)).Bytes()
		frames["payload length"] = changed(whole, rig.L3+4, 0, 7)
	}
	for name, frame := range frames {
		r.Subtest(strings.ReplaceAll(name, " ", ""), func() { r.XDP(r.DP.Objects().NatXdpInside, dev, frame).HandedOn() })
	}
}

// TestXDPBuffers: a frame that is not in one buffer goes by tc, for not every driver would send it.
func TestXDPBuffers(t *testing.T) {
	family.Each(t, func(t *testing.T, fam family.Family) {
		r := rig.New(t, rig.In(fam), rig.WithMTU(9000))
		r.SetMTU("br0", 9000)
		r.TakeXDP(rig.Gateway)
		r.From("br0", query)
		r.XDPInside("br0", UDP(rig.C1+":2000", rig.Peer1+":53", sized(fam, 9000)).With(dontCut)).HandedOn()
		r.XDPInside("br0", UDP(rig.C1+":2000", rig.Peer1+":53", sized(fam, 1900)).With(dontCut)).
			Out(UDP(rig.External+":2000", rig.Peer1+":53", sized(fam, 1900)).With(dontCut))
	})
}

// TestXDPLeavesTCPToTC: what changes a connection's state, or follows what might have been its end.
func TestXDPLeavesTCPToTC(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		ack := TCP(rig.TcpInside, rig.TcpRemote, "A", "")
		out := TCP(rig.TcpOutside, rig.TcpRemote, "A", "")
		r.From(dev, TCP(rig.TcpInside, rig.TcpRemote, "S", ""))
		r.XDPOutside(TCP(rig.TcpRemote, rig.TcpOutside, "SA", "")).HandedOn()
		r.Outside(TCP(rig.TcpRemote, rig.TcpOutside, "SA", ""))
		r.XDPInside(dev, ack).HandedOn() // the first that is no SYN
		r.From(dev, ack)
		r.XDPInside(dev, ack).Out(out)
		r.Outside(TCP(rig.TcpRemote, rig.TcpOutside, "R", ""))
		r.XDPInside(dev, ack).HandedOn() // so it was not the end
		r.From(dev, ack)
		r.XDPInside(dev, ack).Out(out)
	})
}

// TestXDPFlags: where a link says nothing of XDP, tc does all.
func TestXDPFlags(t *testing.T) {
	for name, change := range map[string]struct {
		dev, other string // of a gateway, and with containers
		f          func(*bpf.Link)
	}{
		"NotHere":     {"br0", "p1", func(l *bpf.Link) { l.Flags &^= bpf.LinkXDP }},
		"NotThere":    {"eth0", "eth0", func(l *bpf.Link) { l.Flags &^= bpf.LinkXDP }},
		"StackPath":   {"br0", "p1", func(l *bpf.Link) { l.Flags |= bpf.LinkStack }},
		"NoEpoch":     {"eth0", "eth0", func(l *bpf.Link) { l.Epoch = 0 }},
		"AnotherMAC":  {"br0", "p1", func(l *bpf.Link) { l.Mac[5]++ }},
		"UnknownKind": {"eth0", "eth0", func(l *bpf.Link) { l.Kind = bpf.LinkInsideDevice }},
	} {
		t.Run(name, func(t *testing.T) {
			eachXDP(t, func(r *rig.Rig, dev string) {
				at := change.dev
				if dev == "p1" {
					at = change.other
				}
				r.XDPInside(dev, query).Out(queryOut)
				r.Must("change link", func() error { return r.ChangeLink(at, change.f) })
				r.XDPInside(dev, query).HandedOn()
			})
		})
	}
}

// TestXDPIntoPorts: a port whose other end takes no frames of XDP gets them by tc.
func TestXDPIntoPorts(t *testing.T) {
	family.Each(t, func(t *testing.T, fam family.Family) {
		r := rig.New(t, rig.In(fam))
		r.TakeXDP(rig.Containers)
		r.From("p1", query)
		r.XDPOutside(reply).In(replyIn)
		r.Must("change link", func() error { return r.ChangeLink("p1", func(l *bpf.Link) { l.Flags &^= bpf.LinkXDPPeer }) })
		r.XDPOutside(reply).HandedOn()
	})
}

// TestXDPAndMovedHosts: a packet from another port than before is tc's, and what comes for the host then asks for its neighbour
// once more.
func TestXDPAndMovedHosts(t *testing.T) {
	family.Each(t, func(t *testing.T, fam family.Family) {
		r := rig.New(t, rig.In(fam))
		r.TakeXDP(rig.Containers)
		r.From("p1", query)
		r.XDPInside("p1", query).Out(queryOut)
		r.XDPOutside(reply).In(replyIn)
		r.Owner(rig.C1, "p2", nil)
		r.XDPInside("p2", query).HandedOn()
		r.From("p2", query).Translated("translated_outbound", queryOut.Hop())
		r.Neighbour("br0", rig.C1, newMAC)
		r.XDPOutside(reply).Redirected("inbound", rig.BridgeMAC, newMAC, replyIn)
		r.XDPInside("p1", query).HandedOn()
	})
}

// TestXDPFollowsNeighbours: another MAC, when the daemon says so, and else within a second.
func TestXDPFollowsNeighbours(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		raise := func(l *bpf.Link) { l.Epoch++ }
		for _, way := range []struct {
			on, host, egress string
			send             func(mac net.HardwareAddr)
			mac              net.HardwareAddr
		}{
			{"eth0", "198.51.100.254", "eth0", func(mac net.HardwareAddr) {
				r.T.Helper()
				r.XDPInside(dev, query).Redirected("outbound", rig.UplinkMAC, mac, queryOut)
			}, rig.RouterMAC},
			{"br0", rig.C1, dev, func(mac net.HardwareAddr) {
				r.T.Helper()
				r.XDPOutside(reply).Redirected("inbound", rig.BridgeMAC, mac, replyIn)
			}, rig.C1MAC},
		} {
			way.send(way.mac)
			r.Neighbour(way.on, way.host, newMAC)
			way.send(way.mac)
			r.Must("raise the epoch", func() error { return r.ChangeLink(way.egress, raise) })
			way.send(newMAC)
			r.Neighbour(way.on, way.host, way.mac)
			way.send(newMAC)
			later(r, dev)
			way.send(way.mac)
		}
	})
}

// later is when a half's hop is asked for once more, and it was: that packet may have gone by tc.
func later(r *rig.Rig, dev string) {
	r.T.Helper()
	r.Wait(2 * time.Second)
	r.XDPInside(dev, query)
	r.XDPOutside(reply)
}

// TestXDPUsesNeighbours: some packets leave by tc, so that the kernel's neighbour does not grow old unused.
func TestXDPUsesNeighbours(t *testing.T) {
	r := rig.New(t)
	r.TakeXDP(rig.Gateway)
	r.From("br0", query)
	r.XDPInside("br0", query).Out(queryOut)
	r.XDPOutside(reply).In(replyIn)
	const times = 512
	byTC := map[string]int{}
	for range times {
		r.Wait(1100 * time.Millisecond)
		for way, send := range map[string]func() bool{
			"out": func() bool { return r.XDPInside("br0", query).Verdict == rig.XDPPass },
			"in":  func() bool { return r.XDPOutside(reply).Verdict == rig.XDPPass },
		} {
			if send() {
				byTC[way]++
				if send() {
					t.Errorf("%s: one packet after the other by tc", way)
				}
			}
		}
	}
	for _, way := range []string{"out", "in"} {
		if n := byTC[way]; n < times/32 || n > times/8 {
			t.Errorf("%s: %d of %d went by tc, want about a sixteenth", way, n, times)
		}
	}
}

// TestXDPWaitsForNeighbours: tc asks for one that nobody knows.
func TestXDPWaitsForNeighbours(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		r.Neighbour("eth0", "198.51.100.254", nil)
		r.Neighbour("br0", rig.C1, nil)
		for range 2 {
			r.XDPInside(dev, query).HandedOn()
			r.XDPOutside(reply).HandedOn()
		}
		r.Neighbour("eth0", "198.51.100.254", rig.RouterMAC)
		r.Neighbour("br0", rig.C1, rig.C1MAC)
		r.XDPInside(dev, query).Out(queryOut)
		r.XDPOutside(reply).In(replyIn)
	})
}

// TestXDPFollowsRoutes: by what tc makes of them.
func TestXDPFollowsRoutes(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		r.XDPInside(dev, query).Out(queryOut)
		r.Neighbour("eth0", router2, newMAC)
		r.Must("another gateway", func() error { return r.DefaultBy("eth0", router2) })
		r.XDPInside(dev, query).Out(queryOut)
		r.Wait(2 * time.Second)
		r.XDPInside(dev, query).HandedOn()
		r.From(dev, query).Translated("translated_outbound", queryOut.Hop())
		r.XDPInside(dev, query).Redirected("outbound", rig.UplinkMAC, newMAC, queryOut)

		r.Must("back", func() error { return r.DefaultBy("eth0", "198.51.100.254") })
		r.Must("the daemon has seen it", func() error { return r.ChangeLink("eth0", func(l *bpf.Link) { l.Epoch++ }) })
		for range 2 { // until tc has looked, which it does within a second
			r.XDPInside(dev, query).HandedOn()
			r.From(dev, query).Translated("translated_outbound", queryOut.Hop())
		}
		r.Wait(2 * time.Second)
		r.XDPInside(dev, query).HandedOn()
		r.From(dev, query).Translated("translated_outbound", queryOut.Hop())
		r.XDPInside(dev, query).Out(queryOut)
	})
}

// TestXDPAndAnotherUplink: a session cannot follow a route to an uplink with another address, whatever XDP can do there.
func TestXDPAndAnotherUplink(t *testing.T) {
	eachXDP(t, func(r *rig.Rig, dev string) {
		r.Must("second uplink", r.SecondUplink)
		r.Must("its route", func() error { return r.DefaultBy("eth1", "192.0.2.254") })
		r.Neighbour("eth1", "192.0.2.254", newMAC)
		r.Must("its flags", func() error { return r.XDPLinks(map[string]uint8{"eth1": bpf.LinkXDP}) })
		r.Wait(2 * time.Second)
		for range 2 {
			r.XDPInside(dev, query).HandedOn()
			r.From(dev, query).Dropped("route_moved")
		}
	})
}

// TestXDPRefreshes: a session lives by what XDP sends, and no longer.
func TestXDPRefreshes(t *testing.T) {
	for name, way := range map[string]func(r *rig.Rig, dev string) uint32{
		"Outbound": func(r *rig.Rig, dev string) uint32 { return r.XDPInside(dev, query).Verdict },
		"Inbound":  func(r *rig.Rig, _ string) uint32 { return r.XDPOutside(reply).Verdict },
	} {
		t.Run(name, func(t *testing.T) {
			eachXDP(t, func(r *rig.Rig, dev string) {
				for range 3 {
					r.Wait(299 * time.Second)
					first, second := way(r, dev), way(r, dev) // one may go by tc
					if first == rig.XDPPass && second == rig.XDPPass {
						r.T.Error("two packets by tc")
					}
				}
				r.LivesFor(300 * time.Second)
			})
		})
	}
}

// TestUnsolicited: what nobody has asked for ends at XDP, where there is one, and else at tc.
func TestUnsolicited(t *testing.T) { family.Each(t, testUnsolicited) }

func testUnsolicited(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithPorts(2000, 60000))
	drop := map[string]uint8{"eth0": bpf.LinkUnsolicited}
	r.TakeXDP(drop)
	r.Inside(query)
	r.Forward("br0", dataplane.UDP, rig.External+":3000", rig.C1+":3000")
	r.Egress("", UDP(rig.External+":4000", rig.Peer1+":53", "the host's"))
	r.HostListens(rig.External + ":5000")
	connection := conntrack.Flow{Protocol: dataplane.UDP, Timeout: time.Minute,
		Original: conntrack.Tuple{Src: r.Endpoint(rig.External + ":6000"), Dst: r.Endpoint(rig.Peer1 + ":9")},
		Reply:    conntrack.Tuple{Src: r.Endpoint(rig.Peer1 + ":9"), Dst: r.Endpoint(rig.External + ":6000")}}
	r.Must("make a conntrack entry", func() error { _, err := conntrack.Replace([]conntrack.Flow{connection}); return err })
	r.Subtest("Dropped", func() {
		for name, s := range map[string]Spec{
			"Datagram": UDP(rig.Peer1+":9", rig.External+":7777", "x"), "SYN": TCP(rig.Peer1+":9", rig.External+":7777", "S", ""),
			"Segment": TCP(rig.Peer1+":9", rig.External+":7777", "A", "x"), "Lowest": UDP(rig.Peer1+":9", rig.External+":2001", "x"),
			"OfNoConnection":             UDP(rig.Peer2+":9", rig.External+":6000", "x"),
			"Highest":                    UDP(rig.Peer1+":9", rig.External+":60000", "x"),
			"ToWhatUDPHas":               TCP(rig.Peer1+":9", rig.External+":2000", "S", ""),
			"FromWhatThePacketPathKnows": UDP(rig.Peer1+":53", rig.External+":2001", "x"),
		} {
			r.Subtest(name, func() {
				r.XDPOutside(s).Dropped("unsolicited")
				r.Outside(s).Dropped("unsolicited")
			})
		}
	})
	r.Subtest("HandedOn", func() {
		for name, s := range map[string]struct {
			Spec
			reason string
		}{
			"OfASession":       {reply, "translated_inbound"},
			"Filtered":         {UDP(rig.Peer2+":9", rig.External+":2000", "x"), "dropped_filtered"},
			"Forwarded":        {UDP(rig.Peer2+":9", rig.External+":3000", "x"), "translated_inbound"},
			"TheHostsOwn":      {UDP(rig.Peer1+":53", rig.External+":4000", "x"), "passed_host"},
			"ListensUDP":       {UDP(rig.Peer2+":9", rig.External+":5000", "x"), "passed_unbound"},
			"ListensTCP":       {TCP(rig.Peer2+":9", rig.External+":5000", "S", ""), "passed_unbound"},
			"OfAConnection":    {UDP(rig.Peer1+":9", rig.External+":6000", "x"), "passed_unbound"},
			"BelowTheRange":    {UDP(rig.Peer1+":9", rig.External+":1999", "x"), "passed_unbound"},
			"AboveTheRange":    {UDP(rig.Peer1+":9", rig.External+":60001", "x"), "passed_unbound"},
			"ToAnotherAddress": {UDP(rig.Peer1+":9", "198.51.100.2:7777", "x"), "passed_unbound"},
			"Ping":             {Ping(rig.Peer1+":9", rig.External), "passed_unbound"},
			"Error":            {ICMPError(rig.Peer1, rig.External, 3, 3, UDP(rig.External+":7777", rig.Peer1+":9", "x"), 0), "passed_unbound"},
		} {
			r.Subtest(name, func() {
				r.XDPOutside(s.Spec).HandedOn()
				if res := r.Outside(s.Spec); res.Reason != s.reason {
					r.T.Errorf("at tc: %s, want %s", res.Reason, s.reason)
				}
			})
		}
	})
	r.Subtest("Fragments", func() {
		for i, frame := range rig.FromOutside(UDP(rig.Peer1+":9", rig.External+":7777", long)).In(fam).Fragments(320) {
			r.XDP(r.DP.Objects().NatXdpOutside, "eth0", frame).HandedOn()
			want := "unsolicited"
			if i > 0 {
				want = "fragment"
			}
			r.Send(r.DP.Objects().NatOutsideIngress, "eth0", frame, nil).Dropped(want)
		}
	})
	r.Subtest("NotAskedFor", func() {
		r.Must("change link", func() error { return r.ChangeLink("eth0", func(l *bpf.Link) { l.Flags = bpf.LinkXDP }) })
		s := UDP(rig.Peer1+":9", rig.External+":7777", "x")
		r.XDPOutside(s).HandedOn()
		r.Outside(s).Passed("unbound")
	})
	r.Consistent()
}

// TestUnsolicitedToOwn: of an address that is one inside host's alone, any port is that host's.
func TestUnsolicitedToOwn(t *testing.T) {
	family.Each(t, func(t *testing.T, fam family.Family) {
		r := newOwn(t, fam, dataplane.EndpointIndependent)
		r.TakeXDP(map[string]uint8{"eth0": bpf.LinkUnsolicited})
		s := UDP(rig.Peer2+":9", own+":7777", "x")
		r.XDPOutside(s).HandedOn()
		r.In(s, UDP(rig.Peer2+":9", rig.C1+":7777", "x"))
		r.XDPOutside(UDP(rig.Peer2+":9", rig.External+":7777", "x")).Dropped("unsolicited")
	})
}
