// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// foreign is a firewall of somebody's, as scripts that put its forward rules on and take them off.
type foreign struct {
	name    string
	on, off string
	decided string // what the guard names
}

// addressBan is what tools of the fail2ban kind write.
const addressBan = `iptables -N f2b-web
iptables -A f2b-web -s 203.0.113.99 -j REJECT --reject-with icmp-port-unreachable
iptables -A f2b-web -j RETURN
iptables -I DOCKER-USER -p tcp -m multiport --dports 80,443 -j f2b-web`

// ufwDocker is github.com/chaifeng/ufw-docker's block, with port 80 opened by `ufw route allow`.
const ufwDocker = `iptables-restore -n <<'RULES'
*filter
:ufw-user-forward - [0:0]
:ufw-docker-logging-deny - [0:0]
:DOCKER-USER - [0:0]
-A DOCKER-USER -j ufw-user-forward
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A DOCKER-USER -m conntrack --ctstate INVALID -j DROP
-A DOCKER-USER -i docker0 -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN -s 10.0.0.0/8
-A DOCKER-USER -j RETURN -s 172.16.0.0/12
-A DOCKER-USER -j RETURN -s 192.168.0.0/16
-A DOCKER-USER -j ufw-docker-logging-deny -m conntrack --ctstate NEW -d 172.16.0.0/12
-A DOCKER-USER -j RETURN
-A ufw-user-forward -d 172.17.0.3 -p tcp --dport 80 -j ACCEPT
-A ufw-docker-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW DOCKER BLOCK] "
-A ufw-docker-logging-deny -j DROP
COMMIT
RULES`

// firewalld's forward chain, as firewalld 1.3 has it with docker0 in the zone docker.
const firewalld = `nft -f - <<'RULES'
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_FORWARD_POLICIES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_POLICIES {
		oifname "docker0" accept
		iifname "docker0" accept
	}
}
RULES`

var firewalls = []foreign{
	{"DOCKER-USER", "iptables -I DOCKER-USER -s 203.0.113.99 -j DROP", "iptables -D DOCKER-USER 1",
		"iptables filter FORWARD -> DOCKER-USER: -A DOCKER-USER -s 203.0.113.99/32 -j DROP"},
	{"ufw-docker", ufwDocker, "iptables -F DOCKER-USER; iptables -F ufw-user-forward; iptables -F ufw-docker-logging-deny; iptables -A DOCKER-USER -j RETURN; " +
		"iptables -X ufw-user-forward; iptables -X ufw-docker-logging-deny",
		"iptables filter FORWARD -> DOCKER-USER -> ufw-user-forward: -A ufw-user-forward -d 172.17.0.3/32 -p tcp -m tcp --dport 80 -j ACCEPT"},
	{"firewalld", firewalld, "nft delete table inet firewalld", "nft inet firewalld filter_FORWARD: ct state invalid drop"},
	{"fail2ban", addressBan, "iptables -D DOCKER-USER 1; iptables -F f2b-web; iptables -X f2b-web",
		"iptables filter FORWARD -> DOCKER-USER -> f2b-web: -A f2b-web -s 203.0.113.99/32 -j REJECT --reject-with icmp-port-unreachable"},
	{"CrowdSec", `nft 'table ip crowdsec {
		set crowdsec-blacklists { type ipv4_addr; flags timeout; elements = { 203.0.113.99 timeout 1h } }
		chain crowdsec-chain-forward { type filter hook forward priority filter - 10; policy accept; ip saddr @crowdsec-blacklists drop; }
	}'`, "nft delete table ip crowdsec", "nft ip crowdsec crowdsec-chain-forward: ip saddr @crowdsec-blacklists drop"},
	{"nft", `nft 'table inet mine {
		chain forward {
			type filter hook forward priority 0; policy drop;
			ct state established,related accept
			iifname "docker0" accept
			tcp dport 80 accept
		}
	}'`, "nft delete table inet mine",
		"nft inet mine forward: policy drop"},
	{"xfrm", "ip xfrm policy add src 172.17.0.0/16 dst 10.55.0.0/16 dir out action block",
		"ip xfrm policy delete src 172.17.0.0/16 dst 10.55.0.0/16 dir out", "xfrm policy out: "},
}

// script runs shell commands in the host.
func (l *lab) script(commands string) {
	l.t.Helper()
	if _, err := l.Host.Run(l.t.Context(), "set -e\n"+commands, "sh"); err != nil {
		l.t.Fatal(err)
	}
}

