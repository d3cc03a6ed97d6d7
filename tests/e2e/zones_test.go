// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// Two networks with the same addresses, each with one host, which have the same address.
var (
	zoneGateway = netip.MustParseAddr("10.0.0.1")
	zoneHost    = netip.MustParseAddr("10.0.0.5")
)

const zonePrefix = "/24"

// zone is one of the networks, and its host.
type zone struct {
	bridge string
	ns     *topo.NS
	probe.Host
}

// zones is a lab with both. The kernel's routing knows the one that was made first alone.
type zones struct {
	*lab
	of []zone
}

// newZones makes the bridges in one order, and names them to the daemon in that or the other one.
func newZones(fam family.Family, t *testing.T, mtu int, swapped bool, args ...string) *zones {
	t.Helper()
	z := &zones{lab: bareLab(fam, t, topo.Figure3ForTest(t, topo.Figure3Config{UplinkMTU: mtu, IPv6: fam == family.V6}))}
	z.must(z.Host.Forward())
	bridges := []string{"za", "zb"}
	for _, bridge := range bridges {
		z.must(z.Host.AddBridge(bridge, zoneGateway.String()+zonePrefix))
		ns, err := z.NewNS("host-" + bridge)
		z.must(err)
		z.must(z.Link(topo.End{NS: z.Host, Name: "veth-" + bridge, Master: bridge},
			topo.End{NS: ns, Name: "eth0", Addr: zoneHost.String() + zonePrefix}, 0))
		z.must(ns.AddRoute("default", zoneGateway.String()))
		z.of = append(z.of, zone{bridge, ns, z.probe(ns)})
	}
	if swapped {
		slices.Reverse(bridges)
		slices.Reverse(z.of)
	}
	z.Conenat = harness.StartIn(fam, t, z.Topo, z.Host, append([]string{"--inside", bridges[0], "--inside", bridges[1]}, args...)...)
	return z
}

// external is the external port of a zone's binding of an internal port.
func (z *zones) external(protocol, bridge string, port uint16) (external uint16) {
	at := z.family.At
	z.t.Helper()
	for _, b := range z.Bindings() {
		if b.Protocol == protocol && b.Network == bridge && b.Internal == at(zoneHost, port).String() {
			return netip.MustParseAddrPort(b.External).Port()
		}
	}
	z.t.Fatalf("%s of port %d has no %s binding: %+v", bridge, port, protocol, z.Bindings())
	return 0
}

// TestOverlappingZones: hosts with one address in two networks, at once, whichever comes first.
func TestOverlappingZones(t *testing.T) { family.Each(t, testOverlappingZones) }

func testOverlappingZones(t *testing.T, fam family.Family) {
	for _, swapped := range []bool{false, true} {
		t.Run(fmt.Sprintf("swapped_%v", swapped), func(t *testing.T) {
			z := newZones(fam, t, 1400, swapped)
			tests := map[string]func(*zones){
				"UDP": (*zones).datagrams, "TCP": (*zones).connections, "Ping": (*zones).pings, "Errors": (*zones).errors,
				"Fragments": (*zones).fragments, "Forwards": (*zones).forwards, "Kernel": (*zones).kernelsWay,
			}
			if fam == family.V6 { // of whose packets the kernel fragments none
				delete(tests, "Kernel")
			}
			for name, test := range tests { // in any order
				t.Run(name, func(t *testing.T) { test(&zones{z.at(t), z.of}) })
			}
		})
	}
}

