// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// segments: datagrams that travel as one packet through conenat, because their sender is a veth pair away (UDP_SEGMENT), or
// because the card's receiver puts them together for forwarding.
func (l *lab) segments() {
	l.port0.set(l.t, true, rxUDPForward)
	l.uplink0.set(l.t, true, rxUDPForward)
	veth := &nic{name: "veth-c", ns: l.nsHost}
	l.nothingLost(func() {
		for _, way := range []struct {
			name string
			from *topo.NS
			in   *nic
		}{{"from a card", l.nsA, l.port0}, {"from a veth pair", l.nsC, veth}} {
			there, back := way.in.watch(l.t), l.uplink0.watch(l.t)
			l.datagramTrain(way.from)
			// By a card the datagrams come as they are cut, and the kernel puts together those that it is handed at once.
			if in, _ := there.stop(); in.large == 0 {
				l.t.Errorf("%s: no large packet came in: %+v", way.name, in)
			}
			if in, _ := back.stop(); in.large == 0 {
				l.t.Errorf("%s: no large packet came back: %+v", way.name, in)
			}
		}
	})
}

const (
	trainLength = 20
	trainBytes  = 1200 // of one datagram
)

// datagramTrain sends datagrams to the far peer in one call, and has as many come back.
func (l *lab) datagramTrain(from *topo.NS) {
	l.t.Helper()
	inside, err := from.DialUDP(noAddr, at(topo.Peer1Addr, 7000))
	if err != nil {
		l.t.Fatal(err)
	}
	defer inside.Close()
	outside, err := l.nsB.ListenUDP(at(topo.Peer1Addr, 7000))
	if err != nil {
		l.t.Fatal(err)
	}
	defer outside.Close()
	if _, err := inside.Write([]byte("open")); err != nil {
		l.t.Fatal(err)
	}
	_, mapped := l.reads(outside, probe.Timeout)
	if mapped.IP.String() != topo.HostAddr.String() {
		l.t.Errorf("the datagrams come from %s", mapped)
	}
	for range 10 {
		l.sendTrain(inside, nil)
		l.readsTrain(outside)
		l.sendTrain(outside, mapped)
		l.readsTrain(inside)
	}
}

func (l *lab) sendTrain(conn *net.UDPConn, to *net.UDPAddr) {
	l.t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		l.t.Fatal(err)
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, trainBytes)
	})
	if err != nil || controlErr != nil {
		l.t.Fatalf("set UDP_SEGMENT: %v, %v", err, controlErr)
	}
	var train strings.Builder
	for i := range trainLength {
		train.WriteString(wagon(i))
	}
	if to == nil {
		_, err = conn.Write([]byte(train.String()))
	} else {
		_, err = conn.WriteToUDP([]byte(train.String()), to)
	}
	if err != nil {
		l.t.Fatalf("send %d datagrams at once: %v", trainLength, err)
	}
}

// wagon is a datagram's text.
func wagon(i int) string {
	return (fmt.Sprintf("%06d", i) + strings.Repeat("conenat", trainBytes/7))[:trainBytes]
}

func (l *lab) readsTrain(conn *net.UDPConn) {
	l.t.Helper()
	for i := range trainLength {
		if got, from := l.reads(conn, probe.Timeout); got != wagon(i) {
			l.t.Fatalf("datagram %d, from %s: %d bytes, %.20q", i, from, len(got), got)
		}
	}
}

func (l *lab) reads(conn *net.UDPConn, within time.Duration) (string, *net.UDPAddr) {
	l.t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience.For(within))); err != nil {
		l.t.Fatal(err)
	}
	buffer := make([]byte, 1<<16)
	n, from, err := conn.ReadFromUDP(buffer)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(buffer[:n]), from
}
