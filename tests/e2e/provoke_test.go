// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// icmpError is what a socket hears of a packet that it has sent.
type icmpError struct {
	kind, code byte
	from       netip.Addr     // who says so
	about      netip.AddrPort // where the packet was sent
}

// in is the same message, between the same places, in a family.
func (e icmpError) in(f family.Family) icmpError {
	e.kind, e.code, _ = packets.ICMPType(f, e.kind, e.code)
	e.from, e.about = f.Addr(e.from), f.Endpoint(e.about)
	return e
}

// errorQueue is how a family's socket is told of errors: options that switch that on, and where in struct sock_extended_err and
// the struct sockaddr that follows it the sender's address is.
type errorQueue struct {
	domain, level, receive int
	ttl, discover, do      int
	address, length        int
	mtu                    int // the option that says what is known of a path's MTU
}

var errorQueues = map[family.Family]errorQueue{
	family.V4: {unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVERR, unix.IP_TTL, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, 20, 4, unix.IP_MTU},
	family.V6: {unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.IPV6_UNICAST_HOPS, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, 24, 16, unix.IPV6_MTU},
}

// sockaddr is an endpoint in the kernel's words.
func sockaddr(e netip.AddrPort) unix.Sockaddr {
	if e.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(e.Port()), Addr: e.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(e.Port()), Addr: e.Addr().As16()}
}

// endpointOf is sockaddr's reverse; not valid: another one's.
func endpointOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// provoke sends a datagram and waits for the ICMP error about it, sending again now and then: errors are limited in
// their rate.
func provoke(ns *topo.NS, port int, to netip.AddrPort, ttl, size int) (got icmpError, err error) {
	fam := family.Of(to.Addr())
	q := errorQueues[fam]
	doErr := ns.Do(func() error {
		fd, err := unix.Socket(q.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = errors.Join(
			unix.SetsockoptInt(fd, q.level, q.receive, 1),
			unix.SetsockoptInt(fd, q.level, q.ttl, ttl),
			unix.SetsockoptInt(fd, q.level, q.discover, q.do),
			unix.Bind(fd, sockaddr(netip.AddrPortFrom(fam.Any(), uint16(port)))),
		)
		if err != nil {
			return err
		}
		for deadline := time.Now().Add(probe.Timeout); time.Now().Before(deadline); {
			_ = unix.Sendto(fd, make([]byte, size), 0, sockaddr(to))
			fds := []unix.PollFd{{Fd: int32(fd)}} // POLLERR is always waited for
			if n, err := unix.Poll(fds, 250); err == nil && n == 1 {
				got, err = q.read(fd)
				return err
			}
		}
		return probe.ErrTimeout
	})
	return got, doErr
}

// read takes one error off a socket's queue (struct sock_extended_err, and who sent it, in a control message).
func (q errorQueue) read(fd int) (icmpError, error) {
	control := make([]byte, 512)
	_, n, _, name, err := unix.Recvmsg(fd, make([]byte, 64), control, unix.MSG_ERRQUEUE)
	if err != nil {
		return icmpError{}, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return icmpError{}, err
	}
	i := slices.IndexFunc(messages, func(m unix.SocketControlMessage) bool {
		return int(m.Header.Level) == q.level && int(m.Header.Type) == q.receive && len(m.Data) >= q.address+q.length
	})
	about := endpointOf(name)
	if i < 0 || !about.IsValid() {
		return icmpError{}, errors.New("no message of an error")
	}
	data := messages[i].Data // error 4, origin 1, type 1, code 1, pad 1, info 4, data 4, then the struct sockaddr
	from, _ := netip.AddrFromSlice(data[q.address : q.address+q.length])
	return icmpError{kind: data[5], code: data[6], from: from, about: about}, nil
}

// TestProvoke: without conenat, in both families, what the router and a peer say is heard as theirs.
func TestProvoke(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) {
			f := topo.Figure3ForTest(t, topo.Figure3Config{UplinkMTU: 1400, IPv6: fam == family.V6})
			closed := at(topo.Peer1Addr, 9)
			for ttl, want := range map[int]icmpError{1: {11, 0, topo.RouterAddr, closed}, 64: {3, 3, topo.Peer1Addr, closed}} {
				if got, err := provoke(f.Host, 25000+ttl, fam.Endpoint(closed), ttl, 32); err != nil || got != want.in(fam) {
					t.Errorf("TTL %d: %+v, %v; want %+v", ttl, got, err, want.in(fam))
				}
			}
			want := icmpError{3, 4, netip.MustParseAddr("203.0.113.254"), at(topo.HostAddr, 9)}.in(fam)
			if got, err := provoke(f.Peer1, 25100, want.about, 64, 1450); err != nil || got != want {
				t.Errorf("too big: %+v, %v; want %+v", got, err, want)
			}
		})
	}
}
