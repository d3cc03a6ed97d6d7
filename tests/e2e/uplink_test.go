// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// uplinkLab is a lab whose host has a second uplink, and a second inside network, net2, with Docker's rules too.
type uplinkLab struct {
	*lab
	first, second *topo.Uplink
	near, other   probe.Host // a container on docker0, and one on net2
}

// The second uplink's addresses (topo.AddUplink).
var (
	secondAddr    = netip.MustParseAddr("198.18.1.1")
	secondGateway = netip.MustParseAddr("198.18.1.254")
)

// What Docker writes for a user network net2, and for published ports of its containers and of docker0's.
const net2Rules = `*filter
-A FORWARD -o net2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o net2 -j DOCKER
-A FORWARD -i net2 ! -o net2 -j ACCEPT
-A FORWARD -i net2 -o net2 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i net2 ! -o net2 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o net2 -j DROP
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p udp --dport 53 -j ACCEPT
-A DOCKER -d 172.18.0.2/32 ! -i net2 -o net2 -p tcp --dport 80 -j ACCEPT
-A DOCKER -d 172.18.0.2/32 ! -i net2 -o net2 -p udp --dport 53 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s 172.18.0.0/16 ! -o net2 -j MASQUERADE
-A DOCKER -i net2 -j RETURN
COMMIT
`

// newUplinkLab starts conenat where routes, lines of ip(8), are in place.
func newUplinkLab(t *testing.T, cfg topo.UplinkConfig, routes string, args ...string) *uplinkLab {
	t.Helper()
	return newUplinkLabIn(family.V4, t, cfg, routes, args...)
}

// newUplinkLabIn is newUplinkLab in a family.
func newUplinkLabIn(fam family.Family, t *testing.T, cfg topo.UplinkConfig, routes string, args ...string) *uplinkLab {
	t.Helper()
	l := placeUplinkLab(t, topo.Figure3Config{IPv6: fam == family.V6}, cfg, routes, args...)
	l.Run()
	return l
}

// placeUplinkLab is newUplinkLab before conenat runs; where the figure has IPv6, it is IPv6 that is tested. Without a name in cfg
// there is no second uplink.
func placeUplinkLab(t *testing.T, figure topo.Figure3Config, cfg topo.UplinkConfig, routes string, args ...string) *uplinkLab {
	t.Helper()
	figure.Containers, figure.Net2Containers = 1, 1
	f := topo.Figure3ForTest(t, figure)
	l := &uplinkLab{lab: &lab{Figure3: f, t: t}, first: f.Uplink()}
	if figure.IPv6 {
		l.family = family.V6
	}
	if cfg.Name != "" {
		var err error
		l.second, err = f.AddUplink(cfg)
		l.must(err)
	}
	l.must(topo.DockerRules(t.Context(), f.Host))
	l.iptables(net2Rules)
	l.ip(routes)
	l.Conenat = harness.Place(t, f.Topo, f.Host, append([]string{"--inside", "docker0", "--inside", "net2"}, args...)...)
	l.Conenat.Family = l.family
	l.host, l.peer1, l.peer2 = l.probe(f.Host), l.probe(f.Peer1), l.probe(f.Peer2)
	l.near, l.other = l.probe(f.Containers[0]), l.probe(f.Net2[0])
	l.containers = []probe.Host{l.near, l.other}
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// ip changes the host's routes, rules and links: one command a line.
func (l *lab) ip(commands string) {
	l.t.Helper()
	l.must(l.Host.IPIn(l.t.Context(), l.family, commands))
}

func (l *lab) iptables(rules string) {
	l.t.Helper()
	_, err := l.Host.Run(l.t.Context(), l.family.Rules(rules), topo.Tables(l.family)+"-restore", "--noflush")
	l.must(err)
}

func (l *lab) status() api.Status {
	l.t.Helper()
	var list []api.Status
	l.must(json.Unmarshal([]byte(l.Client("status", "-o", "json")), &list))
	return list[0]
}

// outside is what status says of an outside interface: its state, and its first external address of the family.
func (l *lab) outside(name string) string {
	l.t.Helper()
	for _, o := range l.status().Outsides {
		if o.Name == name {
			i := slices.IndexFunc(o.Addresses, func(a string) bool { return family.Of(netip.MustParseAddr(a)) == l.family })
			if i < 0 {
				return o.State + " "
			}
			return o.State + " " + o.Addresses[i]
		}
	}
	return ""
}

// isOutside waits until an interface is outside, with an address.
func (l *lab) isOutside(name string, addr netip.Addr) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("%s is outside with %s", name, addr), func() bool { return l.outside(name) == "active "+l.family.Addr(addr).String() })
}

