// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"strings"
	"testing"

	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// offloads: the cards have them all, and bulk shows that they are used on its whole way through conenat.
func (l *lab) offloads() {
	for _, card := range []*nic{l.cardA, l.port0, l.uplink0, l.cardB} {
		card.check(l.t, map[string]bool{txChecksum: true, txSegments: true, txGSO: true, rxChecksum: true, rxGRO: true, rxSegments: card.virtio()})
	}
	l.sees([]sight{
		{card: l.cardA, out: true, large: most, partial: all},                    // cut by the card, its checksum completed by the card
		{card: l.port0, large: most},                                             // put together by the card or the kernel
		{card: l.uplink0, out: true, large: l.uplink0.forwards(), partial: some}, // but for segments that came alone, from a card that verifies
		{card: l.cardB, large: most},
	}, func() { l.upload(l.a, l.b) })
	l.sees([]sight{
		{card: l.cardB, out: true, large: most, partial: all},
		{card: l.uplink0, large: most},
		{card: l.port0, out: true, large: l.port0.forwards(), partial: some},
		{card: l.cardA, large: most},
	}, func() { l.download(l.a, l.b) })
}

// forwards is how much of what GRO has put together the card's driver takes whole: an e1000e is seen to get much of it, at
// times nearly all, cut by the kernel.
func (n *nic) forwards() amount {
	if n.virtio() {
		return most
	}
	return whatever
}

// variant has features of some cards off; bulk from inside then looks like this.
type variant struct {
	name  string
	off   []string
	cards []*nic
	see   []sight
}

// offloadsOff: where the senders leave a checksum to nobody, the receiver verifies what conenat made of a whole one; where the
// host's cards do, the kernel completes the part of a checksum that conenat changed, and the receiver verifies that.
func (l *lab) offloadsOff(t *testing.T) {
	peers, host := []*nic{l.cardA, l.cardB}, []*nic{l.port0, l.uplink0}
	everyone := append(append([]*nic{}, peers...), host...)
	for _, v := range []variant{
		{"PeersChecksums", []string{txChecksum}, peers, []sight{
			{card: l.cardA, out: true, large: none, partial: none}, {card: l.cardB, large: whatever}}},
		{"HostChecksums", []string{txChecksum}, host, []sight{
			{card: l.port0, large: most}, {card: l.uplink0, out: true, large: none, partial: none}}},
		{"HostSegmentation", []string{txSegments, txGSO}, host, []sight{
			{card: l.port0, large: most}, {card: l.uplink0, out: true, large: none}}},
		{"HostReceive", []string{rxGRO, rxSegments, rxChecksum}, host, []sight{
			{card: l.cardA, out: true, large: most, partial: all}, {card: l.port0, large: none}, {card: l.uplink0, out: true, large: none}}},
		{"Everything", []string{txChecksum, txSegments, txGSO, rxGRO, rxSegments, rxChecksum}, everyone, []sight{
			{card: l.cardA, out: true, large: none, partial: none}, {card: l.port0, large: none, partial: none},
			{card: l.uplink0, out: true, large: none, partial: none}, {card: l.cardB, large: none, partial: none}}},
	} {
		t.Run(v.name, func(t *testing.T) {
			for _, card := range v.cards {
				card.switchOff(t, v.off...)
			}
			sub := l.under(t)
			sub.sees(v.see, func() { sub.upload(sub.a, sub.b) })
			sub.traffic()
		})
	}
}

// switchOff leaves alone what a card has not, or has for good: virtio's rx-checksum, and what only virtio has.
func (n *nic) switchOff(t *testing.T, features ...string) {
	t.Helper()
	var has []string
	for _, f := range features {
		if n.virtio() && f != rxChecksum || !n.virtio() && f != rxSegments {
			has = append(has, f)
		}
	}
	n.set(t, false, has...)
}

// checksums: an inbound datagram whose checksum is half done, verified by the card or by GRO, or by nobody yet, as the features
// of sender and receiver make it. Those at the way out are off, so that the last receiver verifies the result.
func (l *lab) checksums(t *testing.T) {
	for _, v := range []struct {
		name                  string
		senderOff, receiveOff bool
		virtio, other         func(seen) int // what all datagrams are
	}{
		{"SenderLeavesIt", false, false, seen.partials, seen.valids},
		{"SenderMakesIt", true, false, seen.valids, seen.valids},
		{"NobodyLooks", true, true, seen.nones, seen.nones},
	} {
		t.Run(v.name, func(t *testing.T) {
			sub := l.under(t)
			if v.senderOff {
				l.cardB.switchOff(t, txChecksum)
			}
			if v.receiveOff {
				l.uplink0.switchOff(t, rxGRO, rxSegments, rxChecksum)
			}
			l.port0.switchOff(t, txChecksum)
			want := v.other
			if l.uplink0.virtio() {
				want = v.virtio
			}
			sub.nothingLost(func() { sub.inbound(want) })
		})
	}
}

// inbound has datagrams come to a binding, and all of them must come to the uplink as wanted.
func (l *lab) inbound(want func(seen) int) {
	l.t.Helper()
	const count = 50
	inside, outside := l.udp(l.a, 0), l.udp(l.b, 0)
	l.send(inside, at(topo.Peer1Addr, outside.Port()), "open")
	mapped := l.receives(outside, "open")
	watched := l.uplink0.watch(l.t)
	for i := range count {
		text := strings.Repeat(string(rune('a'+i%26)), 1000+i)
		l.send(outside, mapped, text)
		l.receives(inside, text)
	}
	if in, _ := watched.stop(); in.packets != count || want(in) != count {
		l.t.Errorf("at the uplink: %+v", in)
	}
}

func (l *lab) upload(client, server probe.Host) {
	l.t.Helper()
	if _, err := l.connect(client, server).Upload(2 * megabyte); err != nil {
		l.t.Error(err)
	}
}

func (l *lab) download(client, server probe.Host) {
	l.t.Helper()
	if _, err := l.connect(client, server).Download(2 * megabyte); err != nil {
		l.t.Error(err)
	}
}

// connect opens a connection to a server of its own on the far peer; both end with the test.
func (l *lab) connect(client, server probe.Host) probe.Conn {
	l.t.Helper()
	s, err := server.ServeTCP(0)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { s.Close() })
	return l.dial(client, at(topo.Peer1Addr, s.Port()))
}
