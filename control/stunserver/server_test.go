// SPDX-License-Identifier: Apache-2.0

package stunserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v2"

	"github.com/conenat/conenat/control/stunattr"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

var (
	addr1, addr2 = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	valid        = Config{Primary: addr1, Alternate: addr2, PrimaryPort: 3478, AlternatePort: 3479}
)

// start runs a server in a namespace of its own.
func start(t *testing.T) (ns *topo.NS, log *bytes.Buffer, stop func() error) {
	t.Helper()
	ns, err := topo.ForTest(t).NewNS("server")
	if err != nil {
		t.Fatal(err)
	}
	log = &bytes.Buffer{}
	config := valid
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	var s *Server
	if err := ns.Do(func() (err error) { s, err = Listen(config); return err }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience.For(10 * time.Second)):
			return errors.New("does not end")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return ns, log, stop
}

func TestServesFourEndpoints(t *testing.T) {
	ns, log, stop := start(t)
	for _, port := range []uint16{3478, 3479} {
		for _, addr := range []netip.Addr{addr1, addr2} {
			overUDP(t, ns, netip.AddrPortFrom(addr, port))
			overTCP(t, ns, netip.AddrPortFrom(addr, port))
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"msg=ready", "127.0.0.1:3478 127.0.0.1:3479 127.0.0.2:3478 127.0.0.2:3479", "udp tcp", "msg=stopped"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log without %q:\n%s", want, log)
		}
	}
	// All sockets are closed: the same can be opened again.
	var again *Server
	if err := ns.Do(func() (err error) { again, err = Listen(valid); return err }); err != nil {
		t.Fatal(err)
	}
	again.close()
}

// overUDP lets one endpoint answer from the opposite one, after junk that must not disturb it.
func overUDP(t *testing.T, ns *topo.NS, at netip.AddrPort) {
	conn, err := ns.ListenUDP(netip.AddrPortFrom(addr1, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience.For(5 * time.Second)))
	for _, packet := range [][]byte{{}, []byte("junk"), request1(t, stunattr.ChangeRequest{Address: true, Port: true})} {
		if _, err := conn.WriteToUDPAddrPort(packet, at); err != nil {
			t.Fatal(err)
		}
	}
	buffer := make([]byte, 1500)
	n, from, err := conn.ReadFromUDPAddrPort(buffer)
	if err != nil {
		t.Fatalf("UDP %v: %v", at, err)
	}
	m := &stun.Message{Raw: buffer[:n]}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	origin, err := stunattr.GetAddress(m, stun.AttrResponseOrigin)
	if err != nil || origin != unmap(from) || from.Addr().Unmap() == at.Addr() || from.Port() == at.Port() {
		t.Errorf("asked %v, the answer is from %v and says %v, %v", at, from, origin, err)
	}
	mapped, err := stunattr.GetXORMapped(m)
	if err != nil || mapped.Port() != uint16(conn.LocalAddr().(*net.UDPAddr).Port) {
		t.Errorf("mapped to %v, %v", mapped, err)
	}
}

// overTCP makes two transactions in one connection, the second one in two pieces; then junk ends it.
func overTCP(t *testing.T, ns *topo.NS, at netip.AddrPort) {
	conn, err := ns.DialTCP(netip.AddrPort{}, at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience.For(5 * time.Second)))
	request := request1(t)
	for _, piece := range [][]byte{request, request[:3], request[3:]} {
		if _, err := conn.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		raw, err := readMessage(conn)
		if err != nil {
			t.Fatal(err)
		}
		m := &stun.Message{Raw: raw}
		if err := m.Decode(); err != nil {
			t.Fatal(err)
		}
		local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
		if mapped, err := stunattr.GetXORMapped(m); err != nil || mapped != local {
			t.Errorf("mapped to %v, %v, want %v", mapped, err, local)
		}
	}
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("after junk: %v", err)
	}
}

// The end of the context ends connections that somebody holds open.
func TestEndsWithOpenConnections(t *testing.T) {
	ns, _, stop := start(t)
	conn, err := ns.DialTCP(netip.AddrPort{}, netip.AddrPortFrom(addr1, 3478))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(request1(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(conn); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience.For(5 * time.Second)))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection lives: %v", err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	s := &Server{conns: map[net.Conn]bool{}}
	for range maxConns {
		if !s.add(&net.TCPConn{}) {
			t.Fatal("refused too early")
		}
	}
	if s.add(&net.TCPConn{}) {
		t.Errorf("more than %d connections", maxConns)
	}
}

func TestListenFails(t *testing.T) {
	topology := topo.ForTest(t)
	ns, err := topology.NewNS("server")
	if err != nil {
		t.Fatal(err)
	}
	taken, err := ns.ListenUDP(netip.AddrPortFrom(addr2, 3479))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"PortTaken":      {func(*Config) {}, "listen on UDP 127.0.0.2:3479 (is it an address of this host, and the port free?): "},
		"ForeignAddress": {func(c *Config) { c.Alternate = netip.MustParseAddr("192.0.2.1") }, "listen on UDP 192.0.2.1:3478"},
		"NoAddress":      {func(c *Config) { c.Primary = netip.Addr{} }, "primary address invalid IP: want an address of this host"},
		"AnyAddress":     {func(c *Config) { c.Alternate = netip.IPv4Unspecified() }, "alternate address 0.0.0.0: want an address of this host"},
		"SameAddress":    {func(c *Config) { c.Alternate = c.Primary }, "both 127.0.0.1: RFC 5780 needs two"},
		"SamePort":       {func(c *Config) { c.AlternatePort = c.PrimaryPort }, "both 3478: RFC 5780 needs two"},
		"PortZero":       {func(c *Config) { c.PrimaryPort = 0 }, "port 0"},
		"TwoFamilies":    {func(c *Config) { c.Alternate = netip.IPv6Loopback() }, "want both of one family"},
	} {
		config := valid
		tc.change(&config)
		err := ns.Do(func() error {
			s, err := Listen(config)
			if err == nil {
				s.close()
			}
			return err
		})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
