// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// TestUplinkMTU: the uplink's MTU is smaller than the bridge's, and gets smaller still while packets flow.
func TestUplinkMTU(t *testing.T) { family.Each(t, testUplinkMTU) }

func testUplinkMTU(t *testing.T, fam family.Family) {
	tests := []struct {
		name, path, routes string
		uplink             topo.UplinkConfig // none: eth0 itself
	}{
		{"EthernetDirect", "direct", "", topo.UplinkConfig{}},
		{"EthernetStack", "stack", "", topo.UplinkConfig{}},
		{"TunDirect", "direct", "route replace default via 198.18.1.254\n", topo.UplinkConfig{Name: "tun0", Tun: true, MTU: 1400}},
		{"TunStack", "stack", "route replace default via 198.18.1.254\n", topo.UplinkConfig{Name: "tun0", Tun: true, MTU: 1400}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := placeUplinkLab(t, topo.Figure3Config{UplinkMTU: 1400, IPv6: fam == family.V6}, tt.uplink, tt.routes, "--path", tt.path)
			l.Run()
			uplink := l.first
			if l.second != nil {
				uplink = l.second
			}
			l.hasMTU(uplink, 1400, 26000)
			l.must(uplink.SetMTU(1300))
			l.hasMTU(uplink, 1300, 26010)
			l.wholeWayWithFragments(tt.path)
			checkReplay(l.lab)
		})
	}
}

// hasMTU: what is too large by 10 bytes and must not be fragmented is answered by the container's gateway, with the
// MTU; what may be, arrives in fragments; and a connection carries bulk.
func (l *uplinkLab) hasMTU(uplink *topo.Uplink, mtu int, port uint16) {
	l.t.Helper()
	headers := map[family.Family]int{family.V4: 28, family.V6: 48}[l.family] // the address family's and UDP's
	at := l.family.At
	closed := at(topo.Peer1Addr, 9)
	want := icmpError{3, 4, topo.GatewayAddr, closed}.in(l.family)
	if got, err := provoke(l.Containers[0], int(port), closed, 64, mtu+10-headers); err != nil || got != want {
		l.t.Errorf("MTU %d: %+v, %v; want %+v", mtu, got, err, want)
	}
	route, err := l.Containers[0].Run(l.t.Context(), "", "ip", "route", "get", closed.Addr().String())
	if err != nil || !strings.Contains(route, fmt.Sprintf("mtu %d", mtu)) {
		l.t.Errorf("the container's route: %s, %v; want MTU %d", route, err, mtu)
	}
	server := l.serve(l.peer1, 0)
	conn := l.dial(l.near, at(topo.Peer1Addr, server.Port()))
	if _, err := conn.Upload(5 * megabyte); err != nil {
		l.t.Error(err)
	}
	if _, err := conn.Download(5 * megabyte); err != nil {
		l.t.Error(err)
	}
	for _, ns := range []*topo.NS{l.Containers[0], l.Peer1} {
		l.must(ns.Sysctl("net.ipv4.ip_no_pmtu_disc=1")) // of sockets that are made from now on
	}
	socket, peer := l.udp(l.near, port+1), l.udp(l.peer1, port+2)
	text := strings.Repeat("x", mtu+10-headers)
	l.deliver(socket, at(topo.Peer1Addr, port+2), peer, text, at(uplink.Host, port+1))
	l.deliver(peer, at(uplink.Host, port+1), socket, text, at(topo.Peer1Addr, port+2))
	for _, ns := range []*topo.NS{l.Containers[0], l.Peer1} {
		l.must(ns.Sysctl("net.ipv4.ip_no_pmtu_disc=0"))
	}
}

// TestUplinkMadeAnew: the uplink is deleted and comes back, with another index and the same address, under load.
func TestUplinkMadeAnew(t *testing.T) { family.Each(t, testUplinkMadeAnew) }

