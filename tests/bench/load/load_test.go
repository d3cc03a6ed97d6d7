// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

var (
	local   = netip.MustParseAddrPort("172.17.0.2:20000")
	remote  = netip.MustParseAddrPort("10.0.255.250:3478") // the third octet of those after it changes, too
	fromMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	toMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// TestHeaders: each packet is its session's, and sound, whatever the page had before.
func TestHeaders(t *testing.T) {
	require.Root(t)
	for _, inbound := range []bool{false, true} {
		for _, size := range []int{MinSize, 512, 513, MaxSize} {
			t.Run(fmt.Sprintf("inbound=%v/%d", inbound, size), func(t *testing.T) {
				s := Stream{Local: local, Remote: remote, Inbound: inbound, SrcMAC: fromMAC, DstMAC: toMAC, Size: size, Sessions: 300, PortBits: 2}
				testHeaders(t, s)
			})
		}
	}
}

func testHeaders(t *testing.T, s Stream) {
	g, err := NewGenerator(s)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	page, frames := bytes.Clone(g.frame), s.Frames()
	for i := range s.Sessions + 1 { // and the first one again
		copy(page, bytes.Repeat([]byte{0xa5}, headerBytes))
		frame, err := g.one(page)
		if err != nil {
			t.Fatal(err)
		}
		n := i % s.Sessions
		if !bytes.Equal(frame, frames[n]) {
			t.Errorf("not as Frames has it:\n%s", packets.Dump(frames[n]))
		}
		at := s.Remote.Addr().As4()
		last := int(at[2])<<8 + int(at[3]) + n>>s.PortBits
		at[1], at[2], at[3] = at[1]+byte(last>>16), byte(last>>8), byte(last)
		wantLocal := netip.AddrPortFrom(s.Local.Addr(), s.Local.Port()+uint16(n&(1<<s.PortBits-1)))
		checkFrame(t, s, frame, wantLocal, netip.AddrPortFrom(netip.AddrFrom4(at), s.Remote.Port()))
		if t.Failed() {
			t.Fatalf("session %d:\n%s", n, packets.Dump(frame))
		}
	}
}

// checkFrame decodes with a library that has no part in how it was made.
func checkFrame(t *testing.T, s Stream, frame []byte, local, remote netip.AddrPort) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	eth, _ := p.LinkLayer().(*layers.Ethernet)
	ip, _ := p.NetworkLayer().(*layers.IPv4)
	udp, _ := p.TransportLayer().(*layers.UDP)
	if eth == nil || ip == nil || udp == nil || p.ErrorLayer() != nil {
		t.Fatalf("not a UDP datagram: %v", p.ErrorLayer())
	}
	src, dst := local, remote
	if s.Inbound {
		src, dst = dst, src
	}
	got := fmt.Sprintf("%s %s %s:%d %s:%d", eth.SrcMAC, eth.DstMAC, ip.SrcIP, udp.SrcPort, ip.DstIP, udp.DstPort)
	if want := fmt.Sprintf("%s %s %s %s", fromMAC, toMAC, src, dst); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if len(frame) != s.Size || int(ip.Length) != s.Size-14 {
		t.Errorf("%d bytes, of which IP says %d, want %d", len(frame), ip.Length, s.Size)
	}
	if err := packets.Verify(frame[14:]); err != nil {
		t.Error(err)
	}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	if err, mismatches := p.VerifyChecksums(); err != nil || len(mismatches) > 0 || udp.Checksum == 0 {
		t.Errorf("checksums: %v, %v, %#x", err, mismatches, udp.Checksum)
	}
}

func TestStreamCheck(t *testing.T) {
	good := Stream{Local: local, Remote: remote, Size: 60, Sessions: 1}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Stream){
		"Short":     func(s *Stream) { s.Size = 59 },
		"Long":      func(s *Stream) { s.Size = 1515 },
		"None":      func(s *Stream) { s.Sessions = 0 },
		"Ports":     func(s *Stream) { s.Local, s.PortBits = netip.AddrPortFrom(local.Addr(), 65535), 1 },
		"WrongBits": func(s *Stream) { s.PortBits = maxPortBits + 1 },
		"IPv6":      func(s *Stream) { s.Remote = netip.MustParseAddrPort("[::1]:1") },
	} {
		s := good
		change(&s)
		if s.check() == nil {
			t.Errorf("%s: %+v is accepted", name, s)
		}
	}
}

// path is a ── router ── b, and the router's ends.
type path struct {
	a, router, b *topo.NS
}

