// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/conenat/conenat/tests/family"
)

// request and response are one line of JSON each. A response has its request's ID; requests are served
// concurrently. Handle is what an earlier response returned: a socket, a server, a connection, a pinger.
type request struct {
	ID      uint64         `json:"id"`
	Op      string         `json:"op"` // udp-listen, udp-send, udp-receive, udp-mapped, tcp-serve, tcp-dial, tcp-seen, tcp-get, tcp-put, tcp-echo, ping, ping-stop, close
	Handle  uint64         `json:"handle,omitempty"`
	Port    uint16         `json:"port,omitempty"`
	Family  family.Family  `json:"family,omitempty"` // of what is opened for others to come to
	Addr    netip.AddrPort `json:"addr,omitzero"`
	Text    string         `json:"text,omitempty"`
	Bytes   int64          `json:"bytes,omitempty"`
	Timeout time.Duration  `json:"timeout_ns,omitempty"`
	Ping    PingSpec       `json:"ping,omitzero"`
	Drain   bool           `json:"drain,omitempty"`
}

type response struct {
	ID       uint64         `json:"id"`
	Error    string         `json:"error,omitempty"`
	TimedOut bool           `json:"timed_out,omitempty"`
	Handle   uint64         `json:"handle,omitempty"`
	Port     uint16         `json:"port,omitempty"`
	Addr     netip.AddrPort `json:"addr,omitzero"`
	Text     string         `json:"text,omitempty"`
	Transfer Transfer       `json:"transfer,omitzero"`
	Report   PingReport     `json:"report,omitzero"`
}

// Client is a Host in another process. Close ends that process's Serve.
type Client struct {
	*link
	family family.Family
}

// In is the same process as a Host with a family's sockets.
func (c *Client) In(f family.Family) *Client { return &Client{c.link, f} }

// link is a stream of requests and responses.
type link struct {
	stream io.ReadWriteCloser
	done   chan struct{}

	mu      sync.Mutex
	encoder *json.Encoder
	last    uint64
	waiting map[uint64]chan response // nil once the other side is gone
}

// Remote is the Host at the other end of stream, which is the standard input and output of a Serve.
func Remote(stream io.ReadWriteCloser) *Client {
	c := &link{stream: stream, done: make(chan struct{}), encoder: json.NewEncoder(stream), waiting: map[uint64]chan response{}}
	go c.read()
	return &Client{link: c}
}

func (c *link) read() {
	defer close(c.done)
	decoder := json.NewDecoder(bufio.NewReader(c.stream))
	for {
		var r response
		if err := decoder.Decode(&r); err != nil {
			break
		}
		c.mu.Lock()
		waiting := c.waiting[r.ID]
		delete(c.waiting, r.ID)
		c.mu.Unlock()
		if waiting != nil {
			waiting <- r
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, waiting := range c.waiting {
		close(waiting)
	}
	c.waiting = nil
}

var errGone = errors.New("the process at the other end is gone")

func (c *link) call(r request) (response, error) {
	answer := make(chan response, 1)
	if err := c.post(&r, answer); err != nil {
		return response{}, fmt.Errorf("%s: %w", r.Op, err)
	}
	got, ok := <-answer
	switch {
	case !ok:
		return got, fmt.Errorf("%s: %w", r.Op, errGone)
	case got.TimedOut:
		return got, fmt.Errorf("%s: %w", r.Op, ErrTimeout)
	case got.Error != "":
		return got, fmt.Errorf("%s: %s", r.Op, got.Error)
	}
	return got, nil
}

func (c *link) post(r *request, answer chan response) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return errGone
	}
	c.last++
	r.ID = c.last
	c.waiting[r.ID] = answer
	return c.encoder.Encode(r)
}

// Close closes the stream, by which Serve ends.
func (c *link) Close() error {
	err := c.stream.Close()
	<-c.done
	return err
}

// remote is anything with a handle at the other end.
type remote struct {
	c      *link
	handle uint64
	port   uint16
}

func (c *link) open(r request) (remote, error) {
	got, err := c.call(r)
	return remote{c, got.Handle, got.Port}, err
}

func (r remote) Port() uint16 { return r.port }

func (r remote) Close() error {
	_, err := r.c.call(request{Op: "close", Handle: r.handle})
	return err
}

// ListenUDP implements Host.
func (c *Client) ListenUDP(port uint16) (Socket, error) {
	r, err := c.open(request{Op: "udp-listen", Port: port, Family: c.family})
	return remoteSocket{r}, err
}

type remoteSocket struct{ remote }

func (s remoteSocket) Send(to netip.AddrPort, text string) error {
	_, err := s.c.call(request{Op: "udp-send", Handle: s.handle, Addr: to, Text: text})
	return err
}

func (s remoteSocket) Receive(timeout time.Duration) (Packet, error) {
	r, err := s.c.call(request{Op: "udp-receive", Handle: s.handle, Timeout: timeout})
	return Packet{From: r.Addr, Text: r.Text}, err
}

func (s remoteSocket) Mapped(server netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	r, err := s.c.call(request{Op: "udp-mapped", Handle: s.handle, Addr: server, Timeout: timeout})
	return r.Addr, err
}

// ServeTCP implements Host.
func (c *Client) ServeTCP(port uint16) (Server, error) {
	r, err := c.open(request{Op: "tcp-serve", Port: port, Family: c.family})
	return r, err
}

// DialTCP implements Host.
func (c *Client) DialTCP(localPort uint16, server netip.AddrPort) (Conn, error) {
	r, err := c.open(request{Op: "tcp-dial", Port: localPort, Addr: server})
	return remoteConn{r}, err
}

type remoteConn struct{ remote }

func (s remoteConn) LocalPort() uint16 { return s.port }

func (s remoteConn) Seen() (netip.AddrPort, error) {
	r, err := s.c.call(request{Op: "tcp-seen", Handle: s.handle})
	return r.Addr, err
}

func (s remoteConn) Download(bytes int64) (Transfer, error) {
	r, err := s.c.call(request{Op: "tcp-get", Handle: s.handle, Bytes: bytes})
	return r.Transfer, err
}

func (s remoteConn) Upload(bytes int64) (Transfer, error) {
	r, err := s.c.call(request{Op: "tcp-put", Handle: s.handle, Bytes: bytes})
	return r.Transfer, err
}

func (s remoteConn) Echo(text string) error {
	_, err := s.c.call(request{Op: "tcp-echo", Handle: s.handle, Text: text})
	return err
}

// Ping implements Host.
func (c *Client) Ping(spec PingSpec) (Pinger, error) {
	r, err := c.open(request{Op: "ping", Ping: spec})
	return remotePinger{r}, err
}

type remotePinger struct{ remote }

func (p remotePinger) Stop(drain bool) (PingReport, error) {
	r, err := p.c.call(request{Op: "ping-stop", Handle: p.handle, Drain: drain})
	return r.Report, err
}
