// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// streams are connections and datagrams that flow all through a test.
type streams struct {
	*lab
	server, other, published *probe.StreamServer // at peer 1, at peer 2, in the second container
	tcp                      []*probe.TCPStream
	udp                      []*probe.UDPStream
	inbound                  []*probe.TCPStream // of clients outside, to the published port
	inboundUDP               []*probe.UDPStream
	places                   map[any]*docker.Container // whose a stream is
	containers               []*docker.Container
	excused                  excuses
	lost                     int // datagrams, all in all
}

const (
	serverPort, otherPort = 7000, 7001
	tcpBase, udpBase      = 20000, 30000
	publishedPort         = 8080
)

var streamPorts = map[string]string{"80/tcp": ":8080", "80/udp": ":8080"}

// dockerWithStreams is a real dockerd with two containers, and no conenat yet. Each has half of the streams, from the
// same ports and to the same peer, so that masquerade has to change those of the second one.
func dockerWithStreams(fam family.Family, t *testing.T, cfg docker.Config, half, clients int) *streams {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: fam == family.V6})
	at := fam.At
	cfg.Family = fam
	d := docker.StartForTest(t, f.Topo, f.Host, cfg)
	t.Setenv("DOCKER_HOST", "unix://"+d.Socket)
	s := &streams{lab: bareLab(fam, t, f), places: map[any]*docker.Container{}}
	s.containers = []*docker.Container{
		d.RunForTest(t, docker.Spec{Name: "first", Idle: true}),
		d.RunForTest(t, docker.Spec{Name: "second", Idle: true, Publish: streamPorts}),
	}
	s.server, s.other, s.published = s.serveStreams(f.Peer1, serverPort), s.serveStreams(f.Peer2, otherPort), s.serveStreams(s.containers[1].NS, 80)
	for i := range half {
		for _, c := range s.containers {
			s.start(c, uint16(i))
		}
	}
	for range clients {
		s.inbound = append(s.inbound, s.dialStream(f.Peer2, 0, at(topo.HostAddr, publishedPort)))
		s.inboundUDP = append(s.inboundUDP, s.datagrams(f.Peer2, 0, at(topo.HostAddr, publishedPort)))
	}
	s.flows("before conenat starts")
	s.portsChanged(half)
	return s
}

func (s *streams) start(c *docker.Container, i uint16) {
	at := s.family.At
	tcp := s.dialStream(c.NS, tcpBase+i, at(topo.Peer1Addr, serverPort))
	udp := s.datagrams(c.NS, udpBase+i, at(topo.Peer1Addr, serverPort))
	s.tcp, s.udp = append(s.tcp, tcp), append(s.udp, udp)
	s.places[tcp], s.places[udp] = c, c
}

func (s *streams) serveStreams(place probe.Place, port uint16) *probe.StreamServer {
	s.t.Helper()
	server, err := probe.ServeStreams(place, port)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := server.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return server
}

func (s *streams) dialStream(place probe.Place, local uint16, server netip.AddrPort) *probe.TCPStream {
	s.t.Helper()
	stream, err := probe.DialStream(place, local, server)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(stream.Close)
	return stream
}

func (s *streams) datagrams(place probe.Place, local uint16, server netip.AddrPort) *probe.UDPStream {
	s.t.Helper()
	stream, err := probe.StartDatagrams(place, local, server)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(stream.Close)
	return stream
}

// flows waits until every stream has brought some more there and back.
func (s *streams) flows(when string) {
	s.t.Helper()
	const more = 5
	var waiting []func() bool
	for _, stream := range slices.Concat(s.tcp, s.inbound) {
		from := stream.Received()
		waiting = append(waiting, func() bool { return stream.Received() > from+more*200 })
	}
	for _, stream := range slices.Concat(s.udp, s.inboundUDP) {
		from := stream.Answered()
		waiting = append(waiting, func() bool { return stream.Answered() > from+more })
	}
	err := topo.Poll(s.t.Context(), 15*time.Second, "all streams flow "+when, func() (bool, error) {
		waiting = slices.DeleteFunc(waiting, func(done func() bool) bool { return done() })
		return len(waiting) == 0, fmt.Errorf("%d stand still", len(waiting))
	})
	if err != nil {
		s.t.Error(err)
	}
}

