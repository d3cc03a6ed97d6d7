// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// rawIP sends packets of a family as they are given, and receives those of one protocol as the kernel's defragmenter leaves them.
type rawIP struct {
	t        *testing.T
	family   family.Family
	out, in  int
	received []byte // the last packet
}

func (l *lab) raw(ns *topo.NS, protocol int) *rawIP {
	l.t.Helper()
	r := &rawIP{t: l.t, family: l.family, received: make([]byte, 1<<16)}
	domain := errorQueues[l.family].domain
	l.must(ns.Do(func() (err error) {
		if r.out, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		r.in, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return err
	}))
	l.t.Cleanup(func() { unix.Close(r.out); unix.Close(r.in) })
	l.must(unix.SetsockoptInt(r.in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	return r
}

// send sends one packet, a frame's without its link header, to where it is addressed to.
func (r *rawIP) send(frame []byte) error {
	addr := frame[14+16:][:4]
	if r.family == family.V6 {
		addr = frame[14+24:][:16]
	}
	to, _ := netip.AddrFromSlice(addr)
	for {
		err := unix.Sendto(r.out, frame[14:], 0, sockaddr(netip.AddrPortFrom(to, 0)))
		if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (r *rawIP) mustSend(frames ...[]byte) {
	r.t.Helper()
	for _, f := range frames {
		if err := r.send(f); err != nil {
			r.t.Fatalf("send a fragment: %v", err)
		}
	}
}

// next is the next packet's source and what follows its IP header; false: none came in time.
func (r *rawIP) next(within time.Duration) (from netip.Addr, l4 []byte, ok bool) {
	timeout := unix.NsecToTimeval(patience.For(within).Nanoseconds())
	if err := unix.SetsockoptTimeval(r.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		r.t.Error(err)
	}
	n, name, err := unix.Recvfrom(r.in, r.received, 0)
	if err != nil {
		return from, nil, false
	}
	from, l4 = endpointOf(name).Addr(), r.received[:n]
	if r.family == family.V4 { // the other one's sockets leave it out
		l4 = l4[20:]
	}
	return from, l4, true
}

// flow is datagrams from one endpoint to another, and what comes of them.
type flow struct {
	from, to *rawIP
	sent     func(text string) packets.Spec
	want     func(text string) packets.Spec
	ids      *uint16 // the last one's: no two datagrams of a test have one
}

const fragmentSize = 1200 // bytes of payload in a fragment

// text is what the datagram i of a test's has: four fragments of it.
func (f flow) text(name string, i int) string {
	return fmt.Sprintf("%s %d ", name, i) + strings.Repeat("0123456789abcdef", 3*fragmentSize/16)
}

func (f flow) fragments(text string) [][]byte {
	*f.ids++
	return f.sent(text).With(func(s *packets.Spec) { s.ID = *f.ids }).Fragments(fragmentSize)
}

// arrive sends count datagrams, each one's fragments in an order, and checks that each arrives with the right endpoints and
// checksums. A few are on their way at once: what is to be seen is no queue that is too short.
func (f flow) arrive(t *testing.T, name string, count int, order ...int) {
	t.Helper()
	missing := map[string]int{}
	send := func(i int) {
		text := f.text(name, i)
		missing[transport(f.want(text))] = i
		pieces := f.fragments(text)
		for _, piece := range order {
			f.from.mustSend(pieces[piece])
		}
	}
	const window = 50
	sent := 0
	for ; sent < min(window, count); sent++ {
		send(sent)
	}
	from := packets.Endpoint(f.want("").Src).Addr()
	for len(missing) > 0 {
		source, l4, ok := f.to.next(5 * time.Second)
		if !ok {
			t.Fatalf("%s in order %v: %d of %d datagrams are missing", name, order, len(missing), count)
		}
		if _, is := missing[string(l4)]; !is || source != from {
			continue // a RST, or an answer of the kernel's own
		}
		delete(missing, string(l4))
		if sent < count {
			send(sent)
			sent++
		}
	}
}

// transport is what follows a packet's IP header.
func transport(s packets.Spec) string {
	if s.Family() == family.V6 {
		return string(s.IP()[40:])
	}
	return string(s.IP()[20:])
}

// orders of four fragments.
var orders = map[string][]int{
	"InOrder": {0, 1, 2, 3}, "Reversed": {3, 2, 1, 0}, "FirstLast": {1, 2, 3, 0}, "FirstSecond": {1, 0, 2, 3},
	"LastFirst": {3, 0, 1, 2}, "Duplicated": {3, 3, 2, 2, 1, 1, 0}, "DuplicatedFirst": {0, 0, 1, 2, 2, 3},
}

type protocol struct {
	number int
	spec   func(src, dst, text string) packets.Spec
	answer func(src, dst, text string) packets.Spec
}

// in is the same in a family.
func (p protocol) in(f family.Family) protocol {
	of := func(spec func(src, dst, text string) packets.Spec) func(src, dst, text string) packets.Spec {
		return func(src, dst, text string) packets.Spec { return spec(src, dst, text).In(f) }
	}
	if p.number == unix.IPPROTO_ICMP && f == family.V6 {
		p.number = unix.IPPROTO_ICMPV6
	}
	return protocol{p.number, of(p.spec), of(p.answer)}
}

var protocols = map[string]protocol{
	"UDP": {unix.IPPROTO_UDP, packets.UDP, packets.UDP},
	"TCP": {unix.IPPROTO_TCP, segment, segment},
	"ICMP": {unix.IPPROTO_ICMP, func(src, dst, text string) packets.Spec { return query(packets.Ping(src, dst), text) },
		func(src, dst, text string) packets.Spec { return query(packets.Pong(src, dst), text) }},
}

func segment(src, dst, text string) packets.Spec { return packets.TCP(src, dst, "A", text) }

func query(s packets.Spec, text string) packets.Spec {
	return s.With(func(s *packets.Spec) { s.Payload = []byte(text) })
}

const (
	inner     = "172.17.0.2:20000"
	innerPeer = "172.17.0.3:30000"
	outer     = "198.51.100.1:20000"
	outerPeer = "198.51.100.1:30000"
	far       = "203.0.113.1:3478"
)

// directions of a protocol: out, in, and between two containers by way of their external endpoints.
func (l *lab) directions(name string) map[string]flow {
	l.t.Helper()
	p := protocols[name].in(l.family)
	c1, c2, peer := l.raw(l.Containers[0], p.number), l.raw(l.Containers[1], p.number), l.raw(l.Peer1, p.number)
	one := p.spec(inner, far, "opens the session").With(func(s *packets.Spec) { s.ID = 9999 })
	c1.mustSend(one.Bytes())
	flows := map[string]flow{
		"Out": {c1, peer, func(text string) packets.Spec { return p.spec(inner, far, text) },
			func(text string) packets.Spec { return p.spec(outer, far, text) }, new(uint16)},
		"In": {peer, c1, func(text string) packets.Spec { return p.answer(far, outer, text) },
			func(text string) packets.Spec { return p.answer(far, inner, text) }, new(uint16)},
	}
	if name == "UDP" {
		c2.mustSend(p.spec(innerPeer, far, "opens the binding").With(func(s *packets.Spec) { s.ID = 9998 }).Bytes())
		flows["Hairpin"] = flow{c1, c2, func(text string) packets.Spec { return p.spec(inner, outerPeer, text) },
			func(text string) packets.Spec { return p.spec(outer, innerPeer, text) }, new(uint16)}
	}
	l.eventually("the peer sees the session's first packet", func() bool {
		_, l4, ok := peer.next(time.Second)
		return ok && bytes.Contains(l4, []byte("opens"))
	})
	return flows
}

// allOrders has datagrams of each protocol arrive in each direction, in each order.
func (l *lab) allOrders(t *testing.T, count int) {
	for protocol := range protocols {
		for direction, f := range l.directions(protocol) {
			for name, order := range orders {
				t.Run(protocol+direction+name, func(t *testing.T) { f.arrive(t, protocol+direction+name, count, order...) })
			}
		}
	}
}

// TestFragments: in every order, of every protocol, in every direction, by each kind of hook and path.
func TestFragments(t *testing.T) { family.Each(t, testFragments) }

func testFragments(t *testing.T, fam family.Family) {
	for name, args := range both(fam, map[string][]string{"TCX": nil, "Clsact": {"--disable-feature", "tcx"}, "Stack": {"--path", "stack"}}, "TCX", "Stack") {
		t.Run(name, func(t *testing.T) {
			l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, "", args...)
			l.acceptInbound(name == "Stack")
			l.allOrders(t, 20)
		})
	}
}

// acceptInbound lets answers in by the stack path: Docker's rules accept what conntrack knows, which a test with packets of its own
// making cannot rely on.
func (l *lab) acceptInbound(stack bool) {
	if stack {
		l.iptables("*filter\n-I FORWARD -j ACCEPT\nCOMMIT\n")
	}
}

// TestFragmentsOverTun: by an uplink whose packets have no Ethernet header, which they need in the namespace, and not afterwards.
func TestFragmentsOverTun(t *testing.T) {
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			l := newUplinkLab(t, topo.UplinkConfig{Name: "tun0", Tun: true, OwnRouter: true},
				"route replace default via 198.18.1.254\n", "--path", path)
			l.acceptInbound(path == "stack")
			c, peer := l.raw(l.Containers[0], unix.IPPROTO_UDP), l.raw(l.Peer1, unix.IPPROTO_UDP)
			const tunneled = "198.18.1.1:20000"
			udp := func(src, dst string) func(string) packets.Spec {
				return func(text string) packets.Spec { return packets.UDP(src, dst, text) }
			}
			out := flow{c, peer, udp(inner, far), udp(tunneled, far), new(uint16)}
			in := flow{peer, c, udp(far, tunneled), udp(far, inner), new(uint16)}
			for _, order := range orders {
				out.arrive(t, "out", 20, order...)
				in.arrive(t, "in", 20, order...)
			}
		})
	}
}

