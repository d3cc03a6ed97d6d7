// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// takePath puts every link on the stack path, or back.
func (r *rig) takePath(stack bool) {
	r.t.Helper()
	r.must("change the path", func() error {
		links, err := r.dp.Links()
		for _, l := range links {
			l.Stack = stack
			err = errors.Join(err, r.dp.Attach(l))
		}
		return err
	})
}

// enters checks a packet from outside on the stack path: its destination address stays, and the mark has the inside
// address, as it lies in memory.
func (r *rig) enters(in, want Spec, inside string) {
	r.t.Helper()
	ctx, after := skb{Ifindex: uint32(r.ports["eth0"])}, skb{}
	frame := fromOutside(in).Bytes()
	out := make([]byte, len(frame)+256)
	r.must("run program", func() error {
		opts := ebpf.RunOptions{Data: frame, DataOut: out, Context: ctx, ContextOut: &after}
		verdict, err := r.dp.Objects().NatOutsideIngress.Run(&opts)
		out = opts.DataOut
		if err == nil && verdict != next {
			r.t.Errorf("verdict %d, want %d", int32(verdict), int32(-1))
		}
		return err
	})
	Same(r.t, out, fromOutside(want).Bytes())
	address := Endpoint(inside + ":1").Addr().As4()
	if got := binary.NativeEndian.AppendUint32(nil, after.Mark); string(got) != string(address[:]) {
		r.t.Errorf("mark %v, want %v", got, address)
	}
}

// TestPathStack: what comes from inside is the kernel's, and translated at egress; what comes from outside has its port
// translated, and the kernel and the nft table do the rest.
func TestPathStack(t *testing.T) {
	r := newRig(t)
	r.takePath(true)
	for _, dev := range []string{"p1", "br0"} {
		r.from(dev, UDP(c1+":2000", peer1+":53", "x")).passed("stack")
	}
	r.wantBindings()
	r.egress("br0", UDP(c1+":2000", peer1+":53", "x").With(routed)).
		translated("translated_stack", UDP(external+":2000", peer1+":53", "x").With(routed))
	r.from("p1", UDP(c1+":2000", peer1+":53", "x")).passed("stack")
	r.enters(UDP(peer1+":53", external+":2000", "y"), UDP(peer1+":53", external+":2000", "y"), c1)
	r.outside(UDP(peer2+":53", external+":2000", "y")).dropped("filtered")
	r.outside(UDP(peer1+":53", external+":2001", "y")).passed("unbound")
	r.egress("br0", Ping(c1, peer1).With(routed))
	about := UDP(external+":2000", peer1+":53", "x")
	r.enters(ICMPError(router, external, 3, 1, about, 0), ICMPError(router, external, 3, 1, UDP(c1+":2000", peer1+":53", "x"), 0), c1)
	r.consistent()
}

// TestPathStackForward: a published port, whose external port is another one.
func TestPathStackForward(t *testing.T) {
	r := newRig(t)
	r.takePath(true)
	r.forward("br0", dataplane.TCP, external+":8080", c1+":80")
	r.enters(TCP(peer1+":999", external+":8080", "S", ""), TCP(peer1+":999", external+":80", "S", ""), c1)
	r.inside(TCP(c1+":80", peer1+":999", "SA", "")).passed("stack")
	r.egress("br0", TCP(c1+":80", peer1+":999", "SA", "").With(routed)).
		translated("translated_stack", TCP(external+":8080", peer1+":999", "SA", "").With(routed))
	r.wantSessions("tcp " + c1 + ":80 " + external + ":8080 " + peer1 + ":999 established")
}

// TestPathStackHairpin: hairpins are translated inside on this path, too.
func TestPathStackHairpin(t *testing.T) {
	r := newRig(t)
	r.takePath(true)
	r.forward("br0", dataplane.UDP, external+":8080", c1+":80")
	r.hairpin("p2", UDP(c2+":2001", external+":8080", "hello"), UDP(external+":2001", c1+":80", "hello"))
	r.hairpin("p1", UDP(c1+":80", external+":2001", "hi"), UDP(external+":8080", c2+":2001", "hi"))
	r.from("p2", UDP(c2+":2001", external+":9", "x")).passed("local")
}

// TestPathFollowed: sessions go on when the path changes, both ways.
func TestPathFollowed(t *testing.T) {
	r := newRig(t)
	s, out := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x")
	answer := UDP(peer1+":53", external+":2000", "y")
	for range 2 {
		r.takePath(false)
		r.out(s, out)
		r.in(answer, UDP(peer1+":53", c1+":2000", "y"))
		r.takePath(true)
		r.inside(s).passed("stack")
		r.egress("br0", s.With(routed)).translated("translated_stack", out.With(routed))
		r.enters(answer, answer, c1)
	}
	r.wantBindings("udp br0 " + c1 + ":2000 " + external + ":2000 1")
}

// TestPathStackOutside: at egress the interface that the kernel has chosen counts, and a session's route is looked up
// anew when it goes direct again.
func TestPathStackOutside(t *testing.T) {
	r := newRig(t)
	r.takePath(true)
	s, out := UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x")
	r.egress("br0", s.With(routed)).translated("translated_stack", out.With(routed))
	r.takePath(false)
	r.out(s, out)
	r.consistent()
}
