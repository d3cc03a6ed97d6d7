// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// wire sends and sees packets of the lab's family in a namespace as they are: fragments, too.
type wire struct {
	l        *lab
	out, see int // a raw socket, and a packet socket on eth0
}

func (l *lab) wire(ns *topo.NS) *wire {
	l.T.Helper()
	w := &wire{l: l, out: -1, see: -1}
	index, err := ns.IfIndex("eth0")
	if err != nil {
		l.T.Fatal(err)
	}
	err = ns.Do(func() (err error) {
		domain := map[family.Family]int{family.V4: unix.AF_INET, family.V6: unix.AF_INET6}[l.family]
		if w.out, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		w.see, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	l.T.Cleanup(func() {
		unix.Close(w.out)
		unix.Close(w.see)
	})
	tv := unix.NsecToTimeval(int64(20 * time.Millisecond))
	ip := map[family.Family]uint16{family.V4: unix.ETH_P_IP&0xff<<8 | unix.ETH_P_IP>>8,
		family.V6: unix.ETH_P_IPV6&0xff<<8 | unix.ETH_P_IPV6>>8}[l.family] // in network byte order
	err = errors.Join(err, unix.SetsockoptInt(w.see, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptTimeval(w.see, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(w.see, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: index}))
	if err != nil {
		l.T.Fatalf("watch eth0 of %s: %v", ns.Name, err)
	}
	return w
}

// send sends a packet, by the namespace's routes.
func (w *wire) send(ip []byte) {
	w.l.T.Helper()
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(ip[16:20])}
	if w.l.family == family.V6 {
		to = &unix.SockaddrInet6{Addr: [16]byte(ip[24:40])}
	}
	if err := unix.Sendto(w.out, ip, 0, to); err != nil {
		w.l.T.Fatalf("send %d bytes: %v", len(ip), err)
	}
}

// sees waits for count packets that have come in and that a test wants, and returns those that have come in time.
func (w *wire) sees(count int, wanted func(ip []byte) bool) (got [][]byte) {
	w.l.T.Helper()
	buffer := make([]byte, 65536)
	for deadline := time.Now().Add(probe.Timeout); len(got) < count && time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(w.see, buffer, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			w.l.T.Fatalf("read from a packet socket: %v", err)
		}
		sender, ok := from.(*unix.SockaddrLinklayer)
		if ok && sender.Pkttype != unix.PACKET_OUTGOING && n >= 20 && wanted(buffer[:n]) {
			got = append(got, append([]byte{}, buffer[:n]...))
		}
	}
	return got
}

// isICMP is a message of a type and code of IPv4's, or what says so in IPv6, without IP options and extension headers.
func isICMP(kind, code uint8) func([]byte) bool {
	return func(ip []byte) bool {
		if ip[0]>>4 == 6 {
			kind, code, ok := packets.ICMPType(family.V6, kind, code)
			return ok && len(ip) >= 48 && ip[6] == unix.IPPROTO_ICMPV6 && ip[40] == kind && ip[41] == code
		}
		return ip[0] == 0x45 && ip[9] == unix.IPPROTO_ICMP && len(ip) >= 28 && ip[20] == kind && ip[21] == code
	}
}

// ends are a packet's source and destination.
func ends(ip []byte) (src, dst netip.Addr) {
	first, length := 12, 4
	if ip[0]>>4 == 6 {
		first, length = 8, 16
	}
	src, _ = netip.AddrFromSlice(ip[first : first+length])
	dst, _ = netip.AddrFromSlice(ip[first+length : first+2*length])
	return src, dst
}

// isUDP is a datagram or a fragment of one.
func isUDP(ip []byte) bool { return ip[9] == unix.IPPROTO_UDP }

func offsetOf(ip []byte) int { return int(binary.BigEndian.Uint16(ip[6:])&0x1fff) * 8 }

// pieces are a datagram's fragments, each from its IP header on.
func pieces(s packets.Spec, size int) (out [][]byte) {
	for _, frame := range s.Fragments(size) {
		out = append(out, frame[14:])
	}
	return out
}
