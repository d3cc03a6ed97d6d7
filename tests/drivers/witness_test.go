// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// witness is a packet socket on a card, which sees what the driver hands to the kernel, before any program, and what is handed
// to the driver, after all that the kernel does in its place: segmentation and checksums.
type witness struct {
	t    *testing.T
	card *nic
	fd   int
}

// seen is what went one way of TCP segments and UDP datagrams with at least dataBytes.
type seen struct {
	packets int
	bytes   int // of IP packets
	large   int // packets larger than an Ethernet frame, which a driver was to cut or has put together
	partial int // with a checksum still to be completed by the card or the receiver: CHECKSUM_PARTIAL
	valid   int // that the card has verified: CHECKSUM_UNNECESSARY
	none    int // that the kernel is to verify itself: CHECKSUM_NONE
}

const (
	dataBytes     = 500
	ethernetBytes = 1514
	witnessBuffer = 256 << 20 // bytes; what is seen stays in it until it is asked for
)

func (n *nic) watch(t *testing.T) *witness {
	t.Helper()
	w := &witness{t: t, card: n}
	err := n.ns.Do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		t.Fatalf("open a packet socket on %s: %v", n.name, err)
	}
	index, err := n.ns.IfIndex(n.name)
	err = errors.Join(err,
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, witnessBuffer),
		unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8, Ifindex: index}))
	if err != nil {
		unix.Close(w.fd)
		t.Fatalf("watch %s: %v", n.name, err)
	}
	return w
}

// stop says what was seen.
func (w *witness) stop() (in, out seen) {
	w.t.Helper()
	defer unix.Close(w.fd)
	frame, control := make([]byte, 64), make([]byte, 256)
	for {
		_, n, _, from, err := unix.Recvmsg(w.fd, frame, control, 0)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			w.t.Fatalf("watch %s: %v", w.card.name, err)
		}
		status, length := auxiliary(w.t, control[:n])
		switch {
		case !isData(frame, length):
		case from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING:
			out.add(status, length)
		default:
			in.add(status, length)
		}
	}
	if s, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || s.Drops > 0 {
		w.t.Fatalf("watch %s: %+v, %v", w.card.name, s, err)
	}
	return in, out
}

// auxiliary reads struct tpacket_auxdata: its status and the packet's length.
func auxiliary(t *testing.T, control []byte) (status uint32, length int) {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
			return binary.NativeEndian.Uint32(m.Data), int(binary.NativeEndian.Uint32(m.Data[4:]))
		}
	}
	t.Fatal("a packet socket gave no auxiliary data")
	return 0, 0
}

func isData(frame []byte, length int) bool {
	protocol := frame[23]
	return binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP && length >= dataBytes &&
		(protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_UDP)
}

func (s *seen) add(status uint32, length int) {
	s.packets++
	s.bytes += length - 14
	if length > ethernetBytes {
		s.large++
	}
	switch {
	case status&unix.TP_STATUS_CSUMNOTREADY != 0:
		s.partial++
	case status&unix.TP_STATUS_CSUM_VALID != 0:
		s.valid++
	default:
		s.none++
	}
}

func (s seen) partials() int { return s.partial }
func (s seen) valids() int   { return s.valid }
func (s seen) nones() int    { return s.none }

// amount is how many of the packets that a witness has seen.
type amount int

const (
	whatever amount = iota
	none
	some
	most // of the bytes: there are far fewer packets than segments
	all
)

func (a amount) is(n, packets int) bool {
	return a == whatever || a == none && n == 0 || (a == some || a == most) && n > 0 || a == all && n == packets
}

// sight is what is to be seen at a card, of what comes in or goes out.
type sight struct {
	card           *nic
	out            bool
	large, partial amount
}

// sees fails unless that is what the cards see while fn runs.
func (l *lab) sees(sights []sight, fn func()) {
	l.t.Helper()
	var watched []*witness
	for _, s := range sights {
		watched = append(watched, s.card.watch(l.t))
	}
	fn()
	for i, s := range sights {
		in, out := watched[i].stop()
		got, way := in, "in"
		if s.out {
			got, way = out, "out"
		}
		l.t.Logf("%s %s: %+v", s.card.name, way, got)
		few := s.large != most || got.packets < got.bytes/ethernetBytes*3/4
		if got.bytes < megabyte || !s.large.is(got.large, got.packets) || !s.partial.is(got.partial, got.packets) || !few {
			l.t.Errorf("%s, %s: %+v", s.card.name, way, got)
		}
	}
}
