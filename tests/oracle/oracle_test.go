// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
)

const (
	net1 Place = "net1"
	net2 Place = "net2"

	c1    = "172.17.0.2"
	c2    = "172.17.0.3"
	ext   = "198.51.100.1"
	peer1 = "203.0.113.1"
	peer2 = "203.0.113.2"
)

// both runs a test in both families: the model needs nothing of conenat's. What a test says is in IPv4, by tests/family.
func both(t *testing.T, test func(t *testing.T, in names)) {
	for _, f := range []family.Family{family.V4, family.V6} {
		t.Run(f.String(), func(t *testing.T) { test(t, names{f}) })
	}
}

// names are what a family's places are called.
type names struct{ family.Family }

func (in names) at(s string) netip.AddrPort { return in.Endpoint(at(s)) }

func at(s string) netip.AddrPort {
	if e, err := netip.ParseAddrPort(s); err == nil {
		return e
	}
	return netip.AddrPortFrom(netip.MustParseAddr(s), 0)
}

func (in names) config(mapping, filtering Behavior) Config {
	all := func(b Behavior) map[Protocol]Behavior { return map[Protocol]Behavior{UDP: b, TCP: b, ICMP: b} }
	network := func(prefix string) Network {
		return Network{Prefixes: []netip.Prefix{in.Prefix(netip.MustParsePrefix(prefix))}, Mapping: all(mapping), Filtering: all(filtering)}
	}
	return Config{
		Networks: map[Place]Network{net1: network("172.17.0.0/16"), net2: network("172.18.0.0/16")},
		External: []netip.Addr{in.at(ext).Addr()}, Local: []netip.Addr{in.at("172.17.0.1").Addr()},
		PortLow: 1024, PortHigh: 65535, SessionsPerBinding: 100, Sessions: 1000, Bindings: 1000,
		UDPTimeout: 300 * time.Second, TCPEstablishedTimeout: 7440 * time.Second, TCPPartialOpenTimeout: 240 * time.Second,
		TCPClosingTimeout: 240 * time.Second, ICMPTimeout: 60 * time.Second,
	}
}

// script runs lines on a NAT: "net1 udp datagram SRC DST", "out …" from outside, "host …", "stack:net1 …" after the host's routing, "wait 5m"; what comes of each
// is "REASON SRC DST", or the reason alone. A choice takes the lowest port that is allowed.
func (in names) script(t *testing.T, n *NAT, lines ...string) (got []string) {
	t.Helper()
	for _, line := range in.Texts(lines...) {
		f := strings.Fields(line)
		if f[0] == "wait" {
			d, err := time.ParseDuration(f[1])
			if err != nil {
				t.Fatal(err)
			}
			n.Wait(d)
			continue
		}
		p := Packet{Protocol: Protocol(f[1]), Kind: Kind(f[2]), Src: at(f[3]), Dst: at(f[4]), TTL: 64}
		if p.Kind == Error {
			p.About = &Packet{Protocol: Protocol(f[5]), Src: at(f[6]), Dst: at(f[7])}
		}
		got = append(got, step(t, n, f[0], p))
	}
	return got
}

func step(t *testing.T, n *NAT, place string, p Packet) string {
	t.Helper()
	var r Result
	switch place {
	case "out":
		r = n.FromOutside(p)
	case "host":
		r = n.FromHost(p)
	case "stack:" + string(net1): // routed by the host
		r = n.FromStack(net1, p)
	default:
		r = n.FromInside(Place(place), p)
	}
	if r.Choice != nil {
		port, _ := r.Choice.Lowest()
		if err := r.Choice.Chose(port); err != nil {
			t.Fatal(err)
		}
	}
	if !r.Reason.Translated() {
		return string(r.Reason)
	}
	p = r.Translated()
	out := strings.TrimPrefix(string(r.Reason), "translated_") + " " + p.Src.String() + " " + p.Dst.String()
	if p.About != nil {
		out += " about " + p.About.Src.String() + " " + p.About.Dst.String()
	}
	return out
}

// TestScripts holds the model to what the RFCs say, by hand.
func TestScripts(t *testing.T) { both(t, testScripts) }

