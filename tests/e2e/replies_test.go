// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// TestRefusalReachesTheApplication: a container that gets no port hears of it at once, from its gateway, on both paths
// (RFC 5508 REQ-8, RFC 6888 REQ-11), and by TCP's connect as well.
func TestRefusalReachesTheApplication(t *testing.T) { family.Each(t, testRefusalReachesTheApplication) }

func testRefusalReachesTheApplication(t *testing.T, fam family.Family) {
	at := fam.At
	for _, path := range paths {
		for code, refusal := range map[uint8]string{1: "host-unreachable", 13: "admin-prohibited"} {
			t.Run(path+"/"+refusal, func(t *testing.T) {
				config := "refusal: " + refusal + "\n"
				if code == 1 { // which is the default
					config = ""
				}
				l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, config, "--path", path, "--ports", "20000-20000")
				l.takePort()
				to := at(topo.Peer1Addr, 9)
				got, err := provoke(l.Containers[1], 30001, to, 64, 32)
				if want := (icmpError{3, code, topo.GatewayAddr, to}).in(fam); err != nil || got != want {
					t.Errorf("%+v, %v; want %+v", got, err, want)
				}
				conn, err := l.Containers[1].DialTCP(netip.AddrPort{}, at(topo.Peer1Addr, 8080))
				heard := unix.EHOSTUNREACH
				if fam == family.V6 && code == 13 { // which Linux tells from the other one in IPv6 (icmpv6_err_convert)
					heard = unix.EACCES
				}
				if !errors.Is(err, heard) {
					t.Errorf("connect: %v, want %v", err, heard)
				}
				if err == nil {
					conn.Close()
				}
			})
		}
	}
}

// takePort gives the first container the only port, of UDP and TCP.
func (l *lab) takePort() {
	at := l.family.At
	l.t.Helper()
	peer := l.udp(l.peer1, 3478)
	l.send(l.udp(l.containers[0], 20000), at(topo.Peer1Addr, 3478), "mine")
	l.receives(peer, "mine")
	server := l.serve(l.peer1, 8080)
	l.dial(l.containers[0], at(topo.Peer1Addr, server.Port()))
}

// TestPathMTUFromTheGateway: what is too big for the uplink, its sender hears from its gateway, with the MTU (RFC 4787
// REQ-13): of a session's first packet, and of one that is there.
func TestPathMTUFromTheGateway(t *testing.T) { family.Each(t, testPathMTUFromTheGateway) }

func testPathMTUFromTheGateway(t *testing.T, fam family.Family) {
	at := fam.At
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 1, UplinkMTU: 1400}, "", "--path", path)
			opened, peer := l.udp(l.containers[0], 30002), l.udp(l.peer2, 9)
			l.send(opened, at(topo.Peer2Addr, 9), "small")
			l.receives(peer, "small")
			opened.Close()
			for port, to := range map[int]netip.AddrPort{30001: at(topo.Peer1Addr, 9), 30002: at(topo.Peer2Addr, 9)} {
				got, err := provoke(l.Containers[0], port, to, 64, 1450)
				if want := (icmpError{3, 4, topo.GatewayAddr, to}).in(fam); err != nil || got != want {
					t.Errorf("%+v, %v; want %+v", got, err, want)
				}
				if mtu := pathMTU(t, l.Containers[0], to); mtu != 1400 {
					t.Errorf("the container takes the path's MTU to %s for %d", to, mtu)
				}
			}
		})
	}
}

// pathMTU is what a namespace's kernel knows of a destination.
func pathMTU(t *testing.T, ns *topo.NS, to netip.AddrPort) (mtu int) {
	t.Helper()
	conn, err := ns.DialUDP(netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	control(t, conn, func(fd int) (err error) {
		q := errorQueues[family.Of(to.Addr())]
		mtu, err = unix.GetsockoptInt(fd, q.level, q.mtu)
		return err
	})
	return mtu
}

func control(t *testing.T, conn syscall.Conn, do func(fd int) error) {
	t.Helper()
	rc, err := conn.SyscallConn()
	if err == nil {
		err = errors.Join(rc.Control(func(fd uintptr) { err = do(int(fd)) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestInsideMTU: what comes from outside and is too big for the inside, its sender hears from the address that it has sent
// to; a TCP that does goes on with smaller segments. On the direct path that is conenat's to say, on the stack path the
// kernel's.
func TestInsideMTU(t *testing.T) { family.Each(t, testInsideMTU) }

func testInsideMTU(t *testing.T, fam family.Family) {
	at := fam.At
	const mtu = 1300
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "", "--path", path)
			l.letForwarded()
			if err := l.Host.IP(t.Context(), fmt.Sprintf("link set docker0 mtu %d", mtu)); err != nil {
				t.Fatal(err)
			}
			container := at(netip.MustParseAddr("172.17.0.2"), 80)
			for _, protocol := range []string{"udp", "tcp"} {
				l.Client("forward", "add", "--protocol", protocol, at(topo.HostAddr, 8080).String(), container.String())
			}
			published := at(topo.HostAddr, 8080)
			got, err := provoke(l.Peer1, 30001, published, 64, 1400)
			if want := (icmpError{3, 4, topo.HostAddr, published}).in(fam); err != nil || got != want {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
			if known := pathMTU(t, l.Peer1, published); known != mtu {
				t.Errorf("the peer takes the path's MTU for %d, want %d", known, mtu)
			}
			l.serve(l.containers[0], 80)
			conn := l.dial(l.peer2, published) // who has heard nothing yet
			if _, err := conn.Upload(megabyte); err != nil {
				t.Errorf("upload into the smaller MTU: %v", err)
			}
			if path == "direct" && l.Counter("dropped_too_big") == 0 {
				t.Error("nothing was too big")
			}
		})
	}
}

// TestTTLEndsInside: a router that would be the last one says so, to outside by the external address, with its own port.
func TestTTLEndsInside(t *testing.T) { family.Each(t, testTTLEndsInside) }

func testTTLEndsInside(t *testing.T, fam family.Family) {
	at := fam.At
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "", "--path", path)
			l.letForwarded()
			published := at(topo.HostAddr, 5353)
			l.Client("forward", "add", "--protocol", "udp", published.String(), "172.17.0.2:53")
			got, err := provoke(l.Peer1, 30001, published, 2, 32) // past the router
			if want := (icmpError{11, 0, topo.HostAddr, published}).in(fam); err != nil || got != want {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
		})
	}
}

