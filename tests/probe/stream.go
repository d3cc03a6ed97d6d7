// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conenat/conenat/tests/patience"
)

// A TCP stream is one connection on which both ends send all the time: frames of pseudo-random bytes that the
// other end compares with what they must be. A frame is its length (4 bytes, big-endian) and that many bytes;
// length 0 is the end, and the count of all bytes sent (8 bytes) follows it.
const (
	endpointBytes = 54 // the longest IPv6 endpoint and a space
	frameBytes    = 200
	frameEvery    = 40 * time.Millisecond
)

// pipe is one end's half of a stream: what it sends, and what it expects.
type pipe struct {
	conn             net.Conn
	out, in          *rand.ChaCha8
	sent, received   atomic.Int64 // bytes of content
	stop             chan struct{}
	once             sync.Once  // of stop
	writing, reading chan error // the outcome, once
}

func newPipe(conn net.Conn, out, in uint64) *pipe {
	p := &pipe{conn: conn, out: content(out), in: content(in), stop: make(chan struct{}), writing: make(chan error, 1), reading: make(chan error, 1)}
	go func() { p.writing <- p.write() }()
	go func() { p.reading <- p.read() }()
	return p
}

func content(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

func (p *pipe) write() error {
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	frame := make([]byte, 4+frameBytes)
	for {
		select {
		case <-p.stop:
			end := binary.BigEndian.AppendUint64(make([]byte, 4), uint64(p.sent.Load()))
			_, err := p.conn.Write(end)
			return err
		case <-tick.C:
		}
		binary.BigEndian.PutUint32(frame, frameBytes)
		_, _ = p.out.Read(frame[4:]) // it cannot fail
		if _, err := p.conn.Write(frame); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p.sent.Add(frameBytes)
	}
}

func (p *pipe) read() error {
	var header [8]byte
	got, want := make([]byte, frameBytes), make([]byte, frameBytes)
	for {
		if _, err := io.ReadFull(p.conn, header[:4]); err != nil {
			return fmt.Errorf("read after %d bytes: %w", p.received.Load(), err)
		}
		switch n := binary.BigEndian.Uint32(header[:4]); n {
		case frameBytes:
		case 0:
			return p.end(header[:])
		default:
			return fmt.Errorf("frame of %d bytes after %d bytes", n, p.received.Load())
		}
		if _, err := io.ReadFull(p.conn, got); err != nil {
			return fmt.Errorf("read after %d bytes: %w", p.received.Load(), err)
		}
		_, _ = p.in.Read(want)
		if string(got) != string(want) {
			return fmt.Errorf("wrong content after %d bytes", p.received.Load())
		}
		p.received.Add(frameBytes)
	}
}

func (p *pipe) end(header []byte) error {
	if _, err := io.ReadFull(p.conn, header); err != nil {
		return err
	}
	if sent := int64(binary.BigEndian.Uint64(header)); sent != p.received.Load() {
		return fmt.Errorf("%d bytes were sent, %d received", sent, p.received.Load())
	}
	return nil
}

// finish ends what this end sends, and waits for the end of what the other one does.
func (p *pipe) finish() error {
	p.once.Do(func() { close(p.stop) })
	if err := p.conn.SetDeadline(time.Now().Add(streamTimeout)); err != nil {
		return err
	}
	return errors.Join(<-p.writing, <-p.reading)
}

// streamTimeout is for the end of a stream: a segment that was lost may have to be sent again several times.
var streamTimeout = patience.For(20 * time.Second)

// StreamServer is the other end of TCPStream and UDPStream, on one port number of both protocols.
type StreamServer struct {
	listener net.Listener
	udp      *net.UDPConn
	wg       sync.WaitGroup

	mu     sync.Mutex
	tcp    map[netip.AddrPort]*pipe // nil once closed; by the client's endpoint
	failed []error
}

// ServeStreams starts a StreamServer on every address of a place, of both families. Port 0 is any free one.
func ServeStreams(place Place, port uint16) (*StreamServer, error) {
	s := &StreamServer{tcp: map[netip.AddrPort]*pipe{}}
	err := place.Do(func() (err error) {
		if s.listener, err = listenTCP("tcp", port); err != nil {
			return err
		}
		s.udp, err = listenLarge("udp", &net.UDPAddr{Port: int(s.Port())})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve streams on port %d: %w", port, err)
	}
	s.wg.Go(s.accept)
	s.wg.Go(s.reflect)
	return s, nil
}

// Port is the port number.
func (s *StreamServer) Port() uint16 { return uint16(s.listener.Addr().(*net.TCPAddr).Port) }

// Clients are the endpoints of those that have a TCP stream with this server.
func (s *StreamServer) Clients() (list []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for client := range s.tcp {
		list = append(list, client)
	}
	return list
}

// Close stops the server, and returns what was wrong with streams that have ended: a reset, or other bytes than
// were sent.
func (s *StreamServer) Close() error {
	err := errors.Join(s.listener.Close(), s.udp.Close())
	s.mu.Lock()
	for _, p := range s.tcp {
		p.conn.Close()
	}
	s.tcp = nil
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(append(s.failed, err)...)
}

func (s *StreamServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.wg.Go(func() { s.serve(conn) })
		}
	}
}