// exchange sends from a container's port to peer 1 and back, and returns as whom the peer sees it.
func (l *lab) exchange(s probe.Socket, port uint16) netip.AddrPort {
	at := l.family.At
	l.t.Helper()
	peer := l.udp(l.peer1, port)
	defer peer.Close()
	l.send(s, at(topo.Peer1Addr, port), "out")
	from := l.receives(peer, "out")
	l.send(peer, from, "back")
	if back := l.receives(s, "back"); back != at(topo.Peer1Addr, port) {
		l.t.Errorf("the answer comes from %s", back)
	}
	return from
}

// leavesAs holds for all that a container sends: it is seen as from addr, and gets its answers.
func (l *lab) leavesAs(h probe.Host, addr netip.Addr) {
	at := l.family.At
	l.t.Helper()
	socket := l.udp(h, 20500)
	if from := l.exchange(socket, 3490); from != at(addr, 20500) {
		l.t.Errorf("a datagram is seen as %s, want %s", from, at(addr, 20500))
	}
	server := l.serve(l.peer1, 0)
	conn := l.dial(h, at(topo.Peer1Addr, server.Port()))
	if from, err := conn.Seen(); err != nil || from.Addr() != l.family.Addr(addr) {
		l.t.Errorf("a connection is seen as %s, %v, want %s", from, err, addr)
	}
	if _, err := conn.Download(10 * megabyte); err != nil {
		l.t.Error(err)
	}
	if _, err := conn.Upload(10 * megabyte); err != nil {
		l.t.Error(err)
	}
	if r, err := probe.PingOnce(h, l.family.Addr(topo.Peer1Addr), 3); err != nil || r.Received != 3 {
		l.t.Errorf("ping: %+v, %v", r, err)
	}
}

// publish forwards tcp/8080 and udp/5353 of an external address to a container's ports 80 and 53, as Docker publishes.
func (l *lab) publish(addr netip.Addr, container string) {
	at := l.family.At
	l.t.Helper()
	l.Client("forward", "add", "--protocol", "tcp", at(addr, 8080).String(), container+":80")
	l.Client("forward", "add", "--protocol", "udp", at(addr, 5353).String(), container+":53")
}

// reaches: clients of both peers get through to a container's published ports by an external address.
func (l *lab) reaches(addr netip.Addr, service probe.Host) {
	at := l.family.At
	l.t.Helper()
	server, err := service.ServeTCP(80)
	l.must(err)
	defer server.Close()
	udp, err := service.ListenUDP(53)
	l.must(err)
	defer udp.Close()
	for peer, h := range map[netip.Addr]probe.Host{topo.Peer1Addr: l.peer1, topo.Peer2Addr: l.peer2} {
		l.reachesTCP(h, peer, addr)
		client := l.udp(h, 0)
		l.send(client, at(addr, 5353), "question")
		from := l.receives(udp, "question")
		if from != at(peer, client.Port()) {
			l.t.Errorf("the service sees its client as %s", from)
		}
		l.send(udp, from, "answer")
		if from := l.receives(client, "answer"); from != at(addr, 5353) {
			l.t.Errorf("the answer comes from %s, want %s", from, at(addr, 5353))
		}
	}
}

func (l *lab) reachesTCP(client probe.Host, peer, addr netip.Addr) {
	at := l.family.At
	l.t.Helper()
	conn, err := client.DialTCP(0, at(addr, 8080))
	if err != nil {
		l.t.Errorf("to the port that %s publishes: %v", addr, err)
		return
	}
	defer conn.Close()
	if from, err := conn.Seen(); err != nil || from.Addr() != l.family.Addr(peer) {
		l.t.Errorf("the service sees its client as %s, %v", from, err)
	}
	if _, err := conn.Download(2 * megabyte); err != nil {
		l.t.Error(err)
	}
}