// TestRepliesOverTun: by an uplink whose packets have no Ethernet header, what is refused there (on the stack path), and what
// comes in there (on the direct path).
func TestRepliesOverTun(t *testing.T) { family.Each(t, testRepliesOverTun) }

func testRepliesOverTun(t *testing.T, fam family.Family) {
	at := fam.At
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newUplinkLabIn(fam, t, topo.UplinkConfig{Name: "tun0", Tun: true, OwnRouter: true},
				"route replace default via 198.18.1.254\n", "--path", path, "--ports", "20000-20000")
			peer := l.udp(l.peer1, 3478)
			l.send(l.udp(l.near, 20000), at(topo.Peer1Addr, 3478), "mine")
			l.receives(peer, "mine")
			to := at(topo.Peer1Addr, 9)
			got, err := provoke(l.Net2[0], 30001, to, 64, 32)
			if want := (icmpError{3, 1, netip.MustParseAddr("172.18.0.1"), to}).in(fam); err != nil || got != want {
				t.Errorf("refused: %+v, %v; want %+v", got, err, want)
			}
			l.letForwarded()
			published := at(secondAddr, 5353)
			l.Client("forward", "add", "--protocol", "udp", published.String(), "172.17.0.2:53")
			got, err = provoke(l.Peer1, 30001, published, 2, 32)
			if want := (icmpError{11, 0, secondAddr, published}).in(fam); err != nil || got != want {
				t.Errorf("TTL: %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

// TestMSSClamp: with \`mss: clamp\` both ends send segments that fit the uplink from the first one on, though nobody may tell
// them its MTU; without it they believe each other's interfaces.
func TestMSSClamp(t *testing.T) { family.Each(t, testMSSClamp) }

func testMSSClamp(t *testing.T, fam family.Family) {
	at := fam.At
	header, timestamps := 40, 12
	if fam == family.V6 {
		header = 60
	}
	for _, path := range paths {
		for config, want := range map[string]int{"mss: clamp\n": 1400 - header - timestamps, "": 1500 - header - timestamps} {
			t.Run(fmt.Sprintf("%s/%d", path, want), func(t *testing.T) {
				l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, config, "--path", path)
				if err := l.Host.IP(t.Context(), "link set eth0 mtu 1400"); err != nil {
					t.Fatal(err)
				}
				l.letForwarded()
				l.Client("forward", "add", at(topo.HostAddr, 8080).String(), "172.17.0.2:80")
				l.segments("out", l.Containers[0], l.Peer1, 8080, at(topo.Peer1Addr, 8080), want)
				l.segments("in", l.Peer1, l.Containers[0], 80, at(topo.HostAddr, 8080), want)
			})
		}
	}
}

// segments connects, and checks how large each end takes the other's segments to be.
func (l *lab) segments(way string, from, to *topo.NS, port uint16, called netip.AddrPort, want int) {
	l.t.Helper()
	listener, err := to.ListenTCP(netip.AddrPortFrom(l.family.Any(), port))
	if err != nil {
		l.t.Fatal(err)
	}
	defer listener.Close()
	client, err := from.DialTCP(netip.AddrPort{}, called)
	if err != nil {
		l.t.Fatalf("%s: %v", way, err)
	}
	defer client.Close()
	if err := listener.SetDeadline(time.Now().Add(patience.For(probe.Timeout))); err != nil {
		l.t.Fatal(err)
	}
	server, err := listener.AcceptTCP()
	if err != nil {
		l.t.Fatalf("%s: %v", way, err)
	}
	defer server.Close()
	for name, conn := range map[string]*net.TCPConn{"who called": client, "who was called": server} {
		control(l.t, conn, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil && int(info.Snd_mss) != want {
				l.t.Errorf("%s: %s sends segments of %d bytes, want %d", way, name, info.Snd_mss, want)
			}
			return err
		})
	}
}

// letForwarded: on the stack path the host's own rules have the last word on what comes in.
func (l *lab) letForwarded() {
	l.t.Helper()
	for _, f := range l.Host.Families() {
		if _, err := l.Host.Run(l.t.Context(), "", topo.Tables(f), "-I", "FORWARD", "-j", "ACCEPT"); err != nil {
			l.t.Fatal(err)
		}
	}
}