type pathStatus struct {
	Path     string   `json:"path"`
	Reasons  []string `json:"path_reasons"`
	Warnings []string `json:"warnings"`
}

func (l *lab) path() pathStatus {
	l.t.Helper()
	var list []pathStatus
	if err := json.Unmarshal([]byte(l.Client("status", "-o", "json")), &list); err != nil || len(list) != 1 {
		l.t.Fatalf("status: %+v, %v", list, err)
	}
	return list[0]
}

// takes waits for a path, and says how long it took.
func (l *lab) takes(path string) time.Duration {
	l.t.Helper()
	start := time.Now()
	l.eventually("path "+path, func() bool { return l.path().Path == path })
	return time.Since(start)
}

// TestGuard: each kind of foreign rule turns the path to the stack, and its end turns it back. What runs goes on: a
// download, an upload, and connections of which the next packet comes from outside.
func TestGuard(t *testing.T) {
	g := newGuardLab(t, topo.Figure3Config{})
	if p := g.path(); p.Path != "direct" {
		t.Fatalf("with no rules but Docker's, path %+v", p)
	}
	g.serve(g.peer1, 9000)
	g.serve(g.second, 80)
	old := g.openFlows(30000)
	datagrams := g.datagrams(40)
	streams := []*running{g.stream("download", probe.Conn.Download), g.stream("upload", probe.Conn.Upload)}
	for i, f := range firewalls {
		ok := t.Run(f.name, func(t *testing.T) {
			sub := g.at(t)
			sub.turnToStack(f)
			old.goOn(t, "outside")
			fresh := sub.openFlows(31000 + 10*i)
			if f.name != "ufw-docker" { // whose rules of new connections are for what comes in
				sub.published()
			}
			if i == 0 { // begun on the stack path, they are on the direct one in between
				streams = append(streams, g.stream("later download", probe.Conn.Download), g.stream("later upload", probe.Conn.Upload))
			}
			sub.advance(streams...)
			sub.turnBack(f)
			old.goOn(t, "outside")
			fresh.goOn(t, "outside")
			sub.advance(streams...)
		})
		if !ok {
			break // its rules may be there still
		}
	}
	for _, s := range streams {
		s.end(t)
	}
	noneLost(t, datagrams)
	checkReplay(g.lab)
}

