// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/figure3"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// guardLab is a lab with a real dockerd that conenat follows. Its second container publishes tcp/8080 as its port 80
// and udp/5353 as its port 53.
type guardLab struct {
	*lab
	docker        *docker.Daemon
	first, second *docker.Container
}

func newGuardLab(t *testing.T, cfg topo.Figure3Config, args ...string) *guardLab {
	t.Helper()
	g := placeGuardLab(t, cfg, args...)
	g.Run()
	return g
}

// placeGuardLab is newGuardLab before conenat runs.
func placeGuardLab(t *testing.T, cfg topo.Figure3Config, args ...string) *guardLab {
	t.Helper()
	f := topo.Figure3ForTest(t, cfg)
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{})
	g := &guardLab{docker: d,
		lab: &lab{Figure3: f, t: t, host: probe.In(f.Host), peer1: probe.In(f.Peer1), peer2: probe.In(f.Peer2)}}
	g.first = d.RunForTest(t, docker.Spec{Name: "first"})
	g.second = d.RunForTest(t, docker.Spec{Name: "second", Publish: map[string]string{"80/tcp": ":8080", "53/udp": ":5353"}})
	g.containers = []probe.Host{g.first, g.second}
	t.Setenv("DOCKER_HOST", "unix://"+d.Socket)
	g.Conenat = harness.Place(t, f.Topo, f.Host, append([]string{"--docker"}, args...)...)
	return g
}

// onStack: all of conenat's work was done on the kernel's way.
func (l *lab) onStack() {
	l.t.Helper()
	if n := l.Counter("translated_stack"); n < 100 {
		l.t.Errorf("%d packets were translated on the stack path", n)
	}
	for _, direct := range []string{"translated_outbound", "translated_inbound"} {
		if n := l.Counter(direct); n != 0 {
			l.t.Errorf("%s is %d on the stack path", direct, n)
		}
	}
}

// TestStackTraffic: all that the direct path carries, by the kernel's way.
func TestStackTraffic(t *testing.T) {
	tests := []struct {
		name string
		mtu  int
		args []string
	}{
		{"TCX", 1500, nil},
		{"Clsact", 1500, []string{"--disable-feature", "tcx"}},
		{"MTU1400", 1400, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuardLab(t, topo.Figure3Config{UplinkMTU: tt.mtu}, append(tt.args, "--path", "stack")...)
			dockerTraffic(g.lab)
			g.publishedUDP()
			g.hairpinToPublished()
			g.fragmentsBothWays()
			g.errorsReachTheirSenders()
			g.onStack()
			checkReplay(g.lab)
		})
	}
}

// publishedUDP: the service sees the client, and answers from the published port, also to who was never there.
func (g *guardLab) publishedUDP() {
	g.t.Helper()
	service, client := g.udp(g.second, 53), g.udp(g.peer2, 6000)
	g.send(client, at(topo.HostAddr, 5353), "question")
	if from := g.receives(service, "question"); from != at(topo.Peer2Addr, 6000) {
		g.t.Errorf("the published UDP service sees its client as %s", from)
	}
	g.send(service, at(topo.Peer2Addr, 6000), "answer")
	if from := g.receives(client, "answer"); from != at(topo.HostAddr, 5353) {
		g.t.Errorf("the answer comes from %s", from)
	}
	other := g.udp(g.peer1, 6001)
	g.send(service, at(topo.Peer1Addr, 6001), "unasked")
	if from := g.receives(other, "unasked"); from != at(topo.HostAddr, 5353) {
		g.t.Errorf("the service's own packet comes from %s", from)
	}
}

func (g *guardLab) hairpinToPublished() {
	g.t.Helper()
	for who, h := range map[string]probe.Host{"a neighbour": g.first, "itself": g.second, "the host": g.host} {
		conn, err := h.DialTCP(0, at(topo.HostAddr, 8080))
		if err != nil {
			g.t.Errorf("%s to the published port: %v", who, err)
			continue
		}
		if _, err := conn.Download(megabyte); err != nil {
			g.t.Errorf("%s to the published port: %v", who, err)
		}
		conn.Close()
	}
}

// fragmentsBothWays: 8 KB datagrams, which every link has to fragment.
func (l *lab) fragmentsBothWays() {
	l.t.Helper()
	c, peer := l.udp(l.containers[0], 24000), l.udp(l.peer1, 24001)
	text := strings.Repeat("fragment", 1000)
	deliver := func(s probe.Socket, to netip.AddrPort, receiver probe.Socket) (from netip.AddrPort) {
		l.eventually("a datagram of 8 KB arrives", func() bool { // the first may tell its sender of the path's MTU only
			l.send(s, to, text)
			p, err := receiver.Receive(300 * time.Millisecond)
			from = p.From
			return err == nil && p.Text == text
		})
		return from
	}
	mapped := deliver(c, at(topo.Peer1Addr, 24001), peer)
	if mapped.Addr() != topo.HostAddr {
		l.t.Errorf("the datagram comes from %s", mapped)
	}
	if from := deliver(peer, mapped, c); from != at(topo.Peer1Addr, 24001) {
		l.t.Errorf("the answer comes from %s", from)
	}
}

