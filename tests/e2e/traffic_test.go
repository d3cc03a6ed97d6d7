// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

const megabyte = 1 << 20

// TestBulk: 100 MB each way with the right hash, also over an uplink with a smaller MTU.
func TestBulk(t *testing.T) { family.Each(t, testBulk) }

func testBulk(t *testing.T, fam family.Family) {
	at := fam.At
	for name, mtu := range both(fam, map[string]int{"MTU1500": 1500, "MTU1400": 1400}, "MTU1400") {
		t.Run(name, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 1, UplinkMTU: mtu}, "")
			server := l.serve(l.peer1, 8080)
			conn := l.dial(l.containers[0], at(topo.Peer1Addr, server.Port()))
			down, err := conn.Download(100 * megabyte)
			if err != nil {
				t.Fatalf("download: %v", err)
			}
			up, err := conn.Upload(100 * megabyte)
			if err != nil {
				t.Fatalf("upload: %v", err)
			}
			t.Logf("down %v, up %v", down.Elapsed, up.Elapsed)
			if n := l.Counter("translated_outbound"); n == 0 {
				t.Error("conenat translated nothing")
			}
			if n := conntracked(l, 8080); n != 0 {
				t.Errorf("conntrack has %d entries of the connection", n)
			}
		})
	}
}

// TestLargeDatagrams: datagrams larger than every MTU there and back, with the sender's path MTU discovery
// on (the first one too large is lost, and the kernel tells why from the container's gateway) and off (DF=0:
// the packets go the kernel's way, which fragments them).
func TestLargeDatagrams(t *testing.T) { family.Each(t, testLargeDatagrams) }

func testLargeDatagrams(t *testing.T, fam family.Family) {
	for name, mtu := range both(fam, map[string]int{"MTU1500": 1500, "MTU1400": 1400}, "MTU1400") {
		for discovery, off := range map[string]string{"DF": "0", "NoDF": "1"} {
			if fam == family.V6 && off == "1" {
				continue // nobody but the sender fragments in IPv6, so that it cannot do without
			}
			t.Run(name+discovery, func(t *testing.T) {
				l := newLabIn(fam, t, topo.Figure3Config{Containers: 1, UplinkMTU: mtu}, "")
				for _, ns := range []*topo.NS{l.Containers[0], l.Peer1} {
					if err := ns.Sysctl("net.ipv4.ip_no_pmtu_disc=" + off); err != nil {
						t.Fatal(err)
					}
				}
				l.largeDatagrams(off == "0" && mtu < 1500)
			})
		}
	}
}

func (l *lab) largeDatagrams(firstIsLost bool) {
	at := l.family.At
	c, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	there, here := at(topo.Peer1Addr, 3478), at(topo.HostAddr, 20000)
	for _, size := range []int{100, 1390, 1460, 3000, 8000} {
		text := strings.Repeat("x", size)
		if firstIsLost && size == 1390 { // larger than the MTU with DF set, and then known to be
			l.afterLoss(c, there, peer, text)
			l.afterLoss(peer, here, c, text)
			continue
		}
		l.send(c, there, text)
		if from := l.receives(peer, text); from != here {
			l.t.Errorf("%d bytes: seen as %s", size, from)
		}
		l.send(peer, here, text)
		if from := l.receives(c, text); from != there {
			l.t.Errorf("%d bytes: answered from %s", size, from)
		}
	}
	if b, _ := l.bindingOf("udp", "172.17.0.2:20000"); b.Sessions != 1 {
		l.t.Errorf("binding %+v, want one session", b)
	}
}

// afterLoss sends once in vain, and again until the sender has learned the path's MTU.
func (l *lab) afterLoss(from probe.Socket, to netip.AddrPort, receiver probe.Socket, text string) {
	l.t.Helper()
	l.send(from, to, text)
	l.receivesNothing(receiver, 100*time.Millisecond)
	l.eventually("the sender learns the path's MTU", func() bool {
		l.send(from, to, text)
		p, err := receiver.Receive(200 * time.Millisecond)
		return err == nil && p.Text == text
	})
	for { // what was sent in between
		if _, err := receiver.Receive(200 * time.Millisecond); err != nil {
			return
		}
	}
}

// TestHostKeepsWorking: its service, its connections, and its socket on a port that a container also uses.
func TestHostKeepsWorking(t *testing.T) { family.Each(t, testHostKeepsWorking) }

func testHostKeepsWorking(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "")
	service, peerServer := l.serve(l.host, 8000), l.serve(l.peer1, 8080)
	if err := l.dial(l.peer1, at(topo.HostAddr, service.Port())).Echo("to the host's service"); err != nil {
		t.Error(err)
	}
	if err := l.dial(l.containers[0], at(topo.GatewayAddr, service.Port())).Echo("from a container"); err != nil {
		t.Error(err)
	}
	if err := l.dial(l.containers[0], at(topo.HostAddr, service.Port())).Echo("by the external address"); err != nil {
		t.Error(err)
	}
	if err := l.dial(l.host, at(topo.Peer1Addr, peerServer.Port())).Echo("from the host"); err != nil {
		t.Error(err)
	}
	for _, h := range []probe.Host{l.host, l.containers[0]} {
		if r, err := probe.PingOnce(h, fam.Addr(topo.Peer1Addr), 3); err != nil || r.Received != 3 {
			t.Errorf("ping: %+v, %v", r, err)
		}
	}
	if r, err := probe.PingOnce(l.peer1, fam.Addr(topo.HostAddr), 3); err != nil || r.Received != 3 {
		t.Errorf("ping to the host: %+v, %v", r, err)
	}
	t.Run("ContainerFirst", func(t *testing.T) { l.at(t).samePort(20000, true) })
	t.Run("HostFirst", func(t *testing.T) { l.at(t).samePort(20002, false) })
}

