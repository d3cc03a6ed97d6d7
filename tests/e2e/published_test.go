// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/dockerfake"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// secondAddress is the host's too, but no external address of conenat's.
var secondAddress = netip.MustParseAddr("198.51.100.9")

// TestPublished: all ways to published ports, with and without Docker's proxy, on the default and a user's network.
func TestPublished(t *testing.T) { family.Each(t, testPublished) }

func testPublished(t *testing.T, fam family.Family) {
	tests := map[string]struct {
		network, path string
		proxy         bool
	}{
		"ProxyDefaultDirect":  {"bridge", "direct", true},
		"ProxyUserStack":      {"user", "stack", true},
		"NoProxyUserDirect":   {"user", "direct", false},
		"NoProxyDefaultStack": {"bridge", "stack", false},
	}
	for name, tt := range both(fam, tests, "ProxyUserStack", "NoProxyUserDirect") {
		t.Run(name, func(t *testing.T) {
			h := newDockerHostIn(fam, t, docker.Config{Args: []string{fmt.Sprintf("--userland-proxy=%t", tt.proxy)}}, "--path", tt.path)
			p := h.publishAll(tt.network)
			p.loopback = tt.proxy || fam == family.V4
			p.fromOutside()
			if n := conntracked(p.lab, 8080) + conntracked(p.lab, 5353); n != 0 && tt.path == "direct" {
				t.Errorf("conntrack has %d entries of what came from outside", n)
			}
			p.addresses()
			p.hairpin(p.near)
			p.hairpin(p.web)
			if tt.path == "direct" {
				p.hairpin(p.far)
			} else {
				p.betweenNetworks(tt.proxy)
			}
			p.fromHost()
			p.ownPackets()
			// A slow machine's dockerd may owe an answer; it is a warning until it comes.
			h.eventually("no warnings", func() bool { return len(h.followed().Warnings) == 0 })
			checkReplay(h.lab)
		})
	}
}

// publishers are containers with ports of every kind, and neighbours.
type publishers struct {
	*dockerHost
	web          *docker.Container // tcp 8080 = 80, udp 5353 = 53, and more
	near, far    *docker.Container // in its network, and in another one
	tcpAt, udpAt netip.AddrPort    // published
	service      probe.Socket      // the container's udp/53
	loopback     bool              // Docker takes what is sent to its ports there: in IPv6, its proxy alone does
}

func (h *dockerHost) publishAll(network string) *publishers {
	at := h.family.At
	h.t.Helper()
	h.must(h.docker.NewNetwork(h.t.Context(), "user", "br-user", "172.21.0.0/16"))
	h.must(h.Host.AddAddr("eth0", secondAddress.String()+"/24"))
	h.must(h.docker.NewNetwork(h.t.Context(), "other", "br-other", "172.20.0.0/16"))
	p := &publishers{dockerHost: h, tcpAt: at(topo.HostAddr, 8080), udpAt: at(topo.HostAddr, 5353)}
	p.web = h.run(docker.Spec{Name: "web", Network: network, Publish: map[string]string{
		"80/tcp": ":8080", "53/udp": ":5353",
		"81/tcp": topo.HostAddr.String() + ":8081", "82/tcp": "127.0.0.1:8082", "83/tcp": secondAddress.String() + ":8083",
		"9000-9004/tcp": ":9100-9104", "9000-9004/udp": ":9100-9104",
	}})
	p.near, p.far = h.run(docker.Spec{Name: "near", Network: network}), h.run(docker.Spec{Name: "far", Network: "other"})
	want := []string{binding("tcp", p.tcpAt, p.web.Addr, 80), binding("udp", p.udpAt, p.web.Addr, 53), binding("tcp", at(topo.HostAddr, 8081), p.web.Addr, 81)}
	for i := range uint16(5) {
		want = append(want, binding("tcp", at(topo.HostAddr, 9100+i), p.web.Addr, 9000+i), binding("udp", at(topo.HostAddr, 9100+i), p.web.Addr, 9000+i))
	}
	h.publishes("all is published", want...)
	for _, port := range []uint16{80, 81, 82, 83, 9004} {
		h.serve(p.web, port)
	}
	p.service = h.udp(p.web, 53)
	return p
}

