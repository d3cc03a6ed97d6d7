// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
)

// UDPStream is a socket that sends numbered datagrams to a StreamServer at a steady pace, and counts the answers.
type UDPStream struct {
	conn   *net.UDPConn
	server netip.AddrPort
	stop   chan struct{}
	once   sync.Once     // of stop
	ended  chan struct{} // the sender

	mu      sync.Mutex
	arrived *sync.Cond
	sent    int
	answers map[int]int                                // by sequence number, how many
	asked   map[netip.AddrPort]chan<- netip.AddrPort   // servers that Ask waits for
	seen    map[netip.AddrPort]map[netip.AddrPort]bool // by server: this socket's endpoints there
	err     error
}

// UDPReport says what came of a UDP stream.
type UDPReport struct {
	Local      netip.AddrPort
	Sent       int
	Lost       []int // sequence numbers from 0 without an answer, in order
	Duplicates int
	Seen       []netip.AddrPort // the endpoints that the server has seen; one, if all is well
}

const (
	datagramEvery = 50 * time.Millisecond
	largeBuffer   = 8 << 20 // bytes; a machine that is busy must not lose what the network did not
)

// listenLarge opens a socket with a large receive buffer.
func listenLarge(network string, local *net.UDPAddr) (*net.UDPConn, error) {
	conn, err := net.ListenUDP(network, local)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, largeBuffer)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return nil, errors.Join(fmt.Errorf("enlarge the receive buffer: %w", err), conn.Close())
	}
	return conn, nil
}

// StartDatagrams starts a UDP stream from a place to a StreamServer; the zero local port is any.
func StartDatagrams(place Place, local uint16, server netip.AddrPort) (*UDPStream, error) {
	s := &UDPStream{server: server, stop: make(chan struct{}), ended: make(chan struct{}), answers: map[int]int{},
		asked: map[netip.AddrPort]chan<- netip.AddrPort{}, seen: map[netip.AddrPort]map[netip.AddrPort]bool{}}
	s.arrived = sync.NewCond(&s.mu)
	err := place.Do(func() (err error) {
		s.conn, err = listenLarge(family.Of(server.Addr()).Network("udp"), &net.UDPAddr{Port: int(local)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start datagrams from port %d: %w", local, err)
	}
	go s.read()
	go s.send()
	return s, nil
}

func (s *UDPStream) send() {
	defer close(s.ended)
	tick := time.NewTicker(datagramEvery)
	defer tick.Stop()
	for {
		if err := s.sendOne(); err != nil {
			s.mu.Lock()
			s.err = errors.Join(s.err, err)
			s.mu.Unlock()
			return
		}
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
	}
}

func (s *UDPStream) sendOne() error {
	s.mu.Lock()
	number := s.sent
	s.sent++
	s.mu.Unlock()
	_, err := s.conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%d", number), s.server)
	if err != nil {
		return fmt.Errorf("send datagram %d: %w", number, err)
	}
	return nil
}

func (s *UDPStream) read() {
	buffer := make([]byte, 2048)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		var number int
		var endpoint string
		if err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(buffer[:n]), &number, &endpoint); err != nil {
			continue
		}
		if seen, err := netip.ParseAddrPort(endpoint); err == nil {
			s.answered(unmap(from), number, seen)
		}
	}
}

// asking is the number of Ask's datagram.
const asking = -1

func (s *UDPStream) answered(server netip.AddrPort, number int, seen netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[server] == nil {
		s.seen[server] = map[netip.AddrPort]bool{}
	}
	s.seen[server][seen] = true
	if number == asking {
		if waiting := s.asked[server]; waiting != nil {
			waiting <- seen
			delete(s.asked, server)
		}
		return
	}
	s.answers[number]++
	s.arrived.Broadcast()
}

// Local is the socket's own endpoint; its address is unspecified.
func (s *UDPStream) Local() netip.AddrPort {
	return unmap(s.conn.LocalAddr().(*net.UDPAddr).AddrPort())
}

// Answered is how many datagrams have been answered.
func (s *UDPStream) Answered() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.answers)
}

// Sent is how many datagrams have been sent.
func (s *UDPStream) Sent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Seen are this socket's endpoints as the server of the stream has seen them.
func (s *UDPStream) Seen() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endpoints()
}

func (s *UDPStream) endpoints() (list []netip.AddrPort) {
	for e := range s.seen[s.server] {
		list = append(list, e)
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}

// Ask sends one datagram to another StreamServer, and returns this socket's endpoint as that one sees it, or
// ErrTimeout.
func (s *UDPStream) Ask(server netip.AddrPort) (netip.AddrPort, error) {
	answer := make(chan netip.AddrPort, 1)
	s.mu.Lock()
	s.asked[server] = answer
	s.mu.Unlock()
	if _, err := s.conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%d", asking), server); err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask %s: %w", server, err)
	}
	select {
	case seen := <-answer:
		return seen, nil
	case <-time.After(Timeout):
		return netip.AddrPort{}, fmt.Errorf("ask %s: %w", server, ErrTimeout)
	}
}

// Finish sends nothing more, waits for answers that are late, and reports. Its error is one of sending.
func (s *UDPStream) Finish() (UDPReport, error) {
	defer s.Close()
	s.once.Do(func() { close(s.stop) })
	<-s.ended
	deadline := time.Now().Add(Timeout)
	late := time.AfterFunc(Timeout, s.arrived.Broadcast) // not before the deadline
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.answers) < s.sent && time.Now().Before(deadline) {
		s.arrived.Wait()
	}
	r := UDPReport{Local: s.Local(), Sent: s.sent, Seen: s.endpoints()}
	for number := range s.sent {
		if n := s.answers[number]; n == 0 {
			r.Lost = append(r.Lost, number)
		} else {
			r.Duplicates += n - 1
		}
	}
	return r, s.err
}

// Close ends the stream at once. It may be called after Finish.
func (s *UDPStream) Close() {
	s.once.Do(func() { close(s.stop) })
	s.conn.Close()
	<-s.ended
}