// at is the lab for a subtest.
func (l *lab) at(t *testing.T) *lab {
	sub := *l
	sub.t = t
	return &sub
}

// samePort: host and container send from one port to one peer, and each gets its own answers.
func (l *lab) samePort(port uint16, containerFirst bool) {
	at := l.family.At
	peer := l.udp(l.peer1, port+5000)
	to := at(topo.Peer1Addr, port+5000)
	names := []string{"host", "container"}
	if containerFirst {
		names = []string{"container", "host"}
	}
	sockets := map[string]probe.Socket{}
	seen := map[string]netip.AddrPort{}
	for _, who := range names {
		h := l.host
		if who == "container" {
			h = l.containers[0]
		}
		sockets[who] = l.udp(h, port)
		l.send(sockets[who], to, who)
		seen[who] = l.receives(peer, who)
	}
	if seen["host"] == seen["container"] {
		l.t.Errorf("both are seen as %s", seen["host"])
	}
	for _, who := range names {
		l.send(peer, seen[who], "for the "+who)
		if from := l.receives(sockets[who], "for the "+who); from != to {
			l.t.Errorf("%s: the answer comes from %s, want %s", who, from, to)
		}
	}
}

// TestBridgeIsUntouched: what containers say to each other is none of the NAT's business, and another
// network stays another network.
func TestBridgeIsUntouched(t *testing.T) { family.Each(t, testBridgeIsUntouched) }

func testBridgeIsUntouched(t *testing.T, fam family.Family) {
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2, Net2Containers: 1}, "", "--inside", "net2")
	c1, c2 := l.udp(l.containers[0], 20000), l.udp(l.containers[1], 20000)
	l.send(c1, netip.MustParseAddrPort(fam.Text("172.17.0.3:20000")), "neighbour")
	if from := l.receives(c2, "neighbour"); from.String() != fam.Text("172.17.0.2:20000") {
		t.Errorf("a neighbour is seen as %s", from)
	}
	if len(l.Bindings()) != 0 {
		t.Errorf("bindings: %+v", l.Bindings())
	}
	server := l.serve(l.containers[1], 8080)
	conn := l.dial(l.containers[0], netip.AddrPortFrom(netip.MustParseAddr(fam.Text("172.17.0.3")), server.Port()))
	if _, err := conn.Download(10 * megabyte); err != nil {
		t.Error(err)
	}
}

// TestHairpin: a neighbour is reached by its external endpoint, and sees the caller's.
func TestHairpin(t *testing.T) { family.Each(t, testHairpin) }

func testHairpin(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2, Net2Containers: 1}, "", "--inside", "net2")
	peer := l.udp(l.peer1, 3478)
	c1, c2, far := l.udp(l.containers[0], 20000), l.udp(l.containers[1], 20001), l.udp(l.containers[2], 20002)
	for _, s := range []probe.Socket{c1, c2, far} {
		l.send(s, at(topo.Peer1Addr, 3478), "hello")
		l.receives(peer, "hello")
	}
	l.send(c1, at(topo.HostAddr, 20001), "hairpin")
	if from := l.receives(c2, "hairpin"); from != at(topo.HostAddr, 20000) {
		t.Errorf("the caller is seen as %s", from)
	}
	l.send(c2, at(topo.HostAddr, 20000), "back")
	l.receives(c1, "back")
	l.send(c1, at(topo.HostAddr, 20000), "myself")
	if from := l.receives(c1, "myself"); from != at(topo.HostAddr, 20000) {
		t.Errorf("the caller to itself is seen as %s", from)
	}
	l.send(far, at(topo.HostAddr, 20001), "from another network")
	l.eventually("the packet from another network is dropped", func() bool { return l.Counter("dropped_isolated") > 0 })
	l.receivesNothing(c2, 100*time.Millisecond)

	service := l.serve(l.containers[1], 80)
	l.Client("forward", "add", "198.51.100.1:8080", "172.17.0.3:80")
	for i, h := range l.containers {
		conn, err := h.DialTCP(0, at(topo.HostAddr, 8080))
		if err != nil {
			t.Errorf("container %d to the published port: %v", i+1, err)
			continue
		}
		if from, err := conn.Seen(); err != nil || from.Addr() != fam.Addr(topo.HostAddr) {
			t.Errorf("container %d is seen as %s, %v", i+1, from, err)
		}
		if _, err := conn.Download(5 * megabyte); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	_ = service
}