func newPath(t *testing.T) (p path) {
	top := topo.ForTest(t)
	for name, ns := range map[string]**topo.NS{"a": &p.a, "router": &p.router, "b": &p.b} {
		var err error
		if *ns, err = top.NewNS(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, far := range []*topo.NS{p.a, p.b} {
		name := "to" + far.Name[len(far.Name)-1:]
		if err := top.Link(topo.End{NS: far, Name: "eth0"}, topo.End{NS: p.router, Name: name}, 0); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p path) index(t *testing.T, ns *topo.NS, name string) int {
	t.Helper()
	index, err := ns.IfIndex(name)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func (p path) sink(t *testing.T, ns *topo.NS, name string, want Want, make func(int, Want) (*Sink, error)) *Sink {
	t.Helper()
	index := p.index(t, ns, name)
	var sink *Sink
	if err := ns.Do(func() (err error) { sink, err = make(index, want); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
	})
	return sink
}

func (p path) generator(t *testing.T) *Generator {
	t.Helper()
	g, err := NewGenerator(Stream{Interface: p.index(t, p.a, "eth0"), Local: local, Remote: remote, Size: MinSize, Sessions: 10, PortBits: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func send(t *testing.T, from *topo.NS, g *Generator, n int) {
	t.Helper()
	var sent int
	var took time.Duration
	err := from.Do(func() error {
		return OnCPU(0, func() (err error) {
			sent, took, err = g.Send(n)
			return err
		})
	})
	if err != nil || sent != n || took <= 0 {
		t.Fatalf("%d packets sent in %v: %v", sent, took, err)
	}
}

// TestSinksCount: all that is sent arrives, and is told apart.
func TestSinksCount(t *testing.T) {
	p := newPath(t)
	if err := p.router.SetGRO("toa", true); err != nil {
		t.Fatal(err)
	}
	g := p.generator(t)
	for name, make := range map[string]func(int, Want) (*Sink, error){"TC": NewSink, "XDP": NewXDPSink} {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				want          Want
				arrived, rest uint64
			}{
				{Want{}, 100, 0},
				{Want{Src: netip.AddrPortFrom(local.Addr(), 0), Dst: remote}, 20, 80},
				{Want{Src: local}, 50, 50},
				{Want{Src: local, OthersPass: true}, 50, 50},
				{Want{Dst: netip.AddrPortFrom(remote.Addr(), remote.Port()+1)}, 0, 100},
			} {
				sink := p.sink(t, p.router, "toa", tt.want, make)
				if err := g.Restart(); err != nil {
					t.Fatal(err)
				}
				send(t, p.a, g, 100)
				waitCount(t, sink, tt.arrived, tt.rest, tt.want)
				if err := sink.hook.Close(); err != nil { // the next one is to have the interface alone
					t.Fatal(err)
				}
			}
		})
	}
}

// waitCount: the last packets may wait for ksoftirqd.
func waitCount(t *testing.T, sink *Sink, arrived, rest uint64, about any) {
	t.Helper()
	var gotArrived, gotRest uint64
	_ = topo.Poll(t.Context(), 5*time.Second, "wait for the packets", func() (bool, error) {
		a, r, err := sink.Count()
		gotArrived, gotRest = gotArrived+a, gotRest+r
		return gotArrived+gotRest >= arrived+rest, err
	})
	if gotArrived != arrived || gotRest != rest {
		t.Errorf("%d arrived and %d others, want %d and %d: %+v", gotArrived, gotRest, arrived, rest, about)
	}
}

// TestForward: what comes out of the forwarder has its MACs, and counts as sound.
func TestForward(t *testing.T) {
	p := newPath(t)
	from, to := p.index(t, p.router, "toa"), p.index(t, p.router, "tob")
	var forward interface{ Close() error }
	err := p.router.Do(func() (err error) { forward, err = Forward(from, to, fromMAC, toMAC); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer forward.Close()
	sink := p.sink(t, p.b, "eth0", Want{Dst: netip.AddrPortFrom(netip.Addr{}, remote.Port())}, NewXDPSink)
	g := p.generator(t)
	send(t, p.a, g, 100)
	waitCount(t, sink, 100, 0, "forwarded")

	frame, err := sink.forwarded(g.frame)
	if err != nil {
		t.Fatal(err)
	}
	if got := frame[22]; got != g.frame[22]-1 {
		t.Errorf("TTL %d of %d", got, g.frame[22])
	}
	if err := packets.Verify(frame[14:]); err != nil {
		t.Error(err)
	}
}

// TestForward6: and of IPv6, which has no checksum of its own.
func TestForward6(t *testing.T) {
	p := newPath(t)
	sink := p.sink(t, p.router, "toa", Want{}, NewSink)
	frame := packets.UDP("[fd00:17::2]:20000", "[2001:db8:113::1]:3478", "x").Bytes()
	got, err := sink.forwarded(frame)
	if err != nil {
		t.Fatal(err)
	}
	const hopLimit = ethernetBytes + 7
	if got[hopLimit] != frame[hopLimit]-1 || !bytes.Equal(got[hopLimit+1:], frame[hopLimit+1:]) {
		t.Errorf("the frame is\n%s", packets.Dump(got))
	}
}

// forwarded is what forward makes of a frame, wherever it goes.
func (s *Sink) forwarded(frame []byte) ([]byte, error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+64)}
	verdict, err := s.objs.Forward.Run(&opts)
	if err == nil && verdict != xdpRedirect {
		err = fmt.Errorf("the verdict is %d", verdict)
	}
	return opts.DataOut, err
}

const xdpRedirect = 4 // enum xdp_action (linux/bpf.h)

// TestFor: what is sent in a time is counted, and takes it.
func TestFor(t *testing.T) {
	p := newPath(t)
	if err := p.router.SetGRO("toa", true); err != nil {
		t.Fatal(err)
	}
	sink, g := p.sink(t, p.router, "toa", Want{}, NewSink), p.generator(t)
	const wanted = 10 * time.Millisecond
	var sent int
	err := p.a.Do(func() error {
		return OnCPU(0, func() (err error) {
			var took time.Duration
			if sent, took, err = g.For(wanted); took < wanted {
				err = errors.Join(err, fmt.Errorf("it took %v, want %v", took, wanted))
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	waitCount(t, sink, uint64(sent), 0, "sent in a time")
}

func TestOnCPU(t *testing.T) {
	if err := OnCPU(1<<9, func() error { return nil }); err == nil {
		t.Error("there is a CPU 512")
	}
}
