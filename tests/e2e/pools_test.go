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

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// extra is the n-th address of the host's beside the first one.
func extra(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + n)}) }

// pool are the outside's addresses of the lab's family.
func (l *lab) pool() (list []netip.Addr) {
	l.t.Helper()
	var status []struct {
		Outsides []struct {
			Addresses []netip.Addr `json:"addresses"`
		} `json:"outsides"`
	}
	if err := json.Unmarshal([]byte(l.Client("status", "-o", "json")), &status); err != nil {
		l.t.Fatal(err)
	}
	return slices.DeleteFunc(status[0].Outsides[0].Addresses, func(a netip.Addr) bool { return family.Of(a) != l.family })
}

// addExtra gives the host n addresses more, and waits until conenat has them.
func (l *lab) addExtra(n int) {
	l.t.Helper()
	for i := range n {
		l.must(l.Host.AddAddr("eth0", extra(i).String()+"/24"))
	}
	l.eventually("the pool has them", func() bool { return len(l.pool()) == n+1 })
}

// service is a port of a container, at an external address of its own.
type service struct {
	container int
	port      uint16
}

// TestServicesOnOwnAddresses: 20 containers on port 25565, and 75 on ports 80 and 443, each at an external address of its own, all
// of them reached at once.
func TestServicesOnOwnAddresses(t *testing.T) { family.Each(t, testServicesOnOwnAddresses) }

func testServicesOnOwnAddresses(t *testing.T, fam family.Family) {
	at := fam.At
	const games, webs = 20, 75
	var services []service
	for i := range games + webs {
		if i < games {
			services = append(services, service{i, 25565})
			continue
		}
		services = append(services, service{i, 80}, service{i, 443})
	}
	config := "external: 198.51.100.0/24\nforwards:\n"
	for _, s := range services {
		config += fmt.Sprintf("- {external: %q, internal: \"172.17.0.%d:%d\"}\n", at(extra(s.container), s.port), 2+s.container, s.port)
	}
	l := newLabIn(fam, t, topo.Figure3Config{Containers: games + webs}, config)
	l.addExtra(games + webs)
	l.eventually("all are forwarded", func() bool { return len(l.Bindings()) == len(services) })
	var conns []probe.Conn
	for _, s := range services {
		l.serve(l.containers[s.container], s.port)
		conns = append(conns, l.dial(l.peer1, at(extra(s.container), s.port)))
	}
	for i, s := range services {
		if err := conns[i].Echo("while all are open"); err != nil {
			t.Errorf("container %d, port %d: %v", s.container, s.port, err)
		}
	}
	sessions := map[string]int{}
	for _, b := range l.Bindings() {
		sessions[fmt.Sprint(b.Internal, " ", b.External)] = b.Sessions
	}
	for _, s := range services {
		key := fmt.Sprint(fam.Text(fmt.Sprintf("172.17.0.%d:%d ", 2+s.container, s.port)), at(extra(s.container), s.port))
		if sessions[key] != 1 {
			t.Errorf("binding %s has %d sessions, want 1", key, sessions[key])
		}
	}
	l.Detach()
}

// TestAddressChange: under 200 flows (in an emulated machine, 40) an address goes and another one comes: flows at other addresses lose nothing, those that lived
// there end with their events, and go on from another address.
func TestAddressChange(t *testing.T) { family.Each(t, testAddressChange) }

