// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/dockerfake"
	"github.com/conenat/conenat/tests/family"
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

// newGuardLab is newGuardLabIn with IPv4 alone.
func newGuardLab(t *testing.T, cfg topo.Figure3Config, args ...string) *guardLab {
	t.Helper()
	return newGuardLabIn(family.V4, t, cfg, args...)
}

func newGuardLabIn(fam family.Family, t *testing.T, cfg topo.Figure3Config, args ...string) *guardLab {
	t.Helper()
	g := placeGuardLab(fam, t, cfg, args...)
	g.Run()
	return g
}

// placeGuardLab is newGuardLabIn before conenat runs.
func placeGuardLab(fam family.Family, t *testing.T, cfg topo.Figure3Config, args ...string) *guardLab {
	t.Helper()
	cfg.IPv6 = fam == family.V6
	f := topo.Figure3ForTest(t, cfg)
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{Family: fam})
	g := &guardLab{docker: d, lab: bareLab(fam, t, f)}
	g.first = d.RunForTest(t, docker.Spec{Name: "first"})
	g.second = d.RunForTest(t, docker.Spec{Name: "second", Publish: map[string]string{"80/tcp": ":8080", "53/udp": ":5353"}})
	g.containers = []probe.Host{g.first, g.second}
	t.Setenv("DOCKER_HOST", "unix://"+d.Socket)
	g.Conenat = harness.Place(t, f.Topo, f.Host, append([]string{"--docker"}, args...)...)
	g.Family = fam
	return g
}

// onStack: all of conenat's work was done on the kernel's way.
func (l *lab) onStack() {
	l.t.Helper()
	if n := l.Counter("translated_stack"); n < 50 {
		l.t.Errorf("%d packets were translated on the stack path", n)
	}
	for _, direct := range []string{"translated_outbound", "translated_inbound"} {
		if n := l.Counter(direct); n != 0 {
			l.t.Errorf("%s is %d on the stack path", direct, n)
		}
	}
}

// TestStackTraffic: all that the direct path carries, by the kernel's way.
func TestStackTraffic(t *testing.T) { family.Each(t, testStackTraffic) }

func testStackTraffic(t *testing.T, fam family.Family) {
	tests := map[string]struct {
		mtu  int
		args []string
	}{
		"TCX":     {1500, nil},
		"Clsact":  {1500, []string{"--disable-feature", "tcx"}},
		"MTU1400": {1400, nil},
	}
	for name, tt := range both(fam, tests, "MTU1400") {
		t.Run(name, func(t *testing.T) {
			g := newGuardLabIn(fam, t, topo.Figure3Config{UplinkMTU: tt.mtu}, append(tt.args, "--path", "stack")...)
			dockerTraffic(g.lab)
			g.publishedUDP()
			g.hairpinToPublished()
			g.fragmentsBothWays()
			g.errorsReachTheirSenders(g.first.NS)
			g.onStack()
			checkReplay(g.lab)
		})
	}
}

// publishedUDP: the service sees the client, and answers from the published port, also to who was never there.
func (l *lab) publishedUDP() {
	at := l.family.At
	l.t.Helper()
	service, client := l.udp(l.containers[1], 53), l.udp(l.peer2, 6000)
	l.send(client, at(topo.HostAddr, 5353), "question")
	if from := l.receives(service, "question"); from != at(topo.Peer2Addr, 6000) {
		l.t.Errorf("the published UDP service sees its client as %s", from)
	}
	l.send(service, at(topo.Peer2Addr, 6000), "answer")
	if from := l.receives(client, "answer"); from != at(topo.HostAddr, 5353) {
		l.t.Errorf("the answer comes from %s", from)
	}
	other := l.udp(l.peer1, 6001)
	l.send(service, at(topo.Peer1Addr, 6001), "unasked")
	if from := l.receives(other, "unasked"); from != at(topo.HostAddr, 5353) {
		l.t.Errorf("the service's own packet comes from %s", from)
	}
	service.Close()
}