// wholeWay: what was translated, was so on the path that is asked for.
func (l *lab) wholeWay(path string) {
	l.t.Helper()
	stack, direct := l.Counter("translated_stack"), l.Counter("translated_outbound")+l.Counter("translated_inbound")
	if path == "stack" && (stack < 100 || direct > 0) || path == "direct" && (direct < 100 || stack > 0) {
		l.t.Errorf("path %s: %d packets were translated on the stack path, %d on the direct one", path, stack, direct)
	}
}

var paths = []string{"direct", "stack"}

// TestUplinkByRule: an `ip rule` sends one network's packets out by another uplink. Nobody names it to conenat.
func TestUplinkByRule(t *testing.T) { family.Each(t, testUplinkByRule) }

func testUplinkByRule(t *testing.T, fam family.Family) {
	tests := map[string]string{
		"From": "rule add from 172.18.0.0/16 lookup 100\nroute add default via 198.18.1.254 table 100\n",
		"Iif":  "rule add iif net2 lookup 100\nroute add default via 198.18.1.254 table 100\n",
	}
	for name, routes := range both(fam, tests, "From") {
		for _, path := range paths {
			t.Run(name+"/"+path, func(t *testing.T) {
				l := newUplinkLabIn(fam, t, topo.UplinkConfig{Name: "eth1", OwnRouter: true}, routes, "--path", path)
				l.leavesAs(l.near, topo.HostAddr)
				l.leavesAs(l.other, secondAddr)
				l.publish(secondAddr, "172.18.0.2")
				l.reaches(secondAddr, l.other)
				l.publish(topo.HostAddr, "172.17.0.2")
				l.reaches(topo.HostAddr, l.near)
				l.wholeWay(path)
				checkReplay(l.lab)
			})
		}
	}
}

// TestUplinkRuleComesLater: the rule and its table are made, and taken away again, while conenat runs.
func TestUplinkRuleComesLater(t *testing.T) { family.Each(t, testUplinkRuleComesLater) }

func testUplinkRuleComesLater(t *testing.T, fam family.Family) {
	at := fam.At
	l := newUplinkLabIn(fam, t, topo.UplinkConfig{Name: "eth1"}, "")
	if o := l.outside("eth1"); o != "" {
		t.Errorf("eth1, to which no default route leads, is %s", o)
	}
	before := l.udp(l.other, 20002)
	if from := l.exchange(before, 3478); from != at(topo.HostAddr, 20002) {
		t.Errorf("before the rule: seen as %s", from)
	}
	l.ip("route add default via 198.18.1.254 table 100\nrule add from 172.18.0.0/16 lookup 100\n")
	l.isOutside("eth1", secondAddr)
	l.leavesAs(l.other, secondAddr)
	l.ip("rule del from 172.18.0.0/16 lookup 100\n")
	after := l.udp(l.other, 20004)
	if from := l.exchange(after, 3478); from != at(topo.HostAddr, 20004) {
		t.Errorf("after the rule: seen as %s", from)
	}
	l.eventually("the session of before goes on", func() bool {
		peer := l.udp(l.peer1, 3478)
		defer peer.Close()
		l.send(before, at(topo.Peer1Addr, 3478), "before")
		p, err := peer.Receive(200 * time.Millisecond)
		return err == nil && p.From == at(topo.HostAddr, 20002)
	})
}

const twoDefaults = `route replace default nexthop via 198.51.100.254 nexthop via 198.18.1.254
`

// TestTwoUplinksAtOnce: a default route with two nexthops. Each flow keeps its uplink and that one's address, and a
// port that is published on both is reached by both.
func TestTwoUplinksAtOnce(t *testing.T) { family.Each(t, testTwoUplinksAtOnce) }