// TestFragmentsReversed: of 500 datagrams each arrives.
func TestFragmentsReversed(t *testing.T) { family.Each(t, testFragmentsReversed) }

func testFragmentsReversed(t *testing.T, fam family.Family) {
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, "")
	for direction, f := range l.directions("UDP") {
		f.arrive(t, direction, 500, 3, 2, 1, 0)
	}
	if n := l.Counter("diverted_fragment"); n < 3*500*4 {
		t.Errorf("%d fragments were put in order, want %d at least", n, 3*500*4)
	}
	if n := l.Counter("dropped_fragment"); n != 0 {
		t.Errorf("%d fragments were dropped", n)
	}
}

// TestFragmentsWithoutDaemon: kill -9 changes nothing, and a container that starts then, whose port has no hook, has the
// bridge's. The next daemon takes the namespace over.
func TestFragmentsWithoutDaemon(t *testing.T) { family.Each(t, testFragmentsWithoutDaemon) }

func testFragmentsWithoutDaemon(t *testing.T, fam family.Family) {
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 2}, "")
	before := l.fragmentNamespaces()
	l.keepBridgeMAC()
	l.Kill()
	flows := l.directions("UDP")
	for direction, f := range flows {
		f.arrive(t, "killed "+direction, 20, 3, 2, 1, 0)
	}
	late, err := l.AddContainer("c3", "docker0", "172.17.0.4", "172.17.0.1")
	l.must(err)
	bridged := flow{l.raw(late, unix.IPPROTO_UDP), flows["Out"].to,
		func(text string) packets.Spec { return packets.UDP("172.17.0.4:40000", far, text).In(fam) },
		func(text string) packets.Spec { return packets.UDP("198.51.100.1:40000", far, text).In(fam) }, new(uint16)}
	bridged.arrive(t, "bridge hook", 20, 3, 2, 1, 0)
	l.Run()
	for direction, f := range flows {
		f.arrive(t, "adopted "+direction, 20, 3, 2, 1, 0)
	}
	if after := l.fragmentNamespaces(); !slices.Equal(before, after) || len(after) != 1 {
		t.Errorf("the namespaces are %v, and were %v: want the same one", after, before)
	}
	l.Detach()
	if left := l.fragmentNamespaces(); len(left) != 0 {
		t.Errorf("left after detach: %v", left)
	}
	if out, err := l.Host.Run(t.Context(), "", "ip", "-o", "link"); err != nil || strings.Contains(out, "cnfrag") {
		t.Errorf("interfaces after detach: %v\n%s", err, out)
	}
}

