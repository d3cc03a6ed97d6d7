// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
)

// The protocol: one request line, one answer line. "get N SEED" is answered by "ok" and N bytes; N bytes
// follow "put N SEED", which is answered by their SHA-256; "echo TEXT" by TEXT; "seen" by the client's endpoint.

// stream is the pseudo-random content of a transfer.
func stream(n int64, seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

type tcpServer struct {
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool // nil once closed
}

func listenTCP(network string, port uint16) (net.Listener, error) {
	return net.ListenTCP(network, &net.TCPAddr{Port: int(port)})
}

func dialTCP(place Place, local uint16, server netip.AddrPort, timeout time.Duration) (conn net.Conn, err error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(local)}, Timeout: timeout}
	err = place.Do(func() (err error) {
		conn, err = dialer.Dial(family.Of(server.Addr()).Network("tcp"), server.String())
		return err
	})
	return conn, err
}

func serveTCP(listener net.Listener) *tcpServer {
	s := &tcpServer{listener: listener, conns: map[net.Conn]bool{}}
	s.wg.Go(s.accept)
	return s
}

func (s *tcpServer) accept() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if !s.add(conn) {
			conn.Close()
			return
		}
		s.wg.Go(func() { s.serve(conn) })
	}
}

func (s *tcpServer) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *tcpServer) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	}()
	in := bufio.NewReaderSize(conn, 1<<16)
	for {
		line, err := in.ReadString('\n')
		if err != nil || answer(conn, in, strings.TrimSuffix(line, "\n")) != nil {
			return
		}
	}
}

// answer serves one request.
func answer(conn net.Conn, in io.Reader, line string) error {
	command, rest, _ := strings.Cut(line, " ")
	var n int64
	var seed uint64
	if command == "get" || command == "put" {
		if _, err := fmt.Sscan(rest, &n, &seed); err != nil {
			return err
		}
	}
	switch command {
	case "get":
		if _, err := io.WriteString(conn, "ok\n"); err != nil {
			return err
		}
		_, err := io.CopyBuffer(conn, stream(n, seed), make([]byte, 1<<18))
		return err
	case "put":
		hash := sha256.New()
		if _, err := io.CopyN(hash, in, n); err != nil {
			return err
		}
		_, err := fmt.Fprintf(conn, "%x\n", hash.Sum(nil))
		return err
	case "seen":
		_, err := fmt.Fprintf(conn, "%v\n", conn.RemoteAddr())
		return err
	case "echo":
		_, err := fmt.Fprintf(conn, "%s\n", rest)
		return err
	}
	return fmt.Errorf("unknown request %q", command)
}

func (s *tcpServer) Port() uint16 { return uint16(s.listener.Addr().(*net.TCPAddr).Port) }

func (s *tcpServer) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

type tcpClient struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTCPClient(conn net.Conn) *tcpClient {
	return &tcpClient{conn: conn, in: bufio.NewReaderSize(conn, 1<<16)}
}

func (c *tcpClient) LocalPort() uint16 { return uint16(c.conn.LocalAddr().(*net.TCPAddr).Port) }
func (c *tcpClient) Close() error      { return c.conn.Close() }

func (c *tcpClient) ask(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(c.conn, format+"\n", args...); err != nil {
		return "", err
	}
	return c.line()
}

func (c *tcpClient) line() (string, error) {
	line, err := c.in.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// within bounds fn, and turns its expiry into ErrTimeout.
func (c *tcpClient) within(timeout time.Duration, fn func() error) error {
	if err := c.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	err := fn()
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return fmt.Errorf("%v to %v: %w", c.conn.LocalAddr(), c.conn.RemoteAddr(), ErrTimeout)
	}
	return err
}

func (c *tcpClient) Seen() (seen netip.AddrPort, err error) {
	err = c.within(Timeout, func() error {
		line, err := c.ask("seen")
		if err != nil {
			return err
		}
		seen, err = netip.ParseAddrPort(line)
		return err
	})
	return unmap(seen), err
}

func (c *tcpClient) Echo(text string) error {
	return c.within(Timeout, func() error {
		got, err := c.ask("echo %s", text)
		if err == nil && got != text {
			err = fmt.Errorf("echo of %q is %q", text, got)
		}
		return err
	})
}

// transferTimeout is for the whole of a transfer; a veth pair does gigabits a second.
var transferTimeout = patience.For(2 * time.Minute)

func (c *tcpClient) Download(n int64) (result Transfer, err error) {
	start := time.Now()
	seed := rand.Uint64()
	got, want := sha256.New(), sha256.New()
	err = c.within(transferTimeout, func() error {
		if _, err := c.ask("get %d %d", n, seed); err != nil {
			return err
		}
		_, err := io.CopyN(got, c.in, n)
		return err
	})
	if err != nil {
		return Transfer{}, fmt.Errorf("download %d bytes from %v: %w", n, c.conn.RemoteAddr(), err)
	}
	elapsed := time.Since(start)
	_, _ = io.Copy(want, stream(n, seed))
	return checked("download", n, got.Sum(nil), want.Sum(nil), elapsed)
}

func (c *tcpClient) Upload(n int64) (result Transfer, err error) {
	start := time.Now()
	seed := rand.Uint64()
	hash := sha256.New()
	var got string
	err = c.within(transferTimeout, func() (err error) {
		if _, err := fmt.Fprintf(c.conn, "put %d %d\n", n, seed); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(c.conn, io.TeeReader(stream(n, seed), hash), make([]byte, 1<<18)); err != nil {
			return err
		}
		got, err = c.line()
		return err
	})
	if err != nil {
		return Transfer{}, fmt.Errorf("upload %d bytes to %v: %w", n, c.conn.RemoteAddr(), err)
	}
	sum, err := hex.DecodeString(got)
	if err != nil {
		return Transfer{}, fmt.Errorf("upload: answer %q: %w", got, err)
	}
	return checked("upload", n, sum, hash.Sum(nil), time.Since(start))
}

func checked(what string, n int64, got, want []byte, elapsed time.Duration) (Transfer, error) {
	if string(got) != string(want) {
		return Transfer{}, fmt.Errorf("%s of %d bytes: SHA-256 is %x, want %x", what, n, got, want)
	}
	return Transfer{Bytes: n, SHA256: hex.EncodeToString(got), Elapsed: elapsed}, nil
}