func testUplinkMadeAnew(t *testing.T, fam family.Family) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newUplinkLabIn(fam, t, topo.UplinkConfig{}, "", "--path", path)
			l.publish(topo.HostAddr, "172.17.0.2")
			live := l.live()
			l.must(l.first.Delete())
			l.eventually("the daemon sees it gone", func() bool { return strings.HasPrefix(l.outside("eth0"), "away") })
			if b, there := l.bindingOf("udp", "172.17.0.2:20000"); !there || b.External != live.mapped.String() {
				t.Errorf("while the uplink is away: %+v", b)
			}
			l.must(l.first.Restore())
			live.goesOn()
			l.reaches(topo.HostAddr, l.near)
			l.nothingEnded(fam.Addr(topo.HostAddr))
			if w := l.status().Warnings; len(w) > 0 {
				t.Errorf("warnings: %q", w)
			}
			checkReplay(l.lab)
		})
	}
}

// live is what uses an uplink while something happens to it: datagrams ten times a second, and a connection.
type live struct {
	l            *uplinkLab
	mapped       netip.AddrPort
	socket, peer probe.Socket
	conn         probe.Conn
}

func (l *uplinkLab) live() *live {
	l.t.Helper()
	at := l.family.At
	v := &live{l: l, socket: l.udp(l.near, 20000), peer: l.udp(l.peer1, 3478)}
	l.send(v.socket, at(topo.Peer1Addr, 3478), "first")
	v.mapped = l.receives(v.peer, "first")
	server := l.serve(l.peer1, 8081)
	v.conn = l.dial(l.near, at(topo.Peer1Addr, server.Port()))
	if err := v.conn.Echo("before"); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(keepSending(v.socket, at(topo.Peer1Addr, 3478)))
	return v
}

// goesOn waits until it does, from the same endpoint.
func (v *live) goesOn() {
	v.l.t.Helper()
	v.l.eventually("datagrams arrive again, and are answered", func() bool {
		v.l.send(v.socket, v.l.family.At(topo.Peer1Addr, 3478), "on")
		for {
			p, err := v.peer.Receive(100 * time.Millisecond)
			if err == nil && p.From != v.mapped {
				v.l.t.Fatalf("seen as %s, and before as %s", p.From, v.mapped)
			}
			if err != nil {
				return false
			}
			if p.Text == "on" {
				break
			}
		}
		v.l.send(v.peer, v.mapped, "answer")
		_, err := v.socket.Receive(100 * time.Millisecond)
		return err == nil
	})
	if err := v.conn.Echo("after"); err != nil {
		v.l.t.Errorf("the connection: %v", err)
	}
}

// ended are the bindings of an external address that have.
func (l *lab) ended(addr netip.Addr) (list []harness.Event) {
	l.t.Helper()
	for _, e := range l.Events() {
		if e.Type == "binding.expired" && netip.MustParseAddrPort(e.External).Addr() == l.family.Addr(addr) && !strings.HasPrefix(e.Protocol, "icmp") {
			list = append(list, e)
		}
	}
	return list
}

func (l *lab) nothingEnded(addr netip.Addr) {
	l.t.Helper()
	if list := l.ended(addr); len(list) > 0 {
		l.t.Errorf("bindings of %s have ended: %+v", addr, list)
	}
}