// keepBridgeMAC gives docker0 the MAC that it has, as Docker does: else the next container's port may change it.
func (l *lab) keepBridgeMAC() {
	l.t.Helper()
	bridge, err := l.Host.Netlink().LinkByName("docker0")
	l.must(err)
	l.must(l.Host.Netlink().LinkSetHardwareAddr(bridge, bridge.Attrs().HardwareAddr))
}

// fragmentNamespaces are the mounts that hold the namespaces of the lab's host, with their inodes.
func (l *lab) fragmentNamespaces() (out []string) {
	l.t.Helper()
	var host unix.Stat_t
	l.must(unix.Stat(l.Host.Path, &host))
	paths, err := filepath.Glob(fmt.Sprintf("/run/conenat/fragments-%d-*", host.Ino))
	l.must(err)
	for _, path := range paths {
		var st unix.Stat_t
		l.must(unix.Stat(path, &st))
		out = append(out, fmt.Sprintf("%s: %d", path, st.Ino))
	}
	return out
}

// inFragments is the namespace in which fragments are put in order.
func (l *lab) inFragments() *topo.NS {
	l.t.Helper()
	list := l.fragmentNamespaces()
	if len(list) != 1 {
		l.t.Fatalf("namespaces for fragments: %v, want one", list)
	}
	path, _, _ := strings.Cut(list[0], ":")
	ns, err := l.OpenNS("fragments", path)
	l.must(err)
	return ns
}

