// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/bench"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// protocol is one of those that are translated.
type protocol struct {
	name   string // as nft says it
	number uint8
}

var (
	udp    = protocol{"udp", unix.IPPROTO_UDP}
	tcp    = protocol{"tcp", unix.IPPROTO_TCP}
	icmp   = protocol{"icmp", unix.IPPROTO_ICMP}
	icmpv6 = protocol{"icmpv6", unix.IPPROTO_ICMPV6}
)

// protocols are a family's; the last one has no ports.
func protocols(f family.Family) []protocol {
	if f == family.V6 {
		return []protocol{udp, tcp, icmpv6}
	}
	return []protocol{udp, tcp, icmp}
}

// step is a packet that is sent once, before what is measured.
type step struct {
	from   bench.Port
	packet packet
}

// trial is one row: what is sent before, and then the stream.
type trial struct {
	name  string
	steps []step
	stream
	end     bench.Port // behind which the stream's sink is; none: in the host
	counter string     // conenat's, of what it does with the stream's packets
}

// The remote endpoint's port, and the first ones of those that change with each packet.
const (
	remotePort      = 3478
	firstInside     = 30000
	firstRemote     = 10000
	unboundHostPort = 9
	unboundPoolPort = 7777
)

// trials are what is measured of a contender, in this order; each has internal ports of its own.
type trials struct {
	lab       *bench.Lab
	contender bench.Contender
	list      []trial
}

func trialsOf(l *bench.Lab, c bench.Contender) []trial {
	t := &trials{lab: l, contender: c}
	for _, p := range protocols(l.Family) {
		t.established(p, 20000)
	}
	if c.Translates {
		for _, p := range protocols(l.Family) {
			t.firstOutbound(p)
		}
		for _, p := range []protocol{udp, tcp} {
			t.newSession(p, 21000)
			t.firstInbound(p)
		}
		t.hairpin(udp, 22000)
	}
	t.unsolicited(udp)
	return t.list
}

// gatewayTrials are what is measured with frames, between two plain interfaces.
func gatewayTrials(l *bench.Lab, c bench.Contender) []trial {
	t := &trials{lab: l, contender: c}
	for _, p := range []protocol{udp, tcp} {
		t.established(p, 20000)
	}
	if c.Translates {
		t.unsolicitedToPool(udp)
	}
	return t.list
}

// add puts the sink where the trial ends.
func (t *trials) add(one trial) {
	one.to = bench.SinkInHost(t.lab)
	if one.end.NS != nil {
		one.to = bench.SinkAt(one.end)
	}
	t.list = append(t.list, one)
}

func (t *trials) remote(p protocol, port uint16) netip.AddrPort {
	if p == icmp || p == icmpv6 {
		port = 0
	}
	return netip.AddrPortFrom(t.lab.Family.Addr(topo.Peer1Addr), port)
}

func (t *trials) inside(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(t.lab.Inside.Addr, port)
}

// outside is where an internal endpoint is seen from outside: all contenders keep its port.
func (t *trials) outside(internal netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(t.lab.Source(t.contender, internal.Addr()), internal.Port())
}

// opening is the steps that make a session established.
func (t *trials) opening(p protocol, internal, peer netip.AddrPort) []step {
	out := packet{proto: p.number, src: internal, dst: peer}
	in := packet{proto: p.number, src: peer, dst: t.outside(internal), reply: true}
	out.flags, out.seq = syn, 1000
	in.flags, in.seq, in.ack = syn|ack, 2000, 1001
	steps := []step{{t.lab.Inside, out}, {t.lab.Outside, in}}
	if p == tcp {
		steps = append(steps, step{t.lab.Inside, confirmation(internal, peer)})
	}
	return steps
}

// confirmation is a segment in the window of a connection that opening has opened, from inside.
func confirmation(internal, peer netip.AddrPort) packet {
	return packet{proto: tcp.number, src: internal, dst: peer, flags: ack, seq: 1001, ack: 2001}
}

// established: packets of one session, out and back in.
func (t *trials) established(p protocol, port uint16) {
	internal, peer := t.inside(port), t.remote(p, remotePort)
	opening := t.opening(p, internal, peer)
	out := confirmation(internal, peer)
	out.proto = p.number
	in := packet{proto: p.number, src: peer, dst: t.outside(internal), reply: true, flags: ack, seq: 2001, ack: 1001}
	t.outward(p, "established-outbound", opening, func(int) packet { return out })
	t.inward(p, "established-inbound", opening, t.lab.Inside, func(int) packet { return in })
}

