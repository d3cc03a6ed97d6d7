// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v2"
)

// udp reads its socket in a goroutine and tells STUN answers from other packets.
type udp struct {
	conn    *net.UDPConn
	packets chan Packet

	mu      sync.Mutex
	queries map[[stun.TransactionIDSize]byte]chan netip.AddrPort
}

func newUDP(conn *net.UDPConn) *udp {
	u := &udp{conn: conn, packets: make(chan Packet, 1024), queries: map[[stun.TransactionIDSize]byte]chan netip.AddrPort{}}
	go u.read()
	return u
}

func (u *udp) read() {
	defer close(u.packets)
	buffer := make([]byte, 65536)
	for {
		n, from, err := u.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier packet
		}
		if u.answered(buffer[:n]) {
			continue
		}
		select {
		case u.packets <- Packet{From: unmap(from), Text: string(buffer[:n])}:
		default: // a full buffer drops, as a socket's does
		}
	}
}

// answered hands a STUN response to the query that waits for it.
func (u *udp) answered(payload []byte) bool {
	if !stun.IsMessage(payload) {
		return false
	}
	message := &stun.Message{Raw: append([]byte(nil), payload...)}
	var mapped stun.XORMappedAddress
	if message.Decode() != nil || message.Type != stun.BindingSuccess || mapped.GetFrom(message) != nil {
		return false
	}
	addr, _ := netip.AddrFromSlice(mapped.IP)
	u.mu.Lock()
	defer u.mu.Unlock()
	waiting, ok := u.queries[message.TransactionID]
	if !ok {
		return false
	}
	select {
	case waiting <- netip.AddrPortFrom(addr.Unmap(), uint16(mapped.Port)):
	default:
	}
	return true
}

func (u *udp) Port() uint16 { return uint16(u.conn.LocalAddr().(*net.UDPAddr).Port) }

func (u *udp) Send(to netip.AddrPort, text string) error {
	_, err := u.conn.WriteToUDPAddrPort([]byte(text), to)
	if errors.Is(err, net.ErrClosed) || err == nil {
		return err
	}
	_, err = u.conn.WriteToUDPAddrPort([]byte(text), to) // the first error may be an ICMP error of an earlier packet
	return err
}

func (u *udp) Receive(timeout time.Duration) (Packet, error) {
	select {
	case p, ok := <-u.packets:
		if !ok {
			return Packet{}, net.ErrClosed
		}
		return p, nil
	case <-time.After(timeout):
		return Packet{}, ErrTimeout
	}
}

// retransmit is well below RFC 8489's 500 ms: nothing here is farther away than a few veth pairs.
const retransmit = 100 * time.Millisecond

func (u *udp) Mapped(server netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	request, err := stun.Build(stun.TransactionID, stun.BindingRequest)
	if err != nil {
		return netip.AddrPort{}, err
	}
	answer := u.expect(request.TransactionID)
	defer u.forget(request.TransactionID)
	deadline := time.After(timeout)
	for {
		if err := u.Send(server, string(request.Raw)); err != nil {
			return netip.AddrPort{}, fmt.Errorf("ask STUN server %v: %w", server, err)
		}
		select {
		case mapped := <-answer:
			return mapped, nil
		case <-time.After(retransmit):
		case <-deadline:
			return netip.AddrPort{}, fmt.Errorf("ask STUN server %v from port %d: %w", server, u.Port(), ErrTimeout)
		}
	}
}

func (u *udp) expect(id [stun.TransactionIDSize]byte) <-chan netip.AddrPort {
	answer := make(chan netip.AddrPort, 1)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queries[id] = answer
	return answer
}

func (u *udp) forget(id [stun.TransactionIDSize]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.queries, id)
}

// Close waits for the reader, so that no goroutine outlives it.
func (u *udp) Close() error {
	err := u.conn.Close()
	for range u.packets {
	}
	return err
}

// STUNServer answers binding requests with the endpoint that it sees, and echoes everything else.
type STUNServer struct {
	conn *net.UDPConn
	done chan struct{}
}

// ServeSTUN starts a STUNServer on every address of a place, of both families.
func ServeSTUN(place Place, port uint16) (*STUNServer, error) {
	s := &STUNServer{done: make(chan struct{})}
	err := place.Do(func() (err error) {
		s.conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start STUN server: %w", err)
	}
	go s.serve()
	return s, nil
}

func (s *STUNServer) serve() {
	defer close(s.done)
	buffer := make([]byte, 65536)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		_, _ = s.conn.WriteToUDPAddrPort(reflect(buffer[:n], unmap(from)), from)
	}
}

func reflect(payload []byte, from netip.AddrPort) []byte {
	request := &stun.Message{Raw: append([]byte(nil), payload...)}
	if !stun.IsMessage(payload) || request.Decode() != nil || request.Type != stun.BindingRequest {
		return payload
	}
	mapped := &stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())}
	response, err := stun.Build(stun.NewTransactionIDSetter(request.TransactionID), stun.BindingSuccess, mapped)
	if err != nil {
		return payload
	}
	return response.Raw
}

// Close stops the server.
func (s *STUNServer) Close() error {
	err := s.conn.Close()
	<-s.done
	return err
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
