// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"bytes"
	"maps"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/bpf"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// BPF_PROG_RUN takes no frame of IPv4 or of IPv6 without a whole header; what is longer than this no link of the rig takes.
const shortest, longest = rig.L4, 2000

// canRun says whether BPF_PROG_RUN takes a frame.
func canRun(frame []byte) bool {
	whole := !isIPv6(frame) || len(frame) >= l3+40
	return whole && len(frame) >= shortest && len(frame) <= longest
}

func isIPv6(frame []byte) bool {
	return len(frame) > l3 && bytes.Equal(frame[l3-2:l3], []byte{0x86, 0xdd})
}

// newRig has a port forward, beside what open makes anew each time.
func newRig(f *testing.F, fam family.Family) *rig.Rig {
	r := rig.New(f, rig.In(fam))
	links := maps.Clone(rig.Gateway)
	maps.Copy(links, rig.Containers)
	links["eth0"] |= bpf.LinkUnsolicited
	r.TakeXDP(links)
	r.Forward("br0", dataplane.TCP, rig.External+":8080", rig.C1+":80")
	return r
}

// newRigs gives the rig for a frame: of its own family, if that is one.
func newRigs(f *testing.F) func(frame []byte) *rig.Rig {
	v4, v6 := newRig(f, family.V4), newRig(f, family.V6)
	return func(frame []byte) *rig.Rig {
		if isIPv6(frame) {
			return v6
		}
		return v4
	}
}

// open lets all expire that the last input has left, and opens a few sessions: of each protocol, and a hairpin's receiver.
func open(r *rig.Rig, t *testing.T) {
	r.T = t
	r.Wait(3 * time.Hour) // longer than any timeout
	r.Wait(time.Hour)     // and than ports are held
	r.OpenAll()
	r.Outside(TCP(rig.Peer1+":80", rig.External+":2000", "SA", ""))
	r.Inside(TCP(rig.C1+":2000", rig.Peer1+":80", "A", ""))
	r.From("p2", UDP(rig.C2+":3000", rig.Peer2+":53", "x"))
	r.From("q1", TCP(rig.Other+":4000", rig.Peer2+":80", "S", ""))
	r.Forget()
}

// frames are a packet in both families, and in IPv6 behind extension headers, too.
func frames(s Spec) [][]byte {
	out := [][]byte{s.Bytes()}
	if !s.OnlyIPv4() {
		v6 := s.In(family.V6)
		out = append(out, v6.Bytes(), v6.Behind(HopByHop(), DestinationOptions(1)).Bytes())
	}
	return out
}

// insideDevs are the hooks that packets from inside may come by.
var insideDevs = []string{"p1", "p2", "br0", "q1", "br1"}

// FuzzInside is for what containers send, by the ports and the devices of two bridges.
func FuzzInside(f *testing.F) {
	for i, s := range []Spec{
		UDP(rig.C1+":2000", rig.Peer1+":53", "x"), TCP(rig.C1+":2001", rig.Peer1+":80", "S", ""), Ping(rig.C1+":7", rig.Peer1),
		TCP(rig.C1+":2000", rig.Peer1+":80", "A", "data"),
		UDP(rig.C1+":2000", rig.External+":3000", "x"), TCP(rig.C2+":9", rig.External+":8080", "S", ""), UDP(rig.C1+":2000", rig.External+":2000", "x"),
		ICMPError(rig.C1, rig.Peer1, 3, 3, UDP(rig.Peer1+":53", rig.C1+":2000", "payload"), 0),
		ICMPError(rig.C1, rig.Peer1, 11, 0, Pong(rig.Peer1, rig.C1+":2000").With(withOptions), 0).With(withOptions),
		UDP(rig.C1+":2000", rig.Peer1+":53", "x").With(func(s *Spec) { s.MF, s.ID = true, 9 }), UDP(rig.C1+":2000", "172.17.0.1:53", "x"),
		Raw(rig.C1, rig.Peer1, 47, []byte("0123456789")),
	} {
		for _, frame := range frames(rig.FromContainer(s)) {
			f.Add(frame, uint8(i%len(insideDevs)))
			f.Add(frame, uint8(0))
		}
	}
	rigs := newRigs(f)
	f.Fuzz(func(t *testing.T, frame []byte, dev uint8) {
		r := rigs(frame)
		open(r, t)
		judge(r, rig.Hook{Name: "Inside", Program: r.DP.Objects().NatInside, XDP: r.DP.Objects().NatXdpInside, Dev: insideDevs[int(dev)%len(insideDevs)]}, frame)
	})
}

func withOptions(s *Spec) { s.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} } // record route

