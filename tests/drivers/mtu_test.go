// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

const (
	jumbo    = 9000
	ethernet = 1500
	headers  = 28 // IPv4's and UDP's
)

// TestJumbo: the inside has jumbo frames, the outside has not. What may be fragmented is; of what may not, the sender learns why.
func TestJumbo(t *testing.T) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			l := newLab(t, labConfig{path: path, insideMTU: jumbo})
			l.nothingLost(func() {
				l.fragmentsJumbo()
				l.learnsByDatagram()
				l.learnsByConnection()
			})
			l.traffic()
			l.went(path)
		})
	}
}

// socketTo opens a UDP socket from inside, with a setting of IP_MTU_DISCOVER.
func (l *lab) socketTo(to netip.AddrPort, discover int) *net.UDPConn {
	l.t.Helper()
	conn, err := l.nsA.DialUDP(noAddr, to)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	l.control(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover)
	})
	return conn
}

func (l *lab) control(conn *net.UDPConn, fn func(fd int) error) {
	l.t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		l.t.Fatal(err)
	}
	controlErr := raw.Control(func(fd uintptr) { err = fn(int(fd)) })
	if err = errors.Join(err, controlErr); err != nil {
		l.t.Fatal(err)
	}
}

// pathMTU is what the inside peer's kernel knows of a path.
func (l *lab) pathMTU(conn *net.UDPConn) (mtu int) {
	l.t.Helper()
	l.control(conn, func(fd int) (err error) {
		mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
		return err
	})
	return mtu
}

// fragmentsJumbo: a whole jumbo frame without DF, which the host fragments.
func (l *lab) fragmentsJumbo() {
	l.t.Helper()
	remote := l.udp(l.b, 0)
	conn := l.socketTo(at(topo.Peer1Addr, remote.Port()), unix.IP_PMTUDISC_INTERFACE)
	for _, size := range []int{ethernet - headers + 1, 4001, jumbo - headers} {
		text := strings.Repeat("x", size)
		if _, err := conn.Write([]byte(text)); err != nil {
			l.t.Fatal(err)
		}
		if from := l.receives(remote, text); from.Addr() != topo.HostAddr {
			l.t.Errorf("%d bytes come from %s", size, from)
		}
	}
}

// learnsByDatagram: one datagram is lost, and its sender's kernel told.
func (l *lab) learnsByDatagram() {
	l.t.Helper()
	remote, err := l.nsB.ListenUDP(at(topo.Peer2Addr, 0))
	if err != nil {
		l.t.Fatal(err)
	}
	defer remote.Close()
	to := remote.LocalAddr().(*net.UDPAddr).AddrPort()
	conn := l.socketTo(at(topo.Peer2Addr, to.Port()), unix.IP_PMTUDISC_DO)
	if mtu := l.pathMTU(conn); mtu != jumbo {
		l.t.Errorf("the path's MTU is %d before anything was sent", mtu)
	}
	err = topo.Poll(l.t.Context(), patience.For(probe.Timeout), "Fragmentation Needed", func() (bool, error) {
		_, err := conn.Write(make([]byte, 5000)) // again, for ICMP errors are limited in number
		return l.pathMTU(conn) == ethernet, err
	})
	if err != nil {
		l.t.Error(err)
	}
	if _, err := conn.Write(make([]byte, 5000)); !errors.Is(err, unix.EMSGSIZE) {
		l.t.Errorf("another one that is too large: %v", err)
	}
	l.control(conn, func(fd int) error { // of the first one; the next call would return it
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	})
	text := strings.Repeat("y", ethernet-headers)
	if _, err := conn.Write([]byte(text)); err != nil {
		l.t.Error(err)
	}
	if got, _ := l.reads(remote, probe.Timeout); got != text {
		l.t.Errorf("got %d bytes", len(got))
	}
}

// learnsByConnection: the far peer asks for segments as large as jumbo frames, and gets them in smaller ones.
func (l *lab) learnsByConnection() {
	l.t.Helper()
	err := l.nsB.IP(l.t.Context(), "route replace 198.51.100.0/24 dev "+l.cardB.name+" src "+topo.Peer1Addr.String()+" advmss 8960\n")
	if err != nil {
		l.t.Fatal(err)
	}
	path := func() int { return l.pathMTU(l.socketTo(at(topo.Peer1Addr, 9), unix.IP_PMTUDISC_DO)) } // a socket keeps what it knows
	if mtu := path(); mtu != jumbo {
		l.t.Errorf("the path's MTU is %d before the connection", mtu)
	}
	l.upload(l.a, l.b)
	l.download(l.a, l.b)
	if mtu := path(); mtu != ethernet {
		l.t.Errorf("the path's MTU is known as %d", mtu)
	}
}