// TestFragmentsOverlap: Linux' defragmenter drops a datagram whose fragments overlap, in the namespace or, of those that come in
// order, at its receiver.
func TestFragmentsOverlap(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 2}, "")
	for direction, f := range l.directions("UDP") {
		pieces := f.fragments(f.text("overlap", 1))
		overlapping := slices.Clone(pieces[1])
		field := binary.BigEndian.Uint16(overlapping[14+6:])
		binary.BigEndian.PutUint16(overlapping[14+6:], field-1)
		packets.FixIPChecksum(overlapping[14:])
		f.from.mustSend(pieces[3], pieces[2], overlapping, pieces[1], pieces[0])
		pieces = f.fragments(f.text("overlap", 2))
		f.from.mustSend(pieces[0], identify(overlapping, *f.ids), pieces[1], pieces[2], pieces[3])
		f.from.mustSend(f.fragments(f.text("marker", 1))...)
		for {
			_, l4, ok := f.to.next(5 * time.Second)
			if !ok {
				t.Fatalf("%s: the datagram behind them is missing", direction)
			}
			if bytes.Contains(l4, []byte("overlap")) {
				t.Errorf("%s: a datagram of overlapping fragments arrived", direction)
			}
			if bytes.Contains(l4, []byte("marker")) {
				break
			}
		}
	}
}

