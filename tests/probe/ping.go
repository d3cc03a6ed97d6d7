// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
)

const icmpHeader = 8

// messages are what a family's ping is made of; network is package net's.
var messages = map[family.Family]struct {
	network        string
	request, reply byte
}{
	family.V4: {"ip4:icmp", 8, 0},
	family.V6: {"ip6:ipv6-icmp", 128, 129},
}

type pinger struct {
	spec     PingSpec
	conn     *net.IPConn
	stop     chan struct{}
	sentAll  chan struct{}
	received chan map[int]reply // once, when the reader ends
	sent     []time.Time        // by sequence; the sender's until sentAll is closed
	err      error              // the sender's first, likewise
}

type reply struct {
	at    time.Time
	count int
}

func startPing(conn *net.IPConn, spec PingSpec) *pinger {
	if spec.ID == 0 {
		spec.ID = uint16(1 + rand.N(65535))
	}
	if spec.Interval == 0 {
		spec.Interval = 10 * time.Millisecond
	}
	if spec.Wait == 0 {
		spec.Wait = patience.For(time.Second)
	}
	p := &pinger{spec: spec, conn: conn, stop: make(chan struct{}), sentAll: make(chan struct{}), received: make(chan map[int]reply, 1)}
	go p.send()
	go p.receive()
	return p
}

func (p *pinger) send() {
	defer close(p.sentAll)
	tick := time.NewTicker(p.spec.Interval)
	defer tick.Stop()
	for seq := 0; p.spec.Count == 0 || seq < p.spec.Count; seq++ {
		p.sent = append(p.sent, time.Now())
		if _, err := p.conn.Write(p.request(seq)); err != nil && p.err == nil {
			p.err = fmt.Errorf("ping %v: %w", p.spec.To, err)
		}
		if seq == p.spec.Count-1 {
			return
		}
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
	}
}

// request is an echo request; the payload repeats the sequence in 32 bits, for series beyond 65536.
func (p *pinger) request(seq int) []byte {
	b := make([]byte, icmpHeader+max(p.spec.Size, 8))
	b[0] = messages[family.Of(p.spec.To)].request
	binary.BigEndian.PutUint16(b[4:], p.spec.ID)
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	binary.BigEndian.PutUint32(b[8:], uint32(seq))
	binary.BigEndian.PutUint16(b[2:], checksum(b)) // ICMPv6's, which covers addresses, is the kernel's to set and to verify
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (p *pinger) receive() {
	replies := map[int]reply{}
	defer func() { p.received <- replies }()
	buffer := make([]byte, 65536)
	v6 := family.Of(p.spec.To) == family.V6
	answer := messages[family.Of(p.spec.To)].reply
	for {
		n, _, err := p.conn.ReadFromIP(buffer) // without the IP header
		var netErr net.Error
		if errors.Is(err, net.ErrClosed) || errors.As(err, &netErr) && netErr.Timeout() {
			return
		}
		if err != nil {
			continue // an ICMP error
		}
		b := buffer[:n]
		if len(b) < icmpHeader+8 || b[0] != answer || binary.BigEndian.Uint16(b[4:]) != p.spec.ID || !v6 && checksum(b) != 0 {
			continue
		}
		seq := int(binary.BigEndian.Uint32(b[8:]))
		r := replies[seq]
		if r.count++; r.count == 1 {
			r.at = time.Now()
		}
		replies[seq] = r
		if p.spec.Count > 0 && len(replies) == p.spec.Count {
			return
		}
	}
}

func (p *pinger) Stop(drain bool) (PingReport, error) {
	defer p.conn.Close()
	if !drain {
		close(p.stop)
	}
	<-p.sentAll
	if err := p.conn.SetReadDeadline(time.Now().Add(p.spec.Wait)); err != nil {
		return PingReport{}, err
	}
	replies := <-p.received
	return p.report(replies), p.err
}

func (p *pinger) report(replies map[int]reply) PingReport {
	r := PingReport{ID: p.spec.ID, Sent: len(p.sent), Received: len(replies)}
	for seq, at := range p.sent {
		got, ok := replies[seq]
		if !ok {
			r.Lost = append(r.Lost, seq)
			continue
		}
		r.Duplicates += got.count - 1
		r.MaxRTT = max(r.MaxRTT, got.at.Sub(at))
	}
	slices.Sort(r.Lost)
	return r
}