// icmpError is what a socket hears of a packet that it has sent.
type icmpError struct {
	kind, code byte
	from       netip.Addr     // who says so
	about      netip.AddrPort // where the packet was sent
}

// errorsReachTheirSenders: what routers and receivers say of a packet, its sender hears, as of the packet that it sent.
func (g *guardLab) errorsReachTheirSenders() {
	g.t.Helper()
	closed := at(topo.Peer1Addr, 9)
	tests := []struct {
		name string
		ns   *topo.NS
		port int
		to   netip.AddrPort
		ttl  int
		want icmpError
	}{
		{"TTL ends at the host", g.first.NS, 25001, closed, 1, icmpError{11, 0, topo.GatewayAddr, closed}},
		{"TTL ends at the router", g.first.NS, 25002, closed, 2, icmpError{11, 0, topo.RouterAddr, closed}},
		{"port unreachable", g.first.NS, 25003, closed, 64, icmpError{3, 3, topo.Peer1Addr, closed}},
		{"TTL ends at the host, from outside", g.Peer2, 25005, at(topo.HostAddr, 5353), 2,
			icmpError{11, 0, topo.HostAddr, at(topo.HostAddr, 5353)}},
	}
	for _, tt := range tests {
		got, err := provoke(tt.ns, tt.port, tt.to, tt.ttl, 32)
		if err != nil || got != tt.want {
			g.t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
}

// provoke sends a datagram and waits for the ICMP error about it, sending again now and then: errors are limited in
// their rate.
func provoke(ns *topo.NS, port int, to netip.AddrPort, ttl, size int) (got icmpError, err error) {
	doErr := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
			unix.Bind(fd, &unix.SockaddrInet4{Port: port}),
		)
		if err != nil {
			return err
		}
		for deadline := time.Now().Add(probe.Timeout); time.Now().Before(deadline); {
			_ = unix.Sendto(fd, make([]byte, size), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
			fds := []unix.PollFd{{Fd: int32(fd)}} // POLLERR is always waited for
			if n, err := unix.Poll(fds, 250); err == nil && n == 1 {
				got, err = readError(fd)
				return err
			}
		}
		return probe.ErrTimeout
	})
	return got, doErr
}

// readError takes one error off a socket's queue (struct sock_extended_err, and who sent it, in a control message).
func readError(fd int) (icmpError, error) {
	control := make([]byte, 512)
	_, n, _, name, err := unix.Recvmsg(fd, make([]byte, 64), control, unix.MSG_ERRQUEUE)
	if err != nil {
		return icmpError{}, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return icmpError{}, err
	}
	i := slices.IndexFunc(messages, func(m unix.SocketControlMessage) bool {
		return m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR && len(m.Data) >= 24
	})
	to, ok := name.(*unix.SockaddrInet4)
	if i < 0 || !ok {
		return icmpError{}, errors.New("no IP_RECVERR message")
	}
	data := messages[i].Data // error 4, origin 1, type 1, code 1, pad 1, info 4, data 4, then struct sockaddr_in
	from, _ := netip.AddrFromSlice(data[20:24])
	return icmpError{kind: data[5], code: data[6], from: from, about: netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))}, nil
}

// TestStackFigure3: one endpoint for every peer, in every order, on the stack path, too.
func TestStackFigure3(t *testing.T) {
	g := newGuardLab(t, topo.Figure3Config{SymmetricPeer: true}, "--path", "stack")
	experiment, err := figure3.On(g.Figure3, g.first)
	if err != nil {
		t.Fatal(err)
	}
	g.staysCone(experiment)
	g.onStack()
	checkReplay(g.lab)
}

// staysCone is Figure 3 in every order, and the call of a peer behind a symmetric NAT, which is none of the remotes
// that the container has sent to: Docker's FORWARD chain does not let it in, until a rule of the operator's does.
func (l *lab) staysCone(experiment figure3.Experiment) {
	for _, order := range figure3.Orders {
		l.t.Run(order.String(), func(t *testing.T) { manyPorts(t, experiment, order) })
	}
	l.t.Run("SymmetricCaller", func(t *testing.T) {
		call, err := experiment.Call(t.Context(), probe.In(l.Peer3), 0)
		if err != nil || call.CameFrom.IsValid() {
			t.Errorf("past the host's FORWARD chain: %+v, %v", call, err)
		}
		l.at(t).rule("-I", "DOCKER-USER", "-i", "eth0", "-o", "docker0", "-p", "udp", "-j", "ACCEPT")
		call, err = experiment.Call(t.Context(), probe.In(l.Peer3), 0)
		if err != nil || !call.Connected() || call.CameFrom == call.Announced {
			t.Errorf("%+v, %v", call, err)
		}
	})
}

// rule changes the host's rules by iptables.
func (l *lab) rule(args ...string) {
	l.t.Helper()
	if _, err := l.Host.Run(l.t.Context(), "", "iptables", args...); err != nil {
		l.t.Fatal(err)
	}
}