func testScripts(t *testing.T, in names) {
	const first, second = "net1 udp datagram 172.17.0.2:5000 203.0.113.1:9", "net1 udp datagram 172.17.0.2:5000 203.0.113.2:9"
	for _, test := range []struct {
		name      string
		mapping   Behavior
		filtering Behavior
		lines     []string
		want      []string
	}{
		{"RFC 4787 REQ-1: one external endpoint for all", EndpointIndependent, AddressDependent, []string{first, second},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "outbound 198.51.100.1:5000 203.0.113.2:9"}},
		{"address-dependent mapping", AddressDependent, AddressDependent,
			[]string{first, second, "net1 udp datagram 172.17.0.2:5000 203.0.113.2:10"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "outbound 198.51.100.1:1024 203.0.113.2:9",
				"outbound 198.51.100.1:1024 203.0.113.2:10"}},
		{"address-and-port-dependent mapping", AddressAndPortDependent, AddressDependent,
			[]string{first, "net1 udp datagram 172.17.0.2:5000 203.0.113.1:10"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "outbound 198.51.100.1:1024 203.0.113.1:10"}},
		{"endpoint-independent filtering", EndpointIndependent, EndpointIndependent,
			[]string{first, "out udp datagram 203.0.113.2:7 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "inbound 203.0.113.2:7 172.17.0.2:5000"}},
		{"address-dependent filtering", EndpointIndependent, AddressDependent,
			[]string{first, "out udp datagram 203.0.113.1:7 198.51.100.1:5000", "out udp datagram 203.0.113.2:9 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "inbound 203.0.113.1:7 172.17.0.2:5000", "dropped_filtered"}},
		{"address-and-port-dependent filtering", EndpointIndependent, AddressAndPortDependent,
			[]string{first, "out udp datagram 203.0.113.1:7 198.51.100.1:5000", "out udp datagram 203.0.113.1:9 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "dropped_filtered", "inbound 203.0.113.1:9 172.17.0.2:5000"}},
		{"Figure 3: what came too early changes nothing", EndpointIndependent, AddressDependent,
			[]string{first, "out udp datagram 203.0.113.2:9 198.51.100.1:5000", second},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "dropped_filtered", "outbound 198.51.100.1:5000 203.0.113.2:9"}},
		{"REQ-3 no overloading, REQ-3a class, REQ-4 parity", EndpointIndependent, AddressDependent,
			[]string{"net1 udp datagram 172.17.0.2:501 203.0.113.1:9", "net1 udp datagram 172.17.0.3:501 203.0.113.1:9", "net1 udp datagram 172.17.0.4:501 203.0.113.1:9"},
			[]string{"outbound 198.51.100.1:501 203.0.113.1:9", "outbound 198.51.100.1:1 203.0.113.1:9", "outbound 198.51.100.1:3 203.0.113.1:9"}},
		{"REQ-5, REQ-6: idle for 5 minutes, and refreshed in between", EndpointIndependent, AddressDependent,
			[]string{first, "wait 299s", first, "wait 300s", "out udp datagram 203.0.113.1:9 198.51.100.1:5000", "wait 301s", "out udp datagram 203.0.113.1:9 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "outbound 198.51.100.1:5000 203.0.113.1:9", "inbound 203.0.113.1:9 172.17.0.2:5000", "passed_unbound"}},
		{"RFC 7857 section 7: inbound does not refresh a full cone", EndpointIndependent, EndpointIndependent,
			[]string{first, "wait 200s", "out udp datagram 203.0.113.2:1 198.51.100.1:5000", "wait 101s", "out udp datagram 203.0.113.2:1 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "inbound 203.0.113.2:1 172.17.0.2:5000", "passed_unbound"}},
		{"REQ-9: hairpin from the external endpoint", EndpointIndependent, AddressDependent,
			[]string{first, "net1 udp datagram 172.17.0.3:6000 198.51.100.1:5000", "net1 udp datagram 172.17.0.2:5000 198.51.100.1:6000", "net2 udp datagram 172.18.0.2:1 198.51.100.1:5000"},
			[]string{"outbound 198.51.100.1:5000 203.0.113.1:9", "hairpin 198.51.100.1:6000 172.17.0.2:5000", "hairpin 198.51.100.1:5000 172.17.0.3:6000", "dropped_isolated"}},
		{"RFC 5508 REQ-1, REQ-2, REQ-4, REQ-5", EndpointIndependent, AddressDependent,
			[]string{"net1 icmp query 172.17.0.2:7 203.0.113.1", "out icmp reply 203.0.113.1 198.51.100.1:7", first,
				"out icmp error 192.0.2.9 198.51.100.1 udp 198.51.100.1:5000 203.0.113.1:9", "net1 icmp error 172.17.0.2 203.0.113.1 udp 203.0.113.1:9 172.17.0.2:5000",
				"out icmp error 192.0.2.9 198.51.100.1 udp 198.51.100.1:5001 203.0.113.1:9", "wait 61s", "out icmp reply 203.0.113.1 198.51.100.1:7"},
			[]string{"outbound 198.51.100.1:7 203.0.113.1:0", "inbound 203.0.113.1:0 172.17.0.2:7", "outbound 198.51.100.1:5000 203.0.113.1:9",
				"icmp_error 192.0.2.9:0 172.17.0.2:0 about 172.17.0.2:5000 203.0.113.1:9", "icmp_error 198.51.100.1:0 203.0.113.1:0 about 203.0.113.1:9 198.51.100.1:5000", "passed_unbound", "passed_unbound"}},
		{"RFC 5382: SYN from outside", EndpointIndependent, AddressDependent,
			[]string{"net1 tcp syn 172.17.0.2:80 203.0.113.1:9", "out tcp syn 203.0.113.1:7 198.51.100.1:80", "out tcp segment 203.0.113.1:8 198.51.100.1:80", "out tcp syn 203.0.113.2:7 198.51.100.1:80"},
			[]string{"outbound 198.51.100.1:80 203.0.113.1:9", "inbound 203.0.113.1:7 172.17.0.2:80", "dropped_tcp_no_session", "dropped_filtered"}},
		{"the host's port is the host's, a binding's the binding's", EndpointIndependent, AddressDependent,
			[]string{"host udp datagram 198.51.100.1:6000 203.0.113.1:9", "net1 udp datagram 172.17.0.2:6000 203.0.113.1:9", first, "host udp datagram 198.51.100.1:5000 203.0.113.1:9", "out udp datagram 203.0.113.2:9 198.51.100.1:6000"},
			[]string{"passed_host", "outbound 198.51.100.1:1024 203.0.113.1:9", "outbound 198.51.100.1:5000 203.0.113.1:9", "host 198.51.100.1:1026 203.0.113.1:9", "passed_host"}},
		{"not the NAT's", EndpointIndependent, AddressDependent,
			[]string{"net1 udp datagram 172.17.0.2:1 172.17.0.1:53", "net1 udp datagram 172.17.0.2:1 172.18.0.2:53", "net1 udp datagram 172.17.0.2:1 224.0.0.251:5353", "net1 udp datagram 10.0.0.1:1 203.0.113.1:53"},
			[]string{"passed_local", "passed_not_outside", "passed_local", "dropped_spoofed"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := New(in.config(test.mapping, test.filtering))
			if diff := cmp.Diff(in.Texts(test.want...), in.script(t, n, test.lines...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestTCPStates walks through RFC 6146 section 3.5.2.2: i and o are segments from inside and outside.
func TestTCPStates(t *testing.T) { both(t, testTCPStates) }

func testTCPStates(t *testing.T, in names) {
	for _, test := range []struct{ segments, want string }{
		{"i:syn", "init-inside"},
		{"i:syn o:syn-ack", "established"},
		{"i:syn o:syn", "established"}, // simultaneous open
		{"i:syn o:syn-ack i:fin", "fin-inside"},
		{"i:syn o:syn-ack o:fin", "fin-outside"},
		{"i:syn o:syn-ack o:fin i:segment i:fin", "fin-both"},
		{"i:syn o:rst", "trans"},
		{"i:syn o:syn-ack o:rst i:segment", "established"},
		{"i:syn o:syn-ack o:rst o:segment", "established"},
		{"i:syn o:syn-ack i:fin o:fin i:rst", "fin-both"},
		{"i:syn o:syn-ack i:fin o:fin i:syn", "init-inside"}, // the endpoints are used again
		{"i:syn o:syn-ack o:rst i:syn", "init-inside"},
		{"i:syn o:syn-ack i:fin o:fin i:syn o:syn-ack", "established"},
		{"i:segment o:segment", "established"}, // picked up in its middle
	} {
		n := New(in.config(EndpointIndependent, AddressDependent))
		for _, s := range strings.Fields(test.segments) {
			side, kind, _ := strings.Cut(s, ":")
			if side == "i" {
				in.script(t, n, "net1 tcp "+kind+" 172.17.0.2:80 203.0.113.1:9")
			} else {
				in.script(t, n, "out tcp "+kind+" 203.0.113.1:9 198.51.100.1:80")
			}
		}
		if got := n.Sessions()[0].State(); len(n.Sessions()) != 1 || got != test.want {
			t.Errorf("%s: state %s, want %s", test.segments, got, test.want)
		}
	}
}

// TestLimits: what is over a limit is refused, and nothing that lives is touched.
func TestLimits(t *testing.T) { both(t, testLimits) }

func testLimits(t *testing.T, in names) {
	c := in.config(EndpointIndependent, AddressDependent)
	c.PortLow, c.PortHigh, c.SessionsPerBinding, c.Sessions, c.Bindings = 2000, 2001, 2, 4, 3
	n := New(c)
	got := in.script(t, n,
		"net1 udp datagram 172.17.0.2:2000 203.0.113.1:1", "net1 udp datagram 172.17.0.2:2000 203.0.113.1:2",
		"net1 udp datagram 172.17.0.2:2000 203.0.113.1:3", "net1 udp datagram 172.17.0.3:2000 203.0.113.1:1",
		"net1 udp datagram 172.17.0.4:2000 203.0.113.1:1", "net1 tcp syn 172.17.0.2:2000 203.0.113.1:1",
		"net1 tcp syn 172.17.0.2:2000 203.0.113.1:2", "net1 icmp query 172.17.0.2:1 203.0.113.1",
		"out udp datagram 203.0.113.1:9 198.51.100.1:2000")
	want := []string{"outbound 198.51.100.1:2000 203.0.113.1:1", "outbound 198.51.100.1:2000 203.0.113.1:2",
		"dropped_quota", "outbound 198.51.100.1:2001 203.0.113.1:1", "dropped_port_exhausted", "outbound 198.51.100.1:2000 203.0.113.1:1",
		"dropped_sessions_full", "dropped_bindings_full", "dropped_quota"}
	if diff := cmp.Diff(in.Texts(want...), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(n.Bindings()) != 3 || len(n.Sessions()) != 4 {
		t.Errorf("%d bindings and %d sessions, want 3 and 4", len(n.Bindings()), len(n.Sessions()))
	}
}

// TestForward: a static binding is there before any packet, is not filtered, and does not expire.
func TestForward(t *testing.T) { both(t, testForward) }

func testForward(t *testing.T, in names) {
	n := New(in.config(EndpointIndependent, AddressAndPortDependent))
	if !n.Forward(net1, TCP, in.at(ext+":8080"), in.at(c1+":80"), false) || n.Forward(net1, TCP, in.at(ext+":8080"), in.at(c2+":80"), false) {
		t.Error("the first forward has to be taken, the second refused")
	}
	got := in.script(t, n, "out tcp syn 203.0.113.2:5 198.51.100.1:8080", "wait 8000s", "net2 tcp syn 172.18.0.2:5 198.51.100.1:8080",
		"net1 tcp syn 172.17.0.2:80 203.0.113.1:443")
	want := []string{"inbound 203.0.113.2:5 172.17.0.2:80", "hairpin 198.51.100.1:5 172.17.0.2:80", "outbound 198.51.100.1:8080 203.0.113.1:443"}
	if diff := cmp.Diff(in.Texts(want...), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestChoice: a port that is not allowed is refused.
func TestChoice(t *testing.T) { both(t, testChoice) }

func testChoice(t *testing.T, in names) {
	n := New(in.config(EndpointIndependent, AddressDependent))
	in.script(t, n, "net1 udp datagram 172.17.0.2:5000 203.0.113.1:9")
	r := n.FromInside(net1, Packet{Protocol: UDP, Kind: Datagram, Src: in.at(c2 + ":5000"), Dst: in.at(peer1 + ":9"), TTL: 64})
	if r.Choice == nil {
		t.Fatal("no choice: the port is taken")
	}
	for _, port := range []uint16{5000, 5001, 1023, 80} {
		if r.Choice.Chose(port) == nil {
			t.Errorf("port %d was taken", port)
		}
	}
	if err := r.Choice.Chose(7000); err != nil {
		t.Error(err)
	}
	if got := r.Translated().Src; got != in.at(ext+":7000") {
		t.Errorf("translated from %s", got)
	}
}
