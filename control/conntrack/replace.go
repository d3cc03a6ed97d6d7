// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

const (
	// Messages in one system call. Each may be answered by an error of some 800 bytes of receive buffer, of which
	// there are 200 KB by default.
	batchSize = 128
	ackWithin = 10 * time.Second

	replaceSize = batchSize / 4 // three messages each
)

// replaceTries is how often Replace tries: a packet in the moment between may make an entry of its own.
const replaceTries = 5

// Replace makes entries, each of an established connection whatever SeenReply and Assured say: one without an answer
// would be sent through NAT's rules by its next packet. TCPState 0 means ESTABLISHED, Timeout 0 netfilter's default.
// Sequence numbers are not checked in them. Other entries that have a flow's endpoints, translated or not, its own of
// before among them, are deleted for it, in the same system call, just before.
//
// A flow with SourceNAT and a Reply.Dst that differs from Original.Src is translated by netfilter from then on, to
// just that endpoint, provided that the namespace has a NAT rule at all (nat chains do the translation); likewise
// DestinationNAT. Any other flow is not, and no NAT rule will be applied to it.
//
// It tells how many are made, the others with the error. Errors: ErrUnavailable; ErrConflict, where packets of
// another connection with the endpoints kept coming in between.
func Replace(flows []Flow) (made int, err error) {
	if len(flows) == 0 {
		return 0, nil
	}
	s, err := newWriter()
	if err != nil {
		return 0, fmt.Errorf("replace tracked connections: %w", unavailable(err))
	}
	defer s.socket.Close()
	for range replaceTries {
		todo := flows
		if s.exist != nil {
			todo, s.exist = s.exist, nil
		}
		for start := 0; start < len(todo); start += replaceSize {
			if err := s.batch(todo[start:min(len(todo), start+replaceSize)], (*message).replace); err != nil {
				return 0, fmt.Errorf("replace tracked connections: %w", err)
			}
		}
		if s.exist == nil {
			break
		}
	}
	for _, f := range s.exist {
		s.fail(f, ErrConflict)
	}
	if s.failed > 0 {
		return len(flows) - s.failed, fmt.Errorf("replace %d of %d tracked connections: %w", s.failed, len(flows), s.first)
	}
	return len(flows), nil
}

type writer struct {
	socket *nl.NetlinkSocket
	exist  []Flow
	failed int
	first  error // of those that failed

	forgets bool // entries are deleted: one that is not there is no failure
}

func newWriter() (*writer, error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	err = socket.SetReceiveTimeout(&unix.Timeval{Sec: int64(ackWithin / time.Second)})
	if err == nil { // so that an error does not carry the request with it
		err = unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	return &writer{socket: socket}, nil
}

// batch sends requests in one system call. The kernel answers those that fail, and the last one; a message's sequence
// number is its flow's place from 1.
func (s *writer) batch(flows []Flow, request func(*message, Flow, uint32)) error {
	var out message
	last := 0
	for i, f := range flows {
		if err := f.check(); err != nil {
			s.fail(f, err)
			continue
		}
		last = i + 1
		request(&out, f, uint32(last))
	}
	if last == 0 {
		return nil
	}
	out.acknowledge()
	if err := unix.Sendto(s.socket.GetFd(), out.bytes, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return unavailable(err)
	}
	for {
		answers, _, err := s.socket.Receive()
		if err != nil {
			return fmt.Errorf("read the kernel's answer: %w", err)
		}
		for _, a := range answers {
			if a.Header.Type != unix.NLMSG_ERROR || len(a.Data) < 4 {
				continue
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(a.Data)))
			if errno == unix.EPERM { // of the batch, whichever message it is told of: it is not looked at further
				return unavailable(errno)
			}
			if a.Header.Seq == 0 || int(a.Header.Seq) > len(flows) {
				continue
			}
			s.answer(flows[a.Header.Seq-1], errno)
			if int(a.Header.Seq) == last {
				return nil
			}
		}
	}
}

func (s *writer) answer(f Flow, errno unix.Errno) {
	switch {
	case errno == 0, s.forgets && gone(errno):
	case errno == unix.EEXIST:
		s.exist = append(s.exist, f)
	default:
		s.fail(f, errno)
	}
}

func (s *writer) fail(f Flow, err error) {
	s.failed++
	if s.first == nil {
		s.first = fmt.Errorf("%s from %s to %s: %w", f.Protocol, f.Original.Src, f.Original.Dst, err)
	}
}

func (f Flow) check() error {
	for _, a := range []netip.AddrPort{f.Original.Src, f.Original.Dst, f.Reply.Src, f.Reply.Dst} {
		if !a.IsValid() || a.Addr().Is4In6() || a.Port() == 0 {
			return fmt.Errorf("endpoint %s is none of IPv4 or IPv6 with a port", a)
		}
		if a.Addr().Is4() != f.Original.Src.Addr().Is4() {
			return fmt.Errorf("endpoints %s and %s are of two families", f.Original.Src, a)
		}
	}
	if f.Protocol != dataplane.TCP && f.Protocol != dataplane.UDP {
		return fmt.Errorf("protocol %s has no ports", f.Protocol)
	}
	return nil
}