// TestUplinkWithAnotherAddress: what lived on the old one ends, and says so.
func TestUplinkWithAnotherAddress(t *testing.T) {
	l := newUplinkLab(t, topo.UplinkConfig{}, "")
	v := l.live()
	before := len(l.Sessions())
	l.must(l.first.Delete())
	l.eventually("the daemon sees it gone", func() bool { return strings.HasPrefix(l.outside("eth0"), "away") })
	another := netip.MustParseAddr("198.51.100.2")
	l.must(l.Link(
		topo.End{NS: l.Host, Name: "eth0", Addr: another.String() + "/24"},
		topo.End{NS: l.Router, Name: "wan", Addr: topo.RouterAddr.String() + "/24"}, 0))
	l.must(l.Host.AddRoute("default", topo.RouterAddr.String()))
	l.isOutside("eth0", another)
	if list := l.ended(topo.HostAddr); len(list) != 2 {
		t.Errorf("of two bindings of the old address have ended: %+v", list)
	}
	closed := 0
	for _, e := range l.Events() {
		if e.Type == "session.closed" && strings.HasPrefix(e.External, topo.HostAddr.String()) {
			closed++
		}
	}
	if closed != before {
		t.Errorf("%d of %d sessions are told to be closed", closed, before)
	}
	l.eventually("the socket has a binding of the new address", func() bool {
		l.send(v.socket, at(topo.Peer1Addr, 3478), "new")
		p, err := v.peer.Receive(100 * time.Millisecond)
		return err == nil && p.From == at(another, 20000)
	})
	l.leavesAs(l.other, another)
	checkReplay(l.lab)
}

// TestUplinkMadeAnewWithoutDaemon: while no daemon lives, the new interface is Docker's NAT's; the next daemon takes
// it over, with what lived before and with what has begun since.
func TestUplinkMadeAnewWithoutDaemon(t *testing.T) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newUplinkLab(t, topo.UplinkConfig{}, "", "--path", path)
			v := l.live()
			l.Kill()
			l.must(l.first.Delete())
			l.must(l.first.Restore())
			fresh := l.udp(l.near, 20002)
			from := l.exchange(fresh, 3480)
			if from.Addr() != topo.HostAddr {
				t.Errorf("without a daemon, seen as %s", from)
			}
			if n := conntracked(l.lab, 3480); n != 1 {
				t.Errorf("conntrack has %d entries of the flow, want Docker's one", n)
			}
			l.Run()
			l.isOutside("eth0", topo.HostAddr)
			v.goesOn()
			if again := l.exchange(fresh, 3480); again != from {
				t.Errorf("seen as %s, and before the daemon came as %s", again, from)
			}
			if b, there := l.bindingOf("udp", "172.17.0.2:20002"); !there || b.External != from.String() {
				t.Errorf("the flow that began without a daemon: %+v", b)
			}
			l.leavesAs(l.other, topo.HostAddr)
			checkReplay(l.lab)
		})
	}
}

// TestHooksTakenAway: another agent deletes the qdisc, or detaches the TCX link; conenat attaches again, and says so.
func TestHooksTakenAway(t *testing.T) {
	tests := []struct {
		name string
		args []string
		take func(l *uplinkLab, name string)
	}{
		{"Clsact", []string{"--disable-feature", "tcx"}, (*uplinkLab).deleteQdisc},
		{"TCX", nil, (*uplinkLab).detachTCX},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.args == nil {
				require.Kernel(t, tcxHooks)
			}
			l := newUplinkLab(t, topo.UplinkConfig{}, "", tt.args...)
			v := l.live()
			for i, name := range []string{"eth0", "docker0", "veth-c1"} {
				start := time.Now()
				tt.take(l, name)
				l.eventually(name+" has its hooks again", func() bool {
					return strings.Count(l.Client("events", "--since", "all", "--type", "link.reattached"), "\n") == i+1
				})
				if took := time.Since(start); took > patience.For(5*time.Second) { // within 1 s, on a machine that has time
					t.Errorf("%s: attached again after %v", name, took)
				}
				if told := l.Client("events", "--since", "all", "--type", "link.reattached"); !strings.Contains(told, name) {
					t.Errorf("events: %s", told)
				}
				if !strings.Contains(l.Log(), "hooks were taken away by somebody else: attached again\" interface="+name) {
					t.Errorf("no log line of %s", name)
				}
				v.goesOn()
			}
			l.leavesAs(l.other, topo.HostAddr)
			l.nothingEnded(topo.HostAddr)
			l.settles()
		})
	}
}