// datagrams: the same port to the same destination; bindings, sessions and events tell the networks apart.
func (z *zones) datagrams() {
	at := z.family.At
	const port = 20000
	peer, there := z.udp(z.peer1, 3478), at(topo.Peer1Addr, 3478)
	var sockets []probe.Socket
	for _, one := range z.of {
		s := z.udp(one.Host, port)
		sockets = append(sockets, s)
		z.send(s, there, "from "+one.bridge)
		if from := z.receives(peer, "from "+one.bridge); from != at(topo.HostAddr, z.external("udp", one.bridge, port)) {
			z.t.Errorf("%s is seen as %s", one.bridge, from)
		}
	}
	for range 3 {
		for i, one := range z.of {
			z.send(peer, at(topo.HostAddr, z.external("udp", one.bridge, port)), "to "+one.bridge)
			z.receives(sockets[i], "to "+one.bridge)
			z.send(sockets[i], there, "again from "+one.bridge)
			z.receives(peer, "again from "+one.bridge)
		}
	}
	internal := at(zoneHost, port).String()
	for _, one := range z.of {
		if !slices.ContainsFunc(z.Sessions(), func(s harness.Session) bool { return s.Network == one.bridge && s.Internal == internal }) {
			z.t.Errorf("no session of %s: %+v", one.bridge, z.Sessions())
		}
		z.eventually("the event of "+one.bridge, func() bool {
			return slices.ContainsFunc(z.Events(), func(e harness.Event) bool {
				return e.Type == "session.created" && e.Network == one.bridge && e.Internal == internal
			})
		})
	}
}

// connections: from one local port to one server, and each carries its own.
func (z *zones) connections() {
	at := z.family.At
	server := at(topo.Peer1Addr, z.serve(z.peer1, 8080).Port())
	for _, one := range z.of {
		conn, err := one.DialTCP(20002, server)
		z.must(err)
		defer conn.Close()
		seen, err := conn.Seen()
		if err != nil || seen != at(topo.HostAddr, z.external("tcp", one.bridge, 20002)) {
			z.t.Errorf("%s is seen as %s, %v", one.bridge, seen, err)
		}
		defer func() {
			z.must(conn.Echo("still " + one.bridge))
			if down, err := conn.Download(megabyte); err != nil {
				z.t.Errorf("%s: %+v, %v", one.bridge, down, err)
			}
		}()
	}
}

func (z *zones) pings() {
	var running []probe.Pinger
	for _, one := range z.of {
		p, err := one.Ping(probe.PingSpec{To: z.family.Addr(topo.Peer1Addr), ID: 777, Count: 5})
		z.must(err)
		running = append(running, p)
	}
	for i, p := range running {
		if r, err := p.Stop(true); err != nil || r.Received != r.Sent || r.Sent == 0 {
			z.t.Errorf("%s: %+v, %v", z.of[i].bridge, r, err)
		}
	}
}

// errors: each hears from its gateway of what it has sent itself, and the other one nothing.
func (z *zones) errors() {
	at := z.family.At
	to := at(topo.Peer2Addr, 9)
	for i, one := range z.of {
		got, err := provoke(one.ns, 30001, to, 1, 32)
		if want := (icmpError{11, 0, zoneGateway, to}).in(z.family); err != nil || got != want {
			z.t.Errorf("%s, TTL: %+v, %v; want %+v", one.bridge, got, err, want)
		}
		got, err = provoke(one.ns, 30001, to, 64, 1450)
		if want := (icmpError{3, 4, zoneGateway, to}).in(z.family); err != nil || got != want {
			z.t.Errorf("%s, MTU: %+v, %v; want %+v", one.bridge, got, err, want)
		}
		if mtu := pathMTU(z.t, one.ns, to); mtu != 1400 {
			z.t.Errorf("%s takes the path's MTU for %d", one.bridge, mtu)
		}
		for _, other := range z.of[i+1:] {
			if mtu := pathMTU(z.t, other.ns, to); mtu != 1500 {
				z.t.Errorf("%s was told of %s's MTU: %d", other.bridge, one.bridge, mtu)
			}
		}
		got, err = provoke(one.ns, 30003, at(topo.Peer1Addr, 9), 64, 32) // nobody listens there
		if want := (icmpError{3, 3, topo.Peer1Addr, at(topo.Peer1Addr, 9)}).in(z.family); err != nil || got != want {
			z.t.Errorf("%s, from the peer: %+v, %v; want %+v", one.bridge, got, err, want)
		}
	}
}

// fragmentPort is the one that the zones' fragmented datagrams come from.
const fragmentPort = 20004