// asks sends a datagram to the published port, which the service sees as from a given endpoint, and answers.
func (p *publishers) asks(who string, client probe.Socket, want netip.AddrPort) {
	p.t.Helper()
	if from := p.heard(client, p.udpAt, p.service); from != want {
		p.t.Errorf("the UDP service sees %s as %s, want %s", who, from, want)
	} else if from := p.heard(p.service, want, client); from != p.udpAt {
		p.t.Errorf("%s is answered from %s", who, from)
	}
}

func (p *publishers) fromOutside() {
	at := p.family.At
	p.t.Helper()
	p.reaches("tcp", p.tcpAt)
	p.asks("a peer", p.udp(p.peer2, 6000), at(topo.Peer2Addr, 6000))
	conn := p.dial(p.peer1, p.tcpAt)
	if _, err := conn.Download(5 * megabyte); err != nil {
		p.t.Error(err)
	}
	if _, err := conn.Upload(5 * megabyte); err != nil {
		p.t.Error(err)
	}
	p.reaches("tcp, of a range", at(topo.HostAddr, 9104))
	last := p.udp(p.web, 9004)
	if from := p.heard(p.udp(p.peer1, 6001), at(topo.HostAddr, 9104), last); from != at(topo.Peer1Addr, 6001) {
		p.t.Errorf("the last of the UDP range sees its client as %s", from)
	}
}

// addresses: what is published on one address is there alone, on the loopback not outside at all, and on an address
// that conenat does not translate with by Docker.
func (p *publishers) addresses() {
	at := p.family.At
	p.t.Helper()
	p.reaches("tcp, on the external address", at(topo.HostAddr, 8081))
	p.cannotReach("tcp, published on the other address", at(secondAddress, 8081))
	p.reaches("tcp, on the second address", at(secondAddress, 8083))
	p.cannotReach("tcp, published on the second address", at(topo.HostAddr, 8083))
	p.cannotReach("tcp, published on the loopback", at(topo.HostAddr, 8082))
	if !p.loopback {
		return
	}
	if err := p.dial(p.host, netip.MustParseAddrPort(p.family.Text("127.0.0.1:8082"))).Echo("loopback"); err != nil {
		p.t.Errorf("the host by the loopback: %v", err)
	}
}

// hairpin: a container reaches published ports by the external address, and the service sees its external endpoint.
func (p *publishers) hairpin(c *docker.Container) {
	at := p.family.At
	p.t.Helper()
	conn, err := c.DialTCP(0, p.tcpAt)
	if err != nil {
		p.t.Errorf("%s: %v", c.Name, err)
		return
	}
	defer conn.Close()
	if from, err := conn.Seen(); err != nil || from.Addr() != p.family.Addr(topo.HostAddr) {
		p.t.Errorf("%s is seen as %s, %v", c.Name, from, err)
	}
	if _, err := conn.Download(2 * megabyte); err != nil {
		p.t.Errorf("%s: %v", c.Name, err)
	}
	client := p.udp(c, 0)
	p.asks(c.Name, client, at(topo.HostAddr, client.Port()))
}

// betweenNetworks: on the stack path that is for the host's rules, and as without conenat: Docker's proxy brings it, and
// without the proxy Docker's isolation drops it.
func (p *publishers) betweenNetworks(proxy bool) {
	p.t.Helper()
	client := p.udp(p.far, 0)
	if proxy {
		if err := p.dial(p.far, p.tcpAt).Echo("by the proxy"); err != nil {
			p.t.Errorf("from another network by Docker's proxy: %v", err)
		}
		p.heard(client, p.udpAt, p.service) // the proxy answers from the bridge's address, as ever
		return
	}
	p.send(client, p.udpAt, "from another network")
	p.receivesNothing(p.service, 100*time.Millisecond)
}