// TestForward: a static binding admits everybody, who sees and is seen as what he is.
func TestForward(t *testing.T) { family.Each(t, testForward) }

func testForward(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "")
	l.serve(l.containers[0], 80)
	l.Client("forward", "add", "--protocol", "tcp", "--network", "docker0", "198.51.100.1:8080", "172.17.0.2:80")
	conn := l.dial(l.peer2, at(topo.HostAddr, 8080))
	if from, err := conn.Seen(); err != nil || from.Addr() != fam.Addr(topo.Peer2Addr) {
		t.Errorf("the service sees the client as %s, %v", from, err)
	}
	if _, err := conn.Download(20 * megabyte); err != nil {
		t.Error(err)
	}
	if _, err := conn.Upload(20 * megabyte); err != nil {
		t.Error(err)
	}
	if out := l.Client("forward", "list"); !strings.Contains(out, fam.Text("tcp/198.51.100.1:8080")) {
		t.Errorf("forward list: %s", out)
	}
	l.Client("forward", "remove", "tcp/198.51.100.1:8080")
	if bindings := l.Bindings(); len(bindings) != 0 {
		t.Errorf("bindings after the forward's end: %+v", bindings)
	}
	if err := conn.Echo("anybody there?"); err == nil {
		t.Error("the connection lives on after its forward was removed")
	}
}

// TestSpoofedSource: a container cannot send from an address that is not of its network.
func TestSpoofedSource(t *testing.T) { family.Each(t, testSpoofedSource) }

func testSpoofedSource(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "")
	if err := l.Containers[0].AddAddr("eth0", "10.1.2.3/32"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Containers[0].Run(t.Context(), "", "ip", fam.Network("-"), "route", "replace", "default", "via", fam.Text("172.17.0.1"), "src", fam.Text("10.1.2.3")); err != nil {
		t.Fatal(err)
	}
	peer, c := l.udp(l.peer1, 3478), l.udp(l.containers[0], 20000)
	l.send(c, at(topo.Peer1Addr, 3478), "spoofed")
	l.eventually("the spoofed packet is counted", func() bool { return l.Counter("dropped_spoofed") > 0 })
	l.receivesNothing(peer, 200*time.Millisecond)
}

// TestNewContainer: a container that comes while the daemon runs is translated from its first packet, on its
// own port's hook a moment later; when it goes its port goes.
func TestNewContainer(t *testing.T) { family.Each(t, testNewContainer) }

func testNewContainer(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "")
	peer := l.udp(l.peer1, 3478)
	ns, err := l.AddContainer("late", "docker0", "172.17.0.77", "172.17.0.1")
	if err != nil {
		t.Fatal(err)
	}
	c := l.udp(l.probe(ns), 20000)
	l.send(c, at(topo.Peer1Addr, 3478), "first packet")
	if from := l.receives(peer, "first packet"); from != at(topo.HostAddr, 20000) {
		t.Errorf("seen as %s", from)
	}
	if n := conntracked(l, 3478); n != 0 {
		t.Errorf("conntrack has %d entries of the first packet's flow", n)
	}
	l.eventually("the port is followed", func() bool { return strings.Contains(l.Client("networks"), "veth-late") })
	l.send(c, at(topo.Peer1Addr, 3478), "by the port")
	from := l.receives(peer, "by the port")
	l.send(peer, from, "answer")
	l.receives(c, "answer")
	if err := l.Host.DeleteLink("veth-late"); err != nil {
		t.Fatal(err)
	}
	l.eventually("the port is forgotten", func() bool { return !strings.Contains(l.Client("networks"), "veth-late") })
}

// TestUplinkUnderLoad: the uplink goes and comes back with another index while packets flow.
func TestUplinkUnderLoad(t *testing.T) { family.Each(t, testUplinkUnderLoad) }

func testUplinkUnderLoad(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "", "--outside", "eth0")
	peer, c := l.udp(l.peer1, 3478), l.udp(l.containers[0], 20000)
	l.send(c, at(topo.Peer1Addr, 3478), "before")
	mapped := l.receives(peer, "before")
	if err := l.Host.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	l.eventually("the daemon sees it gone", func() bool { return strings.Contains(l.Client("status"), "away") })
	err := errors.Join(l.Link(
		topo.End{NS: l.Host, Name: "eth0", Addr: topo.HostAddr.String() + "/24"},
		topo.End{NS: l.Router, Name: "wan", Addr: topo.RouterAddr.String() + "/24"}, 0),
		l.Host.AddRoute("default", topo.RouterAddr.String()))
	if err != nil {
		t.Fatal(err)
	}
	before := l.Counter("translated_outbound")
	l.eventually("packets flow again, through conenat", func() bool {
		l.send(c, at(topo.Peer1Addr, 3478), "after")
		p, err := peer.Receive(100 * time.Millisecond)
		if err != nil && !errors.Is(err, probe.ErrTimeout) {
			t.Fatal(err)
		}
		if err == nil && p.From != mapped {
			t.Fatalf("the mapping changed from %s to %s", mapped, p.From)
		}
		return err == nil && l.Counter("translated_outbound") > before
	})
}
