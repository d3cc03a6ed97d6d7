// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/oracle"
	"github.com/conenat/conenat/tests/rig"
)

// insideHost is a container, and the hook that its packets come by.
type insideHost struct {
	place oracle.Place
	dev   string
	addr  netip.Addr
}

// port is the bridge port that a packet by this hook came by; a bridge device does not know.
func (h insideHost) port() string {
	if string(h.place) == h.dev {
		return ""
	}
	return h.dev
}

// places are whom packets are from and to, in a family.
type places struct {
	family    family.Family
	hosts     []insideHost
	remotes   []netip.AddrPort
	elsewhere []netip.AddrPort // what is not to be translated
	router    netip.AddrPort   // outside, and no end of any session
	networks  []dataplane.Network
	gateways  []netip.Addr // the host's own addresses in them
	externals []netip.Addr
}

func placesIn(f family.Family) places {
	addr := func(s string) netip.Addr { return f.Addr(netip.MustParseAddr(s)) }
	end := func(s string) netip.AddrPort { return f.Endpoint(netip.MustParseAddrPort(s)) }
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{f.Prefix(netip.MustParsePrefix(s))} }
	return places{
		family: f,
		hosts: []insideHost{
			{"br0", "p1", addr(rig.C1)}, {"br0", "p2", addr(rig.C2)}, {"br1", "q1", addr(rig.Other)},
			{"br0", "br0", addr(rig.C1)}, // by the device's hook
			{"br0", "p2", addr(rig.C1)},  // whose address it may be, or not
			{"br0", "p1", addr("10.9.9.9")},
			{"br1", "q1", addr(rig.C1)}, // where both networks have the same addresses
		},
		remotes:   []netip.AddrPort{end(rig.Peer1 + ":9"), end(rig.Peer1 + ":5000"), end(rig.Peer2 + ":9")},
		elsewhere: []netip.AddrPort{end("172.17.0.1:53"), end("172.18.0.2:80"), end("224.0.0.251:5353")},
		router:    end("192.0.2.9:0"),
		networks: []dataplane.Network{ // the rig's, but for what differs from rig to rig
			{Name: "br0", Gateway: rig.BridgeMAC, Prefixes: prefixes("172.17.0.0/16")},
			{Name: "br1", Gateway: rig.Bridge2, Prefixes: prefixes("172.18.0.0/16")},
		},
		gateways:  []netip.Addr{addr("172.17.0.1"), addr("172.18.0.1")},
		externals: []netip.Addr{addr(rig.External), addr("198.51.100.7"), addr("198.51.101.9")}, // the host's, and others that are routed to it
	}
}

func (p places) isIPv6() bool { return p.family == family.V6 }

var (
	insidePorts = []uint16{80, 81, 5000, 5001, 6000}
	waits       = []time.Duration{time.Second, 31 * time.Second, 59 * time.Second, 61 * time.Second, 119 * time.Second, 121 * time.Second, 239 * time.Second, 241 * time.Second,
		299 * time.Second, 301 * time.Second, 7439 * time.Second, 7441 * time.Second}
)

func (d *duel) insideHost() insideHost { return pick(d.T, "host", d.hosts) }

// insidePacket is one that a host inside sends.
func (d *duel) insidePacket(from insideHost) oracle.Packet {
	return d.packet(from.addr, pick(d.T, "port", insidePorts), d.destination())
}

func (d *duel) inside() {
	from := d.insideHost()
	d.fromInside(from, d.insidePacket(from))
}

// crowd opens many sessions, as fast as that.
func (d *duel) crowd() {
	for range rapid.IntRange(3, 15).Draw(d.T, "packets") {
		from := pick(d.T, "host", d.hosts[:3])
		p := oracle.Packet{Protocol: pick(d.T, "protocol", protocols), TTL: 64, Dst: pick(d.T, "remote", d.remotes),
			Src: netip.AddrPortFrom(from.addr, pick(d.T, "port", insidePorts))}
		switch p.Kind = oracle.Datagram; p.Protocol {
		case oracle.TCP:
			p.Kind = oracle.Syn
		case oracle.ICMP:
			p.Kind, p.Dst = oracle.Query, netip.AddrPortFrom(p.Dst.Addr(), 0)
		}
		d.fromInside(from, portsOf(p))
	}
}

// hairpin is a packet from inside to a binding's external endpoint.
func (d *duel) hairpin() {
	all := d.nat.Bindings()
	if len(all) == 0 {
		return
	}
	b := pick(d.T, "binding", all)
	if b.Protocol == oracle.ICMP {
		return
	}
	from := d.insideHost()
	p := oracle.Packet{Protocol: b.Protocol, Kind: oracle.Datagram, Src: netip.AddrPortFrom(from.addr, pick(d.T, "port", insidePorts)), Dst: b.External, TTL: d.ttl()}
	if p.Protocol == oracle.TCP {
		p.Kind = pick(d.T, "segment", tcpKinds)
	}
	d.fromInside(from, portsOf(p))
}