func (l *uplinkLab) deleteQdisc(name string) {
	l.t.Helper()
	_, err := l.Host.Run(l.t.Context(), "", "tc", "qdisc", "del", "dev", name, "clsact")
	l.must(err)
}

// detachTCX is `bpftool link detach`.
func (l *uplinkLab) detachTCX(name string) {
	l.t.Helper()
	index, err := l.Host.IfIndex(name)
	l.must(err)
	pins, err := filepath.Glob(filepath.Join(l.StateDir, "abi-*", fmt.Sprintf("link_%d_*", index)))
	if err != nil || len(pins) == 0 {
		l.t.Fatalf("pins of %s: %v, %v", name, pins, err)
	}
	for _, pin := range pins {
		hook, err := link.LoadPinnedLink(pin, nil)
		l.must(err)
		l.must(hook.Detach())
		l.must(hook.Close())
	}
}

// settles: the daemon's own changes, of which the kernel tells it, are no reason for more.
func (l *lab) settles() {
	l.t.Helper()
	var log string
	var before time.Duration
	l.eventually("the daemon comes to rest", func() bool {
		log, before = l.Log(), l.cpu()
		l.quiet(time.Second)
		return l.Log() == log && l.cpu()-before < 50*time.Millisecond
	})
}

// quiet lets time pass in which nothing is to happen.
func (l *lab) quiet(d time.Duration) {
	select {
	case <-l.t.Context().Done():
	case <-time.After(d):
	}
}

// cpu is the processor time that the daemon has used (proc_pid_stat(5), in ticks of 10 ms).
func (l *lab) cpu() time.Duration {
	l.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.PID()))
	l.must(err)
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	user, err := strconv.Atoi(fields[11])
	l.must(err)
	system, err := strconv.Atoi(fields[12])
	l.must(err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// TestAddressFlaps: the external address goes and comes back, as a DHCP client's does. Bindings live on.
func TestAddressFlaps(t *testing.T) { family.Each(t, testAddressFlaps) }

func testAddressFlaps(t *testing.T, fam family.Family) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newUplinkLabIn(fam, t, topo.UplinkConfig{}, "", "--path", path)
			v := l.live()
			for range 2 {
				l.must(l.Host.DeleteAddr("eth0", topo.HostAddr.String()+"/24"))
				l.eventually("the daemon sees it gone", func() bool { return strings.HasPrefix(l.outside("eth0"), "no-address") })
				l.must(l.Host.AddAddr("eth0", topo.HostAddr.String()+"/24"))
				l.ip("route replace default via 198.51.100.254\n") // IPv6's has stayed
				v.goesOn()
				l.isOutside("eth0", fam.Addr(topo.HostAddr))
			}
			l.nothingEnded(fam.Addr(topo.HostAddr))
			checkReplay(l.lab)
		})
	}
}

// TestUplinkEnslaved: to a bridge for a moment, and back. Bindings live on.
func TestUplinkEnslaved(t *testing.T) {
	l := newUplinkLab(t, topo.UplinkConfig{}, "")
	v := l.live()
	l.ip("link add br9 type bridge\nlink set br9 up\nlink set eth0 master br9\n")
	l.eventually("the daemon has seen it", func() bool { return l.outside("eth0") != "" })
	l.ip("link set eth0 nomaster\nlink del br9\n")
	v.goesOn()
	l.nothingEnded(topo.HostAddr)
}

