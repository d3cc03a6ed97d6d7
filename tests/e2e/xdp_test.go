// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// gatewayXDP has XDP on veth pairs: forXDP has made their other ends fit for it.
const gatewayXDP = "xdp: {mode: gateway, veth: true}\n"

// newGateway is Figure 3's host as a router: its inside is no bridge, but lan0, with one host behind it.
func newGateway(fam family.Family, t *testing.T, config string, args ...string) *lab {
	t.Helper()
	l := bareLab(fam, t, topo.Figure3ForTest(t, topo.Figure3Config{IPv6: fam == family.V6}))
	inside, err := l.NewNS("inside")
	l.must(err)
	l.must(errors.Join(
		l.Host.Forward(),
		l.Link(topo.End{NS: l.Host, Name: "lan0", Addr: topo.GatewayAddr.String() + "/16"},
			topo.End{NS: inside, Name: "eth0", Addr: "172.17.0.2/16"}, 0)))
	l.must(inside.AddRoute("default", topo.GatewayAddr.String()))
	l.forXDP(inside, "eth0")
	l.forXDP(l.Router, "wan")
	l.Containers, l.containers = []*topo.NS{inside}, []probe.Host{l.probe(inside)}
	l.startWith(config, append([]string{"--inside", "lan0"}, args...)...)
	return l
}

// forXDP makes the other end of one of the host's veth pairs what a network card's wire is: what it sends has whole checksums, and
// what is redirected there it takes.
func (l *lab) forXDP(ns *topo.NS, name string) {
	l.t.Helper()
	l.must(errors.Join(ns.TransmitOffload(name, false), ns.SetGRO(name, true)))
}

// startWith starts conenat with a file.
func (l *lab) startWith(config string, args ...string) {
	l.t.Helper()
	file := filepath.Join(l.Dir(), "conenat.yaml")
	l.must(os.WriteFile(file, []byte(l.family.Text(config)), 0o600))
	l.Conenat = harness.StartIn(l.family, l.t, l.Topo, l.Host, append(args, "--config", file)...)
}

// atXDP is how many packets were done with there, for a reason.
func (l *lab) atXDP(reason string) uint64 {
	l.t.Helper()
	for _, c := range l.status().Counters {
		if c.Name == reason {
			return c.XDP
		}
	}
	l.t.Fatalf("no counter %s", reason)
	return 0
}

// xdpOf is what the status says of XDP on an interface.
func (l *lab) xdpOf(name string) api.XDP {
	l.t.Helper()
	list := l.status().XDP
	i := slices.IndexFunc(list, func(x api.XDP) bool { return x.Interface == name })
	if i < 0 {
		return api.XDP{}
	}
	return list[i]
}

func (l *lab) isNative(use string, names ...string) {
	l.t.Helper()
	for _, name := range names {
		if x := l.xdpOf(name); x.State != "native" || x.Use != use || x.Reason != "" {
			l.t.Errorf("XDP on %s: %+v, want native, to %s", name, x, use)
		}
	}
}

// accelerated fails unless do has packets of both ways done with at XDP, count or more each.
func (l *lab) accelerated(count uint64, do func()) {
	l.t.Helper()
	out, in := l.atXDP("translated_outbound"), l.atXDP("translated_inbound")
	do()
	out, in = l.atXDP("translated_outbound")-out, l.atXDP("translated_inbound")-in
	if out < count || in < count {
		l.t.Errorf("%d packets out and %d in were translated at XDP, want %d or more", out, in, count)
	}
}

// udpFlow is a session from inside to peer 1, and back.
type udpFlow struct {
	l            *lab
	inside, peer probe.Socket
	sent         int
}

// openFlow sends the first packets, which are for tc.
func (l *lab) openFlow(port uint16) *udpFlow {
	l.t.Helper()
	f := &udpFlow{l: l, inside: l.udp(l.containers[0], port), peer: l.udp(l.peer1, port+1)}
	f.exchange()
	return f
}

// exchange sends one datagram each way.
func (f *udpFlow) exchange() {
	f.l.t.Helper()
	f.sent++
	there, back := fmt.Sprint("there ", f.sent), fmt.Sprint("back ", f.sent)
	f.l.send(f.inside, f.l.family.At(topo.Peer1Addr, f.peer.Port()), there)
	mapped := f.l.receives(f.peer, there)
	if want := f.l.family.At(topo.HostAddr, f.inside.Port()); mapped != want {
		f.l.t.Errorf("seen as %s, want %s", mapped, want)
	}
	f.l.send(f.peer, mapped, back)
	f.l.receives(f.inside, back)
}

// arrives says whether a datagram to the peer does.
func (f *udpFlow) arrives() bool {
	f.l.t.Helper()
	f.sent++
	text := fmt.Sprint("does it? ", f.sent)
	f.l.send(f.inside, f.l.family.At(topo.Peer1Addr, f.peer.Port()), text)
	for {
		p, err := f.peer.Receive(200 * time.Millisecond)
		if err != nil || p.Text == text {
			return err == nil
		}
	}
}