func (l *lab) hairpinToPublished() {
	at := l.family.At
	l.t.Helper()
	for who, h := range map[string]probe.Host{"a neighbour": l.containers[0], "itself": l.containers[1], "the host": l.host} {
		conn, err := h.DialTCP(0, at(topo.HostAddr, 8080))
		if err != nil {
			l.t.Errorf("%s to the published port: %v", who, err)
			continue
		}
		if _, err := conn.Download(megabyte); err != nil {
			l.t.Errorf("%s to the published port: %v", who, err)
		}
		conn.Close()
	}
}

// fragmentsBothWays: 8 KB datagrams, which every link has to fragment.
func (l *lab) fragmentsBothWays() {
	at := l.family.At
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
	if mapped.Addr() != l.family.Addr(topo.HostAddr) {
		l.t.Errorf("the datagram comes from %s", mapped)
	}
	if from := deliver(peer, mapped, c); from != at(topo.Peer1Addr, 24001) {
		l.t.Errorf("the answer comes from %s", from)
	}
}

// errorsReachTheirSenders: what routers and receivers say of a packet, its sender hears, as of the packet that it sent.
func (l *lab) errorsReachTheirSenders(container *topo.NS) {
	l.t.Helper()
	at := l.family.At
	closed := at(topo.Peer1Addr, 9)
	tests := []struct {
		name string
		ns   *topo.NS
		port int
		to   netip.AddrPort
		ttl  int
		want icmpError
	}{
		{"TTL ends at the host", container, 25001, closed, 1, icmpError{11, 0, topo.GatewayAddr, closed}},
		{"TTL ends at the router", container, 25002, closed, 2, icmpError{11, 0, topo.RouterAddr, closed}},
		{"port unreachable", container, 25003, closed, 64, icmpError{3, 3, topo.Peer1Addr, closed}},
		{"TTL ends at the host, from outside", l.Peer2, 25005, at(topo.HostAddr, 5353), 2,
			icmpError{11, 0, topo.HostAddr, at(topo.HostAddr, 5353)}},
	}
	for _, tt := range tests {
		got, err := provoke(tt.ns, tt.port, tt.to, tt.ttl, 32)
		if err != nil || got != tt.want.in(l.family) {
			l.t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want.in(l.family))
		}
	}
}

// TestStackFigure3: one endpoint for every peer, in every order, on the stack path, too.
func TestStackFigure3(t *testing.T) { family.Each(t, testStackFigure3) }

func testStackFigure3(t *testing.T, fam family.Family) {
	g := newGuardLabIn(fam, t, topo.Figure3Config{SymmetricPeer: true}, "--path", "stack")
	experiment, err := figure3.OnFamily(fam, g.Figure3, g.first)
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
		call, err := experiment.Call(t.Context(), l.probe(l.Peer3), 0)
		if err != nil || call.CameFrom.IsValid() {
			t.Errorf("past the host's FORWARD chain: %+v, %v", call, err)
		}
		l.at(t).rule("-I", l.operators(), "-i", "eth0", "-o", "docker0", "-p", "udp", "-j", "ACCEPT")
		call, err = experiment.Call(t.Context(), l.probe(l.Peer3), 0)
		if err != nil || !call.Connected() || call.CameFrom == call.Announced {
			t.Errorf("%+v, %v", call, err)
		}
	})
}

// rule changes the host's rules by the family's iptables.
func (l *lab) rule(args ...string) {
	l.t.Helper()
	if _, err := l.Host.Run(l.t.Context(), "", topo.Tables(l.family), l.family.Texts(args...)...); err != nil {
		l.t.Fatal(err)
	}
}

// operators is the chain of an operator's own rules. Docker 20.10 makes none in IPv6.
func (l *lab) operators() string {
	if l.family == family.V6 {
		return "FORWARD"
	}
	return "DOCKER-USER"
}