func testAddressChange(t *testing.T, fam family.Family) {
	at := fam.At
	const containers = 20
	each := patience.Load(10)
	l := newLabIn(fam, t, topo.Figure3Config{Containers: containers}, "external: 198.51.100.0/24\n")
	l.addExtra(4)
	server, err := probe.ServeStreams(l.Peer1, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	var streams []*probe.UDPStream
	for i := range containers * each {
		s, err := probe.StartDatagrams(l.Containers[i/each], 0, at(topo.Peer1Addr, server.Port()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		streams = append(streams, s)
	}
	l.eventually("all flow", func() bool {
		return !slices.ContainsFunc(streams, func(s *probe.UDPStream) bool { return s.Answered() == 0 })
	})
	var was []netip.Addr // by stream
	for i, s := range streams {
		was = append(was, s.Seen()[0].Addr())
		if was[i] != was[i/each*each] {
			t.Errorf("container %d is seen as %s and %s", i/each, was[i], was[i/each*each])
		}
	}
	gone := was[slices.IndexFunc(was, func(a netip.Addr) bool { return a != fam.Addr(topo.HostAddr) })]
	if err := l.Host.DeleteAddr("eth0", netip.PrefixFrom(gone, fam.Prefix(netip.MustParsePrefix("198.51.100.0/24")).Bits()).String()); err != nil {
		t.Fatal(err)
	}
	l.eventually("it is not in the pool any more", func() bool { return !slices.Contains(l.pool(), gone) })
	if err := l.Host.AddAddr("eth0", extra(9).String()+"/24"); err != nil {
		t.Fatal(err)
	}
	l.eventually("another one is", func() bool { return slices.Contains(l.pool(), fam.Addr(extra(9))) })
	moved := 0
	for i, s := range streams {
		if was[i] == gone {
			moved++
			l.eventually("the flow goes on from another address", func() bool { return len(s.Seen()) > 1 })
		}
	}
	for i, s := range streams {
		r, err := s.Finish()
		if err != nil {
			t.Error(err)
		}
		if was[i] != gone && (len(r.Lost) > 0 || len(r.Seen) != 1) {
			t.Errorf("flow %d at %s: %d of %d lost, seen as %s", i, was[i], len(r.Lost), r.Sent, r.Seen)
		}
	}
	ended := l.ended(gone)
	if len(ended) != moved || moved == containers*each {
		t.Errorf("%d bindings of %s have ended, %d of %d flows were there", len(ended), gone, moved, len(streams))
	}
	for _, a := range l.pool() {
		l.nothingEnded(a)
	}
	t.Logf("%d of %d flows were at the address that went", moved, len(streams))
	checkReplay(l)
}

// TestDockerLabelExternal: a container is seen as the address of its label alone, and one that has all of an address is reached on
// every port of it, and by ping; nobody else gets either.
func TestDockerLabelExternal(t *testing.T) { family.Each(t, testDockerLabelExternal) }

func testDockerLabelExternal(t *testing.T, fam family.Family) {
	at := fam.At
	h := placeDockerHost(fam, t, docker.Config{})
	pinned, own := extra(0), extra(1)
	for _, a := range []netip.Addr{pinned, own} {
		h.must(h.Host.AddAddr("eth0", a.String()+"/24"))
	}
	h.Run()
	plain := h.run(docker.Spec{Name: "plain"})
	web := h.run(docker.Spec{Name: "web", Labels: map[string]string{"conenat.external": fam.Addr(pinned).String()},
		Publish: map[string]string{"80/tcp": ":8080"}})
	all := h.run(docker.Spec{Name: "all", Labels: map[string]string{"conenat.external": fam.Addr(own).String(), "conenat.one-to-one": "true"}})
	for _, c := range []*docker.Container{plain, web, all} {
		h.eventually("it is known", func() bool { return strings.Contains(h.Log(), "put container "+c.Addr.String()) })
	}
	h.publishes("on its own address alone", binding("tcp", at(pinned, 8080), web.Addr, 80))
	peer := h.udp(h.peer1, 3478)
	for _, tt := range []struct {
		c    *docker.Container
		port uint16
		want netip.Addr
	}{{plain, 20000, fam.Addr(topo.HostAddr)}, {web, 20000, pinned}, {all, 20000, own}, {all, 53, own}} {
		if got := h.heard(h.udp(tt.c, tt.port), at(topo.Peer1Addr, 3478), peer); got != at(tt.want, tt.port) {
			t.Errorf("%s is seen as %s, want %s", tt.c.Name, got, at(tt.want, tt.port))
		}
	}
	socket := h.udp(all, 7777)
	if from := h.heard(h.udp(h.peer2, 4000), at(own, 7777), socket); from != at(topo.Peer2Addr, 4000) {
		t.Errorf("the container hears %s", from)
	}
	h.serve(all, 443)
	if err := h.dial(h.peer2, at(own, 443)).Echo("to a port that nobody has published"); err != nil {
		t.Error(err)
	}
	if err := h.dial(plain, at(own, 443)).Echo("from its neighbour"); err != nil {
		t.Error(err)
	}
	before := h.Counter("translated_inbound")
	if r, err := probe.PingOnce(h.peer1, fam.Addr(own), 3); err != nil || r.Received != 3 || h.Counter("translated_inbound") < before+3 {
		t.Errorf("ping: %+v, %v", r, err)
	}
	h.must(h.Host.DeleteAddr("eth0", pinned.String()+"/24"))
	dropped := h.Counter("dropped_no_address")
	h.eventually("it gets no other address", func() bool {
		h.send(h.udp(web, 0), at(topo.Peer1Addr, 3478), "as whom?")
		return h.Counter("dropped_no_address") > dropped
	})
	h.warns("container web: no outside interface has the external address " + fam.Addr(pinned).String())
	h.eventually("the other one goes on", func() bool {
		h.send(socket, at(topo.Peer1Addr, 3478), "on")
		p, err := peer.Receive(100 * time.Millisecond)
		return err == nil && p.From == at(own, 7777)
	})
}
