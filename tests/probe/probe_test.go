// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// Every Host must pass the same test: in a namespace, and through the line protocol.
func TestHosts(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) { testHosts(t, fam) })
	}
}

func testHosts(t *testing.T, fam family.Family) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: fam == family.V6})
	stun, err := probe.ServeSTUN(f.Peer1, 3478)
	if err != nil {
		t.Fatal(err)
	}
	defer stun.Close()
	t.Run("local", func(t *testing.T) { testHost(t, probe.InFamily(fam, f.Peer1), fam.Addr(topo.Peer1Addr)) })
	t.Run("remote", func(t *testing.T) {
		var host probe.Host
		// Serve's sockets are those of this process, so all of it stays on the loopback.
		far, near := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- probe.Serve(far, far) }()
		client := probe.Remote(near)
		host = client.In(fam)
		testHost(t, host, fam.Addr(netip.MustParseAddr("127.0.0.1")))
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
		if _, err := host.ListenUDP(0); err == nil {
			t.Error("a closed client still opens sockets")
		}
	})
	t.Run("streams", func(t *testing.T) { testStreams(t, f, fam) })
	t.Run("mapped", func(t *testing.T) { testMapped(t, probe.InFamily(fam, f.Peer2), fam) })
}

// testStreams runs a stream of each protocol between the peers.
func testStreams(t *testing.T, f *topo.Figure3, fam family.Family) {
	server, err := probe.ServeStreams(f.Peer1, 0)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(fam.Addr(topo.Peer1Addr), server.Port())
	tcp, err := probe.DialStream(f.Peer2, 0, to)
	if err != nil {
		t.Fatal(err)
	}
	udp, err := probe.StartDatagrams(f.Peer2, 0, to)
	if err != nil {
		t.Fatal(err)
	}
	wait := func() (bool, error) { return udp.Answered() > 0 && tcp.Received() > 0, nil }
	if err := topo.Poll(t.Context(), 5*time.Second, "both streams flow", wait); err != nil {
		t.Error(err)
	}
	report, err := udp.Finish()
	if want := netip.AddrPortFrom(fam.Addr(topo.Peer2Addr), report.Local.Port()); err != nil || len(report.Lost) > 0 || len(report.Seen) != 1 || report.Seen[0] != want {
		t.Errorf("datagrams: %+v, %v; want them seen from %v", report, err, want)
	}
	if tcp.Seen() != tcp.Local() {
		t.Errorf("TCP is seen from %v, and is %v", tcp.Seen(), tcp.Local())
	}
	if err := errors.Join(tcp.Finish(), server.Close()); err != nil {
		t.Error(err)
	}
}

// testHost lets a host talk to itself at addr.
func testHost(t *testing.T, h probe.Host, addr netip.Addr) {
	a, b := listen(t, h), listen(t, h)
	if err := a.Send(netip.AddrPortFrom(addr, b.Port()), "hello"); err != nil {
		t.Fatal(err)
	}
	got, err := b.Receive(probe.Timeout)
	if want := (probe.Packet{From: netip.AddrPortFrom(addr, a.Port()), Text: "hello"}); err != nil || got != want {
		t.Errorf("received %v, %v; want %v", got, err, want)
	}
	if _, err := b.Receive(10 * time.Millisecond); !errors.Is(err, probe.ErrTimeout) {
		t.Errorf("receive of nothing: %v", err)
	}
	testTCP(t, h, addr)
	report, err := h.Ping(probe.PingSpec{To: addr, Count: 5, Interval: time.Millisecond, ID: 77})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := report.Stop(true); err != nil || r.ID != 77 || r.Sent != 5 || r.Received != 5 || r.Lost != nil || r.Duplicates != 0 {
		t.Errorf("ping: %+v, %v", r, err)
	}
}

func listen(t *testing.T, h probe.Host) probe.Socket {
	t.Helper()
	s, err := h.ListenUDP(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func testTCP(t *testing.T, h probe.Host, addr netip.Addr) {
	server, err := h.ServeTCP(0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.DialTCP(0, netip.AddrPortFrom(addr, server.Port()))
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := conn.Seen(); err != nil || seen != netip.AddrPortFrom(addr, conn.LocalPort()) {
		t.Errorf("seen as %v, %v", seen, err)
	}
	if err := conn.Echo("some text"); err != nil {
		t.Error(err)
	}
	if got, err := conn.Download(3_000_001); err != nil || got.Bytes != 3_000_001 {
		t.Errorf("download: %+v, %v", got, err)
	}
	if got, err := conn.Upload(3_000_001); err != nil || got.Bytes != 3_000_001 {
		t.Errorf("upload: %+v, %v", got, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

func testMapped(t *testing.T, h probe.Host, fam family.Family) {
	socket := listen(t, h)
	server := netip.AddrPortFrom(fam.Addr(topo.Peer1Addr), 3478)
	mapped, err := socket.Mapped(server, probe.Timeout)
	if want := netip.AddrPortFrom(fam.Addr(topo.Peer2Addr), socket.Port()); err != nil || mapped != want {
		t.Errorf("mapped to %v, %v; want %v", mapped, err, want)
	}
	nobody := netip.AddrPortFrom(fam.Addr(topo.Peer1Addr), 3479)
	if _, err := socket.Mapped(nobody, 250*time.Millisecond); !errors.Is(err, probe.ErrTimeout) {
		t.Errorf("a server that is not there: %v", err)
	}
}
