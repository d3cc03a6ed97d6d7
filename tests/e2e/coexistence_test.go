// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/figure3"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// crowd is a host with Docker's rules and others who use its address: it itself, and a virtual machine behind a bridge
// with a masquerade of its own, to which ports are forwarded as by hand and as kube-proxy does.
type crowd struct {
	*streams
	vm *topo.NS
	in *probe.StreamServer // the machine's service
}

const (
	forwardedPort, nodePort = 2222, 30080
	vmService               = 22
)

const crowdRules = `*nat
-A POSTROUTING -s 192.168.0.0/16 ! -o virbr0 -j MASQUERADE
-A PREROUTING -i eth0 -p tcp -m tcp --dport 2222 -j DNAT --to-destination 192.168.122.2:22
-A PREROUTING -i eth0 -p udp -m udp --dport 2222 -j DNAT --to-destination 192.168.122.2:22
:KUBE-SERVICES -
:KUBE-NODEPORTS -
:KUBE-MARK-MASQ -
:KUBE-POSTROUTING -
-A PREROUTING -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j DNAT --to-destination 192.168.122.2:22
-A KUBE-NODEPORTS -p udp -m udp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p udp -m udp --dport 30080 -j DNAT --to-destination 192.168.122.2:22
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
COMMIT
*filter
-I FORWARD -i virbr0 -j ACCEPT
-I FORWARD -o virbr0 -j ACCEPT
COMMIT
`

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 2})
	c := &crowd{streams: &streams{lab: bareLab(family.V4, t, f)}}
	err := errors.Join(topo.DockerRules(t.Context(), f.Host), f.Host.AddBridge("virbr0", "192.168.122.1/16"))
	if err != nil {
		t.Fatal(err)
	}
	if c.vm, err = f.AddContainer("vm", "virbr0", "192.168.122.2", "192.168.122.1"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Host.Run(t.Context(), crowdRules, "iptables-restore", "--noflush"); err != nil {
		t.Fatal(err)
	}
	c.server, c.in = c.serveStreams(f.Peer1, serverPort), c.serveStreams(c.vm, vmService)
	return c
}

// from starts streams of both protocols from a port.
func (c *crowd) from(place probe.Place, port uint16) {
	c.t.Helper()
	to := at(topo.Peer1Addr, serverPort)
	c.tcp, c.udp = append(c.tcp, c.dialStream(place, port, to)), append(c.udp, c.datagrams(place, port, to))
}

// to starts streams of both protocols of a client outside to a port of the host.
func (c *crowd) to(port uint16) {
	c.t.Helper()
	c.inbound = append(c.inbound, c.dialStream(c.Peer2, 0, at(topo.HostAddr, port)))
	c.inboundUDP = append(c.inboundUDP, c.datagrams(c.Peer2, 0, at(topo.HostAddr, port)))
}

// apart: no two streams have the same external endpoint.
func (c *crowd) apart() {
	c.t.Helper()
	seen := map[string]int{}
	for _, s := range c.tcp {
		seen["tcp "+s.Seen().String()]++
	}
	for _, s := range c.udp {
		seen[fmt.Sprint("udp ", s.Seen())]++
	}
	for endpoint, n := range seen {
		if n > 1 {
			c.t.Errorf("%d streams have the external endpoint %s", n, endpoint)
		}
	}
}

// TestCrowd: the host's own flows, another bridge's masquerade and forwarded ports go on while containers use the same
// source ports to the same peer, whoever was first; and the containers' NAT is a cone all the time.
func TestCrowd(t *testing.T) {
	for name, path := range map[string]string{"Direct": "direct", "Stack": "stack"} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(t)
			rivals := []probe.Place{c.Host, c.vm}
			forwarded := []uint16{forwardedPort, nodePort}
			for i, rival := range rivals {
				c.from(rival, uint16(20000+i))
			}
			for _, port := range forwarded {
				c.to(port)
			}
			c.flows("before conenat starts")
			before := rules(t, c.Figure3)
			c.Conenat = harness.Start(t, c.Topo, c.Host, "--inside", "docker0", "--path", path)
			for _, container := range c.Containers {
				for _, port := range []uint16{20000, 20001, 21000, 21001} { // theirs, and those that they want next
					c.from(container, port)
				}
				for _, port := range forwarded {
					c.from(container, port)
				}
			}
			c.flows("with the containers'")
			for i, rival := range rivals {
				c.from(rival, uint16(21000+i))
			}
			for _, port := range forwarded {
				c.to(port)
			}
			c.flows("with new ones")
			c.apart()
			c.conesAllTheTime()
			c.flows("after figure 3")
			if during := rules(t, c.Figure3); during != before {
				t.Errorf("iptables-save changed from\n%s\nto\n%s", before, during)
			}
			c.finish(0)
		})
	}
}