// portsOf is the packet without ports, if its protocol has none.
func portsOf(p oracle.Packet) oracle.Packet {
	if p.Protocol == oracle.GRE {
		p.Src, p.Dst = netip.AddrPortFrom(p.Src.Addr(), 0), netip.AddrPortFrom(p.Dst.Addr(), 0)
	}
	return p
}

func (d *duel) outside() {
	remote := pick(d.T, "remote", d.remotes)
	d.fromOutside(d.packet(remote.Addr(), remote.Port(), d.externalEndpoint()))
}

func (d *duel) host() {
	d.fromHost(d.packet(d.externalAddr(), pick(d.T, "port", insidePorts), pick(d.T, "remote", d.remotes)))
}

// byTheHost is a packet to the outside that the host has routed.
func (d *duel) byTheHost() {
	from := d.insideHost()
	d.fromStack(from, d.packet(from.addr, pick(d.T, "port", insidePorts), pick(d.T, "remote", d.remotes)))
}

func (d *duel) destination() netip.AddrPort {
	switch rapid.IntRange(0, 9).Draw(d.T, "destination") {
	case 8:
		return pick(d.T, "elsewhere", d.elsewhere)
	case 9:
		return d.externalEndpoint()
	}
	return pick(d.T, "remote", d.remotes)
}

// externalAddr is an external address, and the host's where there is none.
func (d *duel) externalAddr() netip.Addr {
	if len(d.setup.external) > 0 {
		return pick(d.T, "external address", d.setup.external)
	}
	return d.externals[0]
}

// externalEndpoint is of a binding, if there is one and chance has it.
func (d *duel) externalEndpoint() netip.AddrPort {
	if all := d.nat.Bindings(); len(all) > 0 && rapid.Bool().Draw(d.T, "bound") {
		return all[rapid.IntRange(0, len(all)-1).Draw(d.T, "binding")].External
	}
	return netip.AddrPortFrom(d.externalAddr(), pick(d.T, "port", insidePorts))
}

var (
	protocols = []oracle.Protocol{oracle.UDP, oracle.TCP, oracle.ICMP, oracle.UDP, oracle.TCP, oracle.GRE}
	tcpKinds  = []oracle.Kind{oracle.Syn, oracle.Syn, oracle.SynAck, oracle.Segment, oracle.Fin, oracle.Rst}
	icmpKinds = []oracle.Kind{oracle.Query, oracle.Query, oracle.Query, oracle.Reply, oracle.Other}
)

func (d *duel) packet(src netip.Addr, port uint16, dst netip.AddrPort) oracle.Packet {
	p := oracle.Packet{Protocol: pick(d.T, "protocol", protocols),
		Kind: oracle.Datagram, Src: netip.AddrPortFrom(src, port), Dst: dst, TTL: d.ttl(), Options: d.options("options")}
	switch p.Protocol {
	case oracle.TCP:
		p.Kind = pick(d.T, "segment", tcpKinds)
	case oracle.ICMP:
		p.Kind = pick(d.T, "message", icmpKinds)
		if p.Kind != oracle.Reply {
			p.Dst = netip.AddrPortFrom(dst.Addr(), 0)
		}
		if p.Kind != oracle.Query {
			p.Src = netip.AddrPortFrom(src, 0)
		}
		if p.Kind == oracle.Other {
			p.Type = pick(d.T, "type", oracle.Others(d.isIPv6()))
		}
	}
	return portsOf(p)
}

func (d *duel) ttl() uint8 { return pick(d.T, "ttl", []uint8{64, 64, 64, 64, 2, 1}) }

func (d *duel) rarely(what string) bool { return rapid.IntRange(0, 9).Draw(d.T, what) == 9 }

// options are IPv4's.
func (d *duel) options(what string) bool { return !d.isIPv6() && d.rarely(what) }

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
	p := oracle.Packet{Protocol: s.Binding.Protocol, Kind: oracle.Datagram, Src: s.Remote, Dst: s.Binding.External, TTL: d.ttl(), Options: d.options("options")}
	switch p.Protocol {
	case oracle.TCP:
		p.Kind = pick(d.T, "segment", tcpKinds[1:])
	case oracle.ICMP:
		p.Kind = oracle.Reply
	}
	d.fromOutside(p)
}