// fragments: of datagrams with the same addresses, ports and identification, sent at once, none gets a piece of the other's. In IPv6
// they go one after the other, and in order: out of it, what has the same addresses within 30 s is one network's alone (origin_put), and
// their identification stays as it is.
func (z *zones) fragments() {
	source, there := z.family.At(zoneHost, fragmentPort).String(), z.family.Text(far)
	peer, out := z.raw(z.Peer1, unix.IPPROTO_UDP), map[string]*rawIP{}
	for _, one := range z.of {
		out[one.bridge] = z.raw(one.ns, unix.IPPROTO_UDP)
		out[one.bridge].mustSend(packets.UDP(source, there, "opens").With(func(s *packets.Spec) { s.ID = 9999 }).Bytes())
	}
	z.eventually("both have a binding", func() bool {
		return len(slices.DeleteFunc(z.Bindings(), func(b harness.Binding) bool { return b.Internal != source })) == len(z.of)
	})
	for name, order := range orders {
		if z.family == family.V4 {
			z.datagramsOf(peer, out, name, order, z.of...)
			continue
		}
		if name != "InOrder" {
			continue
		}
		for _, one := range z.of {
			z.datagramsOf(peer, out, name, order, one)
		}
	}
}

// datagramsOf sends a datagram's fragments from each of some zones, and waits for the datagrams.
func (z *zones) datagramsOf(peer *rawIP, out map[string]*rawIP, name string, order []int, from ...zone) {
	z.t.Helper()
	source, there := z.family.At(zoneHost, fragmentPort).String(), z.family.Text(far)
	missing := map[string]string{}
	pieces := map[string][][]byte{}
	for _, one := range from {
		text := one.bridge + name + strings.Repeat("0123456789abcdef", 3*fragmentSize/16)
		pieces[one.bridge] = packets.UDP(source, there, text).With(func(s *packets.Spec) { s.ID = uint16(len(name)) }).Fragments(fragmentSize)
		seen := z.family.At(topo.HostAddr, z.external("udp", one.bridge, fragmentPort)).String()
		missing[transport(packets.UDP(seen, there, text))] = one.bridge
	}
	for _, piece := range order {
		for _, one := range from {
			out[one.bridge].mustSend(pieces[one.bridge][piece])
		}
	}
	for len(missing) > 0 {
		_, l4, ok := peer.next(5 * time.Second)
		if !ok {
			z.t.Errorf("in order %v the datagrams of %q are missing", order, slices.Sorted(maps.Values(missing)))
			break
		}
		delete(missing, string(l4))
	}
}

// forwards: one to each, from outside and by hairpin from the other; which one has to be said.
func (z *zones) forwards() {
	at := z.family.At
	if out, code := z.Try("forward", "add", "--socket", z.Socket, at(topo.HostAddr, 9000).String(), at(zoneHost, 9000).String()); code != 1 ||
		!strings.Contains(out, "name the network") {
		z.t.Errorf("exit code %d: %s", code, out)
	}
	peer := z.udp(z.peer2, 5000)
	var sockets []probe.Socket
	for i, one := range z.of {
		z.Client("forward", "add", "--protocol", "udp", "--network", one.bridge, at(topo.HostAddr, 9000+uint16(i)).String(), at(zoneHost, 9000).String())
		sockets = append(sockets, z.udp(one.Host, 9000))
	}
	for i, one := range z.of {
		external := at(topo.HostAddr, 9000+uint16(i))
		z.send(peer, external, "calls "+one.bridge)
		z.send(sockets[i], z.receives(sockets[i], "calls "+one.bridge), "answers from "+one.bridge)
		if from := z.receives(peer, "answers from "+one.bridge); from != external {
			z.t.Errorf("%s answers from %s", one.bridge, from)
		}
		other := sockets[1-i]
		z.send(other, external, "hairpin to "+one.bridge)
		z.send(sockets[i], z.receives(sockets[i], "hairpin to "+one.bridge), "hairpin back")
		if from := z.receives(other, "hairpin back"); from != external {
			z.t.Errorf("the hairpin's answer is from %s", from)
		}
	}
}