// TestUplinkRenamed: an outside is what its name says. Under another name it is another one: what lived on it ends,
// with events, and the next packets get bindings of the new one, with the same ports.
func TestUplinkRenamed(t *testing.T) {
	l := newUplinkLab(t, topo.UplinkConfig{}, "")
	socket, peer := l.udp(l.near, 20000), l.udp(l.peer1, 3478)
	l.send(socket, at(topo.Peer1Addr, 3478), "first")
	mapped := l.receives(peer, "first")
	l.ip("link set eth0 down\nlink set eth0 name wan9\nlink set wan9 up\nroute add default via 198.51.100.254\n")
	l.isOutside("wan9", topo.HostAddr)
	l.eventually("datagrams arrive", func() bool {
		l.send(socket, at(topo.Peer1Addr, 3478), "again")
		p, err := peer.Receive(100 * time.Millisecond)
		if err == nil && p.From != mapped {
			t.Fatalf("seen as %s, and before as %s", p.From, mapped)
		}
		return err == nil
	})
	l.leavesAs(l.other, topo.HostAddr)
	if list := l.ended(topo.HostAddr); len(list) != 1 {
		t.Errorf("have ended: %+v", list)
	}
	if o := l.outside("eth0"); o != "" {
		t.Errorf("eth0 is %s", o)
	}
	checkReplay(l.lab)
}

// TestManyPorts: two hundred bridge ports come and go while packets flow.
func TestManyPorts(t *testing.T) {
	l := newUplinkLab(t, topo.UplinkConfig{}, "")
	v := l.live()
	server := l.serve(l.peer1, 8082)
	bulk := l.dial(l.near, at(topo.Peer1Addr, server.Port()))
	done := make(chan error, 1)
	go func() {
		_, err := bulk.Download(200 * megabyte)
		done <- err
	}()
	const ports = 200
	var add, del strings.Builder
	for i := range ports {
		fmt.Fprintf(&add, "link add many%d type veth peer name far%d\nlink set many%d master docker0\nlink set many%d up\nlink set far%d up\n", i, i, i, i, i)
		fmt.Fprintf(&del, "link del many%d\n", i)
	}
	before, start := l.cpu(), time.Now()
	l.ip(add.String())
	l.eventually("the last port has hooks", func() bool {
		return strings.Contains(l.Client("networks"), fmt.Sprintf("many%d", ports-1))
	})
	l.ip(del.String())
	l.eventually("the ports are forgotten", func() bool { return !strings.Contains(l.Client("networks"), "many") })
	used := l.cpu() - before
	t.Logf("%d ports came and went in %v; the daemon used %v", ports, time.Since(start), used)
	if err := <-done; err != nil {
		t.Error(err)
	}
	v.goesOn()
	l.nothingEnded(topo.HostAddr)
	l.eventually("nothing has failed", func() bool { return len(l.status().Warnings) == 0 })
	l.settles()
}

// TestDockerUplinks: what Docker publishes is published on both uplinks, answers by the one that it was asked by, and
// outlives an uplink that is made anew, while conenat runs and while it does not.
func TestDockerUplinks(t *testing.T) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			g := placeGuardLab(family.V4, t, topo.Figure3Config{}, "--path", path)
			second, err := g.AddUplink(topo.UplinkConfig{Name: "eth1", OwnRouter: true})
			g.must(err)
			g.must(g.Host.Sysctl("net.ipv4.fib_multipath_hash_policy=1"))
			g.ip(twoDefaults)
			g.Run()
			both := func() {
				t.Helper()
				g.reaches(topo.HostAddr, g.second)
				g.reaches(secondAddr, g.second)
			}
			both()
			g.must(second.Delete())
			g.ip("route replace default via 198.51.100.254\n") // with one of its nexthops, the kernel deletes a route
			g.eventually("the daemon sees it gone", func() bool { return !strings.HasPrefix(g.outside("eth1"), "active") })
			g.reaches(topo.HostAddr, g.second)
			g.must(second.Restore())
			g.ip(twoDefaults)
			g.isOutside("eth1", secondAddr)
			both()

			g.Kill()
			g.must(second.Delete())
			g.must(second.Restore())
			g.ip("route replace default via 198.18.1.254\n")
			g.reaches(secondAddr, g.second) // by Docker's own rules
			g.ip(twoDefaults)
			g.Run()
			g.isOutside("eth1", secondAddr)
			both()
			g.wholeWay(path)
			checkReplay(g.lab)
		})
	}
}