func (f *udpFlow) exchanges(n int) func() {
	return func() {
		f.l.t.Helper()
		for range n {
			f.exchange()
		}
	}
}

// TestXDPGateway: sessions are opened by tc and go on at XDP, through a daemon's end and the next one's start.
func TestXDPGateway(t *testing.T) { family.Each(t, testXDPGateway) }

func testXDPGateway(t *testing.T, fam family.Family) {
	l := newGateway(fam, t, gatewayXDP)
	l.isNative("translate", "eth0", "lan0")
	if w := l.status().Warnings; len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	f := l.openFlow(20000)
	l.accelerated(50, f.exchanges(60))

	server := l.serve(l.peer1, 8080)
	conn := l.dial(l.containers[0], l.family.At(topo.Peer1Addr, server.Port()))
	l.accelerated(500, func() {
		if _, err := conn.Upload(5 * megabyte); err != nil {
			t.Error(err)
		}
		if _, err := conn.Download(5 * megabyte); err != nil {
			t.Error(err)
		}
	})
	before := l.atXDP("translated_outbound")
	echo, err := probe.ServeStreams(l.Peer1, 0)
	l.must(err)
	defer echo.Close()
	stream, err := probe.StartDatagrams(l.Containers[0], 0, l.family.At(topo.Peer1Addr, echo.Port()))
	l.must(err)
	defer stream.Close()
	l.Kill()
	f.exchanges(20)()
	l.must(conn.Echo("the daemon is dead"))
	l.Run()
	l.isNative("translate", "eth0", "lan0")
	if after := l.atXDP("translated_outbound"); after < before+10 {
		t.Errorf("%d packets were translated at XDP while no daemon lived, of 20 datagrams", after-before)
	}
	l.accelerated(20, f.exchanges(30))
	l.must(conn.Echo("adopted"))
	report, err := stream.Finish()
	if err != nil || len(report.Lost) > 0 || report.Duplicates > 0 || len(report.Seen) != 1 {
		t.Errorf("datagrams through kill and adoption: %+v, %v", report, err)
	}
	l.must(conn.Close())
	checkReplay(l)
}

// TestXDPFollowsHops: a neighbour that moves, and a route, are followed, also while no daemon lives.
func TestXDPFollowsHops(t *testing.T) { family.Each(t, testXDPFollowsHops) }

func testXDPFollowsHops(t *testing.T, fam family.Family) {
	l := newGateway(fam, t, gatewayXDP)
	host := func(commands string) { l.t.Helper(); l.must(l.Host.IPIn(t.Context(), fam, commands)) }
	f := l.openFlow(20000)
	l.accelerated(20, f.exchanges(30))
	for _, dead := range []bool{false, true} {
		if dead {
			l.Kill()
		}
		mac := map[bool]string{false: "02:00:00:00:01:01", true: "02:00:00:00:01:02"}[dead]
		l.must(l.Router.IP(t.Context(), "link set wan address "+mac+"\n"))
		epoch := l.epochOf("eth0")
		host("neigh replace 198.51.100.254 lladdr " + mac + " dev eth0 nud reachable\n")
		if !dead {
			l.eventually("the daemon hears of it", func() bool { return l.epochOf("eth0") != epoch })
		}
		l.eventually("the neighbour's new MAC", f.arrives)
		f.exchanges(20)()

		// A next hop that nobody is behind.
		host("neigh replace 198.51.100.253 lladdr 02:00:00:00:01:fd dev eth0 nud permanent\n" +
			"route replace default via 198.51.100.253\n")
		l.eventually("nothing arrives by the other route", func() bool { return !f.arrives() })
		host("route replace default via 198.51.100.254\n")
		l.eventually("the first route again", f.arrives)
	}
	l.Run()
	l.eventually("XDP again", func() bool {
		before := l.atXDP("translated_outbound")
		f.exchanges(10)()
		return l.atXDP("translated_outbound") > before+5
	})
}

// epochOf is what the hops that sessions remember must be of.
func (l *lab) epochOf(name string) uint8 {
	l.t.Helper()
	links, err := ebpf.LoadPinnedMap(filepath.Join(l.StateDir, fmt.Sprintf("abi-%d", bpf.ABIVersion), "links"), &ebpf.LoadPinOptions{ReadOnly: true})
	l.must(err)
	defer links.Close()
	index, err := l.Host.IfIndex(name)
	l.must(err)
	var link bpf.Link
	l.must(links.Lookup(uint32(index%bpf.Links), &link))
	return link.Epoch
}

