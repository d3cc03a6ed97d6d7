// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/topo"
)

// portless are packets of protocols of which addresses alone are translated. Tunnels of the kernel's own need modules that not every
// machine has; a raw socket sees the same bytes.
var portless = map[string]struct {
	number int
	make   func(src, dst string) packets.Spec
}{
	"gre": {gre, func(src, dst string) packets.Spec {
		return packets.GRE(src, dst, packets.UDP("10.1.1.1:7", "10.2.2.2:8", "inner"))
	}},
	"esp": {unix.IPPROTO_ESP, func(src, dst string) packets.Spec { return packets.ESP(src, dst, 0x1234, 1200) }},
	"ipv6": {unix.IPPROTO_IPV6, func(src, dst string) packets.Spec {
		return packets.SixIn4(src, dst, packets.UDP("[2001:db8::1]:7", "[2001:db8::2]:8", "inner"))
	}},
	"sctp": {unix.IPPROTO_SCTP, func(src, dst string) packets.Spec { return packets.SCTP(src+":7", dst+":8", 9, "data") }},
	"udplite": {unix.IPPROTO_UDPLITE, func(src, dst string) packets.Spec {
		return packets.UDPLite(src+":7", dst+":8", "data")
	}},
}

const (
	firstContainer, secondContainer = "172.17.0.2", "172.17.0.3"
	peerAlone, hostAlone            = "203.0.113.1", "198.51.100.1"
)

// arrives checks that the next packet that a receiver gets is just what is wanted, behind its IP header.
func (r *rawIP) arrives(what string, want packets.Spec) {
	r.t.Helper()
	from, l4, ok := r.next(10 * time.Second)
	if !ok || from.String() != packets.Endpoint(want.Src).Addr().String() || !bytes.Equal(l4, want.IP()[20:]) {
		r.t.Errorf("%s: from %s, arrived %v\n%x, want\n%x", what, from, ok, l4, want.IP()[20:])
	}
}

// TestPortless: packets of protocols without ports go out and back by each path, in fragments too; a second container is refused towards
// the same peer, and what is of no protocol that is translated does not leave.
func TestPortless(t *testing.T) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newLab(t, topo.Figure3Config{Containers: 2}, "", "--path", path)
			l.acceptInbound(path == "stack")
			for name, p := range portless {
				t.Run(name, func(t *testing.T) { l.at(t).talksWithoutPorts(name, p.number, p.make) })
			}
			t.Run("ah", func(t *testing.T) { l.at(t).doesNotLeave() })
		})
	}
}

func (l *lab) talksWithoutPorts(name string, number int, p func(src, dst string) packets.Spec) {
	l.t.Helper()
	first, second, peer := l.raw(l.Containers[0], number), l.raw(l.Containers[1], number), l.raw(l.Peer1, number)
	for range 3 {
		first.mustSend(p(firstContainer, peerAlone).Bytes())
		peer.arrives("out", p(hostAlone, peerAlone))
		peer.mustSend(p(peerAlone, hostAlone).Bytes())
		first.arrives("in", p(peerAlone, firstContainer))
	}
	cut := func(s packets.Spec) [][]byte {
		return s.With(func(s *packets.Spec) { s.ID = 77 }).Fragments(8)
	}
	pieces := cut(p(firstContainer, peerAlone))
	for i := range pieces {
		first.mustSend(pieces[len(pieces)-1-i])
	}
	peer.arrives("out, in fragments", p(hostAlone, peerAlone))
	refused := l.Counter("dropped_remote_taken")
	second.mustSend(p(secondContainer, peerAlone).Bytes())
	l.eventually("the second container is refused", func() bool { return l.Counter("dropped_remote_taken") > refused })
	first.mustSend(p(firstContainer, peerAlone).Bytes())
	peer.arrives("out, after the second container's", p(hostAlone, peerAlone))
	if b, ok := l.bindingOf(name, firstContainer+":0"); !ok || b.External != hostAlone+":0" {
		l.t.Errorf("the binding is %+v, %v", b, ok)
	}
}

// doesNotLeave: AH, which no NAT can pass on; by the stack path Docker's MASQUERADE has it first, as it would without conenat.
func (l *lab) doesNotLeave() {
	l.t.Helper()
	s := packets.AH(packets.UDP(firstContainer+":7", peerAlone+":8", "x"), 9)
	l.iptables("*nat\n-I POSTROUTING -p ah -j ACCEPT\nCOMMIT\n")
	dropped := l.Counter("dropped_protocol")
	l.raw(l.Containers[0], unix.IPPROTO_AH).mustSend(s.Bytes())
	l.eventually("AH is dropped", func() bool { return l.Counter("dropped_protocol") > dropped })
}
