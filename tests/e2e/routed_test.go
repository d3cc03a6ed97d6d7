// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// TestRouted: a routed network's container is seen by its own address, is answered by whom it has sent to, and by nobody else; on both
// paths, in both families.
func TestRouted(t *testing.T) {
	for _, path := range paths {
		for _, fam := range []family.Family{family.V4, family.V6} {
			t.Run(path+"/"+fam.String(), func(t *testing.T) {
				l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "networks: [{name: docker0, mode: routed}]\n", "--path", path)
				l.must(l.Router.AddRoute("172.17.0.0/16", topo.HostAddr.String()))
				container := fam.Addr(netip.MustParseAddr("172.17.0.2"))
				c, peer, stranger := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478), l.udp(l.peer2, 3478)
				l.send(c, fam.At(topo.Peer1Addr, 3478), "out")
				if from := l.receives(peer, "out"); from != netip.AddrPortFrom(container, 20000) {
					t.Errorf("UDP is seen as %s", from)
				}
				l.send(stranger, netip.AddrPortFrom(container, 20000), "unasked")
				l.eventually("what nobody asked for is filtered", func() bool { return l.Counter("dropped_filtered") > 0 })
				l.send(peer, netip.AddrPortFrom(container, 20000), "answer")
				if from := l.receives(c, "answer"); from != fam.At(topo.Peer1Addr, 3478) {
					t.Errorf("the answer comes from %s", from)
				}
				l.receivesNothing(c, 50*time.Millisecond)
				conn := l.dial(l.containers[0], fam.At(topo.Peer1Addr, l.serve(l.peer1, 8080).Port()))
				if seen, err := conn.Seen(); err != nil || seen != netip.AddrPortFrom(container, conn.LocalPort()) {
					t.Errorf("TCP is seen as %s, %v", seen, err)
				}
				if _, err := conn.Download(megabyte); err != nil {
					t.Error(err)
				}
				if r, err := probe.PingOnce(l.containers[0], fam.Addr(topo.Peer1Addr), 3); err != nil || r.Received != 3 {
					t.Errorf("ping: %+v, %v", r, err)
				}
				if path == "direct" { // on the stack path Docker's FORWARD chain lets nobody in
					l.opens(netip.AddrPortFrom(container, l.serve(l.containers[0], 8081).Port()))
				}
				if b, ok := l.bindingOf("udp", "172.17.0.2:20000"); !ok || b.External != b.Internal {
					t.Errorf("binding %+v, %v", b, ok)
				}
			})
		}
	}
}

// opens has peer 2, which nobody has sent to, reach an endpoint once an operator has opened it.
func (l *lab) opens(server netip.AddrPort) {
	l.t.Helper()
	l.Client("forward", "add", server.String(), server.String())
	if _, err := l.dial(l.peer2, server).Download(megabyte); err != nil {
		l.t.Error(err)
	}
}