// conesAllTheTime makes the experiment of figure 3, on ports that are free and on those that others have.
func (c *crowd) conesAllTheTime() {
	c.t.Helper()
	experiment, err := figure3.On(c.Figure3, probe.In(c.Containers[0]))
	if err != nil {
		c.t.Fatal(err)
	}
	for i, order := range figure3.Orders {
		for _, port := range []uint16{uint16(25000 + i), uint16(26000 + i)} {
			if port >= 26000 { // the host has it
				s, err := c.host.ListenUDP(port)
				if err != nil {
					c.t.Fatal(err)
				}
				defer s.Close()
			}
			result, err := experiment.Run(c.t.Context(), order, figure3.Ports{Container: port})
			if err != nil {
				c.t.Error(err)
			} else if result.Symmetric() || !result.Reached {
				c.t.Error(result)
			}
		}
	}
}

// hostSocket is a way in which the host may have a port.
type hostSocket struct {
	name string
	// open opens it; what use does, once a container has used the same port, has to succeed.
	open func(l *lab, port uint16) (use func() error)
}

var hostSockets = []hostSocket{
	{"TCPListening", func(l *lab, port uint16) func() error {
		l.serve(l.host, port)
		return func() error { return l.reach(port) }
	}},
	{"TCPBound", func(l *lab, port uint16) func() error {
		fd := l.bindTCP(port)
		return func() error { return l.listenAndReach(fd, port) }
	}},
	{"TCPConnected", func(l *lab, port uint16) func() error {
		conn, err := l.host.DialTCP(port, l.family.At(topo.Peer1Addr, 8080))
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { conn.Close() })
		return func() error { return conn.Echo("the host's connection") }
	}},
	{"UDPBound", func(l *lab, port uint16) func() error {
		s, peer := l.udp(l.host, port), l.udp(l.peer2, 0)
		return func() error { return asked(peer, l.family.At(topo.HostAddr, port), s) }
	}},
	{"UDPConnected", func(l *lab, port uint16) func() error {
		peer := l.udp(l.peer2, 0)
		conn, err := l.Host.DialUDP(l.family.At(topo.HostAddr, port), l.family.At(topo.Peer2Addr, peer.Port()))
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { conn.Close() })
		return func() error { return connectedAnswered(conn, peer) }
	}},
}

// TestHostSockets: whatever socket the host has, from before conenat starts, or from after a container has sent from
// the same port, works; and so does the container.
func TestHostSockets(t *testing.T) { family.Each(t, testHostSockets) }

func testHostSockets(t *testing.T, fam family.Family) {
	for name, path := range map[string]string{"Direct": "direct", "Stack": "stack"} {
		t.Run(name, func(t *testing.T) {
			f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1, IPv6: fam == family.V6})
			if err := topo.DockerRules(t.Context(), f.Host); err != nil {
				t.Fatal(err)
			}
			l := bareLab(fam, t, f)
			l.containers = []probe.Host{l.probe(f.Containers[0])}
			l.serve(l.peer1, 8080)
			stun, err := probe.ServeSTUN(f.Peer1, 3478)
			if err != nil {
				t.Fatal(err)
			}
			defer stun.Close()
			before := make([]func() error, len(hostSockets))
			for i, s := range hostSockets {
				before[i] = s.open(l, uint16(20000+i))
			}
			l.Conenat = harness.StartIn(fam, t, f.Topo, f.Host, "--inside", "docker0", "--path", path)
			for i, s := range hostSockets {
				t.Run(s.name, func(t *testing.T) {
					l.at(t).rivals(uint16(20000+i), func() func() error { return before[i] })
					l.at(t).rivals(uint16(21000+i), func() func() error { return s.open(l, uint16(21000+i)) })
				})
			}
		})
	}
}