// identify gives a frame another IPv4 identification.
func identify(frame []byte, id uint16) []byte {
	out := slices.Clone(frame)
	binary.BigEndian.PutUint16(out[14+4:], id)
	packets.FixIPChecksum(out[14:])
	return out
}

// TestFragmentsShort: a first fragment that has half of a TCP header (RFC 1858) is made whole in the namespace.
func TestFragmentsShort(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 2}, "")
	for direction, f := range l.directions("TCP") {
		text := f.text("short "+direction, 1)
		*f.ids++
		whole := f.sent(text).With(func(s *packets.Spec) { s.ID = *f.ids }).Bytes()
		f.from.mustSend(piece(whole, 0, 16), piece(whole, 16, 1216), piece(whole, 1216, 2416), piece(whole, 2416, len(whole)-34))
		for {
			_, l4, ok := f.to.next(5 * time.Second)
			if !ok {
				t.Fatalf("%s: it is missing", direction)
			}
			if string(l4) == transport(f.want(text)) {
				break
			}
		}
	}
}

// piece is the fragment of a frame's packet that has some of its payload.
func piece(whole []byte, from, to int) []byte {
	out := slices.Concat(whole[:34], whole[34+from:34+to])
	field := uint16(from / 8)
	if 34+to < len(whole) {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(out[14+2:], uint16(len(out)-14))
	binary.BigEndian.PutUint16(out[14+6:], field)
	packets.FixIPChecksum(out[14:])
	return out
}

// TestFragmentsNeverCompleted: they leave nothing behind, once their time is over.
func TestFragmentsNeverCompleted(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 2}, "")
	ns := l.inFragments()
	l.must(ns.Sysctl("net.ipv4.ipfrag_time=1"))
	flows := l.directions("UDP")
	for _, f := range flows {
		for i := range 100 {
			f.from.mustSend(f.fragments(f.text("never", i))[1:]...)
		}
	}
	if queues, memory := queued(t, ns); queues == 0 || memory == 0 {
		t.Errorf("%d datagrams wait in %d bytes: want some", queues, memory)
	}
	l.eventually("the namespace forgets them", func() bool {
		queues, memory := queued(t, ns)
		return queues == 0 && memory == 0
	})
	for direction, f := range flows {
		f.arrive(t, "behind "+direction, 5, 3, 2, 1, 0)
	}
}

