// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// TestUnsolicited: what nobody waits for is dropped, at XDP and at tc, and nobody else notices.
func TestUnsolicited(t *testing.T) { family.Each(t, testUnsolicited) }

func testUnsolicited(t *testing.T, fam family.Family) {
	for name, config := range map[string]string{
		"XDP": "unsolicited: drop\nxdp: {veth: true}\n",
		"TC":  "unsolicited: drop\nxdp: off\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newGateway(fam, t, config)
			if name == "XDP" {
				l.isNative("drop", "eth0")
			} else {
				l.hasNoXDP()
			}
			l.dropsUnsolicited(name == "XDP")
			checkReplay(l)
		})
	}
}

func (l *lab) dropsUnsolicited(xdp bool) {
	l.t.Helper()
	host := l.family.Addr(topo.HostAddr)
	flow := l.openFlow(20000)
	flow.exchanges(5)()
	before := l.Counter("dropped_unsolicited")

	flood := l.udp(l.peer2, 0)
	const count = 200
	for i := range count {
		l.send(flood, at(host, uint16(30000+i)), "nobody waits for this")
	}
	l.eventually("the flood is dropped", func() bool { return l.Counter("dropped_unsolicited") >= before+count })
	if n := l.atXDP("dropped_unsolicited"); (n > 0) != xdp {
		l.t.Errorf("%d packets were dropped at XDP", n)
	}
	var silence net.Error
	if err := l.connects(host, 30500); !errors.As(err, &silence) || !silence.Timeout() {
		l.t.Errorf("a connection to a port that nobody has: %v, want silence", err)
	}

	// A socket of the host's that listens, one that asks somebody, a port below the range: all as ever.
	dropped := l.Counter("dropped_unsolicited")
	listening := l.udp(l.host, 31000)
	l.send(flood, at(host, 31000), "to the host")
	l.receives(listening, "to the host")
	server := l.serve(l.host, 31001)
	l.must(l.connects(host, server.Port()))
	asks := l.udp(l.host, 0)
	l.send(asks, l.family.At(topo.Peer2Addr, flood.Port()), "the host asks")
	l.send(flood, l.receives(flood, "the host asks"), "and is answered")
	l.receives(asks, "and is answered")
	l.must(l.dial(l.host, l.family.At(topo.Peer1Addr, l.serve(l.peer1, 8081).Port())).Echo("the host's own connection"))
	want := icmpError{3, 3, topo.HostAddr, at(topo.HostAddr, 53)}.in(l.family)
	if got, err := provoke(l.Peer2, 25000, want.about, 64, 32); err != nil || got != want {
		l.t.Errorf("below the range: %+v, %v; want %+v", got, err, want)
	}
	// A bound endpoint is its filtering's matter.
	filtered := l.Counter("dropped_filtered")
	l.send(flood, at(host, 20000), "from a stranger")
	l.eventually("the stranger is filtered", func() bool { return l.Counter("dropped_filtered") == filtered+1 })
	flow.exchanges(5)()
	if after := l.Counter("dropped_unsolicited"); after != dropped {
		l.t.Errorf("%d packets too many were dropped", after-dropped)
	}
	// What a rule of somebody else's takes elsewhere, as soon as the daemon has seen it.
	l.must(l.redirects(31005, 31000))
	l.eventually("the redirected port is left alone", func() bool {
		l.send(flood, at(host, 31005), "redirected")
		p, err := listening.Receive(200 * time.Millisecond)
		return err == nil && p.Text == "redirected"
	})
}

// redirects has the host's rules take what comes for a port to another one.
func (l *lab) redirects(from, to uint16) error {
	rule := fmt.Sprintf("table %s theirs { chain prerouting { type nat hook prerouting priority dstnat; udp dport %d redirect to :%d; }; }", l.family.Table(), from, to)
	_, err := l.Host.Run(l.t.Context(), rule, "nft", "-f", "-")
	return err
}

// connects has peer 2 connect, and gives up before a SYN is sent again.
func (l *lab) connects(to netip.Addr, port uint16) error {
	return l.Peer2.Do(func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, port).String(), 700*time.Millisecond)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}