// serve is one TCP stream: the client says the seed, and is told how it is seen.
func (s *StreamServer) serve(conn net.Conn) {
	defer conn.Close()
	client := unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	var seed [8]byte
	if _, err := io.ReadFull(conn, seed[:]); err != nil {
		return
	}
	if _, err := fmt.Fprintf(conn, "%-*s", endpointBytes, client); err != nil {
		return
	}
	n := binary.BigEndian.Uint64(seed[:])
	p := newPipe(conn, ^n, n)
	s.mu.Lock()
	open := s.tcp != nil
	if open {
		s.tcp[client] = p
	}
	s.mu.Unlock()
	if !open {
		return
	}
	err := <-p.reading
	if err == nil {
		p.reading <- nil
		err = p.finish()
	}
	s.ended(client, err)
}

func (s *StreamServer) ended(client netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp == nil {
		return // closed from this side
	}
	delete(s.tcp, client)
	if err != nil {
		s.failed = append(s.failed, fmt.Errorf("TCP stream of %s: %w", client, err))
	}
}

// reflect answers each datagram with itself and the endpoint that it came from.
func (s *StreamServer) reflect() {
	buffer := make([]byte, 2048)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = s.udp.WriteToUDPAddrPort(fmt.Appendf(buffer[:n:n], " %s", unmap(from)), from)
		}
	}
}

// TCPStream is a client's end.
type TCPStream struct {
	pipe *pipe
	seen netip.AddrPort
}

// DialStream opens a TCP stream from a place to a StreamServer; the zero local port is any.
func DialStream(place Place, local uint16, server netip.AddrPort) (*TCPStream, error) {
	conn, err := dialTCP(place, local, server, streamTimeout)
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	seed := rand.Uint64()
	var seen [endpointBytes]byte
	if _, err = conn.Write(binary.BigEndian.AppendUint64(nil, seed)); err == nil {
		_, err = io.ReadFull(conn, seen[:])
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a stream to %s: %w", server, err)
	}
	s := &TCPStream{}
	if s.seen, err = netip.ParseAddrPort(trimRight(seen[:])); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a stream to %s: %w", server, err)
	}
	s.pipe = newPipe(conn, seed, ^seed)
	return s, nil
}

func trimRight(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return string(b)
}

// Local is the client's own endpoint.
func (s *TCPStream) Local() netip.AddrPort {
	return unmap(s.pipe.conn.LocalAddr().(*net.TCPAddr).AddrPort())
}

// Seen is the client's endpoint as the server saw it when the stream began.
func (s *TCPStream) Seen() netip.AddrPort { return s.seen }

// Received is how many bytes have come, all of them right.
func (s *TCPStream) Received() int64 { return s.pipe.received.Load() }

// Finish ends the stream from both sides. Its error is a reset, a timeout, or bytes that were lost or changed, of
// what came here; the server's Close has the other direction's.
func (s *TCPStream) Finish() error {
	defer s.pipe.conn.Close()
	if err := s.pipe.finish(); err != nil {
		return fmt.Errorf("TCP stream from %s, seen as %s: %w", s.Local(), s.seen, err)
	}
	return nil
}

// Close ends the stream at once, by a reset or not. It may be called after Finish.
func (s *TCPStream) Close() {
	s.pipe.conn.Close()
	s.pipe.once.Do(func() { close(s.pipe.stop) })
}