// datagrams are UDP streams from the first container to peer 1 and back, some 20 round trips a second each.
func (g *guardLab) datagrams(count int) (list []*probe.UDPStream) {
	g.t.Helper()
	server, err := probe.ServeStreams(g.Peer1, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { server.Close() })
	for range count {
		s, err := probe.StartDatagrams(g.first.NS, 0, at(topo.Peer1Addr, server.Port()))
		if err != nil {
			g.t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

// noneLost: each datagram was answered, once, and each socket seen as one external endpoint; but for those that are
// excused.
func noneLost(t *testing.T, streams []*probe.UDPStream, excused ...excuses) {
	t.Helper()
	sent := 0
	for _, s := range streams {
		r, err := s.Finish()
		for _, e := range excused {
			r.Lost = e.leave(s, r.Lost)
		}
		if err != nil || len(r.Lost) > 0 || r.Duplicates > 0 || len(r.Seen) != 1 {
			t.Errorf("UDP stream %+v, %v", r, err)
		}
		sent += r.Sent
	}
	t.Logf("%d datagrams", sent)
}

func (g *guardLab) at(t *testing.T) *guardLab {
	sub := *g
	sub.lab = g.lab.at(t)
	return &sub
}

func (g *guardLab) turnToStack(f foreign) {
	g.t.Helper()
	g.script(f.on)
	took := g.takes("stack")
	g.t.Logf("path stack %v after the rules came", took.Round(10*time.Millisecond))
	if took > patience.For(5*time.Second) {
		g.t.Errorf("path stack came %v after the rules", took)
	}
	p := g.path()
	if !slices.ContainsFunc(p.Reasons, func(r string) bool { return strings.HasPrefix(r, f.decided) }) {
		g.t.Errorf("path reasons %q, want %q", p.Reasons, f.decided)
	}
	if table := g.Client("status"); !strings.Contains(table, "stack path") || !strings.Contains(table, f.decided) {
		g.t.Errorf("status does not name %q:\n%s", f.decided, table)
	}
	if log := strings.ReplaceAll(g.Log(), `\"`, `"`); !strings.Contains(log, `msg="path: stack"`) || !strings.Contains(log, f.decided) {
		g.t.Errorf("the log does not name %q", f.decided)
	}
}

func (g *guardLab) turnBack(f foreign) {
	g.t.Helper()
	g.script(f.off)
	if took := g.takes("direct"); took > patience.For(5*time.Second) {
		g.t.Errorf("path direct came %v after the rules went", took)
	}
}

// published: a client's connection to the published port.
func (g *guardLab) published() {
	g.t.Helper()
	conn := g.dial(g.peer2, at(topo.HostAddr, 8080))
	if from, err := conn.Seen(); err != nil || from.Addr() != topo.Peer2Addr {
		g.t.Errorf("the published service sees its client as %s, %v", from, err)
	}
}

// TestGuardAfterTakeover: connections that began under Docker's own NAT, of containers and of a published port's
// clients, go on through the takeover and through the turns of the path after it.
func TestGuardAfterTakeover(t *testing.T) {
	g := placeGuardLab(family.V4, t, topo.Figure3Config{})
	g.serve(g.peer1, 9000)
	g.serve(g.second, 80)
	old := g.openFlows(30000)
	client := g.dial(g.peer2, at(topo.HostAddr, 8080))
	datagrams := g.datagrams(20)
	streams := []*running{
		g.stream("download", probe.Conn.Download), g.stream("upload", probe.Conn.Upload),
		g.transfer("published download", client, probe.Conn.Download),
	}
	g.advance(streams...)
	old.goOn(t, "inside") // netfilter keeps a UDP connection that is idle for 30 s only, and a slow machine may have taken longer
	g.Run()
	excused := excuseClsact(t, datagrams)
	for range 2 {
		g.advance(streams...)
		g.turnToStack(firewalls[0])
		old.goOn(t, "outside")
		g.advance(streams...)
		g.turnBack(firewalls[0])
		old.goOn(t, "outside")
	}
	for _, s := range streams {
		s.end(t)
	}
	noneLost(t, datagrams, excused)
	if log := g.Log(); strings.Contains(log, "action failed") {
		t.Errorf("the log tells of failures:\n%s", log)
	}
}

// running is a transfer that is made again and again on one connection.
type running struct {
	name  string
	ended chan struct{}
	stop  atomic.Bool
	count atomic.Int64
	err   error
}

func (g *guardLab) stream(name string, transfer func(probe.Conn, int64) (probe.Transfer, error)) *running {
	g.t.Helper()
	return g.transfer(name, g.dial(g.first, at(topo.Peer1Addr, 9000)), transfer)
}

func (g *guardLab) transfer(name string, conn probe.Conn, transfer func(probe.Conn, int64) (probe.Transfer, error)) *running {
	s := &running{name: name, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for s.err == nil && !s.stop.Load() {
			if _, s.err = transfer(conn, 4*megabyte); s.err == nil {
				s.count.Add(1)
			}
		}
	}()
	g.t.Cleanup(func() { s.stop.Store(true) })
	return s
}

// advance: the transfers have got on since this was called.
func (l *lab) advance(list ...*running) {
	l.t.Helper()
	for _, s := range list {
		before := s.count.Load()
		l.eventually(s.name+" goes on", func() bool {
			select {
			case <-s.ended:
				l.t.Fatalf("%s ended: %v", s.name, s.err)
			default:
			}
			return s.count.Load() >= before+2
		})
	}
}

func (s *running) end(t *testing.T) {
	t.Helper()
	s.stop.Store(true)
	<-s.ended
	if s.err != nil {
		t.Errorf("%s: %v", s.name, s.err)
	}
}

// flows are a container's TCP connection and UDP socket, and peer 1's ends of them; silent until goOn.
type flows struct {
	inside, outside net.Conn
	socket, peer    probe.Socket
	mapped, remote  netip.AddrPort // the UDP socket's external endpoint, and the peer's
}

// openFlows uses the port and the next one, both at the container and at the peer.
func (g *guardLab) openFlows(port int) *flows {
	g.t.Helper()
	f := &flows{remote: at(topo.Peer1Addr, uint16(port))}
	listener, err := g.Peer1.ListenTCP(at(topo.Peer1Addr, uint16(port)))
	if err != nil {
		g.t.Fatal(err)
	}
	defer listener.Close()
	var accepted sync.WaitGroup
	accepted.Go(func() { f.outside, _ = listener.Accept() })
	if f.inside, err = g.first.NS.DialTCP(netip.AddrPort{}, f.remote); err != nil {
		listener.Close()
		accepted.Wait()
		g.t.Fatal(err)
	}
	accepted.Wait()
	g.t.Cleanup(func() { f.inside.Close(); f.outside.Close() })
	f.socket, f.peer = g.udp(g.first, uint16(port+1)), g.udp(g.peer1, uint16(port))
	g.send(f.socket, f.remote, "hello")
	f.mapped = g.receives(f.peer, "hello")
	f.goOn(g.t, "inside")
	return f
}

// goOn: a packet each way, the named side's first, with the same endpoints as ever.
func (f *flows) goOn(t *testing.T, first string) {
	t.Helper()
	from, to := f.inside, f.outside
	udp := func() { f.udp(t, f.socket, f.remote, f.peer, f.mapped) }
	answer := func() { f.udp(t, f.peer, f.mapped, f.socket, f.remote) }
	if first == "outside" {
		from, to = to, from
		udp, answer = answer, udp
	}
	udp()
	answer()
	sendTCP(t, from, to)
	sendTCP(t, to, from)
}

func (f *flows) udp(t *testing.T, s probe.Socket, to netip.AddrPort, receiver probe.Socket, want netip.AddrPort) {
	t.Helper()
	text := fmt.Sprint("at ", time.Now().UnixNano())
	if err := s.Send(to, text); err != nil {
		t.Error(err)
	}
	if p, err := receiver.Receive(probe.Timeout); err != nil || p.Text != text || p.From != want {
		t.Errorf("sent %q to %s, received %+v, %v; want it from %s", text, to, p, err, want)
	}
}

func sendTCP(t *testing.T, from, to net.Conn) {
	t.Helper()
	sent, got := bytes.Repeat([]byte("x"), 100), make([]byte, 100)
	if _, err := from.Write(sent); err != nil {
		t.Error(err)
	}
	_ = to.SetReadDeadline(time.Now().Add(patience.For(5 * time.Second)))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Errorf("from %s to %s: %v", from.LocalAddr(), to.LocalAddr(), err)
	}
}

// TestGuardBesideAWriter: somebody who changes rules without a pause is followed, too, and what comes last counts.
func TestGuardBesideAWriter(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 1}, "")
	peer, c := l.udp(l.peer1, 3478), l.udp(l.containers[0], 20000)
	exchange := func(text string) {
		l.send(c, at(topo.Peer1Addr, 3478), text)
		l.send(peer, l.receives(peer, text), text)
		l.receives(c, text)
	}
	l.script(`for i in $(seq 150); do
		nft 'table ip busy { chain forward { type filter hook forward priority 0; ip saddr 203.0.113.99 drop; }; }'
		nft delete table ip busy
	done
	nft 'table ip busy { chain forward { type filter hook forward priority 0; ip saddr 203.0.113.99 drop; }; }'`)
	if took := l.takes("stack"); took > patience.For(5*time.Second) {
		t.Errorf("path stack came %v after the last change", took)
	}
	exchange("on the stack")
	l.script("nft delete table ip busy")
	l.takes("direct")
	exchange("direct")
	l.eventually("nothing is left to be tried again", func() bool { return len(l.path().Warnings) == 0 })
}

