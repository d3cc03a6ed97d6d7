// SPDX-License-Identifier: Apache-2.0

package stunserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// The default ports; 3478 is STUN's (RFC 8489, section 18.6).
const (
	DefaultPort          = 3478
	DefaultAlternatePort = 3479
)

// Bounds of TCP.
const (
	maxConns = 1024
	idle     = 30 * time.Second
	// backoff is the pause after an error of a socket that is not closed, such as too many open files.
	backoff = 100 * time.Millisecond
)

// Config says where to listen.
type Config struct {
	Primary, Alternate         netip.Addr // two addresses of this host
	PrimaryPort, AlternatePort uint16
	Logger                     *slog.Logger // nil: none
}

// Check says what is wrong with the configuration.
func (c Config) Check() error {
	for name, addr := range map[string]netip.Addr{"primary": c.Primary, "alternate": c.Alternate} {
		if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
			return fmt.Errorf("%s address %v: want an address of this host", name, addr)
		}
	}
	switch {
	case c.Primary == c.Alternate:
		return fmt.Errorf("primary and alternate address are both %v: RFC 5780 needs two", c.Primary)
	case c.Primary.Is4() != c.Alternate.Is4():
		return fmt.Errorf("primary address %v and alternate address %v: want both of one family", c.Primary, c.Alternate)
	case c.PrimaryPort == 0 || c.AlternatePort == 0:
		return errors.New("port 0: want 1 to 65535")
	case c.PrimaryPort == c.AlternatePort:
		return fmt.Errorf("primary and alternate port are both %d: RFC 5780 needs two", c.PrimaryPort)
	}
	return nil
}

// Server has its sockets open.
type Server struct {
	layout
	log *slog.Logger
	udp [2][2]*net.UDPConn // by place
	tcp [2][2]*net.TCPListener

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once closed
}

// Listen opens the four UDP and four TCP sockets, in the network namespace of the calling thread.
func Listen(c Config) (*Server, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: c.Logger, conns: map[net.Conn]bool{}, layout: layout{
		addrs: [2]netip.Addr{c.Primary.Unmap(), c.Alternate.Unmap()},
		ports: [2]uint16{c.PrimaryPort, c.AlternatePort}}}
	for _, p := range places {
		if err := s.listen(p); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) listen(p place) error {
	at := s.endpoint(p)
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("listen on UDP %v (is it an address of this host, and the port free?): %w", at, err)
	}
	s.udp[p.addr][p.port] = udp
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("listen on TCP %v (is the port free?): %w", at, err)
	}
	s.tcp[p.addr][p.port] = tcp
	return nil
}

// Endpoints are the four: primary address with both ports, alternate address with both ports.
func (s *Server) Endpoints() (all []netip.AddrPort) {
	for _, p := range places {
		all = append(all, s.endpoint(p))
	}
	return all
}

// Serve answers until ctx ends, and then closes everything. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	var g errgroup.Group
	for _, p := range places {
		g.Go(func() error { s.serveUDP(ctx, p); return nil })
		g.Go(func() error { s.acceptTCP(ctx, p, &g); return nil })
	}
	s.log.Info("ready", "endpoints", s.Endpoints(), "transports", "udp tcp")
	<-ctx.Done()
	s.close()
	err := g.Wait()
	s.log.Info("stopped")
	return err
}

// close ends every read and accept.
func (s *Server) close() {
	for _, p := range places {
		if c := s.udp[p.addr][p.port]; c != nil {
			c.Close()
		}
		if l := s.tcp[p.addr][p.port]; l != nil {
			l.Close()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *Server) serveUDP(ctx context.Context, at place) {
	buffer := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, from, err := s.udp[at.addr][at.port].ReadFromUDPAddrPort(buffer)
		if err != nil {
			s.failed(ctx, "read", at, err)
			continue
		}
		r, ok := s.answer(buffer[:n], at, unmap(from), true)
		if !ok {
			continue
		}
		if _, err := s.udp[r.from.addr][r.from.port].WriteToUDPAddrPort(r.raw, r.to); err != nil {
			s.log.Debug("answer not sent", "to", r.to, "error", err)
		}
	}
}

func (s *Server) acceptTCP(ctx context.Context, at place, g *errgroup.Group) {
	for ctx.Err() == nil {
		conn, err := s.tcp[at.addr][at.port].AcceptTCP()
		if err != nil {
			s.failed(ctx, "accept", at, err)
			continue
		}
		if !s.add(conn) {
			conn.Close()
			continue
		}
		g.Go(func() error {
			defer s.remove(conn)
			s.serveTCP(conn, at)
			return nil
		})
	}
}

// failed logs an error and waits a moment, so that one that stays is no busy loop.
func (s *Server) failed(ctx context.Context, what string, at place, err error) {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return
	}
	s.log.Warn(what+" failed", "endpoint", s.endpoint(at), "error", err)
	select {
	case <-ctx.Done():
	case <-time.After(backoff):
	}
}

func (s *Server) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil || len(s.conns) >= maxConns {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *Server) remove(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

// serveTCP answers the requests of one connection; what is no STUN ends it.
func (s *Server) serveTCP(conn *net.TCPConn, at place) {
	from := unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	for {
		if conn.SetDeadline(time.Now().Add(idle)) != nil {
			return
		}
		packet, err := readMessage(conn)
		if err != nil {
			return
		}
		r, ok := s.answer(packet, at, from, false)
		if !ok {
			return
		}
		if _, err := conn.Write(r.raw); err != nil {
			return
		}
	}
}

// readMessage reads one message off a stream: its header says how long it is (RFC 8489, section 6.2.2).
// RFC 3489 knows no TCP, so there is always the magic cookie.
func readMessage(r io.Reader) ([]byte, error) {
	packet := make([]byte, headerSize)
	if _, err := io.ReadFull(r, packet); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(packet[4:]) != magicCookie {
		return nil, errors.New("no STUN message")
	}
	packet = append(packet, make([]byte, binary.BigEndian.Uint16(packet[2:]))...)
	_, err := io.ReadFull(r, packet[headerSize:])
	return packet, err
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
