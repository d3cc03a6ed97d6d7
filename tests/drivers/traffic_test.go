// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// TestBridge: all that a card at a bridge's port can do to conenat, by both paths. One daemon serves all of a path's tests, for
// its start takes longer in software emulation than they do.
func TestBridge(t *testing.T) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			l := newLab(t, labConfig{path: path})
			t.Run("Offloads", func(t *testing.T) { l.under(t).offloads() })
			t.Run("Traffic", func(t *testing.T) { l.under(t).traffic() })
			t.Run("OffloadsOff", func(t *testing.T) { l.under(t).offloadsOff(t) })
			t.Run("Checksums", func(t *testing.T) { l.under(t).checksums(t) })
			t.Run("Segments", func(t *testing.T) { l.under(t).segments() })
			l.went(path)
		})
	}
}

// TestPlain: a card is the inside itself, without a bridge.
func TestPlain(t *testing.T) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			l := newLab(t, labConfig{path: path, plain: true})
			l.traffic()
			l.went(path)
		})
	}
}

// went fails unless conenat's work was done on this path.
func (l *lab) went(path string) {
	l.t.Helper()
	c := l.counters()
	direct, stack := c["translated_outbound"]+c["translated_inbound"], c["translated_stack"]
	if path == "direct" && direct < 100 || path == "stack" && (stack < 100 || direct > 0) {
		l.t.Errorf("%s: %d packets went the direct path, %d the stack path", path, direct, stack)
	}
}

// traffic is all of it, and nothing may be lost or wrong.
func (l *lab) traffic() {
	l.t.Helper()
	started := time.Now()
	l.nothingLost(func() {
		l.bulk(l.a, l.b, at(topo.Peer1Addr, 8080), 4*megabyte)
		l.published()
		l.datagrams()
		l.oneEndpoint()
		l.pings()
		if l.c != nil {
			l.hairpin()
		}
	})
	l.t.Logf("traffic: %v", time.Since(started).Round(time.Millisecond))
}

// bulk has a client download from a server, and upload to it.
func (l *lab) bulk(client, server probe.Host, at netip.AddrPort, bytes int64) {
	l.t.Helper()
	s, err := server.ServeTCP(at.Port())
	if err != nil {
		l.t.Fatal(err)
	}
	defer s.Close()
	conn, err := client.DialTCP(0, at)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Download(bytes); err != nil {
		l.t.Errorf("from %s: %v", at, err)
	}
	if _, err := conn.Upload(bytes); err != nil {
		l.t.Errorf("to %s: %v", at, err)
	}
}

// published: a forward leads the far peer to a server inside, and neither is hidden from the other.
func (l *lab) published() {
	l.t.Helper()
	s, err := l.a.ServeTCP(80)
	if err != nil {
		l.t.Fatal(err)
	}
	defer s.Close()
	conn, err := l.b.DialTCP(0, at(topo.HostAddr, publishedA))
	if err != nil {
		l.t.Fatalf("to the published port: %v", err)
	}
	defer conn.Close()
	if from, err := conn.Seen(); err != nil || from.Addr() != topo.Peer1Addr {
		l.t.Errorf("the published port sees its client as %s, %v", from, err)
	}
	if _, err := conn.Download(2 * megabyte); err != nil {
		l.t.Errorf("the published port: %v", err)
	}
	if _, err := conn.Upload(2 * megabyte); err != nil {
		l.t.Errorf("the published port: %v", err)
	}
}

// datagrams of every kind of size: with and without padding of the frame, of an odd length, as large as a frame, in fragments.
func (l *lab) datagrams() {
	l.t.Helper()
	inside, outside := l.udp(l.a, 0), l.udp(l.b, 0)
	defer inside.Close()
	defer outside.Close()
	to := at(topo.Peer1Addr, outside.Port())
	for _, size := range []int{1, 18, 501, 1000, 1471, 1472, 4000, 9001} {
		text := strings.Repeat("conenat", size/7+1)[:size]
		l.send(inside, to, text)
		from := l.receives(outside, text)
		if from.Addr() != topo.HostAddr {
			l.t.Errorf("%d bytes come from %s", size, from)
		}
		l.send(outside, from, text)
		if from := l.receives(inside, text); from != to {
			l.t.Errorf("%d bytes: answered from %s", size, from)
		}
	}
}