// queued is what a namespace's defragmenter holds (proc_net_sockstat(5)).
func queued(t *testing.T, ns *topo.NS) (queues, memory int) {
	t.Helper()
	err := ns.Do(func() error {
		content, err := os.ReadFile("/proc/thread-self/net/sockstat")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(content)) {
			if f := strings.Fields(line); f[0] == "FRAG:" {
				queues, _ = strconv.Atoi(f[2])
				memory, err = strconv.Atoi(f[4])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return queues, memory
}

// TestFragmentsCut: what may be fragmented and is larger than a link on its way arrives: by the uplink's MTU on the way out,
// by an inside network's on the way in (RFC 4787 REQ-13a).
func TestFragmentsCut(t *testing.T) {
	l := placeUplinkLab(t, topo.Figure3Config{UplinkMTU: 1400}, topo.UplinkConfig{}, "", "--filtering", "endpoint-independent").lab
	l.ip("link set docker0 mtu 1300")
	l.Run()
	for _, ns := range []*topo.NS{l.Containers[0], l.Peer1} {
		l.must(ns.Sysctl("net.ipv4.ip_no_pmtu_disc=1"))
	}
	c, peer := l.udp(l.containers[0], 20000), l.udp(l.peer1, 3478)
	l.send(c, at(topo.Peer2Addr, 9), "makes the binding")
	for _, size := range []int{1250, 1300, 1370, 1450, 4000} { // a session from outside: it has no port of the bridge's yet
		text := strings.Repeat("x", size)
		l.send(peer, at(topo.HostAddr, 20000), text)
		l.receives(c, text)
		l.send(c, at(topo.Peer2Addr, 3478), "refreshes")
	}
	for _, size := range []int{1250, 1390, 1450, 4000} {
		text := strings.Repeat("y", size)
		l.send(c, at(topo.Peer1Addr, 3478), text)
		l.receives(peer, text)
	}
	if l.Counter("diverted_too_big") == 0 || l.Counter("dropped_uncut") != 0 {
		t.Errorf("%d datagrams were cut, %d dropped", l.Counter("diverted_too_big"), l.Counter("dropped_uncut"))
	}
}

// flooding is the throughput of a TCP session, beside what takes the rest of the machine.
type flooding struct {
	*lab
	conn probe.Conn
}

// TestFragmentFlood: 100,000 fragments that are never completed, from a container and from outside, cost a session of another
// container no more than as many ordinary packets (RFC 4787 REQ-14a). They fill the memory that there is for fragments: datagrams in
// order, which need none of it, arrive at once, others when the flood's time is over.
func TestFragmentFlood(t *testing.T) {
	l := newLab(t, topo.Figure3Config{Containers: 2}, "")
	server := l.serve(l.peer1, 8080)
	fl := flooding{l, l.dial(l.containers[0], at(topo.Peer1Addr, server.Port()))}
	ns := l.inFragments()
	l.must(ns.Sysctl("net.ipv4.ipfrag_time=2"))
	inside, outside := l.raw(l.Containers[1], unix.IPPROTO_UDP), l.raw(l.Peer2, unix.IPPROTO_UDP)
	out := packets.UDP(innerPeer, "203.0.113.2:9", strings.Repeat("z", 64))
	in := packets.UDP("203.0.113.2:9", outerPeer, strings.Repeat("z", 64))
	inside.mustSend(out.Bytes())
	quiet := fl.throughput(nil)
	ordinary := fl.throughput(func(i int) error {
		return errors.Join(inside.send(identify(out.Bytes(), uint16(i))), outside.send(identify(in.Bytes(), uint16(i))))
	})
	lastOut, lastIn := out.Fragments(32)[1], in.Fragments(32)[1]
	fragments := fl.throughput(func(i int) error {
		return errors.Join(inside.send(identify(lastOut, uint16(i))), outside.send(identify(lastIn, uint16(i))))
	})
	t.Logf("quiet %.0f MB/s, beside ordinary packets %.0f MB/s, beside fragments %.0f MB/s: %.2f and %.2f of it",
		quiet, ordinary, fragments, fragments/quiet, fragments/ordinary)
	if fragments < 0.7*ordinary {
		t.Errorf("a flood of fragments leaves %.0f MB/s, one of ordinary packets %.0f", fragments, ordinary)
	}
	f := l.directions("UDP")["Out"]
	f.arrive(t, "in order, behind the flood", 20, 0, 1, 2, 3)
	l.eventually("the namespace forgets the flood", func() bool {
		queues, _ := queued(t, ns)
		return queues == 0
	})
	f.arrive(t, "out of order, when it is over", 20, 3, 2, 1, 0)
}

const flood = 100000 // packets from each side

// throughput is the session's in MB/s while a flood lasts; without one, for as long as a download takes.
func (f flooding) throughput(send func(i int) error) float64 {
	f.t.Helper()
	var done atomic.Bool
	failed := make(chan error, 1)
	go func() {
		defer done.Store(true)
		for i := range flood {
			if send == nil {
				break
			}
			if err := send(i); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	start, total := time.Now(), 0
	for again := true; again; again = !done.Load() {
		const chunk = 10 * megabyte
		if _, err := f.conn.Download(chunk); err != nil {
			f.t.Fatalf("download: %v", err)
		}
		total += chunk
	}
	elapsed := time.Since(start)
	if err := <-failed; err != nil {
		f.t.Fatalf("flood: %v", err)
	}
	return float64(total) / megabyte / elapsed.Seconds()
}