// fromHost: the host's own clients, by its addresses and the loopback, as Docker has it.
func (p *publishers) fromHost() {
	p.t.Helper()
	ofTCP, ofUDP := []string{"198.51.100.1:8080", "172.17.0.1:8080", "172.20.0.1:8080", "198.51.100.9:8080", "198.51.100.9:8083", "198.51.100.1:8081"}, []string{"198.51.100.1:5353"}
	if p.loopback {
		ofTCP, ofUDP = append(ofTCP, "127.0.0.1:8080"), append(ofUDP, "127.0.0.1:5353")
	}
	for _, to := range ofTCP {
		conn, err := p.host.DialTCP(0, netip.MustParseAddrPort(p.family.Text(to)))
		if err != nil {
			p.t.Errorf("the host to %s: %v", to, err)
			continue
		}
		if _, err := conn.Download(2 * megabyte); err != nil {
			p.t.Errorf("the host to %s: %v", to, err)
		}
		conn.Close()
	}
	for _, to := range ofUDP {
		client := p.udp(p.host, 0)
		from := p.heard(client, netip.MustParseAddrPort(p.family.Text(to)), p.service)
		if answered := p.heard(p.service, from, client); answered.String() != p.family.Text(to) {
			p.t.Errorf("the host asks %s and is answered from %s", to, answered)
		}
	}
}

// ownPackets: what the service sends by itself leaves as the published port, also to whom it has never heard of, and
// who answers gets in.
func (p *publishers) ownPackets() {
	at := p.family.At
	p.t.Helper()
	for i, h := range []probe.Host{p.peer1, p.peer2} {
		peer, addr := p.udp(h, 6100), []netip.Addr{p.family.Addr(topo.Peer1Addr), p.family.Addr(topo.Peer2Addr)}[i]
		if from := p.heard(p.service, at(addr, 6100), peer); from != p.udpAt {
			p.t.Errorf("the service's own packet comes from %s", from)
		}
		if from := p.heard(peer, p.udpAt, p.service); from != at(addr, 6100) {
			p.t.Errorf("the answer comes from %s", from)
		}
	}
}

// TestPublishedManyPorts: 10,000 ports come, and go, at once, and no process for them.
func TestPublishedManyPorts(t *testing.T) {
	const count = 10000
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	h := &dockerHost{lab: bareLab(family.V4, t, f)}
	e := dockerfake.ForTest(t)
	t.Setenv("DOCKER_HOST", e.Host())
	h.Conenat = harness.Start(t, f.Topo, f.Host, "--docker")
	inside, err := f.Start("a container's process", f.Containers[0].Command(t.Context(), "busybox", "sleep", "1000"))
	h.must(err)
	before := processes(t, h.PID())
	container := dockerfake.Container{Name: "many", PID: inside.PID(), Places: []dockerfake.Place{{Network: "bridge", Address: "172.17.0.2"}},
		Ports: append(dockerfake.Ports("tcp", 20000, 20000, count/2), dockerfake.Ports("udp", 20000, 20000, count/2)...)}

	began := time.Now()
	e.Run(container)
	h.eventually("10,000 ports are bound", func() bool { return len(h.static()) == count })
	h.tookLess("10,000 ports from the container's appearance to the last binding shown", began)
	h.serve(probe.In(f.Containers[0]), 24999)
	h.reaches("the last port", at(topo.HostAddr, 24999))
	if after := processes(t, h.PID()); after > before {
		t.Errorf("conenat has %d child processes, before %d", after, before)
	}

	began = time.Now()
	e.Remove("many")
	h.eventually("no port is bound", func() bool { return len(h.Bindings()) == 0 })
	h.tookLess("10,000 ports from the container's end to none shown", began)
	if n := len(h.Sessions()); n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// tookLess is generous: the machine may be busy. On an idle one it has to be less than a second.
func (h *dockerHost) tookLess(what string, since time.Time) {
	h.t.Helper()
	took := time.Since(since)
	h.t.Logf("%s: %v", what, took.Round(time.Millisecond))
	if took > patience.For(5*time.Second) {
		h.t.Errorf("%s: %v", what, took)
	}
}

// processes counts the children of a process.
func processes(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no tasks of process %d: %v", pid, err)
	}
	for _, path := range tasks {
		content, _ := os.ReadFile(path) // the task may have ended
		n += len(strings.Fields(string(content)))
	}
	return n
}

