// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

const gre = 47 // IANA

// TestExcludedDestination: what is sent there arrives from the container's own address, whatever the protocol, although Docker's
// MASQUERADE stands in its way, and is answered (RFC 6888 REQ-6); on both paths, with the rules of Dockers old and new.
func TestExcludedDestination(t *testing.T) { family.Each(t, testExcludedDestination) }

func testExcludedDestination(t *testing.T, fam family.Family) {
	at := fam.At
	for _, path := range paths {
		for name, rules := range both(fam, map[string]func(*lab){
			"Docker20": func(*lab) {},
			"Docker28": func(l *lab) {
				l.must(topo.Docker28Rules(l.t.Context(), l.Host, []netip.Addr{netip.MustParseAddr("172.17.0.2")}))
			},
		}, "Docker28") {
			t.Run(path+"/"+name, func(t *testing.T) {
				l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, "exclude: ["+topo.Peer1Addr.String()+"]\n", "--path", path)
				rules(l)
				l.must(l.Router.AddRoute("172.17.0.0/16", topo.HostAddr.String()))
				l.untranslated()
				peer := l.udp(l.peer2, 3478)
				l.send(l.udp(l.containers[0], 20002), at(topo.Peer2Addr, 3478), "translated")
				if from := l.receives(peer, "translated"); from != at(topo.HostAddr, 20002) {
					t.Errorf("another destination sees %s", from)
				}
				for _, b := range l.Bindings() {
					if b.Internal != fam.Text("172.17.0.2:20002") {
						t.Errorf("a binding: %+v", b)
					}
				}
				if l.Counter("passed_destination") == 0 {
					t.Error("nothing is counted as excluded")
				}
			})
		}
	}
}

// untranslated has the container talk with peer 1, and checks whom that sees.
func (l *lab) untranslated() {
	at := l.family.At
	l.t.Helper()
	container := netip.MustParseAddr(l.family.Text("172.17.0.2"))
	c, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	for _, text := range []string{"one", strings.Repeat("x", 1400)} {
		l.send(c, at(topo.Peer1Addr, 3478), text)
		if from := l.receives(peer, text); from != at(container, 20000) {
			l.t.Errorf("UDP is seen as %s", from)
		}
		l.send(peer, at(container, 20000), "answer to "+text)
		l.receives(c, "answer to "+text)
	}
	conn := l.dial(l.containers[0], at(topo.Peer1Addr, l.serve(l.peer1, 8080).Port()))
	if seen, err := conn.Seen(); err != nil || seen != at(container, conn.LocalPort()) {
		l.t.Errorf("TCP is seen as %s, %v", seen, err)
	}
	if _, err := conn.Download(megabyte); err != nil {
		l.t.Error(err)
	}
	if r, err := probe.PingOnce(l.containers[0], l.family.Addr(topo.Peer1Addr), 3); err != nil || r.Received != 3 {
		l.t.Errorf("ping: %+v, %v", r, err)
	}
	there := l.raw(l.Peer1, gre)
	l.raw(l.Containers[0], gre).mustSend(packets.Raw("172.17.0.2", topo.Peer1Addr.String(), gre, []byte("0123456789")).In(l.family).Bytes())
	if from, _, ok := there.next(5 * time.Second); !ok || from != container {
		l.t.Errorf("GRE is seen as %s, %v", from, ok)
	}
}