// TestGuardOverridden: the operator's word is the last, and status says what it bypasses.
func TestGuardOverridden(t *testing.T) {
	rule := "-A DOCKER-USER -s 203.0.113.2/32 -j DROP"
	t.Run("Direct", func(t *testing.T) {
		g := placeGuardLab(family.V4, t, topo.Figure3Config{}, "--path", "direct")
		g.rule("-I", "DOCKER-USER", "-s", topo.Peer2Addr.String(), "-j", "DROP")
		g.Run()
		p := g.path()
		if diff := cmp.Diff([]string{"path direct is configured"}, p.Reasons); diff != "" || p.Path != "direct" {
			t.Errorf("path %s: %s", p.Path, diff)
		}
		if w := strings.Join(p.Warnings, "\n"); !strings.Contains(w, "path direct is configured, and bypasses iptables filter FORWARD -> DOCKER-USER: "+rule) {
			t.Errorf("warnings %s", w)
		}
		g.serve(g.second, 80)
		g.published() // from the address that the rule is about: it is bypassed
		g.rule("-D", "DOCKER-USER", "1")
		g.eventually("the warning goes", func() bool { return !strings.Contains(strings.Join(g.path().Warnings, "\n"), "bypasses") })
	})
	t.Run("Stack", func(t *testing.T) {
		l := newLab(t, topo.Figure3Config{Containers: 1}, "", "--path", "stack")
		if p := l.path(); p.Path != "stack" || !slices.Equal(p.Reasons, []string{"path stack is configured"}) {
			t.Errorf("%+v", p)
		}
	})
}