// rivals: a container's TCP connection and its UDP mapping from a port live on, while the host uses its socket on the
// same one.
func (l *lab) rivals(port uint16, open func() func() error) {
	l.t.Helper()
	at := l.family.At
	conn, err := l.containers[0].DialTCP(port, at(topo.Peer1Addr, 8080))
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	socket, err := l.containers[0].ListenUDP(port)
	if err != nil {
		l.t.Fatal(err)
	}
	defer socket.Close()
	mapped, err := socket.Mapped(at(topo.Peer1Addr, 3478), probe.Timeout)
	if err != nil {
		l.t.Fatal(err)
	}
	use := open()
	for range 3 {
		if err := use(); err != nil {
			l.t.Errorf("the host, port %d: %v; bindings %+v", port, err, l.Bindings())
		}
		if err := conn.Echo("the container's connection"); err != nil {
			l.t.Errorf("the container's connection from port %d: %v", port, err)
		}
		if again, err := socket.Mapped(at(topo.Peer1Addr, 3478), probe.Timeout); err != nil || again != mapped {
			l.t.Errorf("the container's UDP port %d was %s and is %s, %v", port, mapped, again, err)
		}
	}
}

// reach: a client outside uses the host's service.
func (l *lab) reach(port uint16) error {
	conn, err := l.peer2.DialTCP(0, l.family.At(topo.HostAddr, port))
	if err != nil {
		return err
	}
	return errors.Join(conn.Echo("to the host"), conn.Close())
}

// bindTCP binds a socket and does nothing with it.
func (l *lab) bindTCP(port uint16) (fd int) {
	l.t.Helper()
	err := l.Host.Do(func() (err error) {
		if fd, err = unix.Socket(errorQueues[l.family].domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(l.family.Any(), port)))
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// listenAndReach lets a bound socket listen, which takes connections then, though nobody accepts them.
func (l *lab) listenAndReach(fd int, port uint16) error {
	if err := unix.Listen(fd, 10); err != nil {
		return err
	}
	conn, err := l.peer2.DialTCP(0, l.family.At(topo.HostAddr, port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// asked: a peer's question comes to the host's socket, and its answer to the peer, from the endpoint that was asked.
func asked(peer probe.Socket, to netip.AddrPort, s probe.Socket) error {
	if err := peer.Send(to, "question"); err != nil {
		return err
	}
	p, err := s.Receive(probe.Timeout)
	if err != nil {
		return fmt.Errorf("the host waits for the question: %w", err)
	}
	if err := s.Send(p.From, "answer"); err != nil {
		return err
	}
	answer, err := peer.Receive(probe.Timeout)
	if err != nil || answer.From != to {
		return fmt.Errorf("answered by %+v, %w", answer, err)
	}
	return nil
}

// connectedAnswered: what the host sends is answered, to wherever it came from.
func connectedAnswered(conn *net.UDPConn, peer probe.Socket) error {
	if _, err := conn.Write([]byte("question")); err != nil {
		return err
	}
	p, err := peer.Receive(probe.Timeout)
	if err != nil {
		return fmt.Errorf("the peer waits for the question: %w", err)
	}
	if err := peer.Send(p.From, "answer"); err != nil {
		return err
	}
	buffer := make([]byte, 100)
	if err := conn.SetReadDeadline(time.Now().Add(probe.Timeout)); err != nil {
		return err
	}
	n, err := conn.Read(buffer)
	if err != nil || !slices.Equal(buffer[:n], []byte("answer")) {
		return fmt.Errorf("answer to %s: %q, %w", p.From, buffer[:n], err)
	}
	return nil
}

// TestHostFromBridgeAddress: what a process of the host sends outside from the bridge's own address is the host's NAT's,
// as before.
func TestHostFromBridgeAddress(t *testing.T) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			l := newLab(t, topo.Figure3Config{Containers: 1}, "", "--path", path)
			conn, err := l.Host.ListenUDP(at(topo.GatewayAddr, 5555))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			peer := l.udp(l.peer1, 3478)
			if _, err := conn.WriteToUDPAddrPort([]byte("from the bridge"), at(topo.Peer1Addr, 3478)); err != nil {
				t.Fatal(err)
			}
			from := l.receives(peer, "from the bridge")
			if from.Addr() != topo.HostAddr {
				t.Errorf("seen as %s", from)
			}
			l.send(peer, from, "back")
			buffer := make([]byte, 16)
			if err := conn.SetReadDeadline(time.Now().Add(probe.Timeout)); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "back" {
				t.Errorf("received %q, %v", buffer[:n], err)
			}
		})
	}
}