// kernelsWay: what the kernel has to fragment on its way out comes back to whom it is from.
func (z *zones) kernelsWay() {
	at := z.family.At
	peer := z.udp(z.peer1, 3480)
	for _, one := range z.of {
		z.must(one.ns.Sysctl("net.ipv4.ip_no_pmtu_disc=1")) // no DF; while it is set, no error's MTU is taken either
		s, text := z.udp(one.Host, 20006), one.bridge+strings.Repeat("x", 1450)
		z.send(s, at(topo.Peer1Addr, 3480), text)
		z.send(peer, z.receives(peer, text), "back to "+one.bridge)
		z.receives(s, "back to "+one.bridge)
		z.must(one.ns.Sysctl("net.ipv4.ip_no_pmtu_disc=0"))
	}
}

// TestOverlappingZoneGoes: the other one's flows go on without a loss.
func TestOverlappingZoneGoes(t *testing.T) { family.Each(t, testOverlappingZoneGoes) }

func testOverlappingZoneGoes(t *testing.T, fam family.Family) {
	at := fam.At
	z := newZones(fam, t, 0, false)
	server, err := probe.ServeStreams(z.Peer1, 0)
	z.must(err)
	defer server.Close()
	var streams []*probe.UDPStream
	for _, one := range z.of {
		s, err := probe.StartDatagrams(one.ns, 20000, at(topo.Peer1Addr, server.Port()))
		z.must(err)
		defer s.Close()
		streams = append(streams, s)
	}
	answered := func(stream int, more int) {
		want := streams[stream].Answered() + more
		z.eventually("answers to "+z.of[stream].bridge, func() bool { return streams[stream].Answered() >= want })
	}
	answered(0, 10)
	answered(1, 10)
	z.Stop()
	z.RunWith("--inside", z.of[1].bridge)
	answered(1, 20)
	for _, b := range z.Bindings() {
		if b.Network != z.of[1].bridge {
			t.Errorf("left: %+v", b)
		}
	}
	r, err := streams[1].Finish()
	if err != nil || len(r.Lost) > 0 || len(r.Seen) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestOverlappingZonesOnTheStack: there the kernel's routing says where an inside address is: the network that it leads to is
// translated, and the other one left alone, which is said.
func TestOverlappingZonesOnTheStack(t *testing.T) { family.Each(t, testOverlappingZonesOnTheStack) }

func testOverlappingZonesOnTheStack(t *testing.T, fam family.Family) {
	at := fam.At
	z := newZones(fam, t, 0, false, "--path", "stack")
	peer := z.udp(z.peer1, 3478)
	s := z.udp(z.of[0].Host, 20000)
	z.send(s, at(topo.Peer1Addr, 3478), "by the stack")
	z.send(peer, z.receives(peer, "by the stack"), "and back")
	z.receives(s, "and back")
	for _, command := range []string{"status", "networks"} {
		if out := z.Client(command); !strings.Contains(out, "zb") || !strings.Contains(out, "routing") {
			t.Errorf("conenat %s says nothing of zb's addresses:\n%s", command, out)
		}
	}
	z.Stop()
	z.RunWith("--inside", "za", "--inside", "zb", "--path", "direct")
	(&zones{z.at(t), z.of}).pings()
}

// TestOverlappingZonesStrict: with a strict rp_filter the host does not answer ARP where its routing finds the sender elsewhere;
// status says so, and what helps.
func TestOverlappingZonesStrict(t *testing.T) {
	z := newZones(family.V4, t, 0, false)
	z.Stop()
	z.must(z.Host.Sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.za.rp_filter=1", "net.ipv4.conf.zb.rp_filter=1"))
	z.RunWith("--inside", "za", "--inside", "zb")
	const command = "net.ipv4.conf.zb.rp_filter=2"
	if out := z.Client("status"); !strings.Contains(out, "sysctl -w "+command) || strings.Contains(out, "conf.za.") {
		t.Errorf("status:\n%s", out)
	}
	for i, one := range z.of {
		z.must(one.ns.IP(t.Context(), "neigh flush all"))
		if r, err := probe.PingOnce(one.Host, topo.Peer1Addr, 2); err != nil || (r.Received == 2) != (i == 0) {
			t.Errorf("%s, strict: %+v, %v", one.bridge, r, err)
		}
	}
	z.must(z.Host.Sysctl(command))
	(&zones{z.at(t), z.of}).pings()
}