// talk is what both ends of a session say once it is there.
func (d *duel) talk() {
	s, ok := d.someSession()
	if !ok || s.Receiver != nil || s.Binding.Network == oracle.Host {
		return
	}
	p := oracle.Packet{Protocol: s.Binding.Protocol, TTL: 64}
	switch p.Kind = oracle.Datagram; p.Protocol {
	case oracle.TCP:
		p.Kind = oracle.Segment
	case oracle.ICMP, oracle.GRE:
		return
	}
	for _, inside := range rapid.SliceOfN(rapid.Bool(), 1, 6).Draw(d.T, "from inside") {
		if inside {
			p.Src, p.Dst = s.Binding.Internal, s.Remote
			d.fromInside(d.hostOf(p.Src.Addr()), p)
		} else {
			p.Src, p.Dst = s.Remote, s.Binding.External
			d.fromOutside(p)
		}
	}
}

// icmpError is an ICMP error about a packet of a session, or about one that was never sent. It comes from outside, from the
// end that opened the session, from a hairpin's other one, or by the host's own way.
func (d *duel) icmpError() {
	s, ok := d.someSession()
	if !ok || s.Binding.Network == oracle.Host {
		return
	}
	m := pick(d.T, "message", oracle.Errors(d.isIPv6()))
	p := oracle.Packet{Protocol: oracle.ICMP, Kind: oracle.Error, TTL: d.ttl(), Type: m.Type, Code: m.Code, Damaged: d.rarely("damaged"), Options: d.options("options"),
		About: &oracle.Packet{Protocol: s.Binding.Protocol, TTL: 60, Damaged: d.rarely("damaged inside"), Options: d.options("options inside")}}
	about := p.About
	switch way := rapid.IntRange(0, 2).Draw(d.T, "way"); {
	case s.Receiver == nil && way > 0:
		p.Src = pick(d.T, "router", []netip.AddrPort{netip.AddrPortFrom(s.Remote.Addr(), 0), d.router})
		p.Dst = netip.AddrPortFrom(s.Binding.External.Addr(), 0)
		about.Src, about.Dst, about.Kind = d.orNone(s.Binding.External), s.Remote, embeddedKind(about.Protocol, oracle.Query)
		d.fromOutside(p)
	case s.Receiver != nil && way > 0: // it got a packet with the sender's external endpoint
		about.Src, about.Dst, about.Kind = s.Binding.External, d.orNone(s.Receiver.Internal), embeddedKind(about.Protocol, oracle.Reply)
		d.insideError(s.Receiver, p, s.Binding.External)
	default:
		about.Src, about.Dst, about.Kind = s.Remote, d.orNone(s.Binding.Internal), embeddedKind(about.Protocol, oracle.Reply)
		d.insideError(s.Binding, p, s.Remote)
	}
}

// insideError is sent by a binding's host.
func (d *duel) insideError(b *oracle.Binding, p oracle.Packet, to netip.AddrPort) {
	from := d.hostOf(b.Internal.Addr())
	p.Src, p.Dst = netip.AddrPortFrom(from.addr, 0), netip.AddrPortFrom(to.Addr(), 0)
	if d.setup.stack && rapid.Bool().Draw(d.T, "by the host") {
		d.fromStack(from, p)
		return
	}
	d.fromInside(from, p)
}

// orNone is an endpoint, or one that nobody has.
func (d *duel) orNone(e netip.AddrPort) netip.AddrPort {
	if e.Port() != 0 && rapid.IntRange(0, 4).Draw(d.T, "of no session") == 0 {
		return netip.AddrPortFrom(e.Addr(), 7777)
	}
	return e
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

func (d *duel) hostOf(addr netip.Addr) insideHost {
	for _, h := range d.hosts {
		if h.addr == addr {
			return h
		}
	}
	panic("nobody has address " + addr.String())
}

// fragments are a datagram's: in order, or later ones alone.
func (d *duel) fragments() {
	var from insideHost
	var p oracle.Packet
	inside := rapid.Bool().Draw(d.T, "from inside")
	if inside {
		from = d.insideHost()
		p = d.insidePacket(from)
	} else {
		remote := pick(d.T, "remote", d.remotes)
		p = d.packet(remote.Addr(), remote.Port(), d.externalEndpoint())
	}
	if p.Kind == oracle.Other {
		return
	}
	p.Options = false
	p.ID = uint16(rapid.IntRange(1, 3).Draw(d.T, "datagram"))
	for _, piece := range rapid.SliceOfN(rapid.SampledFrom([]oracle.Piece{oracle.First, oracle.Later}), 1, 3).Draw(d.T, "pieces") {
		fragment := p
		if fragment.Piece = piece; piece == oracle.Later {
			fragment.Src, fragment.Dst = netip.AddrPortFrom(p.Src.Addr(), 0), netip.AddrPortFrom(p.Dst.Addr(), 0)
		}
		if inside {
			d.fromInside(from, fragment)
		} else {
			d.fromOutside(fragment)
		}
	}
}