// TestPublishedServiceRestarts: a client that keeps sending from one socket reaches the container that takes the port over
// (moby #8795: a stale flow kept it from that).
func TestPublishedServiceRestarts(t *testing.T) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			h := newDockerHost(t, docker.Config{}, "--path", path)
			h.must(h.docker.NewNetwork(t.Context(), "user", "br-user", "172.20.0.0/16"))
			publish := map[string]string{"53/udp": ":5353"}
			client := h.udp(h.peer2, 6000)
			stop := keepSending(client, at(topo.HostAddr, 5353))
			defer stop()
			for i, addr := range []string{"172.20.0.5", "172.20.0.6", "172.20.0.5"} {
				c := h.run(docker.Spec{Name: fmt.Sprint("service", i), Network: "user", Addr: addr, Publish: publish})
				service, began := h.udp(c, 53), time.Now()
				h.reachedBy(service, at(topo.Peer2Addr, 6000), began)
				h.eventually("it answers as the published port", func() bool {
					h.send(service, at(topo.Peer2Addr, 6000), fmt.Sprint("answer of ", i))
					p, err := client.Receive(100 * time.Millisecond)
					return err == nil && p.Text == fmt.Sprint("answer of ", i) && p.From == at(topo.HostAddr, 5353)
				})
				h.publishes("the service is up", binding("udp", at(topo.HostAddr, 5353), c.Addr, 53))
				h.eventually("its flow is conenat's", func() bool {
					for _, s := range h.Sessions() {
						if s.Internal == at(c.Addr, 53).String() && s.Remote == "203.0.113.2:6000" {
							return len(h.Sessions()) == 1
						}
					}
					return false
				})
				h.must(c.Remove(t.Context()))
			}
		})
	}
}

// reachedBy waits until a service hears from a client itself. Until conenat knows a container that has just started, it
// is Docker's proxy that brings what the client sends; and where that has asked for its MAC address before the container was
// there, the host's kernel asks again a second later.
func (h *dockerHost) reachedBy(service probe.Socket, client netip.AddrPort, began time.Time) {
	h.t.Helper()
	first := time.Duration(0)
	h.eventually("the client reaches the service", func() bool {
		p, err := service.Receive(probe.Timeout)
		if err != nil {
			h.t.Fatal(err)
		}
		if first == 0 {
			first = time.Since(began)
		}
		return p.From == client
	})
	took := time.Since(began)
	h.t.Logf("the client reaches the service %v after it is up, by conenat %v after", first.Round(time.Millisecond), took.Round(time.Millisecond))
	if took > patience.For(5*time.Second) {
		h.t.Errorf("the client reaches the service %v after it is up", took)
	}
}

// TestDockerIsolation: between networks, and within one whose containers may not talk, only published ports are reached.
func TestDockerIsolation(t *testing.T) { family.Each(t, testDockerIsolation) }

func testDockerIsolation(t *testing.T, fam family.Family) {
	at := fam.At
	h := newDockerHostIn(fam, t, docker.Config{Args: []string{"--icc=false"}})
	h.must(h.Host.Sysctl("net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1"))
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "strict", Bridge: "br-strict", Subnet: "172.20.0.0/16",
		Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}}))
	h.must(h.docker.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "open", Bridge: "br-open", Subnet: "172.21.0.0/16"}))
	for i, network := range []string{"bridge", "strict", "open"} {
		t.Run(network, func(t *testing.T) {
			h := h.at(t)
			port := uint16(8080 + i)
			target := h.run(docker.Spec{Name: "target-" + network, Network: network, Publish: map[string]string{"80/tcp": fmt.Sprint(":", port)}})
			h.publishes("the target is there", binding("tcp", at(topo.HostAddr, port), target.Addr, 80))
			h.serve(target, 80)
			peer, socket := h.udp(h.peer1, 3478), h.udp(target, 20000)
			mapped := h.heard(socket, at(topo.Peer1Addr, 3478), peer)
			for _, from := range []string{"bridge", "strict", "open"} {
				c := h.run(docker.Spec{Name: from + "-to-" + network, Network: from})
				h.isolated(c, target, from == network && network == "open", socket, mapped, port)
				h.must(c.Remove(t.Context()))
			}
			h.must(target.Remove(t.Context()))
		})
	}
}

// isolated: from one container to another, its address and its dynamic endpoint are open or not; its published port is.
func (h *dockerHost) isolated(c, target *docker.Container, open bool, socket probe.Socket, mapped netip.AddrPort, published uint16) {
	h.t.Helper()
	dropped, sender := h.Counter("dropped_isolated"), h.udp(c, 0)
	h.send(sender, h.family.At(target.Addr, 20000), c.Name)
	if open {
		h.receives(socket, c.Name)
	} else {
		h.receivesNothing(socket, 100*time.Millisecond)
	}
	h.send(sender, mapped, c.Name)
	if open {
		h.receives(socket, c.Name)
	} else {
		h.eventually("it is dropped", func() bool { return h.Counter("dropped_isolated") > dropped })
		h.receivesNothing(socket, 20*time.Millisecond)
	}
	if err := h.dial(c, h.family.At(topo.HostAddr, published)).Echo("published"); err != nil {
		h.t.Errorf("%s by the published port: %v", c.Name, err)
	}
}

