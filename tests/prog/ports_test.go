// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// opened sends a first packet of a protocol and gives the external port that it got.
func (r *rig) opened(proto, internal string) int {
	r.t.Helper()
	s := UDP(internal, peer1+":3478", "x")
	switch proto {
	case "tcp":
		s = TCP(internal, peer1+":3478", "S", "")
	case "icmp":
		s = Ping(internal, peer1)
	}
	if res := r.inside(s); res.reason != "translated_outbound" {
		r.t.Fatalf("%s from %s: %s", proto, internal, res.reason)
	}
	return int(netip.MustParseAddrPort(r.externalOf(proto, internal)).Port())
}

// TestPortPreserved: where it is free, whatever the protocol.
func TestPortPreserved(t *testing.T) {
	r := newRig(t)
	for _, proto := range []string{"udp", "tcp", "icmp"} {
		for _, port := range []int{1, 53, 1023, 1024, 20000, 65535} {
			if got := r.opened(proto, fmt.Sprintf("%s:%d", c1, port)); got != port {
				t.Errorf("%s port %d became %d", proto, port, got)
			}
		}
	}
	if got := r.opened("icmp", c1+":0"); got != 0 {
		t.Errorf("ICMP identifier 0 became %d", got)
	}
	r.consistent()
}

// TestPortTaken: another one of the same class (RFC 4787 REQ-3a) and, for UDP, parity (REQ-4); at random.
func TestPortTaken(t *testing.T) {
	for _, c := range []struct {
		proto     string
		port      int
		low, high int
	}{{"udp", 500, 1, 1023}, {"udp", 501, 1, 1023}, {"tcp", 500, 1, 1023}, {"udp", 20000, 1024, 65535},
		{"udp", 20001, 1024, 65535}, {"tcp", 20001, 1024, 65535}, {"icmp", 20000, 0, 65535}} {
		t.Run(fmt.Sprintf("%s%d", c.proto, c.port), func(t *testing.T) {
			r := newRig(t)
			r.opened(c.proto, fmt.Sprintf("%s:%d", c1, c.port))
			seen := map[int]bool{c.port: true}
			for i := range 20 {
				got := r.opened(c.proto, fmt.Sprintf("172.17.1.%d:%d", i+1, c.port))
				if seen[got] || got < c.low || got > c.high {
					t.Errorf("port %d became %d: twice, or not of %d-%d", c.port, got, c.low, c.high)
				}
				if c.proto == "udp" && got%2 != c.port%2 {
					t.Errorf("port %d became %d: parity is lost", c.port, got)
				}
				seen[got] = true
			}
			// 20 random ports lie in fewer than 5 of at least 16 blocks once in 10^9 runs.
			blocks := map[int]bool{}
			for port := range seen {
				blocks[port/64] = true
			}
			if len(blocks) < 5 {
				t.Errorf("ports %v are not random", seen)
			}
			r.consistent()
		})
	}
}

// TestPortRange: the operator's range holds for ports from 1024 up, for their preservation too.
func TestPortRange(t *testing.T) {
	r := newRig(t, withPorts(30000, 30099))
	for i, port := range []int{30050, 20000, 30100, 65535, 1024} {
		got := r.opened("udp", fmt.Sprintf("172.17.1.%d:%d", i+1, port))
		if got < 30000 || got > 30099 || (port == 30050 && got != port) {
			t.Errorf("port %d became %d", port, got)
		}
	}
	if got := r.opened("udp", c1+":123"); got != 123 {
		t.Errorf("port 123 became %d", got)
	}
	if got := r.opened("icmp", c1+":5"); got != 5 {
		t.Errorf("ICMP identifier 5 became %d", got)
	}
}

// TestPortsExhausted: used to the last one (RFC 6888 REQ-13) whatever the parity, then refused and told;
// nothing that lives is taken away, and what expires is free again.
func TestPortsExhausted(t *testing.T) {
	for name, limits := range map[string][2]uint16{"OneWord": {40000, 40003}, "TwoWords": {40062, 40065}, "One": {40064, 40064}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withPorts(limits[0], limits[1]))
			all := int(limits[1]-limits[0]) + 1
			used := map[int]bool{}
			for i := range all {
				used[r.opened("udp", fmt.Sprintf("172.17.1.%d:5000", i+1))] = true
			}
			if len(used) != all {
				t.Errorf("%d bindings have ports %v", all, used)
			}
			r.forget()
			r.inside(UDP(c1+":5000", peer1+":3478", "x")).dropped("port_exhausted")
			r.wantEvents("port.exhausted udp br0 " + c1 + ":5000 " + external + ":0 " + peer1 + ":3478 x1")
			r.inside(UDP("172.17.1.1:5000", peer2+":3478", "x")) // who has a port goes on
			r.inside(TCP(c1+":5000", peer1+":3478", "S", ""))    // another protocol's ports are its own
			r.consistent()
			r.wait(301 * time.Second)
			for i := range all {
				r.opened("udp", fmt.Sprintf("172.17.2.%d:5000", i+1))
			}
			r.consistent()
		})
	}
}

// hostListens opens sockets of the host in the rig's namespace until the test ends.
func (r *rig) hostListens(addr string) {
	r.t.Helper()
	r.must("listen", func() error {
		u, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { u.Close() })
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		r.t.Cleanup(func() { l.Close() })
		return nil
	})
}

