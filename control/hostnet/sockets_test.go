// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

func TestParseSocket(t *testing.T) {
	only6 := []byte{5, 0, skV6Only, 0, 1, 0, 0, 0}
	tests := []struct {
		name, addr string
		port       uint16
		attributes []byte
		want       []string // none: nothing that a packet from outside can be for
	}{
		{"address", "198.51.100.1", 53, nil, []string{"198.51.100.1:53"}},
		{"wildcard", "0.0.0.0", 53, nil, []string{"0.0.0.0:53"}},
		{"wildcard_of_both", "::", 53, nil, []string{"0.0.0.0:53", "[::]:53"}},
		{"wildcard_of_IPv6_only", "::", 53, only6, []string{"[::]:53"}},
		{"mapped", "::ffff:198.51.100.1", 53, nil, []string{"198.51.100.1:53"}},
		{"loopback", "127.0.0.53", 53, nil, nil},
		{"loopback_of_IPv6", "::1", 53, nil, nil},
		{"IPv6", "2001:db8::1", 53, nil, []string{"[2001:db8::1]:53"}},
		{"link_local", "fe80::1", 53, nil, nil},
		{"unbound", "0.0.0.0", 0, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := netip.MustParseAddr(tt.addr)
			m := make([]byte, diagMessageSize)
			m[0] = unix.AF_INET
			if addr.Is6() {
				m[0] = unix.AF_INET6
			}
			binary.BigEndian.PutUint16(m[4:], tt.port)
			copy(m[8:24], addr.AsSlice())
			var got []string
			for _, s := range parseSocket(dataplane.TCP, append(m, tt.attributes...)) {
				got = append(got, s.Local.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if parseSocket(dataplane.TCP, make([]byte, diagMessageSize-1)) != nil {
		t.Error("half a message is a socket")
	}
}

// Sockets of every kind, in the kernel; the packet path finds those that listen and those of UDP without a peer.
func TestSocketsOfTheKernel(t *testing.T) {
	inNamespace(t)
	ip(t, "link set lo up\nlink add eth0 type veth peer name x0\nlink set eth0 up\nlink set x0 up\naddr add 198.51.100.1/24 dev eth0\naddr add 198.51.100.2/24 dev eth0\naddr add 2001:db8::1/64 dev eth0 nodad\n")
	addr, any4 := netip.MustParseAddr("198.51.100.1"), netip.IPv4Unspecified()
	any6, mapped := netip.IPv6Unspecified(), netip.MustParseAddr("::ffff:198.51.100.1")
	bind(t, unix.SOCK_STREAM, addr, 1001)
	bind(t, unix.SOCK_STREAM, any4, 1002)
	bind(t, unix.SOCK_STREAM, any6, 1003)
	bind(t, unix.SOCK_STREAM, any6, 1004, unix.IPV6_V6ONLY)
	bind(t, unix.SOCK_STREAM, mapped, 1005)
	bind(t, unix.SOCK_STREAM, netip.MustParseAddr("127.0.0.1"), 1006)
	bind(t, unix.SOCK_DGRAM, addr, 1007)
	listener := bind(t, unix.SOCK_STREAM, addr, 1008)
	must(t, unix.Listen(listener, 1))
	client := bind(t, unix.SOCK_STREAM, netip.MustParseAddr("198.51.100.2"), 1009)
	must(t, unix.Connect(client, &unix.SockaddrInet4{Port: 1008, Addr: addr.As4()}))
	connected := bind(t, unix.SOCK_DGRAM, any4, 1010)
	must(t, unix.Connect(connected, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{198, 51, 100, 9}}))
	itself := bind(t, unix.SOCK_DGRAM, any4, 1011)
	must(t, unix.Connect(itself, &unix.SockaddrInet4{Port: 9, Addr: addr.As4()}))

	six := netip.MustParseAddr("2001:db8::1")
	bind(t, unix.SOCK_STREAM, six, 1012)
	connected6 := bind(t, unix.SOCK_DGRAM, any6, 1013)
	must(t, unix.Connect(connected6, &unix.SockaddrInet6{Port: 9, Addr: netip.MustParseAddr("2001:db8::9").As16()}))

	got, err := New().Sockets()
	must(t, err)
	want := []Socket{
		{dataplane.TCP, netip.MustParseAddrPort("0.0.0.0:1002")},
		{dataplane.TCP, netip.MustParseAddrPort("0.0.0.0:1003")},
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.1:1001")},
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.1:1005")},
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.1:1008")}, // the server's end of the connection
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.2:1009")},
		{dataplane.TCP, netip.MustParseAddrPort("[::]:1003")},
		{dataplane.TCP, netip.MustParseAddrPort("[::]:1004")},
		{dataplane.TCP, netip.MustParseAddrPort("[2001:db8::1]:1012")},
		{dataplane.UDP, netip.MustParseAddrPort("198.51.100.1:1010")},
		{dataplane.UDP, netip.MustParseAddrPort("[2001:db8::1]:1013")},
	}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
	for _, s := range got {
		at := s.Local.Addr()
		if s.Wildcard() != (at == any4 || at == any6) || s.On(addr) != (at == addr || at == any4) || s.On(six) != (at == six || at == any6) {
			t.Errorf("%v: wildcard %v, on %v: %v, on %v: %v", s, s.Wildcard(), addr, s.On(addr), six, s.On(six))
		}
	}
}

func bind(t *testing.T, kind int, at netip.Addr, port int, options ...int) int {
	t.Helper()
	family, sockaddr := unix.AF_INET, unix.Sockaddr(nil)
	if at.Is4() {
		sockaddr = &unix.SockaddrInet4{Port: port, Addr: at.As4()}
	} else {
		family, sockaddr = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: at.As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	for _, option := range options {
		must(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, 1))
	}
	must(t, unix.Bind(fd, sockaddr))
	return fd
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
