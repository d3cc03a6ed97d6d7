// SPDX-License-Identifier: Apache-2.0

package natcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v2"

	"github.com/conenat/conenat/control/stunattr"
)

// errNoAnswer says that no answer came in time.
var errNoAnswer = errors.New("no answer")

// transactionID is what an answer is known by.
type transactionID = [stun.TransactionIDSize]byte

// arrival is a STUN message that came for somebody who expected it.
type arrival struct {
	message *stun.Message
	from    netip.AddrPort
}

// socket is a UDP socket whose reader hands each message to who expects its transaction ID.
type socket struct {
	conn  *net.UDPConn
	local netip.AddrPort
	done  chan struct{}

	mu      sync.Mutex
	waiting map[transactionID]chan arrival
}

func newSocket(conn *net.UDPConn) *socket {
	s := &socket{conn: conn, local: unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort()), done: make(chan struct{}),
		waiting: map[transactionID]chan arrival{}}
	go s.read()
	return s
}

func (s *socket) read() {
	defer close(s.done)
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		message := &stun.Message{Raw: append([]byte(nil), buffer[:n]...)}
		if err != nil || message.Decode() != nil {
			continue
		}
		s.hand(arrival{message, unmap(from)})
	}
}

// hand gives the first message of a transaction to who waits for it; a repeated one is for nobody.
func (s *socket) hand(a arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.waiting[a.message.TransactionID]; ok {
		c <- a
		delete(s.waiting, a.message.TransactionID)
	}
}

// expect is where the message with a transaction ID will arrive.
func (s *socket) expect(id transactionID) <-chan arrival {
	c := make(chan arrival, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[id] = c
	return c
}

func (s *socket) send(m *stun.Message, to netip.AddrPort) error {
	if _, err := s.conn.WriteToUDPAddrPort(m.Raw, to); err != nil {
		return fmt.Errorf("send from %v to %v: %w", s.local, to, err)
	}
	return nil
}

// Close waits for the reader.
func (s *socket) Close() error {
	err := s.conn.Close()
	<-s.done
	return err
}

// timers are those of RFC 8489, section 6.2.1: the first retransmission after the RTO, each following one after twice as
// long. The series ends after the timeout, where the RFC would go on for 39.5 s.
type timers struct{ rto, timeout time.Duration }

// repeat sends now and again until something arrives.
func (t timers) repeat(ctx context.Context, send func() error, arrived <-chan arrival) (arrival, error) {
	end := time.NewTimer(t.timeout)
	defer end.Stop()
	for wait := t.rto; ; wait *= 2 {
		if err := send(); err != nil {
			return arrival{}, err
		}
		again := time.NewTimer(wait)
		select {
		case a := <-arrived:
			again.Stop()
			return a, nil
		case <-again.C:
		case <-end.C:
			again.Stop()
			return arrival{}, errNoAnswer
		case <-ctx.Done():
			again.Stop()
			return arrival{}, context.Cause(ctx)
		}
	}
}

// ask makes a transaction and returns its success response.
func (s *socket) ask(ctx context.Context, t timers, to netip.AddrPort, setters ...stun.Setter) (answer, error) {
	request, err := newRequest(setters...)
	if err != nil {
		return answer{}, err
	}
	a, err := t.repeat(ctx, func() error { return s.send(request, to) }, s.expect(request.TransactionID))
	if err != nil {
		return answer{}, fmt.Errorf("ask %v over UDP from port %d: %w", to, s.local.Port(), err)
	}
	return parse(a)
}

func newRequest(setters ...stun.Setter) (*stun.Message, error) {
	return stun.Build(append([]stun.Setter{stun.TransactionID, stun.BindingRequest}, setters...)...)
}

// answer is what a server said.
type answer struct {
	from     netip.AddrPort // where it came from
	mapped   netip.AddrPort // as whom it saw the request
	other    netip.AddrPort // OTHER-ADDRESS; zero: none
	rewrites bool           // MAPPED-ADDRESS was changed on its way
}

// refusal is an error response.
type refusal struct {
	server netip.AddrPort
	text   string
}

func (r refusal) Error() string { return fmt.Sprintf("STUN server %v refuses: %s", r.server, r.text) }

// parse reads an answer. A server of RFC 3489 knows MAPPED-ADDRESS and CHANGED-ADDRESS alone.
func parse(a arrival) (answer, error) {
	if a.message.Type == stun.BindingError {
		var code stun.ErrorCodeAttribute
		if err := code.GetFrom(a.message); err != nil {
			return answer{}, refusal{a.from, "an error without a code"}
		}
		return answer{}, refusal{a.from, code.String()}
	}
	plain, noPlain := stunattr.GetAddress(a.message, stun.AttrMappedAddress)
	mapped, err := stunattr.GetXORMapped(a.message)
	if errors.Is(err, stunattr.ErrAbsent) {
		mapped, err = plain, noPlain
	}
	if a.message.Type != stun.BindingSuccess || err != nil {
		return answer{}, refusal{a.from, "no endpoint in its answer"}
	}
	other, err := stunattr.GetAddress(a.message, stun.AttrOtherAddress)
	if errors.Is(err, stunattr.ErrAbsent) {
		other, _ = stunattr.GetAddress(a.message, stun.AttrChangedAddress)
	}
	return answer{from: a.from, mapped: mapped, other: other, rewrites: noPlain == nil && plain != mapped}, nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
