// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"testing"
)

// Tester does what must succeed, or fails its test; what it opens is closed at the test's end.
type Tester struct{ T testing.TB }

// UDP opens a socket.
func (t Tester) UDP(h Host, port uint16) Socket {
	t.T.Helper()
	s, err := h.ListenUDP(port)
	if err != nil {
		t.T.Fatal(err)
	}
	t.T.Cleanup(func() { s.Close() })
	return s
}

// Dial opens a TCP connection, from any port.
func (t Tester) Dial(h Host, server netip.AddrPort) Conn {
	t.T.Helper()
	c, err := h.DialTCP(0, server)
	if err != nil {
		t.T.Fatal(err)
	}
	t.T.Cleanup(func() { c.Close() })
	return c
}

// Send sends a datagram.
func (t Tester) Send(s Socket, to netip.AddrPort, text string) {
	t.T.Helper()
	if err := s.Send(to, text); err != nil {
		t.T.Fatalf("send %d bytes to %s: %v", len(text), to, err)
	}
}

// Receives waits for a datagram with just that text, and returns whom it is from.
func (t Tester) Receives(s Socket, text string) netip.AddrPort {
	t.T.Helper()
	p, err := s.Receive(Timeout)
	if err != nil || p.Text != text {
		t.T.Fatalf("received %d bytes %.60q from %s, %v; want %d, %.60q", len(p.Text), p.Text, p.From, err, len(text), text)
	}
	return p.From
}