func testTwoUplinksAtOnce(t *testing.T, fam family.Family) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := placeUplinkLab(t, topo.Figure3Config{IPv6: fam == family.V6}, topo.UplinkConfig{Name: "eth1", OwnRouter: true}, twoDefaults, "--path", path)
			l.must(l.Host.Sysctl(fam.Sysctl("fib_multipath_hash_policy=1"))) // by ports, too
			l.Run()
			seen := map[netip.Addr]int{}
			for i := range 16 {
				seen[l.keepsUplink(uint16(20000+2*i))]++
			}
			if len(seen) != 2 {
				t.Errorf("flows leave by %v: want both uplinks", seen)
			}
			for _, addr := range []netip.Addr{topo.HostAddr, secondAddr} {
				l.publish(addr, "172.17.0.2")
				for range 4 { // the nexthop of an answer goes by the client's port
					l.reaches(addr, l.near)
				}
			}
			l.wholeWay(path)
			checkReplay(l.lab)
		})
	}
}

// keepsUplink: one socket's packets to one peer all come from one endpoint.
func (l *uplinkLab) keepsUplink(port uint16) netip.Addr {
	l.t.Helper()
	s := l.udp(l.near, port)
	first := l.exchange(s, 3478)
	for range 3 {
		if again := l.exchange(s, 3478); again != first {
			l.t.Errorf("port %d is seen as %s, and then as %s", port, first, again)
		}
	}
	return first.Addr()
}

// TestDefaultRouteMoves: from eth0 to eth1 and back. What is bound on eth0 stays, and goes on when the route is back.
func TestDefaultRouteMoves(t *testing.T) { family.Each(t, testDefaultRouteMoves) }

func testDefaultRouteMoves(t *testing.T, fam family.Family) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newUplinkLabIn(fam, t, topo.UplinkConfig{Name: "eth1", OwnRouter: true}, "", "--path", path)
			l.publish(topo.HostAddr, "172.17.0.2")
			l.defaultRouteMoves()
			checkReplay(l.lab)
		})
	}
}

func (l *uplinkLab) defaultRouteMoves() {
	at := l.family.At
	socket, peer := l.udp(l.near, 20000), l.udp(l.peer1, 3478)
	server := l.serve(l.peer1, 8081)
	conn := l.dial(l.near, at(topo.Peer1Addr, server.Port()))
	l.send(socket, at(topo.Peer1Addr, 3478), "by eth0")
	mapped := l.receives(peer, "by eth0")
	l.serve(l.near, 80)
	client := l.dial(l.peer2, at(topo.HostAddr, 8080))
	if _, err := client.Seen(); err != nil {
		l.t.Errorf("to the published port: %v", err)
	}

	l.ip("route replace default via 198.18.1.254\n")
	l.isOutside("eth1", secondAddr)
	l.isOutside("eth0", topo.HostAddr) // where it stays, with what lives on it
	fresh := l.udp(l.near, 20002)
	if from := l.exchange(fresh, 3480); from != at(secondAddr, 20002) {
		l.t.Errorf("a new flow is seen as %s", from)
	}
	l.publish(secondAddr, "172.17.0.2")
	for _, addr := range []netip.Addr{topo.HostAddr, secondAddr} {
		l.reachesTCP(l.peer1, topo.Peer1Addr, addr)
	}
	if err := client.Echo("the route has moved"); err != nil {
		l.t.Errorf("a client of the published port: %v", err)
	}

	l.ip("route replace default via 198.51.100.254\n")
	l.eventually("the session by eth0 goes on", func() bool {
		l.send(socket, at(topo.Peer1Addr, 3478), "back")
		p, err := peer.Receive(200 * time.Millisecond)
		if err == nil && p.From != mapped {
			l.t.Fatalf("seen as %s, and before as %s", p.From, mapped)
		}
		return err == nil
	})
	if err := conn.Echo("the route is back"); err != nil {
		l.t.Error(err)
	}
	for _, e := range l.Events() {
		if external, err := netip.ParseAddrPort(e.External); err == nil && e.Type == "binding.expired" && external.Addr() == l.family.Addr(topo.HostAddr) {
			l.t.Errorf("a binding of eth0's address has ended: %+v", e)
		}
	}
}

// TestTunUplink: an uplink whose packets carry no Ethernet header.
func TestTunUplink(t *testing.T) { family.Each(t, testTunUplink) }