// TestXDPDetach: under traffic, and of a daemon that was killed, nothing is left.
func TestXDPDetach(t *testing.T) {
	l := newGateway(family.V4, t, gatewayXDP)
	f := l.openFlow(20000)
	stop := keepSending(f.inside, at(topo.Peer1Addr, f.peer.Port()))
	defer stop()
	l.Kill()
	l.Detach()
	for what, out := range leftovers(l) {
		t.Errorf("%s: %s", what, out)
	}
	l.hasNoXDP()
}

func (l *lab) hasNoXDP() {
	l.t.Helper()
	out, err := l.Host.Run(l.t.Context(), "", "ip", "link", "show")
	if err != nil || strings.Contains(out, "xdp") {
		l.t.Errorf("%v:\n%s", err, out)
	}
}

// TestXDPSwitchedOff: the next daemon, which is not asked for XDP, takes it away, and the sessions go on.
func TestXDPSwitchedOff(t *testing.T) {
	l := newGateway(family.V4, t, gatewayXDP)
	f := l.openFlow(20000)
	f.exchanges(10)()
	l.Stop()
	l.RunWith("--inside", "lan0")
	l.hasNoXDP()
	f.exchanges(10)()
	if list := l.status().XDP; len(list) > 0 {
		t.Errorf("the status has %+v", list)
	}
	l.Stop()
	l.RunWith("--inside", "lan0", "--xdp", "gateway")
	for _, name := range []string{"eth0", "lan0"} {
		if x := l.xdpOf(name); x.State != "none" || !strings.Contains(x.Reason, "xdp.veth") {
			t.Errorf("XDP on %s, a veth: %+v", name, x)
		}
	}
	l.hasNoXDP()
	f.exchanges(10)()
}

// passXDP is somebody else's program.
func passXDP() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
}

// setXDP is `ip link set NAME xdp`; -1: off.
func setXDP(name string, fd int) error {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetXdpFdWithFlags(dev, fd, unix.XDP_FLAGS_DRV_MODE)
}

// TestXDPOfAnother: somebody else's program stays, and translation is tc's.
func TestXDPOfAnother(t *testing.T) {
	l := newGateway(family.V4, t, "")
	l.Stop()
	program, err := passXDP()
	l.must(err)
	defer program.Close()
	l.must(l.Host.Do(func() error { return setXDP("eth0", program.FD()) }))
	file := filepath.Join(l.Dir(), "conenat.yaml")
	l.must(os.WriteFile(file, []byte(gatewayXDP), 0o600))
	l.RunWith("--inside", "lan0", "--config", file)
	l.isNative("translate", "lan0")
	if x := l.xdpOf("eth0"); x.State != "none" || !strings.Contains(x.Reason, "another XDP program") {
		t.Errorf("XDP on eth0: %+v", x)
	}
	l.openFlow(20000).exchanges(5)()
	l.must(l.Host.Do(func() error { return setXDP("eth0", -1) }))
	l.eventually("XDP on eth0, which is free now", func() bool { return l.xdpOf("eth0").State == "native" })
	l.accelerated(20, l.openFlow(20010).exchanges(30))
}

// TestXDPIntoContainers: what comes from outside goes straight into a container; what it sends is tc's.
func TestXDPIntoContainers(t *testing.T) { family.Each(t, testXDPIntoContainers) }

func testXDPIntoContainers(t *testing.T, fam family.Family) {
	l := bareLab(fam, t, topo.Figure3ForTest(t, topo.Figure3Config{Containers: 2, IPv6: fam == family.V6}))
	l.forXDP(l.Router, "wan")
	l.containers = []probe.Host{l.probe(l.Containers[0]), l.probe(l.Containers[1])}
	l.startWith("xdp: {mode: gateway, veth: true, containers: true}\n", "--inside", "docker0")
	l.isNative("translate", "eth0", "veth-c1", "veth-c2")
	if x := l.xdpOf("docker0"); x.State != "none" || !strings.Contains(x.Reason, "bridge") {
		t.Errorf("XDP on docker0: %+v", x)
	}
	if out := l.Client("status"); !strings.Contains(out, "straight into 2 of 2 containers") {
		t.Errorf("status:\n%s", out)
	}
	f := l.openFlow(20000)
	before := l.atXDP("translated_inbound")
	f.exchanges(30)()
	server := l.serve(l.peer1, 8080)
	conn := l.dial(l.containers[0], l.family.At(topo.Peer1Addr, server.Port()))
	_, err := conn.Download(5 * megabyte)
	l.must(err)
	if n := l.atXDP("translated_inbound") - before; n < 500 {
		t.Errorf("%d packets went straight into the container", n)
	}
	if n := l.atXDP("translated_outbound"); n > 0 {
		t.Errorf("%d packets of the container were translated at XDP", n)
	}
	l.Detach()
	if gro, err := l.Containers[0].GRO("eth0"); err != nil || gro {
		t.Errorf("after detach, GRO of the container is %v (%v)", gro, err)
	}
}
