// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

var compareTakeover = cmp.Options{cmp.AllowUnexported(takeover{}, reservation{}), cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}

func endpoint(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// masqueraded is a connection as conntrack has it: what opened it, to whom, and as what.
func masqueraded(p dataplane.Protocol, internal, remote, external string) conntrack.Flow {
	f := conntrack.Flow{Protocol: p, SourceNAT: true, SeenReply: true,
		Original: conntrack.Tuple{Src: endpoint(internal), Dst: endpoint(remote)}, Reply: conntrack.Tuple{Src: endpoint(remote), Dst: endpoint(external)}}
	if p == dataplane.TCP {
		f.TCPState = 3
	}
	return f
}

// forwarded is a connection of a client outside to a port that is DNATed.
func forwarded(p dataplane.Protocol, client, external, internal string) conntrack.Flow {
	f := conntrack.Flow{Protocol: p, DestinationNAT: true, SeenReply: true,
		Original: conntrack.Tuple{Src: endpoint(client), Dst: endpoint(external)}, Reply: conntrack.Tuple{Src: endpoint(internal), Dst: endpoint(client)}}
	if p == dataplane.TCP {
		f.TCPState = 3
	}
	return f
}

func session(p dataplane.Protocol, internal, external, remote, state string) dataplane.Session {
	return dataplane.Session{Protocol: p, Network: "docker0", Internal: endpoint(internal), External: endpoint(external), Remote: endpoint(remote), State: state}
}

// takeoverState is docker0 with an excluded container, and one that publishes 8080 as its 80.
func takeoverState() plan.State {
	return plan.State{
		Networks: []dataplane.Network{{Name: "docker0", Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}}},
		Outsides: []dataplane.Outside{{Name: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}},
		Owners:   []dataplane.Owner{{Network: "docker0", Address: netip.MustParseAddr("172.17.0.9"), Excluded: true}},
		Forwards: []dataplane.Forward{{Protocol: dataplane.TCP, Network: "docker0", External: endpoint("198.51.100.1:8080"), Internal: endpoint("172.17.0.2:80")}},
	}
}

const (
	opener, peer = "172.17.0.2:1000", "203.0.113.1:80"
	kept, other  = "198.51.100.1:1000", "198.51.100.1:2000"
)

// TestSortFlows: whose a connection is.
func TestSortFlows(t *testing.T) {
	hosts := masqueraded(dataplane.TCP, kept, peer, kept)
	hosts.SourceNAT = false
	hairpin := forwarded(dataplane.TCP, "172.17.0.3:5000", "198.51.100.1:8080", "172.17.0.2:80")
	hairpin.SourceNAT, hairpin.Reply.Dst = true, endpoint("172.17.0.1:5000")
	proxied := forwarded(dataplane.TCP, peer, "198.51.100.1:8080", "172.17.0.2:80")
	proxied.SourceNAT, proxied.Reply.Dst = true, endpoint("172.17.0.1:5000")
	ours := func(s ...dataplane.Session) takeover { return takeover{sessions: s} }
	tests := []struct {
		name string
		flow conntrack.Flow
		want takeover
	}{
		{"tcp", masqueraded(dataplane.TCP, opener, peer, kept), ours(session(dataplane.TCP, opener, kept, peer, "established"))},
		{"udp_on_another_port", masqueraded(dataplane.UDP, opener, peer, other), ours(session(dataplane.UDP, opener, other, peer, "active"))},
		{"published", forwarded(dataplane.TCP, peer, "198.51.100.1:8080", "172.17.0.2:80"),
			ours(session(dataplane.TCP, "172.17.0.2:80", "198.51.100.1:8080", peer, "established"))},
		{"published_elsewhere_by_now", forwarded(dataplane.TCP, peer, "198.51.100.1:8080", "172.17.0.3:80"), takeover{}},
		{"published_udp_is_not", forwarded(dataplane.UDP, peer, "198.51.100.1:8080", "172.17.0.2:80"), takeover{}},
		{"published_with_the_source_changed", proxied, takeover{}},
		{"hairpin", hairpin, takeover{}},
		{"another_bridge", masqueraded(dataplane.UDP, "192.168.122.2:1000", peer, other),
			takeover{others: []reservation{{dataplane.UDP, endpoint(other), true}}}},
		{"excluded_container", masqueraded(dataplane.TCP, "172.17.0.9:1000", peer, other),
			takeover{others: []reservation{{dataplane.TCP, endpoint(other), true}}}},
		{"another_address", masqueraded(dataplane.TCP, opener, peer, "192.0.2.1:1000"), takeover{}},
		{"hosts", hosts, takeover{}},
		{"to_the_host", masqueraded(dataplane.TCP, opener, "198.51.100.1:80", kept), takeover{}},
		{"to_a_neighbour", masqueraded(dataplane.TCP, opener, "172.17.0.3:80", kept), takeover{}},
		{"to_loopback", masqueraded(dataplane.TCP, opener, "127.0.0.1:80", kept), takeover{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := sortFlows([]conntrack.Flow{tt.flow}, takeoverState(), hostnet.Snapshot{})
			if len(got.flows) != len(got.sessions) || (len(got.flows) == 1 && got.flows[0] != tt.flow) {
				t.Errorf("flows %+v of sessions %+v", got.flows, got.sessions)
			}
			got.flows = nil
			if diff := cmp.Diff(tt.want, got, compareTakeover); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestSortFlowsStates: RFC 6146's state for each of netfilter's; what has ended is nobody's.
func TestSortFlowsStates(t *testing.T) {
	tests := map[uint8][2]string{ // opened from inside, from outside
		0: {"", ""}, 1: {"init-inside", "init-outside"}, 2: {"established", "established"}, 3: {"established", "established"},
		4: {"established", "established"}, 5: {"established", "established"}, 6: {"fin-both", "fin-both"}, 7: {"fin-both", "fin-both"}, 8: {"", ""},
	}
	for state, want := range tests {
		flows := []conntrack.Flow{masqueraded(dataplane.TCP, opener, peer, kept), forwarded(dataplane.TCP, peer, "198.51.100.1:8080", "172.17.0.2:80")}
		for i, f := range flows {
			f.TCPState = state
			got := ""
			if out := sortFlows([]conntrack.Flow{f}, takeoverState(), hostnet.Snapshot{}); len(out.sessions) == 1 {
				got = out.sessions[0].State
			}
			if got != want[i] {
				t.Errorf("conntrack's state %d of flow %d is %q, want %q", state, i, got, want[i])
			}
		}
	}
}

// TestSortFlowsPreservedFirst: of an endpoint with several mappings, the one that keeps its port comes first and is the
// binding; else the order stays.
func TestSortFlowsPreservedFirst(t *testing.T) {
	flows := []conntrack.Flow{
		masqueraded(dataplane.UDP, opener, "203.0.113.1:1", other),
		masqueraded(dataplane.UDP, opener, "203.0.113.1:2", kept),
		masqueraded(dataplane.UDP, opener, "203.0.113.1:3", other),
		masqueraded(dataplane.UDP, opener, "203.0.113.1:4", kept),
	}
	var got []uint16
	for _, s := range sortFlows(flows, takeoverState(), hostnet.Snapshot{}).sessions {
		got = append(got, s.Remote.Port())
	}
	if diff := cmp.Diff([]uint16{2, 4, 1, 3}, got); diff != "" {
		t.Error(diff)
	}
}