// FuzzOutside is for what comes in by the uplink.
func FuzzOutside(f *testing.F) {
	for _, s := range []Spec{
		UDP(rig.Peer1+":53", rig.External+":2000", "x"), UDP(rig.Peer1+":9", rig.External+":2000", "x"), TCP(rig.Peer1+":80", rig.External+":2000", "SA", ""),
		TCP(rig.Peer1+":80", rig.External+":2000", "A", "data"), TCP(rig.Peer1+":80", rig.External+":7777", "S", ""), UDP(rig.Peer1+":80", rig.External+":7777", "x"),
		TCP(rig.Peer2+":9", rig.External+":8080", "S", ""), Pong(rig.Peer1, rig.External+":2000"), Ping(rig.Peer1+":1", rig.External),
		ICMPError(rig.Peer2, rig.External, 3, 4, UDP(rig.External+":2000", rig.Peer1+":53", "payload"), 28),
		ICMPError(rig.Peer2, rig.External, 12, 0, TCP(rig.External+":2000", rig.Peer1+":80", "A", "x").With(withOptions), 0),
		UDP(rig.Peer1+":53", rig.External+":2000", "x").With(func(s *Spec) { s.Offset, s.ID = 64, 9 }),
		UDP(rig.External+":53", rig.External+":2000", "x"), TCP(rig.C1+":53", rig.External+":8080", "S", ""),
	} {
		for _, frame := range frames(rig.FromOutside(s)) {
			f.Add(frame)
		}
	}
	rigs := newRigs(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		r := rigs(frame)
		open(r, t)
		judge(r, rig.Hook{Name: "Outside", Program: r.DP.Objects().NatOutsideIngress, XDP: r.DP.Objects().NatXdpOutside, Dev: "eth0"}, frame)
	})
}

// forwarders are where packets at the uplink's egress may come from: the host itself, and its bridges.
var forwarders = []string{"", "br0", "br1"}

// FuzzEgress is for what leaves by the uplink: the host's own, and what it has routed.
func FuzzEgress(f *testing.F) {
	for i, s := range []Spec{
		UDP(rig.External+":2000", rig.Peer1+":53", "x"), UDP(rig.C1+":2000", rig.Peer1+":53", "x"), TCP(rig.Other+":4000", rig.Peer2+":80", "A", ""),
		TCP(rig.External+":2000", rig.Peer2+":80", "S", ""), Ping(rig.C1+":2000", rig.Peer1), Ping(rig.External+":2000", rig.Peer2),
		ICMPError(rig.External, rig.Peer1, 3, 3, UDP(rig.Peer1+":53", rig.C1+":2000", "payload"), 0),
		ICMPError(rig.C1, rig.Peer1, 3, 3, UDP(rig.Peer1+":53", rig.C1+":2000", "payload"), 0), TCP(rig.C1+":2000", rig.Peer1+":80", "R", ""),
	} {
		for _, frame := range frames(rig.FromOutside(s)) {
			f.Add(frame, uint8(i%len(forwarders)))
		}
	}
	rigs := newRigs(f)
	f.Fuzz(func(t *testing.T, frame []byte, from uint8) {
		r := rigs(frame)
		open(r, t)
		by := forwarders[int(from)%len(forwarders)]
		judge(r, rig.Hook{Name: "Egress", Program: r.DP.Objects().NatOutsideEgress, Dev: "eth0",
			Change: func(c *rig.SKB) { c.IngressIfindex = uint32(r.Ports[by]) }}, frame)
	})
}

// FuzzControl is for the daemon's requests, of either family.
func FuzzControl(f *testing.F) {
	v4, v6 := newRig(f, family.V4), newRig(f, family.V6)
	for _, r := range []*rig.Rig{v4, v6} {
		for command := range uint8(bpf.CommandIndex + 2) {
			f.Add(request(f, r, command), r == v6)
		}
	}
	f.Fuzz(func(t *testing.T, request []byte, six bool) {
		if len(request) < shortest || len(request) > longest {
			return
		}
		r, program := v4, v4.DP.Objects().NatControl
		if six {
			r, program = v6, v6.DP.Objects6().NatControl
		}
		open(r, t)
		r.Must("request", func() error {
			answer, err := program.Run(&ebpf.RunOptions{Data: request, DataOut: make([]byte, len(request)+256)})
			if err == nil && answer > uint32(bpf.AnswerFailed) {
				t.Errorf("answer %d", answer)
			}
			return err
		})
		r.Must("sweep", r.DP.Sweep) // what was marked ends
		r.Consistent()
		r.Must("remove forwards", func() error {
			held, err := r.DP.Held()
			if err == nil {
				_, err = r.DP.RemoveForwards(held.Forwards)
			}
			return err
		})
	})
}

// request is one that the daemon might make.
func request(f *testing.F, r *rig.Rig, command uint8) []byte {
	in, ext, remote := r.Address(rig.C1+":2000"), r.Address(rig.External+":2000"), r.Address(rig.Peer1+":53")
	request, err := r.Maps().Requests.Encode(bpf.Request{Command: command, Proto: uint8(dataplane.UDP), Zone: 1,
		Internal: bpf.AddrOf(in), InternalPort: 0xd007, External: bpf.AddrOf(ext), ExternalPort: 0xd107,
		Remote: bpf.AddrOf(remote), RemotePort: 0x3500, Flags: command & 3, Seen: 1})
	if err != nil {
		f.Fatal(err)
	}
	return request
}