// docker28Lab is Figure 3 with the rules of Docker 28, and an Engine's word for the ports that the second container
// publishes, which are newGuardLab's.
func docker28Lab(fam family.Family, t *testing.T, args ...string) *lab {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 2, SymmetricPeer: true, IPv6: fam == family.V6})
	first, second := netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("172.17.0.3")
	err := topo.Docker28Rules(t.Context(), f.Host, []netip.Addr{first, second},
		topo.Published{Protocol: "tcp", HostPort: 8080, Container: second, ContainerPort: 80},
		topo.Published{Protocol: "udp", HostPort: 5353, Container: second, ContainerPort: 53})
	if err != nil {
		t.Fatal(err)
	}
	l := bareLab(fam, t, f)
	l.containers = []probe.Host{l.probe(f.Containers[0]), l.probe(f.Containers[1])}
	engine := dockerfake.ForTest(t)
	ports := append(dockerfake.Ports("tcp", 8080, 80, 1), dockerfake.Ports("udp", 5353, 53, 1)...)
	place := func(a netip.Addr) []dockerfake.Place {
		return []dockerfake.Place{{Network: "bridge", Address: a.String()}}
	}
	if fam == family.V6 {
		engine.RemoveNetwork("bridge")
		engine.AddNetwork(dockerfake.Network{Name: "bridge", Subnet: "172.17.0.0/16", Gateway: "172.17.0.1",
			Subnet6: fam.Text("172.17.0.0/16"), Gateway6: fam.Text("172.17.0.1"),
			Options: map[string]string{"com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.name": "docker0"}})
		place = func(a netip.Addr) []dockerfake.Place {
			return []dockerfake.Place{{Network: "bridge", Address: a.String(), Address6: fam.Addr(a).String()}}
		}
		for i := range ports {
			ports[i].Host = "::"
		}
	}
	engine.Run(dockerfake.Container{Name: "first", PID: idle(t, f, 0), Places: place(first)})
	engine.Run(dockerfake.Container{Name: "second", PID: idle(t, f, 1), Places: place(second), Ports: ports})
	t.Setenv("DOCKER_HOST", engine.Host())
	l.Conenat = harness.StartIn(fam, t, f.Topo, f.Host, append([]string{"--docker"}, args...)...)
	return l
}