// TestForeignRuleHasTheLastWord: what somebody's rules drop is dropped on the stack path, both ways, in sessions that
// live and in new ones, and nobody else's.
func TestForeignRuleHasTheLastWord(t *testing.T) { family.Each(t, testForeignRuleHasTheLastWord) }

func testForeignRuleHasTheLastWord(t *testing.T, fam family.Family) {
	at := fam.At
	g := newGuardLabIn(fam, t, topo.Figure3Config{})
	g.serve(g.second, 80)
	g.serve(g.peer1, 9000)
	g.serve(g.peer2, 9000)
	banned, other := g.dial(g.peer2, at(topo.HostAddr, 8080)), g.dial(g.peer1, at(topo.HostAddr, 8080))
	outbound := g.dial(g.first, at(topo.Peer2Addr, 9000))
	socket, peer := g.udp(g.first, 20000), g.udp(g.peer2, 3478)
	g.send(socket, at(topo.Peer2Addr, 3478), "before")
	mapped := g.receives(peer, "before")

	g.rule("-I", g.operators(), "-s", topo.Peer2Addr.String(), "-j", "DROP")
	g.rule("-I", g.operators(), "-d", topo.Peer2Addr.String(), "-j", "DROP")
	g.takes("stack")
	g.eventually("both rules are read", func() bool { return len(g.path().Reasons) == 2 })
	g.isSilent("inbound connection of the banned one", banned)
	g.isSilent("connection to the banned one", outbound)
	g.send(peer, mapped, "from the banned one")
	g.send(socket, at(topo.Peer2Addr, 3478), "to the banned one")
	g.receivesNothing(socket, 200*time.Millisecond)
	g.receivesNothing(peer, 10*time.Millisecond)
	var dialers sync.WaitGroup // each of them waits in vain
	dialers.Go(func() { g.cannotConnect("to the published port", g.peer2, at(topo.HostAddr, 8080)) })
	dialers.Go(func() { g.cannotConnect("to the banned one", g.first, at(topo.Peer2Addr, 9000)) })
	dialers.Wait()
	if err := other.Echo("not banned"); err != nil {
		t.Errorf("another client: %v", err)
	}
	if err := g.dial(g.peer1, at(topo.HostAddr, 8080)).Echo("new"); err != nil {
		t.Errorf("another client's new connection: %v", err)
	}

	g.rule("-D", g.operators(), "1")
	g.rule("-D", g.operators(), "1")
	g.takes("direct")
	g.send(socket, at(topo.Peer2Addr, 3478), "after")
	if from := g.receives(peer, "after"); from != mapped {
		t.Errorf("after the ban the external endpoint is %s, before %s", from, mapped)
	}
	if err := g.dial(g.peer2, at(topo.HostAddr, 8080)).Echo("again"); err != nil {
		t.Errorf("after the ban: %v", err)
	}
}

// isSilent: nothing of a connection comes through, and it is not reset.
func (l *lab) isSilent(what string, conn probe.Conn) {
	l.t.Helper()
	answered := make(chan error, 1)
	go func() { answered <- conn.Echo("anybody there?") }()
	select {
	case err := <-answered:
		l.t.Errorf("%s: answered, or reset: %v", what, err)
	case <-time.After(300 * time.Millisecond):
	}
}

func (l *lab) cannotConnect(what string, from probe.Host, to netip.AddrPort) {
	l.t.Helper()
	if conn, err := from.DialTCP(0, to); err == nil {
		conn.Close()
		l.t.Errorf("%s: connected", what)
	}
}

// TestForeignRuleRejects: who is refused hears it, as of the published port, whichever way the rule refuses.
func TestForeignRuleRejects(t *testing.T) {
	g := newGuardLab(t, topo.Figure3Config{})
	g.serve(g.second, 80)
	for _, with := range []string{"icmp-port-unreachable", "tcp-reset"} {
		g.rule("-I", "DOCKER-USER", "-p", "tcp", "-s", topo.Peer2Addr.String(), "-j", "REJECT", "--reject-with", with)
		g.takes("stack")
		start := time.Now()
		conn, err := g.Peer2.DialTCP(netip.AddrPort{}, at(topo.HostAddr, 8080))
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "refused") || time.Since(start) > patience.For(2*time.Second) {
			t.Errorf("%s: %v after %v, want refused at once", with, err, time.Since(start))
		}
		if err := g.dial(g.peer1, at(topo.HostAddr, 8080)).Echo("not refused"); err != nil {
			t.Error(err)
		}
		g.rule("-D", "DOCKER-USER", "1")
		g.takes("direct")
		g.published()
	}
}
