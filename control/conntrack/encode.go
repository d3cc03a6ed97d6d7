// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

const (
	established = 3    // TCP_CONNTRACK_ESTABLISHED
	beLiberal   = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL: no window of the past is known to compare sequence numbers with

	// Netfilter's timeouts of established connections, for flows without one; its own apply from the next packet on.
	defaultTimeoutTCP = 5 * 24 * time.Hour
	defaultTimeoutUDP = 120 * time.Second
)

// message is netlink messages in the making.
type message struct {
	bytes []byte
	last  int // where the last one begins
}

// add appends a request to make a flow's entry.
func (m *message) add(f Flow, sequence uint32) {
	m.start(typeNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, sequence, f.Original.family(), func() { m.flow(f) })
}

func (m *message) start(kind, flags uint16, sequence uint32, family uint8, content func()) {
	m.last = len(m.bytes)
	m.bytes = binary.NativeEndian.AppendUint32(m.bytes, 0) // the length, below
	m.bytes = binary.NativeEndian.AppendUint16(m.bytes, kind)
	m.bytes = binary.NativeEndian.AppendUint16(m.bytes, unix.NLM_F_REQUEST|flags)
	m.bytes = binary.NativeEndian.AppendUint32(m.bytes, sequence)
	m.bytes = binary.NativeEndian.AppendUint32(m.bytes, 0)
	m.bytes = append(m.bytes, header(family)...)
	content()
	binary.NativeEndian.PutUint32(m.bytes[m.last:], uint32(len(m.bytes)-m.last))
}

// replace appends requests to delete the entries that have either tuple of a flow, and one to make the flow's own.
func (m *message) replace(f Flow, sequence uint32) {
	m.remove(f.Original, f.Protocol)
	m.remove(f.Reply, f.Protocol)
	m.add(f, sequence)
}

// remove appends a request to delete the entry with a tuple, of either direction. Nobody waits for its answer.
func (m *message) remove(t Tuple, p dataplane.Protocol) {
	m.start(typeDelete, 0, 0, t.family(), func() { m.nest(attrOriginal, func() { m.tuple(t, p) }) })
}

// acknowledge asks for an answer to the last request.
func (m *message) acknowledge() {
	flags := m.bytes[m.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
}

// flow appends an entry's attributes. NAT is asked for, with the reply as it were without: netfilter changes it
// and sets the bits that make it translate, which it would not for a reply that looks translated already.
func (m *message) flow(f Flow) {
	reply := f.Reply
	if f.translatesSource() {
		reply.Dst = f.Original.Src
	}
	if f.translatesDestination() {
		reply.Src = f.Original.Dst
	}
	m.nest(attrOriginal, func() { m.tuple(f.Original, f.Protocol) })
	m.nest(attrReply, func() { m.tuple(reply, f.Protocol) })
	if f.translatesSource() {
		m.nest(attrSourceNAT, func() { m.nat(f.Reply.Dst) })
	}
	if f.translatesDestination() {
		m.nest(attrDestNAT, func() { m.nat(f.Reply.Src) })
	}
	m.state(f)
}

func (m *message) state(f Flow) {
	m.number32(attrStatus, statusSeenReply|statusAssured|statusConfirmed)
	m.number32(attrTimeout, f.timeout())
	if f.Protocol == dataplane.TCP {
		m.nest(attrProtoInfo, func() { m.nest(attrTCP, func() { m.tcp(f.TCPState) }) })
	}
}

func (f Flow) translatesSource() bool { return f.SourceNAT && f.Reply.Dst != f.Original.Src }

func (f Flow) translatesDestination() bool { return f.DestinationNAT && f.Reply.Src != f.Original.Dst }

// timeout is in seconds; a part of one counts as one, for 0 would be gone at once.
func (f Flow) timeout() uint32 {
	t := f.Timeout
	switch {
	case t <= 0 && f.Protocol == dataplane.TCP:
		t = defaultTimeoutTCP
	case t <= 0:
		t = defaultTimeoutUDP
	}
	return uint32((t + time.Second - 1) / time.Second)
}

func (m *message) tuple(t Tuple, p dataplane.Protocol) {
	m.nest(attrTupleIP, func() {
		source, destination := uint16(attrIPSource), uint16(attrIPDestination)
		if t.family() == unix.AF_INET6 {
			source, destination = attrIPSource6, attrIPDestination6
		}
		m.put(source, t.Src.Addr().AsSlice())
		m.put(destination, t.Dst.Addr().AsSlice())
	})
	m.nest(attrTupleProto, func() {
		m.put(attrProtoNumber, []byte{uint8(p)})
		m.number16(attrProtoSource, t.Src.Port())
		m.number16(attrProtoDestination, t.Dst.Port())
	})
}

func (m *message) tcp(state uint8) {
	if state == 0 {
		state = established
	}
	m.put(attrTCPState, []byte{state})
	m.put(attrTCPFlagsOriginal, []byte{beLiberal, beLiberal})
	m.put(attrTCPFlagsReply, []byte{beLiberal, beLiberal})
}

// nat asks for a translation to one endpoint: a range of one.
func (m *message) nat(to netip.AddrPort) {
	low, high := uint16(attrNATMinAddress), uint16(attrNATMaxAddress)
	if to.Addr().Is6() {
		low, high = attrNATMinAddress6, attrNATMaxAddress6
	}
	m.put(low, to.Addr().AsSlice())
	m.put(high, to.Addr().AsSlice())
	m.nest(attrNATProto, func() {
		m.number16(attrNATMinPort, to.Port())
		m.number16(attrNATMaxPort, to.Port())
	})
}

func (m *message) nest(kind uint16, content func()) {
	start := len(m.bytes)
	m.put(kind|unix.NLA_F_NESTED, nil)
	content()
	binary.NativeEndian.PutUint16(m.bytes[start:], uint16(len(m.bytes)-start))
}

// put appends an attribute, and pads it.
func (m *message) put(kind uint16, value []byte) {
	m.bytes = binary.NativeEndian.AppendUint16(m.bytes, uint16(unix.SizeofNlAttr+len(value)))
	m.bytes = binary.NativeEndian.AppendUint16(m.bytes, kind)
	m.bytes = append(m.bytes, value...)
	for len(m.bytes)%unix.NLA_ALIGNTO != 0 {
		m.bytes = append(m.bytes, 0)
	}
}

func (m *message) number16(kind, value uint16) {
	m.put(kind, binary.BigEndian.AppendUint16(nil, value))
}

func (m *message) number32(kind uint16, value uint32) {
	m.put(kind, binary.BigEndian.AppendUint32(nil, value))
}