// idle is the PID of a process in a container's namespace.
func idle(t *testing.T, f *topo.Figure3, container int) int {
	t.Helper()
	p, err := f.Start("idle process", f.Containers[container].Command(context.Background(), "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	return p.PID()
}

// TestStackDocker28: with the rules that Docker 28 and later write, which drop what is addressed to a container from
// outside in the raw table: that stays so, and all the rest works.
func TestStackDocker28(t *testing.T) { family.Each(t, testStackDocker28) }

func testStackDocker28(t *testing.T, fam family.Family) {
	for name, args := range both(fam, map[string][]string{"TCX": nil, "Clsact": {"--disable-feature", "tcx"}}, "TCX") {
		t.Run(name, func(t *testing.T) {
			l := docker28Lab(fam, t, append(args, "--path", "stack")...)
			before := rules(t, l.Figure3)
			l.docker28Traffic()
			experiment, err := figure3.OnFamily(fam, l.Figure3, l.containers[0])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, rules(t, l.Figure3)); diff != "" {
				t.Errorf("iptables-save (-before +during):\n%s", diff)
			}
			l.staysCone(experiment)
			l.onStack()
			l.directAccessIsDropped()
		})
	}
	t.Run("GuardDecides", func(t *testing.T) {
		l := docker28Lab(fam, t)
		if p := l.path(); p.Path != "direct" {
			t.Errorf("with no rules but Docker's, path %+v", p)
		}
		l.rule("-I", l.operators(), "-s", "203.0.113.99", "-j", "DROP")
		l.takes("stack")
		l.docker28Traffic()
	})
}

func (l *lab) docker28Traffic() {
	at := l.family.At
	l.t.Helper()
	l.serve(l.peer1, 9000)
	conn := l.dial(l.containers[0], at(topo.Peer1Addr, 9000))
	_, down := conn.Download(20 * megabyte)
	_, up := conn.Upload(20 * megabyte)
	if err := errors.Join(down, up); err != nil {
		l.t.Error(err)
	}
	for who, h := range map[string]probe.Host{"container": l.containers[0], "host": l.host} {
		if r, err := probe.PingOnce(h, l.family.Addr(topo.Peer1Addr), 5); err != nil || r.Received != 5 {
			l.t.Errorf("ping from the %s: %+v, %v", who, r, err)
		}
	}
	l.samePort(23000, true)
	l.samePort(23002, false)
	l.publishedByDocker()
	l.publishedUDP()
	l.hairpinToPublished()
	l.fragmentsBothWays()
	l.errorsReachTheirSenders(l.Containers[0])
}

// directAccessIsDropped: a client that is routed to the container's own address gets nowhere.
func (l *lab) directAccessIsDropped() {
	at := l.family.At
	l.t.Helper()
	if err := l.Router.AddRoute("172.17.0.0/16", topo.HostAddr.String()); err != nil {
		l.t.Fatal(err)
	}
	service, client := l.udp(l.containers[1], 53), l.udp(l.peer2, 6002)
	l.send(client, at(netip.MustParseAddr(l.family.Text("172.17.0.3")), 53), "direct")
	l.send(client, at(topo.HostAddr, 5353), "published")
	if from := l.receives(service, "published"); from != at(topo.Peer2Addr, 6002) {
		l.t.Errorf("seen as %s", from)
	}
}

// TestStackKillAndAdopt: on the stack path, too, traffic needs no daemon, and a new one disturbs nothing.
func TestStackKillAndAdopt(t *testing.T) { family.Each(t, testStackKillAndAdopt) }

func testStackKillAndAdopt(t *testing.T, fam family.Family) {
	tests := map[string][]string{
		"TCX":    {"--path", "stack"},
		"Clsact": {"--path", "stack", "--disable-feature", "tcx"},
		"Auto":   nil, // the rule below decides, for each daemon anew
	}
	for name, args := range both(fam, tests, "Auto") {
		t.Run(name, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, "", args...)
			l.rule("-I", l.operators(), "-s", "203.0.113.99", "-j", "DROP")
			l.takes("stack")
			killAndAdopt(l)
			l.onStack()
			if log := l.Log(); strings.Contains(log, "path: direct") {
				t.Errorf("the new daemon has gone direct in between:\n%s", log)
			}
		})
	}
}

// TestStackExpiry: sessions and bindings of the stack path end in their time, and their ports come free.
func TestStackExpiry(t *testing.T) { family.Each(t, testStackExpiry) }

func testStackExpiry(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, quick, "--path", "stack")
	peer, c := l.udp(l.peer1, 3478), l.udp(l.containers[0], 20000)
	l.send(c, at(topo.Peer1Addr, 3478), "first")
	if from := l.receives(peer, "first"); from != at(topo.HostAddr, 20000) {
		t.Errorf("seen as %s", from)
	}
	l.serve(l.peer2, 8080)
	if err := l.dial(l.containers[1], at(topo.Peer2Addr, 8080)).Echo("tcp"); err != nil {
		t.Error(err)
	}
	checkReplay(l)
	l.eventually("all bindings expire", func() bool { return len(l.Bindings()) == 0 })
	checkReplay(l)
	other := l.udp(l.containers[1], 20000)
	l.send(other, at(topo.Peer1Addr, 3478), "second")
	if from := l.receives(peer, "second"); from != at(topo.HostAddr, 20000) {
		t.Errorf("the port that came free is not given again: seen as %s", from)
	}
}

// TestStackDetach: nothing is left, and Docker's NAT has what begins then, and what was there before.
func TestStackDetach(t *testing.T) { family.Each(t, testStackDetach) }