// TestDockerWithoutMasquerade: --ip-masq=false leaves the default bridge alone, and what Docker publishes is Docker's; a
// network beside it is translated.
func TestDockerWithoutMasquerade(t *testing.T) {
	h := newDockerHost(t, docker.Config{Args: []string{"--ip-masq=false"}})
	h.must(h.docker.NewNetwork(t.Context(), "user", "br-user", "172.20.0.0/16"))
	plain := h.run(docker.Spec{Name: "plain", Publish: map[string]string{"80/tcp": ":8080"}})
	user := h.run(docker.Spec{Name: "user", Network: "user", Publish: map[string]string{"80/tcp": ":8081"}})
	h.publishes("both run", binding("tcp", at(topo.HostAddr, 8081), user.Addr, 80))
	if n := h.networks()["bridge"]; n.State != "left-alone" || !strings.Contains(n.Reason, "masquerade is off") {
		t.Errorf("%+v", n)
	}
	h.serve(plain, 80)
	h.serve(user, 80)
	h.reaches("the port of the untranslated network", at(topo.HostAddr, 8080))
	h.reaches("the port of the translated network", at(topo.HostAddr, 8081))
	peer := h.udp(h.peer1, 3478)
	if from := h.heard(h.udp(plain, 20000), at(topo.Peer1Addr, 3478), peer); from != at(plain.Addr, 20000) {
		t.Errorf("the untranslated container is seen as %s", from)
	}
	if from := h.heard(h.udp(user, 20000), at(topo.Peer1Addr, 3478), peer); from != at(topo.HostAddr, 20000) {
		t.Errorf("the translated container is seen as %s", from)
	}
}

// TestDockerRulesUnchanged: with conenat, Docker's rules are at every step what they are without.
func TestDockerRulesUnchanged(t *testing.T) { family.Each(t, testDockerRulesUnchanged) }

func testDockerRulesUnchanged(t *testing.T, fam family.Family) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			h := placeDockerHost(fam, t, docker.Config{}, "--path", path)
			h.must(h.docker.NewNetwork(t.Context(), "user", "br-user", "172.20.0.0/16"))
			without := h.dockerSteps(func(string) {})
			h.Run()
			if diff := cmp.Diff(without, h.dockerSteps(func(bound string) { h.publishes("bound by conenat", bound) })); diff != "" {
				t.Errorf("iptables-save (-without conenat +with):\n%s", diff)
			}
			if n := h.Counter("translated_outbound") + h.Counter("translated_stack"); n == 0 {
				t.Error("conenat translated nothing")
			}
			h.Detach()
			if diff := cmp.Diff(without[0], rules(t, h.Figure3)); diff != "" {
				t.Errorf("iptables-save (-before conenat +after):\n%s", diff)
			}
		})
	}
}

// dockerSteps are the rules after each step of a container's life, in which a client talks to it once its port is bound.
func (h *dockerHost) dockerSteps(wait func(bound string)) (steps []string) {
	h.t.Helper()
	at := h.family.At
	port := binding("tcp", at(topo.HostAddr, 8080), h.family.Addr(netip.MustParseAddr("172.20.0.5")), 80)
	save := func() { steps = append(steps, rules(h.t, h.Figure3)) }
	save()
	c := h.run(docker.Spec{Network: "user", Addr: "172.20.0.5", Publish: map[string]string{"80/tcp": ":8080"}})
	h.serve(c, 80)
	wait(port)
	h.reaches("the published port", at(topo.HostAddr, 8080))
	save()
	h.must(c.Stop(h.t.Context()))
	save()
	h.must(c.Start(h.t.Context()))
	h.serve(c, 80)
	wait(port)
	h.reaches("the published port again", at(topo.HostAddr, 8080))
	save()
	h.must(c.Remove(h.t.Context()))
	save()
	return steps
}