// TestHostSocketsKeepTheirPorts: a port on which the host listens, or has an unconnected UDP socket.
func TestHostSocketsKeepTheirPorts(t *testing.T) {
	for name, addr := range map[string]string{"ExternalAddress": external, "AnyAddress": "0.0.0.0"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withPorts(40000, 40003))
			r.hostListens(addr + ":40001")
			r.hostListens(addr + ":53")
			for _, proto := range []string{"udp", "tcp"} {
				if got := r.opened(proto, c1+":53"); got == 53 {
					t.Errorf("%s: the host's port 53 was taken", proto)
				}
				for i := range 3 {
					if got := r.opened(proto, fmt.Sprintf("172.17.1.%d:40001", i+1)); got == 40001 {
						t.Errorf("%s: the host's port 40001 was taken", proto)
					}
				}
			}
			r.inside(UDP(c1+":40001", peer1+":1", "x")).dropped("port_exhausted")
			r.outside(UDP(peer1+":3478", external+":40001", "x")).passed("unbound")
			r.consistent()
		})
	}
}

// TestIdentifierTaken: ICMP identifiers are mapped as ports are (RFC 5508 REQ-1a).
func TestIdentifierTaken(t *testing.T) {
	r := newRig(t)
	r.opened("icmp", c1+":7")
	r.opened("icmp", c2+":7")
	ext := r.externalOf("icmp", c2+":7")
	r.inside(Ping(c2+":7", peer2)).translated("translated_outbound", Ping(ext, peer2).Hop())
	r.in(Pong(peer2, ext), Pong(peer2, c2+":7"))
	r.in(Pong(peer1, external+":7"), Pong(peer1, c1+":7"))
}

// TestMappingOfTakenPort: endpoint-independent also where the port is not preserved.
func TestMappingOfTakenPort(t *testing.T) {
	r := newRig(t)
	r.opened("udp", c1+":5000")
	r.opened("udp", c2+":5000")
	ext := r.externalOf("udp", c2+":5000")
	for _, remote := range []string{peer1 + ":1", peer2 + ":2", peer2 + ":3"} {
		r.out(UDP(c2+":5000", remote, "data"), UDP(ext, remote, "data"))
		r.in(UDP(remote, ext, "answer"), UDP(remote, c2+":5000", "answer"))
		r.out(UDP(c2+":5000", remote, "odd"), UDP(ext, remote, "odd"))
	}
	r.wantBindings("udp br0 "+c1+":5000 "+external+":5000 1", "udp br0 "+c2+":5000 "+ext+" 4")
}

// TestTablesFull: refused and counted; what lives goes on, and what ends makes room.
func TestTablesFull(t *testing.T) {
	t.Run("Bindings", func(t *testing.T) {
		r := newRig(t, withSmallTables())
		for i := range 4 {
			r.opened("udp", fmt.Sprintf("%s:%d", c1, 5000+i))
		}
		r.inside(UDP(c1+":6000", peer1+":1", "x")).dropped("bindings_full")
		r.out(UDP(c1+":5000", peer2+":1", "x"), UDP(external+":5000", peer2+":1", "x"))
		r.consistent()
		r.wait(301 * time.Second)
		r.out(UDP(c1+":6000", peer1+":1", "x"), UDP(external+":6000", peer1+":1", "x"))
		r.consistent()
	})
	t.Run("Sessions", func(t *testing.T) {
		r := newRig(t, withSmallTables())
		for i := range 16 {
			remote := fmt.Sprintf("%s:%d", peer1, i+1)
			r.out(UDP(c1+":5000", remote, "x"), UDP(external+":5000", remote, "x"))
		}
		r.inside(UDP(c1+":5000", peer1+":99", "x")).dropped("sessions_full")
		r.inside(UDP(c1+":6000", peer1+":99", "x")).dropped("sessions_full")
		r.outside(UDP(peer1+":99", external+":5000", "x")).dropped("sessions_full")
		r.out(UDP(c1+":5000", peer1+":1", "x"), UDP(external+":5000", peer1+":1", "x"))
		r.wantBindings("udp br0 " + c1 + ":5000 " + external + ":5000 16")
		r.wait(301 * time.Second)
		r.out(UDP(c1+":6000", peer1+":99", "x"), UDP(external+":6000", peer1+":99", "x"))
		r.consistent()
	})
}

// TestQuota: sessions of one binding are bounded, so that spoofed remotes cannot fill the table.
func TestQuota(t *testing.T) {
	r := newRig(t, withFiltering(dataplane.EndpointIndependent), withSettings(func(s *dataplane.Settings) { s.SessionsPerBinding = 3 }))
	for i := range 2 {
		r.inside(UDP(c1+":5000", fmt.Sprintf("%s:%d", peer1, i+1), "x"))
	}
	r.in(UDP(peer2+":1", external+":5000", "x"), UDP(peer2+":1", c1+":5000", "x"))
	r.forget()
	r.inside(UDP(c1+":5000", peer1+":9", "x")).dropped("quota")
	r.wantEvents("quota.exceeded udp br0 " + c1 + ":5000 *")
	r.outside(UDP(peer2+":2", external+":5000", "x")).dropped("quota")
	r.out(UDP(c1+":5001", peer1+":9", "x"), UDP(external+":5001", peer1+":9", "x"))
	r.wait(301 * time.Second)
	r.out(UDP(c1+":5000", peer1+":9", "x"), UDP(external+":5000", peer1+":9", "x"))
	if got := r.bindings(); !strings.HasSuffix(got[0], ":5000 1") {
		t.Errorf("bindings %q", got)
	}
}