// portsChanged: the test shows something only if masquerade has changed ports.
func (s *streams) portsChanged(want int) {
	s.t.Helper()
	changed := [2]int{}
	for _, stream := range s.tcp {
		if stream.Seen().Port() != stream.Local().Port() {
			changed[0]++
		}
	}
	for _, stream := range s.udp {
		seen := stream.Seen()
		if len(seen) != 1 {
			s.t.Fatalf("masquerade has not made one external endpoint of %s of %s, but %s", stream.Local(), s.places[stream].Addr, seen)
		}
		if seen[0].Port() != stream.Local().Port() {
			changed[1]++
		}
	}
	if changed[0] < want || changed[1] < want {
		s.t.Fatalf("masquerade has changed %v ports of TCP and UDP, want %d each", changed, want)
	}
}

// known: conenat shows each stream as a session, with the external endpoint that the peer sees.
func (s *streams) known() {
	at := s.family.At
	s.t.Helper()
	external := map[string]string{}
	for _, one := range s.Sessions() {
		external[one.Protocol+" "+one.Internal+" "+one.Remote] = one.External
	}
	bindings := map[string]bool{}
	for _, b := range s.Bindings() {
		bindings[b.Protocol+" "+b.Internal+" "+b.External] = true
	}
	check := func(protocol string, c *docker.Container, port uint16, seen netip.AddrPort) {
		internal := netip.AddrPortFrom(c.Addr, port).String()
		if got := external[protocol+" "+internal+" "+at(topo.Peer1Addr, serverPort).String()]; got != seen.String() {
			s.t.Errorf("%s session of %s is by %q, want %s", protocol, internal, got, seen)
		}
		if !bindings[protocol+" "+internal+" "+seen.String()] {
			s.t.Errorf("no %s binding of %s to %s", protocol, internal, seen)
		}
	}
	for _, stream := range s.tcp {
		check("tcp", s.places[stream], stream.Local().Port(), stream.Seen())
	}
	for _, stream := range s.udp {
		check("udp", s.places[stream], stream.Local().Port(), stream.Seen()[0])
	}
}

// newRemote: another remote sees each UDP socket by the endpoint that the first one sees.
func (s *streams) newRemote() {
	at := s.family.At
	s.t.Helper()
	for _, stream := range s.udp {
		seen, err := stream.Ask(at(topo.Peer2Addr, otherPort))
		if first := stream.Seen(); err != nil || len(first) != 1 || seen != first[0] {
			s.t.Errorf("socket %s of %s: a new remote sees it as %s, %v; the first one as %s", stream.Local(), s.places[stream].Addr, seen, err, first)
		}
	}
}

// finish ends all streams: no byte is lost or changed, nothing was reset, no external endpoint is another one, and at
// the most so many datagrams were lost.
func (s *streams) finish(mayLose int) {
	s.t.Helper()
	seen := map[netip.AddrPort]bool{}
	for _, client := range s.server.Clients() {
		seen[client] = true
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, stream := range slices.Concat(s.tcp, s.inbound) {
		if s.places[stream] != nil && !seen[stream.Seen()] {
			s.t.Errorf("the server has no connection of %s any more", stream.Seen())
		}
		wg.Go(func() {
			if err := stream.Finish(); err != nil {
				s.t.Error(err)
			}
		})
	}
	sent := 0
	for _, stream := range slices.Concat(s.udp, s.inboundUDP) {
		wg.Go(func() {
			r, err := stream.Finish()
			if err != nil || r.Duplicates > 0 || len(r.Seen) != 1 {
				s.t.Errorf("datagrams: %+v, %v", r, err)
			}
			mu.Lock()
			defer mu.Unlock()
			sent, s.lost = sent+r.Sent, s.lost+len(s.excused.leave(stream, r.Lost))
		})
	}
	wg.Wait()
	s.t.Logf("%d TCP streams, %d of datagrams: %d sent, %d lost", len(s.tcp)+len(s.inbound), len(s.udp)+len(s.inboundUDP), sent, s.lost)
	if s.lost > mayLose {
		s.t.Errorf("%d of %d datagrams are lost, want %d at the most", s.lost, sent, mayLose)
	}
}

// TestTakeoverOfNetworkKnownLater: a daemon that cannot ask Docker yet holds its connections for another NAT's, and leaves
// their ports alone; the next one knows the network, and takes them over all the same.
func TestTakeoverOfNetworkKnownLater(t *testing.T) {
	s := dockerWithStreams(family.V4, t, docker.Config{}, 5, 0)
	engine := os.Getenv("DOCKER_HOST")
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(s.Dir(), "nobody.sock"))
	s.Conenat = harness.Start(t, s.Topo, s.Host, "--docker")
	s.Stop()
	t.Setenv("DOCKER_HOST", engine)
	s.Run()
	s.excused = excuseClsact(t, s.udp)
	s.flows("after the takeover")
	s.known()
	if strings.Contains(s.Log(), "cannot be taken over") {
		t.Errorf("the daemon says: %s", s.Log())
	}
	s.finish(0)
}

