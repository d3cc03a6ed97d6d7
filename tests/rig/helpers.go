// SPDX-License-Identifier: Apache-2.0

package rig

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
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/patience"
)

// From sends a packet of a container through another hook than p1's: "p2", "q1" or a bridge device.
func (r *Rig) From(dev string, s packets.Spec) result {
	r.T.Helper()
	return r.Send(r.DP.Objects().NatInside, dev, r.Frame(r.fromHost(dev, s)), nil)
}

// fromHost is FromContainer of one by another hook than p1's.
func (r *Rig) fromHost(dev string, s packets.Spec) packets.Spec {
	if s.DstMAC == nil && (dev == "q1" || dev == "br1") {
		s.DstMAC = Bridge2
	}
	s = FromContainer(s)
	if dev == "p2" {
		s.SrcMAC = C2MAC
	}
	return s
}

// Out and in send a packet that must be translated there and back, and nothing else changed but the TTL.
func (r *Rig) Out(in, want packets.Spec) {
	r.T.Helper()
	r.Inside(in).Translated("translated_outbound", want.Hop())
}

func (r *Rig) In(in, want packets.Spec) {
	r.T.Helper()
	r.Outside(in).Translated("translated_inbound", want.Hop())
}

// Run is send without any check, for many packets.
func (r *Rig) Run(program *ebpf.Program, dev string, frame []byte) (verdict uint32, err error) {
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: SKB{Ifindex: uint32(r.Ports[dev])}}
	return program.Run(&opts)
}

// Count is a counter's value.
func (r *Rig) Count(name string) uint64 {
	r.T.Helper()
	for _, c := range r.counters() {
		if c.Name == name {
			return c.Packets
		}
	}
	r.T.Fatalf("no counter %s", name)
	return 0
}

// Events are those that were not read yet. A packet's are in the ring when its program has run.
func (r *Rig) Events() (out []dataplane.Event) {
	r.T.Helper()
	for r.ring.AvailableBytes() > 0 {
		out = append(out, r.event())
		if out[len(out)-1].Type == dataplane.EventsLost { // it was told before an event that is read already
			out = append(out, r.event())
		}
	}
	return out
}

// event reads one that is there.
func (r *Rig) event() dataplane.Event {
	r.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience.For(10*time.Second))
	defer cancel()
	e, err := r.DP.ReadEvent(ctx)
	if err != nil {
		r.T.Fatalf("read event: %v", err)
	}
	return e
}

// EventLine is an event in one line: type, protocol, network, endpoints and what else the type has.
func EventLine(e dataplane.Event) string {
	line := fmt.Sprintf("%s %s %s %s %s", e.Type, e.Protocol, e.Network, e.Internal, e.External)
	switch e.Type {
	case dataplane.EventsLost:
		return fmt.Sprintf("%s %d", e.Type, e.Count)
	case dataplane.BlockAllocated, dataplane.BlockReleased:
		return fmt.Sprintf("%s %s %s %s-%d", e.Type, e.Network, e.Internal.Addr(), e.External, e.Last)
	case dataplane.BindingCreated, dataplane.BindingChanged, dataplane.BindingExpired:
		if e.Remote.IsValid() {
			line += " towards " + e.Remote.String()
		}
	case dataplane.SessionState:
		line += fmt.Sprintf(" %s %s->%s %ds", e.Remote, e.OldState, e.State, e.Lifetime/time.Second)
	case dataplane.SessionCreated, dataplane.SessionClosed:
		line += fmt.Sprintf(" %s %s", e.Remote, e.State)
	case dataplane.InboundFiltered, dataplane.PortExhausted, dataplane.QuotaExceeded:
		line += fmt.Sprintf(" %s x%d", e.Remote, e.Count)
	}
	if e.Limit != "" {
		line += " " + e.Limit
	}
	if e.Static {
		line += " static"
	}
	if e.Hairpin {
		line += " hairpin"
	}
	return line
}

// WantEvents checks the unread events; a want that ends in "*" is a prefix.
func (r *Rig) WantEvents(want ...string) {
	r.T.Helper()
	want = r.texts(want)
	var got []string
	for i, e := range r.Events() {
		line := EventLine(e)
		if i < len(want) && strings.HasSuffix(want[i], "*") && strings.HasPrefix(line, strings.TrimSuffix(want[i], "*")) {
			line = want[i]
		}
		got = append(got, line)
	}
	if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		r.T.Errorf("events (-want +got):\n%s", diff)
	}
}

// Forget reads the events so far and looks at none.
func (r *Rig) Forget() {
	r.T.Helper()
	r.Events()
}

// LivesFor checks that the only session or binding is there for a time without packets, and then gone.
func (r *Rig) LivesFor(d time.Duration) {
	r.T.Helper()
	r.Wait(d - time.Second)
	if got := r.Bindings(); len(got) != 1 {
		r.T.Errorf("%v after the last packet: bindings %q, want one", d-time.Second, got)
	}
	r.Wait(2 * time.Second)
	if got := r.Bindings(); len(got) != 0 {
		r.T.Errorf("%v after the last packet: bindings %q, want none", d+time.Second, got)
	}
	r.Consistent()
}

// Subtest runs part of a test on the same rig.
func (r *Rig) Subtest(name string, f func()) {
	whole := r.T
	defer func() { r.T = whole }()
	whole.(*testing.T).Run(name, func(t *testing.T) {
		r.T = t
		f()
	})
}

// Behave changes what both networks do, while what there is lives on.
func (r *Rig) Behave(mapping, filtering dataplane.Behavior) {
	r.T.Helper()
	r.Must("put networks", func() error { return r.putNetworks(mapping, filtering, func(*dataplane.Network) {}) })
}

// Put changes a network.
func (r *Rig) Put(name string, gateway net.HardwareAddr, prefix string, filtering [3]dataplane.Behavior) {
	r.T.Helper()
	r.Must("put network", func() error {
		return r.DP.PutNetwork(dataplane.Network{Name: name, IfIndex: r.Ports[name], Gateway: gateway,
			Prefixes: []netip.Prefix{r.Family.Prefix(netip.MustParsePrefix(prefix))}, Filtering: filtering})
	})
}