func testStackDetach(t *testing.T, fam family.Family) {
	at := fam.At
	g := newGuardLabIn(fam, t, topo.Figure3Config{}, "--path", "stack")
	before := rules(t, g.Figure3)
	peer, c := g.udp(g.peer1, 3478), g.udp(g.first, 20000)
	g.send(c, at(topo.Peer1Addr, 3478), "conenat")
	g.receives(peer, "conenat")
	g.Detach()
	for what, out := range leftovers(g.lab) {
		t.Errorf("%s: %s", what, out)
	}
	if diff := cmp.Diff(before, rules(t, g.Figure3)); diff != "" {
		t.Errorf("iptables-save (-during +after):\n%s", diff)
	}
	g.send(c, at(topo.Peer1Addr, 3478), "docker")
	if from := g.receives(peer, "docker"); from.Addr() != fam.Addr(topo.HostAddr) {
		t.Errorf("after detach, the socket of before is seen as %s", from)
	}
	fresh := g.udp(g.first, 20001)
	g.send(fresh, at(topo.Peer1Addr, 3478), "new")
	if from := g.receives(peer, "new"); from != at(topo.HostAddr, 20001) {
		t.Errorf("after detach, a new socket is seen as %s", from)
	}
	g.serve(g.second, 80)
	if err := g.dial(g.peer2, at(topo.HostAddr, 8080)).Echo("by Docker's DNAT"); err != nil {
		t.Error(err)
	}
}

// TestStackSmallBridgeMTU: who sends to a container more than its bridge takes is told so by the host, and by how much.
func TestStackSmallBridgeMTU(t *testing.T) { family.Each(t, testStackSmallBridgeMTU) }

func testStackSmallBridgeMTU(t *testing.T, fam family.Family) {
	at := fam.At
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "", "--path", "stack")
	for _, end := range []struct {
		ns   *topo.NS
		link string
	}{{l.Host, "veth-c1"}, {l.Host, "docker0"}, {l.Containers[0], "eth0"}} {
		if err := end.ns.SetMTU(end.link, 1300); err != nil {
			t.Fatal(err)
		}
	}
	l.rule("-I", l.operators(), "-i", "eth0", "-o", "docker0", "-p", "udp", "-j", "ACCEPT")
	l.Client("forward", "add", "--protocol", "udp", "198.51.100.1:5353", "172.17.0.2:53")
	got, err := provoke(l.Peer2, 25006, at(topo.HostAddr, 5353), 64, 1400)
	if want := (icmpError{3, 4, topo.HostAddr, at(topo.HostAddr, 5353)}).in(fam); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	l.serve(l.peer1, 9000)
	if _, err := l.dial(l.containers[0], at(topo.Peer1Addr, 9000)).Download(5 * megabyte); err != nil {
		t.Error(err)
	}
}

// TestStackStartsUnderLoad: a client's connections to a published port, one after the other, all succeed while conenat
// starts on the stack path, ends, and is adopted; and after it was taken away.
func TestStackStartsUnderLoad(t *testing.T) {
	g := placeGuardLab(family.V4, t, topo.Figure3Config{}, "--path", "stack")
	g.serve(g.second, 80)
	var clients sync.WaitGroup
	stop, made := make(chan struct{}), atomic.Int64{}
	end := sync.OnceFunc(func() {
		close(stop)
		clients.Wait()
	})
	t.Cleanup(end)
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := g.visit(); err != nil {
					t.Errorf("after %d connections: %v", made.Load(), err)
					return
				}
				made.Add(1)
			}
		})
	}
	more := func() {
		before := made.Load()
		g.eventually("connections are made", func() bool { return made.Load() > before+20 })
	}
	more()
	g.Run()
	more()
	g.Kill()
	more()
	g.Run()
	more()
	end()
	t.Logf("%d connections", made.Load())
	g.Detach() // which may reset what begins in its very moment
	if err := g.visit(); err != nil {
		t.Error(err)
	}
}

// visit is a connection of peer 2's to the published port, from its beginning to its end.
func (g *guardLab) visit() error {
	at := g.family.At
	conn, err := g.peer2.DialTCP(0, at(topo.HostAddr, 8080))
	if err != nil {
		return err
	}
	return errors.Join(conn.Echo("visitor"), conn.Close())
}