func testTunUplink(t *testing.T, fam family.Family) {
	tests := []struct {
		name, path string
		args       []string
	}{
		{"DirectTCX", "direct", nil},
		{"DirectClsact", "direct", []string{"--disable-feature", "tcx"}},
		{"StackTCX", "stack", nil},
		{"StackClsact", "stack", []string{"--disable-feature", "tcx"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newUplinkLabIn(fam, t, topo.UplinkConfig{Name: "tun0", Tun: true, OwnRouter: true},
				"route replace default via 198.18.1.254\n", append(tt.args, "--path", tt.path)...)
			l.leavesAs(l.near, secondAddr)
			l.publish(secondAddr, "172.17.0.2")
			l.reaches(secondAddr, l.near)
			l.fragmentsOver(secondAddr)
			l.errorsOver(secondGateway)
			l.wholeWayWithFragments(tt.path)
			checkReplay(l.lab)
		})
	}
}

// fragmentsOver: 8 KB datagrams to a peer and back.
func (l *uplinkLab) fragmentsOver(addr netip.Addr) {
	at := l.family.At
	l.t.Helper()
	socket, peer := l.udp(l.near, 24000), l.udp(l.peer1, 24001)
	text := strings.Repeat("fragment", 1000)
	l.deliver(socket, at(topo.Peer1Addr, 24001), peer, text, at(addr, 24000))
	l.deliver(peer, at(addr, 24000), socket, text, at(topo.Peer1Addr, 24001))
}

// deliver sends until it arrives: the first packet may only tell its sender of the path's MTU.
func (l *lab) deliver(s probe.Socket, to netip.AddrPort, receiver probe.Socket, text string, want netip.AddrPort) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("%d bytes arrive from %s", len(text), want), func() bool {
		l.send(s, to, text)
		p, err := receiver.Receive(300 * time.Millisecond)
		if err == nil && p.Text == text && p.From != want {
			l.t.Fatalf("%d bytes come from %s, want %s", len(text), p.From, want)
		}
		return err == nil && p.Text == text
	})
}

// errorsOver: what a router behind the uplink, and the peer, say of a container's packets.
func (l *uplinkLab) errorsOver(router netip.Addr) {
	at := l.family.At
	l.t.Helper()
	closed := at(topo.Peer1Addr, 9)
	tests := []struct {
		name string
		port int
		ttl  int
		want icmpError
	}{
		{"TTL ends at the host", 25001, 1, icmpError{11, 0, topo.GatewayAddr, closed}},
		{"TTL ends at the router", 25002, 2, icmpError{11, 0, router, closed}},
		{"port unreachable", 25003, 64, icmpError{3, 3, topo.Peer1Addr, closed}},
	}
	for _, tt := range tests {
		if got, err := provoke(l.Containers[0], tt.port, closed, tt.ttl, 32); err != nil || got != tt.want.in(l.family) {
			l.t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want.in(l.family))
		}
	}
}

// wholeWayWithFragments: of what is fragmented, some may take the stack on the direct path.
func (l *lab) wholeWayWithFragments(path string) {
	l.t.Helper()
	stack, direct := l.Counter("translated_stack"), l.Counter("translated_outbound")+l.Counter("translated_inbound")
	if path == "stack" && (stack < 100 || direct > 0) || path == "direct" && (direct < 100 || stack > direct) {
		l.t.Errorf("path %s: %d packets were translated on the stack path, %d on the direct one", path, stack, direct)
	}
}

// TestBondUplink: a VLAN on a bond.
func TestBondUplink(t *testing.T) { family.Each(t, testBondUplink) }

func testBondUplink(t *testing.T, fam family.Family) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			require.Kernel(t, require.Bonding, require.VLAN)
			l := newUplinkLabIn(fam, t, topo.UplinkConfig{Name: "bond0.100", VLANOnBond: true, OwnRouter: true},
				"route replace default via 198.18.1.254\n", "--path", path)
			l.leavesAs(l.near, secondAddr)
			l.publish(secondAddr, "172.17.0.2")
			l.reaches(secondAddr, l.near)
			l.fragmentsOver(secondAddr)
			l.errorsOver(secondGateway)
			checkReplay(l.lab)
		})
	}
}