// oneEndpoint: two remotes see one socket at the same external endpoint.
func (l *lab) oneEndpoint() {
	l.t.Helper()
	inside := l.udp(l.a, 0)
	defer inside.Close()
	var seen []netip.AddrPort
	for _, addr := range []netip.Addr{topo.Peer1Addr, topo.Peer2Addr} {
		remote, err := l.nsB.ListenUDP(at(addr, 0))
		if err != nil {
			l.t.Fatal(err)
		}
		defer remote.Close()
		here := remote.LocalAddr().(*net.UDPAddr).AddrPort()
		l.send(inside, at(addr, here.Port()), "question")
		if err := remote.SetReadDeadline(time.Now().Add(probe.Timeout)); err != nil {
			l.t.Fatal(err)
		}
		_, from, err := remote.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil {
			l.t.Fatalf("at %s: %v", here, err)
		}
		if _, err := remote.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
			l.t.Fatal(err)
		}
		if from := l.receives(inside, "answer"); from != at(addr, here.Port()) {
			l.t.Errorf("the answer of %s comes from %s", here, from)
		}
		seen = append(seen, at(from.Addr().Unmap(), from.Port()))
	}
	if seen[0] != seen[1] || seen[0].Addr() != topo.HostAddr {
		l.t.Errorf("the remotes see one socket as %s and %s", seen[0], seen[1])
	}
}

// pings of a frame, and of several.
func (l *lab) pings() {
	l.t.Helper()
	for _, p := range []struct {
		what string
		from probe.Host
		to   netip.Addr
		size int
	}{
		{"from inside", l.a, topo.Peer1Addr, 56}, {"from inside, large", l.a, topo.Peer1Addr, 1472},
		{"from inside, in fragments", l.a, topo.Peer1Addr, 5000},
		{"to the host", l.b, topo.HostAddr, 1472}, {"from the host", l.host, topo.Peer1Addr, 1472},
	} {
		pinger, err := p.from.Ping(probe.PingSpec{To: p.to, Count: 3, Size: p.size})
		if err != nil {
			l.t.Fatal(err)
		}
		if r, err := pinger.Stop(true); err != nil || r.Received != 3 || r.Duplicates != 0 {
			l.t.Errorf("ping %s: %+v, %v", p.what, r, err)
		}
	}
}

// hairpin: a neighbour's published port is reached from behind the card, and the other way round.
func (l *lab) hairpin() {
	l.t.Helper()
	for _, way := range []struct {
		from, to probe.Host
		server   uint16 // on its own address
		port     uint16 // published
	}{{l.a, l.c, 81, publishedC}, {l.c, l.a, 80, publishedA}} {
		func() {
			s, err := way.to.ServeTCP(way.server)
			if err != nil {
				l.t.Fatal(err)
			}
			defer s.Close()
			conn, err := way.from.DialTCP(0, at(topo.HostAddr, way.port))
			if err != nil {
				l.t.Errorf("hairpin to port %d: %v", way.port, err)
				return
			}
			defer conn.Close()
			if from, err := conn.Seen(); err != nil || from.Addr() != topo.HostAddr {
				l.t.Errorf("hairpin to port %d: seen as %s, %v", way.port, from, err)
			}
			if _, err := conn.Upload(megabyte); err != nil {
				l.t.Errorf("hairpin to port %d: %v", way.port, err)
			}
			if _, err := conn.Download(megabyte); err != nil {
				l.t.Errorf("hairpin to port %d: %v", way.port, err)
			}
		}()
	}
}
