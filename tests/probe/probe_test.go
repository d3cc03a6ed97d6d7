// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// Every Host must pass the same test: in a namespace, and through the line protocol.
func TestHosts(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{})
	stun, err := probe.ServeSTUN(f.Peer1, 3478)
	if err != nil {
		t.Fatal(err)
	}
	defer stun.Close()
	t.Run("local", func(t *testing.T) { testHost(t, probe.In(f.Peer1), topo.Peer1Addr) })
	t.Run("remote", func(t *testing.T) {
		var host probe.Host
		// Serve's sockets are those of this process, so all of it stays on the loopback.
		far, near := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- probe.Serve(far, far) }()
		client := probe.Remote(near)
		host = client
		testHost(t, host, netip.MustParseAddr("127.0.0.1"))
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
	t.Run("mapped", func(t *testing.T) { testMapped(t, probe.In(f.Peer2)) })
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

func testMapped(t *testing.T, h probe.Host) {
	socket := listen(t, h)
	server := netip.AddrPortFrom(topo.Peer1Addr, 3478)
	mapped, err := socket.Mapped(server, probe.Timeout)
	if want := netip.AddrPortFrom(topo.Peer2Addr, socket.Port()); err != nil || mapped != want {
		t.Errorf("mapped to %v, %v; want %v", mapped, err, want)
	}
	nobody := netip.AddrPortFrom(topo.Peer1Addr, 3479)
	if _, err := socket.Mapped(nobody, 250*time.Millisecond); !errors.Is(err, probe.ErrTimeout) {
		t.Errorf("a server that is not there: %v", err)
	}
}