// firstOutbound: each packet makes a binding and a session.
func (t *trials) firstOutbound(p protocol) {
	t.outward(p, "first-outbound", nil, func(n int) packet {
		return packet{proto: p.number, src: t.inside(firstInside + uint16(n)), dst: t.remote(p, remotePort), flags: syn, seq: 1000}
	})
}

// newSession: each packet makes a session of one binding. Netfilter has no bindings; it makes an entry.
func (t *trials) newSession(p protocol, port uint16) {
	t.outward(p, "new-session-outbound", t.opening(p, t.inside(port), t.remote(p, remotePort)), func(n int) packet {
		return packet{proto: p.number, src: t.inside(port), dst: t.remote(p, firstRemote+uint16(n)), flags: syn, seq: 1000}
	})
}

// firstInbound: each packet makes a session of a static binding, a port forward.
func (t *trials) firstInbound(p protocol) {
	t.inward(p, "first-inbound", nil, t.lab.Inside, func(n int) packet {
		return packet{proto: p.number, src: t.remote(p, firstRemote+uint16(n)), flags: syn, seq: 1000,
			dst: netip.AddrPortFrom(t.lab.External(), bench.ForwardedPort)}
	})
}

// hairpin: one container sends to the external endpoint of the other.
func (t *trials) hairpin(p protocol, port uint16) {
	there := packet{proto: p.number, src: t.inside(port), dst: netip.AddrPortFrom(t.lab.External(), bench.ForwardedPort2)}
	back := packet{proto: p.number, src: netip.AddrPortFrom(t.lab.Inside2.Addr, bench.ForwardedPort2),
		dst: netip.AddrPortFrom(t.lab.External(), port)}
	t.add(trial{name: p.name + "/established-hairpin", steps: []step{{t.lab.Inside, there}, {t.lab.Inside2, back}},
		end: t.lab.Inside2, stream: stream{
			from:   t.lab.Inside,
			want:   bench.Want{Protocol: p.name, Src: back.dst, Dst: back.src},
			packet: func(int) packet { return there },
		}})
}

// unsolicited: nobody inside has anything to do with it, and the host gets it.
func (t *trials) unsolicited(p protocol) {
	in := packet{proto: p.number, src: t.remote(p, remotePort), dst: netip.AddrPortFrom(t.lab.External(), unboundHostPort)}
	t.add(trial{name: p.name + "/unsolicited-inbound", stream: stream{
		from:   t.lab.Outside,
		want:   bench.Want{Protocol: p.name, Src: in.src, Dst: in.dst},
		packet: func(int) packet { return in },
	}})
}

// unsolicitedToPool: to a port of the NAT's range that nobody has. What does not drop it before has the host's own rules do that.
func (t *trials) unsolicitedToPool(p protocol) {
	in := packet{proto: p.number, src: t.remote(p, remotePort), dst: netip.AddrPortFrom(t.lab.External(), unboundPoolPort)}
	t.add(trial{name: p.name + "/unsolicited-dropped", counter: "dropped_unsolicited", stream: stream{
		from:   t.lab.Outside,
		want:   bench.Want{Protocol: p.name, Src: in.src, Dst: in.dst},
		packet: func(int) packet { return in },
	}})
}

func (t *trials) outward(p protocol, name string, steps []step, make func(n int) packet) {
	want := bench.Want{Protocol: p.name, Src: netip.AddrPortFrom(t.outside(t.inside(0)).Addr(), 0), Dst: t.remote(p, 0)}
	t.add(trial{name: p.name + "/" + name, steps: steps, end: t.lab.Outside, counter: "translated_outbound", stream: stream{
		from: t.lab.Inside, want: want, packet: make,
	}})
}

func (t *trials) inward(p protocol, name string, steps []step, to bench.Port, make func(n int) packet) {
	want := bench.Want{Protocol: p.name, Src: t.remote(p, 0), Dst: netip.AddrPortFrom(to.Addr, 0)}
	t.add(trial{name: p.name + "/" + name, steps: steps, end: to, counter: "translated_inbound", stream: stream{
		from: t.lab.Outside, want: want, packet: make,
	}})
}
