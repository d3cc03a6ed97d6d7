// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net/netip"
	"time"

	"github.com/conenat/conenat/tests/patience"
)

// ErrTimeout says that nothing arrived in time.
var ErrTimeout = errors.New("nothing arrived in time")

// Timeout is how long a probe waits for what must arrive.
var Timeout = patience.For(3 * time.Second)

// Host is a place in the network from which a test sends and receives.
type Host interface {
	// ListenUDP opens an unconnected UDP socket. Port 0 is any free one.
	ListenUDP(port uint16) (Socket, error)
	// DialTCP connects to a Server; the zero local port is any.
	DialTCP(localPort uint16, server netip.AddrPort) (Conn, error)
	// ServeTCP starts a Server on every address. Port 0 is any free one.
	ServeTCP(port uint16) (Server, error)
	// Ping starts to send ICMP echo requests.
	Ping(spec PingSpec) (Pinger, error)
}

// Packet is a received UDP payload.
type Packet struct {
	From netip.AddrPort
	Text string
}

// Socket is an unconnected UDP socket.
type Socket interface {
	Port() uint16
	Send(to netip.AddrPort, text string) error
	// Receive returns the next packet that is no STUN answer, or ErrTimeout.
	Receive(timeout time.Duration) (Packet, error)
	// Mapped asks a STUN server for this socket's external endpoint, and asks again if no answer comes.
	Mapped(server netip.AddrPort, timeout time.Duration) (netip.AddrPort, error)
	Close() error
}

// Server answers the requests of a Conn until it is closed.
type Server interface {
	Port() uint16
	Close() error
}

// Conn is a TCP connection to a Server.
type Conn interface {
	LocalPort() uint16
	// Seen is the client's endpoint as the server sees it.
	Seen() (netip.AddrPort, error)
	// Download receives a pseudo-random stream and checks its SHA-256.
	Download(bytes int64) (Transfer, error)
	// Upload sends one, which the server checks.
	Upload(bytes int64) (Transfer, error)
	// Echo sends a line and waits for it to come back.
	Echo(text string) error
	Close() error
}

// Transfer is the result of a download or upload whose hash was right.
type Transfer struct {
	Bytes   int64
	SHA256  string
	Elapsed time.Duration
}

// PingSpec says what Ping sends. Zero fields have a useful value.
type PingSpec struct {
	To       netip.Addr
	ID       uint16        // of the query; 0: random
	Count    int           // 0: until Stop
	Interval time.Duration // 0: 10 ms
	Size     int           // payload bytes; at least 8
	Wait     time.Duration // for late replies, after the last request; 0: 1 s
}

// Pinger is a running series of echo requests.
type Pinger interface {
	// Stop sends no further request, waits for late replies, and reports. With a Count it first waits for
	// the series to end if drain is set.
	Stop(drain bool) (PingReport, error)
}

// PingReport says what came of a series of echo requests.
type PingReport struct {
	ID         uint16
	Sent       int
	Received   int
	Duplicates int
	Lost       []int // sequence numbers from 0, in order
	MaxRTT     time.Duration
}

// PingOnce sends count requests and waits for the replies.
func PingOnce(h Host, to netip.Addr, count int) (PingReport, error) {
	p, err := h.Ping(PingSpec{To: to, Count: count})
	if err != nil {
		return PingReport{}, err
	}
	return p.Stop(true)
}
