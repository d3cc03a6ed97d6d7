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
		want       string // empty: nothing that a packet from outside can be for
	}{
		{"address", "198.51.100.1", 53, nil, "198.51.100.1:53"},
		{"wildcard", "0.0.0.0", 53, nil, "0.0.0.0:53"},
		{"wildcard_of_IPv6", "::", 53, nil, "0.0.0.0:53"},
		{"wildcard_of_IPv6_only", "::", 53, only6, ""},
		{"mapped", "::ffff:198.51.100.1", 53, nil, "198.51.100.1:53"},
		{"loopback", "127.0.0.53", 53, nil, ""},
		{"IPv6", "2001:db8::1", 53, nil, ""},
		{"unbound", "0.0.0.0", 0, nil, ""},
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
			got, ok := parseSocket(dataplane.TCP, append(m, tt.attributes...))
			if ok != (tt.want != "") || (ok && got.Local.String() != tt.want) {
				t.Errorf("got %v %v, want %q", got, ok, tt.want)
			}
		})
	}
	if _, ok := parseSocket(dataplane.TCP, make([]byte, diagMessageSize-1)); ok {
		t.Error("half a message is a socket")
	}
}

// Sockets of every kind, in the kernel; the packet path finds those that listen and those of UDP without a peer.
func TestSocketsOfTheKernel(t *testing.T) {
	inNamespace(t)
	ip(t, "link set lo up\nlink add eth0 type veth peer name x0\nlink set eth0 up\nlink set x0 up\naddr add 198.51.100.1/24 dev eth0\naddr add 198.51.100.2/24 dev eth0\n")
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

	got, err := New().Sockets()
	must(t, err)
	want := []Socket{
		{dataplane.TCP, netip.MustParseAddrPort("0.0.0.0:1002")},
		{dataplane.TCP, netip.MustParseAddrPort("0.0.0.0:1003")},
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.1:1001")},
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.1:1005")},
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.1:1008")}, // the server's end of the connection
		{dataplane.TCP, netip.MustParseAddrPort("198.51.100.2:1009")},
		{dataplane.UDP, netip.MustParseAddrPort("198.51.100.1:1010")},
	}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
	for _, s := range got {
		if s.Wildcard() != (s.Local.Addr() == any4) {
			t.Errorf("%v: wildcard %v", s, s.Wildcard())
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
