// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/patience"
)

// from sends a packet of a container through another hook than p1's: "p2", "q1" or a bridge device.
func (r *rig) from(dev string, s packets.Spec) result {
	r.t.Helper()
	if s.DstMAC == nil && (dev == "q1" || dev == "br1") {
		s.DstMAC = bridge2
	}
	s = fromContainer(s)
	if dev == "p2" {
		s.SrcMAC = c2MAC
	}
	return r.send(r.dp.Objects().NatInside, dev, s.Bytes(), nil)
}

// out and in send a packet that must be translated there and back, and nothing else changed but the TTL.
func (r *rig) out(in, want packets.Spec) {
	r.t.Helper()
	r.inside(in).translated("translated_outbound", want.Hop())
}

func (r *rig) in(in, want packets.Spec) {
	r.t.Helper()
	r.outside(in).translated("translated_inbound", want.Hop())
}

// run is send without any check, for many packets.
func (r *rig) run(program *ebpf.Program, dev string, frame []byte) (verdict uint32, err error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skb{Ifindex: uint32(r.ports[dev])}}
	return program.Run(&opts)
}

// count is a counter's value.
func (r *rig) count(name string) uint64 {
	r.t.Helper()
	for _, c := range r.counters() {
		if c.Name == name {
			return c.Packets
		}
	}
	r.t.Fatalf("no counter %s", name)
	return 0
}

// events are those that were not read yet. A packet's are in the ring when its program has run.
func (r *rig) events() (out []dataplane.Event) {
	r.t.Helper()
	for r.ring.AvailableBytes() > 0 {
		out = append(out, r.event())
		if out[len(out)-1].Type == dataplane.EventsLost { // it was told before an event that is read already
			out = append(out, r.event())
		}
	}
	return out
}

// event reads one that is there.
func (r *rig) event() dataplane.Event {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience.For(10*time.Second))
	defer cancel()
	e, err := r.dp.ReadEvent(ctx)
	if err != nil {
		r.t.Fatalf("read event: %v", err)
	}
	return e
}

// eventLine is an event in one line: type, protocol, network, endpoints and what else the type has.
func eventLine(e dataplane.Event) string {
	line := fmt.Sprintf("%s %s %s %s %s", e.Type, e.Protocol, e.Network, e.Internal, e.External)
	switch e.Type {
	case dataplane.EventsLost:
		return fmt.Sprintf("%s %d", e.Type, e.Count)
	case dataplane.SessionState:
		line += fmt.Sprintf(" %s %s->%s %ds", e.Remote, e.OldState, e.State, e.Lifetime/time.Second)
	case dataplane.SessionCreated, dataplane.SessionClosed:
		line += fmt.Sprintf(" %s %s", e.Remote, e.State)
	case dataplane.InboundFiltered, dataplane.PortExhausted, dataplane.QuotaExceeded:
		line += fmt.Sprintf(" %s x%d", e.Remote, e.Count)
	}
	if e.Static {
		line += " static"
	}
	if e.Hairpin {
		line += " hairpin"
	}
	return line
}

// wantEvents checks the unread events; a want that ends in "*" is a prefix.
func (r *rig) wantEvents(want ...string) {
	r.t.Helper()
	var got []string
	for i, e := range r.events() {
		line := eventLine(e)
		if i < len(want) && strings.HasSuffix(want[i], "*") && strings.HasPrefix(line, strings.TrimSuffix(want[i], "*")) {
			line = want[i]
		}
		got = append(got, line)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		r.t.Errorf("events (-want +got):\n%s", diff)
	}
}

// forget reads the events so far and looks at none.
func (r *rig) forget() {
	r.t.Helper()
	r.events()
}

// livesFor checks that the only session or binding is there for a time without packets, and then gone.
func (r *rig) livesFor(d time.Duration) {
	r.t.Helper()
	r.wait(d - time.Second)
	if got := r.bindings(); len(got) != 1 {
		r.t.Errorf("%v after the last packet: bindings %q, want one", d-time.Second, got)
	}
	r.wait(2 * time.Second)
	if got := r.bindings(); len(got) != 0 {
		r.t.Errorf("%v after the last packet: bindings %q, want none", d+time.Second, got)
	}
	r.consistent()
}

// subtest runs part of a test on the same rig.
func (r *rig) subtest(name string, f func()) {
	whole := r.t
	defer func() { r.t = whole }()
	whole.Run(name, func(t *testing.T) {
		r.t = t
		f()
	})
}

// put changes a network.
func (r *rig) put(name string, gateway net.HardwareAddr, prefix string, filtering [3]dataplane.Behavior) {
	r.t.Helper()
	r.must("put network", func() error {
		return r.dp.PutNetwork(dataplane.Network{Name: name, IfIndex: r.ports[name], Gateway: gateway,
			Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}, Filtering: filtering})
	})
}