// TestTakeover: what lives in Docker's NAT, on ports that masquerade had to change and on a published one, goes on in
// conenat: not a byte and (with TCX) not a datagram is lost, and no external endpoint changes; nor when the daemon is killed, and
// the next one adopts it all.
func TestTakeover(t *testing.T) { family.Each(t, testTakeover) }

func testTakeover(t *testing.T, fam family.Family) {
	for name, c := range both(fam, map[string]struct {
		cfg           docker.Config
		args          []string
		half, clients int
		killed        bool
	}{
		"Direct":  {half: patience.Load(100), clients: 10},
		"Stack":   {args: []string{"--path", "stack"}, half: patience.Load(100), clients: 10},
		"NoProxy": {cfg: docker.Config{Args: []string{"--userland-proxy=false"}}, half: 10, clients: 10, killed: true},
	}, "Direct", "NoProxy") {
		t.Run(name, func(t *testing.T) {
			s := dockerWithStreams(fam, t, c.cfg, c.half, c.clients)
			before := rules(t, s.Figure3)
			s.Conenat = harness.Start(t, s.Topo, s.Host, append([]string{"--docker"}, c.args...)...)
			s.excused = excuseClsact(t, slices.Concat(s.udp, s.inboundUDP))
			s.flows("after the takeover")
			s.known()
			if c.killed {
				s.Kill()
				s.flows("without a daemon")
				s.Run()
				s.flows("with the next daemon")
				s.known()
			}
			s.newRemote()
			if during := rules(t, s.Figure3); during != before {
				t.Errorf("iptables-save changed from\n%s\nto\n%s", before, during)
			}
			if strings.Contains(s.Log(), "cannot be taken over") {
				t.Errorf("the daemon says: %s", s.Log())
			}
			s.finish(0)
		})
	}
}

// TestDetachHandsBack: what lives in conenat, on whichever path, goes on in Docker's NAT by the same external endpoints;
// detach says how much that is, and what ends.
func TestDetachHandsBack(t *testing.T) { family.Each(t, testDetachHandsBack) }

func testDetachHandsBack(t *testing.T, fam family.Family) {
	at := fam.At
	for name, args := range map[string][]string{"Direct": nil, "Stack": {"--path", "stack"}} {
		t.Run(name, func(t *testing.T) {
			s := dockerWithStreams(fam, t, docker.Config{}, 15, 5) // in Docker's NAT before conenat
			s.Conenat = harness.Start(t, s.Topo, s.Host, append([]string{"--docker"}, args...)...)
			s.excused = excuseClsact(t, slices.Concat(s.udp, s.inboundUDP))
			for i := range uint16(15) { // born in conenat
				s.start(s.containers[0], 500+i)
				s.start(s.containers[1], 500+i)
			}
			for range 5 {
				s.inbound = append(s.inbound, s.dialStream(s.Peer2, 0, at(topo.HostAddr, publishedPort)))
				s.inboundUDP = append(s.inboundUDP, s.datagrams(s.Peer2, 0, at(topo.HostAddr, publishedPort)))
			}
			s.flows("in conenat")
			s.known()
			hairpin := s.datagrams(s.containers[0].NS, 0, at(topo.HostAddr, publishedPort))
			s.eventually("the hairpin flows", func() bool { return hairpin.Answered() > 0 })
			if _, err := hairpin.Finish(); err != nil {
				t.Error(err)
			}
			var out string
			s.excused.during(slices.Concat(s.udp, s.inboundUDP), func() { out = s.Detach() })
			if !strings.Contains(out, "handed back to the host's NAT: 140 connections; not handed back: 2 hairpins\n") {
				t.Errorf("detach says %q", out)
			}
			s.flows("after detach")
			s.finish(0)
		})
	}
}
