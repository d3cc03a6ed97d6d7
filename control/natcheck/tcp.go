// SPDX-License-Identifier: Apache-2.0

package natcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/pion/stun/v2"
	"golang.org/x/sys/unix"
)

const stunHeader = 20

// tcp asks every endpoint of the server from one port, by connections that live at the same time (RFC 5382, REQ-1). A
// server without TCP is no failure of the check: that is said in a note.
func (c *check) tcp(ctx context.Context) {
	var all seen
	var local netip.AddrPort
	for i, remote := range c.remotes() {
		if !remote.IsValid() { // no OTHER-ADDRESS
			break
		}
		conn, a, err := c.askTCP(ctx, local, remote)
		if err != nil {
			if ctx.Err() == nil {
				c.note("TCP mapping cannot be told: %v", err)
			}
			break
		}
		defer conn.Close()
		local, all[i] = unmap(conn.LocalAddr().(*net.TCPAddr).AddrPort()), a.mapped
		c.mapped(Mapped{"tcp", remote, local, a.mapped, false})
	}
	if !all[0].IsValid() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	preserved := all[0].Port() == local.Port()
	c.report.TCP = TCP{Internal: local, External: all[0], Mapping: classify(local, all), PortPreserved: &preserved}
	if c.report.TCP.Mapping == None {
		c.report.TCP.PortPreserved = nil
	}
}

// askTCP connects from a local endpoint that other connections may have too, and asks.
func (c *check) askTCP(ctx context.Context, local, remote netip.AddrPort) (conn net.Conn, a answer, err error) {
	if !local.IsValid() {
		local = netip.AddrPortFrom(c.local, 0)
	}
	dialer := net.Dialer{Timeout: c.Timeout, LocalAddr: net.TCPAddrFromAddrPort(local), Control: reuse}
	err = c.Open(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", remote.String())
		return err
	})
	if err != nil {
		return nil, answer{}, fmt.Errorf("connect to STUN server %v: %w", remote, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if a, err = c.exchange(conn, remote); err != nil {
		conn.Close()
		return nil, answer{}, fmt.Errorf("ask %v over TCP: %w", remote, err)
	}
	return conn, a, nil
}

// reuse lets several connections have one local endpoint.
func reuse(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, failed)
}

// exchange makes one transaction; over TCP nothing is repeated (RFC 8489, section 6.2.2).
func (c *check) exchange(conn net.Conn, remote netip.AddrPort) (answer, error) {
	request, err := newRequest()
	if err != nil {
		return answer{}, err
	}
	if err := conn.SetDeadline(time.Now().Add(c.Timeout)); err != nil {
		return answer{}, err
	}
	if _, err := conn.Write(request.Raw); err != nil {
		return answer{}, err
	}
	raw := make([]byte, stunHeader)
	if _, err := io.ReadFull(conn, raw); err != nil {
		return answer{}, err
	}
	raw = append(raw, make([]byte, binary.BigEndian.Uint16(raw[2:]))...)
	if _, err := io.ReadFull(conn, raw[stunHeader:]); err != nil {
		return answer{}, err
	}
	message := &stun.Message{Raw: raw}
	if err := message.Decode(); err != nil {
		return answer{}, err
	}
	if message.TransactionID != request.TransactionID {
		return answer{}, errors.New("the answer is to another request")
	}
	return parse(arrival{message, remote})
}
