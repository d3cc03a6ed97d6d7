// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// nptv6Config translates docker0's prefix, and not net2's. In ones' complement, fd00 + 17 - 2001 - db8 - 99 is cec5: fd00:17::2 is
// 2001:db8:99:0:cec5::2 outside.
const nptv6Config = `networks: [{name: docker0, mode: nptv6, external_prefix: "2001:db8:99::/64"}]` + "\n"

// TestNPTv6: a container of such a network has one address outside, at which it is reached by whatever protocol, on both paths; the
// other network beside it has bindings.
func TestNPTv6(t *testing.T) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newLabIn(family.V6, t, topo.Figure3Config{Containers: 2, Net2Containers: 1}, nptv6Config, "--inside", "net2", "--path", path)
			l.routeTo("2001:db8:99::/64")
			first, second := l.externalOf("fd00:17::2"), l.externalOf("fd00:17::3")
			l.reachesOutside(first)
			if path == "direct" { // on the stack path Docker's FORWARD chain lets nobody in, and net2 not out
				l.isReached(first)
				l.otherHasBindings()
			}
			l.hairpins(first, second)
			for _, b := range l.Bindings() {
				if b.Network != "net2" {
					t.Errorf("a binding of the network without any: %+v", b)
				}
			}
		})
	}
}

func (l *lab) otherHasBindings() {
	l.t.Helper()
	other, peer := l.udp(l.containers[2], 20000), l.udp(l.peer2, 3480)
	l.send(other, l.family.At(topo.Peer2Addr, 3480), "of the other network")
	if from := l.receives(peer, "of the other network"); from != l.family.At(topo.HostAddr, 20000) {
		l.t.Errorf("the other network is seen as %s", from)
	}
}

// routeTo has the router send a prefix to the host.
func (l *lab) routeTo(prefix string) {
	l.t.Helper()
	if out, err := l.Router.Run(l.t.Context(), "", "ip", "-6", "route", "add", prefix, "via", l.family.Addr(topo.HostAddr).String()); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
}

// externalOf is an address of docker0 outside: for its own last words, 0xcec5 makes up for the prefix.
func (l *lab) externalOf(inside string) netip.Addr {
	return netip.MustParseAddr(strings.Replace(inside, "fd00:17::", "2001:db8:99:0:cec5::", 1))
}

// reachesOutside has the first container talk with peer 1, which sees it by one address.
func (l *lab) reachesOutside(as netip.Addr) {
	l.t.Helper()
	at := l.family.At
	c, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	for _, text := range []string{"one", strings.Repeat("in fragments", 300)} {
		l.send(c, at(topo.Peer1Addr, 3478), text)
		if from := l.receives(peer, text); from != netip.AddrPortFrom(as, 20000) {
			l.t.Errorf("UDP is seen as %s, want %s", from, as)
		}
		l.send(peer, netip.AddrPortFrom(as, 20000), "answer to "+text)
		l.receives(c, "answer to "+text)
	}
	conn := l.dial(l.containers[0], at(topo.Peer1Addr, l.serve(l.peer1, 8080).Port()))
	if seen, err := conn.Seen(); err != nil || seen != netip.AddrPortFrom(as, conn.LocalPort()) {
		l.t.Errorf("TCP is seen as %s, %v; want %s", seen, err, as)
	}
	if _, err := conn.Download(megabyte); err != nil {
		l.t.Error(err)
	}
	if _, err := conn.Upload(megabyte); err != nil {
		l.t.Error(err)
	}
	if r, err := probe.PingOnce(l.containers[0], l.family.Addr(topo.Peer1Addr), 3); err != nil || r.Received != 3 {
		l.t.Errorf("ping: %+v, %v", r, err)
	}
}

// isReached has peer 2, which nobody has sent to, reach the first container.
func (l *lab) isReached(at netip.Addr) {
	l.t.Helper()
	server := l.serve(l.containers[0], 8081)
	conn := l.dial(l.peer2, netip.AddrPortFrom(at, server.Port()))
	if _, err := conn.Download(megabyte); err != nil {
		l.t.Error(err)
	}
	if r, err := probe.PingOnce(l.peer2, at, 3); err != nil || r.Received != 3 {
		l.t.Errorf("ping: %+v, %v", r, err)
	}
	peer := l.udp(l.peer2, 3479)
	l.send(peer, netip.AddrPortFrom(at, 9), "to a closed port") // answered by an ICMPv6 error
	l.eventually("an ICMPv6 error", func() bool { return l.Counter("translated_icmp_error") > 0 })
}

// hairpins has the first container reach the second one by its address outside.
func (l *lab) hairpins(first, second netip.Addr) {
	l.t.Helper()
	a, b := l.udp(l.containers[0], 20001), l.udp(l.containers[1], 20002)
	l.send(a, netip.AddrPortFrom(second, 20002), "hairpin")
	if from := l.receives(b, "hairpin"); from != netip.AddrPortFrom(first, 20001) {
		l.t.Errorf("the hairpin is seen as %s, want %s", from, first)
	}
	l.send(b, netip.AddrPortFrom(first, 20001), "back")
	if from := l.receives(a, "back"); from != netip.AddrPortFrom(second, 20002) {
		l.t.Errorf("the hairpin's answer is seen as %s, want %s", from, second)
	}
}
