// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Serve does what the Remote at the other end asks, in this process's network namespace, until in ends.
// Then it closes all that is open.
func Serve(in io.Reader, out io.Writer) error {
	s := &server{encoder: json.NewEncoder(out), open: map[uint64]any{}}
	defer s.closeAll()
	decoder := json.NewDecoder(bufio.NewReader(in))
	for {
		var r request
		if err := decoder.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		go s.handle(r)
	}
}

type server struct {
	mu      sync.Mutex
	encoder *json.Encoder
	last    uint64
	open    map[uint64]any
}

func (s *server) handle(r request) {
	answer, err := s.do(r)
	answer.ID = r.ID
	if err != nil {
		answer.Error = err.Error()
		answer.TimedOut = errors.Is(err, ErrTimeout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.encoder.Encode(answer) // nobody to tell
}

func (s *server) do(r request) (response, error) {
	host := InFamily(r.Family, Here{})
	switch r.Op {
	case "udp-listen":
		socket, err := host.ListenUDP(r.Port)
		return s.keep(socket, err)
	case "tcp-serve":
		server, err := host.ServeTCP(r.Port)
		return s.keep(server, err)
	case "tcp-dial":
		conn, err := host.DialTCP(r.Port, r.Addr)
		return s.keep(conn, err)
	case "ping":
		pinger, err := host.Ping(r.Ping)
		return s.keep(pinger, err)
	}
	s.mu.Lock()
	object := s.open[r.Handle]
	if r.Op == "close" || r.Op == "ping-stop" {
		delete(s.open, r.Handle)
	}
	s.mu.Unlock()
	return use(object, r)
}

// keep gives a new object a handle.
func (s *server) keep(object any, err error) (response, error) {
	if err != nil {
		return response{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.open[s.last] = object
	answer := response{Handle: s.last}
	switch o := object.(type) {
	case interface{ Port() uint16 }:
		answer.Port = o.Port()
	case Conn:
		answer.Port = o.LocalPort()
	}
	return answer, nil
}

func use(object any, r request) (answer response, err error) {
	if closer, ok := object.(io.Closer); ok && r.Op == "close" {
		return answer, closer.Close()
	}
	switch o := object.(type) {
	case Socket:
		return useSocket(o, r)
	case Conn:
		return useConn(o, r)
	case Pinger:
		if r.Op == "ping-stop" {
			answer.Report, err = o.Stop(r.Drain)
			return answer, err
		}
	}
	return answer, fmt.Errorf("cannot %s handle %d (%T)", r.Op, r.Handle, object)
}

func useSocket(socket Socket, r request) (answer response, err error) {
	switch r.Op {
	case "udp-send":
		return answer, socket.Send(r.Addr, r.Text)
	case "udp-receive":
		packet, err := socket.Receive(r.Timeout)
		return response{Addr: packet.From, Text: packet.Text}, err
	case "udp-mapped":
		answer.Addr, err = socket.Mapped(r.Addr, r.Timeout)
		return answer, err
	}
	return answer, fmt.Errorf("cannot %s a UDP socket", r.Op)
}

func useConn(conn Conn, r request) (answer response, err error) {
	switch r.Op {
	case "tcp-seen":
		answer.Addr, err = conn.Seen()
	case "tcp-get":
		answer.Transfer, err = conn.Download(r.Bytes)
	case "tcp-put":
		answer.Transfer, err = conn.Upload(r.Bytes)
	case "tcp-echo":
		err = conn.Echo(r.Text)
	default:
		err = fmt.Errorf("cannot %s a TCP connection", r.Op)
	}
	return answer, err
}

func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, object := range s.open {
		if closer, ok := object.(io.Closer); ok {
			_ = closer.Close()
		}
	}
}
