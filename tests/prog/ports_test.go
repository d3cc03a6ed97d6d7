// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestPortPreserved: where it is free, whatever the protocol.
func TestPortPreserved(t *testing.T) { family.Each(t, testPortPreserved) }

func testPortPreserved(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for _, proto := range []string{"udp", "tcp", "icmp"} {
		for _, port := range []int{1, 53, 1023, 1024, 20000, 65535} {
			if got := r.Opened(proto, fmt.Sprintf("%s:%d", rig.C1, port)); got != port {
				t.Errorf("%s port %d became %d", proto, port, got)
			}
		}
	}
	if got := r.Opened("icmp", rig.C1+":0"); got != 0 {
		t.Errorf("ICMP identifier 0 became %d", got)
	}
	r.Consistent()
}

// TestPortTaken: another one of the same class (RFC 4787 REQ-3a) and, for UDP, parity (REQ-4); at random.
func TestPortTaken(t *testing.T) { family.Each(t, testPortTaken) }

func testPortTaken(t *testing.T, fam family.Family) {
	for _, c := range []struct {
		proto     string
		port      int
		low, high int
	}{{"udp", 500, 1, 1023}, {"udp", 501, 1, 1023}, {"tcp", 500, 1, 1023}, {"udp", 20000, 1024, 65535},
		{"udp", 20001, 1024, 65535}, {"tcp", 20001, 1024, 65535}, {"icmp", 20000, 0, 65535}} {
		t.Run(fmt.Sprintf("%s%d", c.proto, c.port), func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Opened(c.proto, fmt.Sprintf("%s:%d", rig.C1, c.port))
			seen := map[int]bool{c.port: true}
			for i := range 20 {
				got := r.Opened(c.proto, fmt.Sprintf("172.17.1.%d:%d", i+1, c.port))
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
			r.Consistent()
		})
	}
}

// TestPortRange: the operator's range holds for ports from 1024 up, for their preservation too.
func TestPortRange(t *testing.T) { family.Each(t, testPortRange) }

func testPortRange(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithPorts(30000, 30099))
	for i, port := range []int{30050, 20000, 30100, 65535, 1024} {
		got := r.Opened("udp", fmt.Sprintf("172.17.1.%d:%d", i+1, port))
		if got < 30000 || got > 30099 || (port == 30050 && got != port) {
			t.Errorf("port %d became %d", port, got)
		}
	}
	if got := r.Opened("udp", rig.C1+":123"); got != 123 {
		t.Errorf("port 123 became %d", got)
	}
	if got := r.Opened("icmp", rig.C1+":5"); got != 5 {
		t.Errorf("ICMP identifier 5 became %d", got)
	}
}

// TestPortsExhausted: used to the last one (RFC 6888 REQ-13) whatever the parity, then refused and told;
// nothing that lives is taken away, and what expires is free again.
func TestPortsExhausted(t *testing.T) { family.Each(t, testPortsExhausted) }

func testPortsExhausted(t *testing.T, fam family.Family) {
	for name, limits := range map[string][2]uint16{"OneWord": {40000, 40003}, "TwoWords": {40062, 40065}, "One": {40064, 40064}} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithPorts(limits[0], limits[1]))
			all := int(limits[1]-limits[0]) + 1
			used := map[int]bool{}
			for i := range all {
				used[r.Opened("udp", fmt.Sprintf("172.17.1.%d:5000", i+1))] = true
			}
			if len(used) != all {
				t.Errorf("%d bindings have ports %v", all, used)
			}
			r.Forget()
			r.Inside(UDP(rig.C1+":5000", rig.Peer1+":3478", "x")).Dropped("port_exhausted")
			r.WantEvents("port.exhausted udp br0 " + rig.C1 + ":5000 " + rig.External + ":0 " + rig.Peer1 + ":3478 x1")
			r.Inside(UDP("172.17.1.1:5000", rig.Peer2+":3478", "x"))  // who has a port goes on
			r.Inside(TCP(rig.C1+":5000", rig.Peer1+":3478", "S", "")) // another protocol's ports are its own
			r.Consistent()
			r.Wait(301 * time.Second)
			for i := range all {
				r.Opened("udp", fmt.Sprintf("172.17.2.%d:5000", i+1))
			}
			r.Consistent()
		})
	}
}

// TestHostSocketsKeepTheirPorts: a port on which the host listens, or has an unconnected UDP socket.
func TestHostSocketsKeepTheirPorts(t *testing.T) { family.Each(t, testHostSocketsKeepTheirPorts) }

func testHostSocketsKeepTheirPorts(t *testing.T, fam family.Family) {
	for name, addr := range map[string]string{"ExternalAddress": rig.External, "AnyAddress": "0.0.0.0"} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithPorts(40000, 40003))
			r.HostListens(addr + ":40001")
			r.HostListens(addr + ":53")
			for _, proto := range []string{"udp", "tcp"} {
				if got := r.Opened(proto, rig.C1+":53"); got == 53 {
					t.Errorf("%s: the host's port 53 was taken", proto)
				}
				for i := range 3 {
					if got := r.Opened(proto, fmt.Sprintf("172.17.1.%d:40001", i+1)); got == 40001 {
						t.Errorf("%s: the host's port 40001 was taken", proto)
					}
				}
			}
			r.Inside(UDP(rig.C1+":40001", rig.Peer1+":1", "x")).Dropped("port_exhausted")
			r.Outside(UDP(rig.Peer1+":3478", rig.External+":40001", "x")).Passed("unbound")
			r.Consistent()
		})
	}
}

// TestIdentifierTaken: ICMP identifiers are mapped as ports are (RFC 5508 REQ-1a).
func TestIdentifierTaken(t *testing.T) { family.Each(t, testIdentifierTaken) }

func testIdentifierTaken(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Opened("icmp", rig.C1+":7")
	r.Opened("icmp", rig.C2+":7")
	ext := r.ExternalOf("icmp", rig.C2+":7")
	r.Inside(Ping(rig.C2+":7", rig.Peer2)).Translated("translated_outbound", Ping(ext, rig.Peer2).Hop())
	r.In(Pong(rig.Peer2, ext), Pong(rig.Peer2, rig.C2+":7"))
	r.In(Pong(rig.Peer1, rig.External+":7"), Pong(rig.Peer1, rig.C1+":7"))
}

// TestMappingOfTakenPort: endpoint-independent also where the port is not preserved.
func TestMappingOfTakenPort(t *testing.T) { family.Each(t, testMappingOfTakenPort) }

func testMappingOfTakenPort(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Opened("udp", rig.C1+":5000")
	r.Opened("udp", rig.C2+":5000")
	ext := r.ExternalOf("udp", rig.C2+":5000")
	for _, remote := range []string{rig.Peer1 + ":1", rig.Peer2 + ":2", rig.Peer2 + ":3"} {
		r.Out(UDP(rig.C2+":5000", remote, "data"), UDP(ext, remote, "data"))
		r.In(UDP(remote, ext, "answer"), UDP(remote, rig.C2+":5000", "answer"))
		r.Out(UDP(rig.C2+":5000", remote, "odd"), UDP(ext, remote, "odd"))
	}
	r.WantBindings("udp br0 "+rig.C1+":5000 "+rig.External+":5000 1", "udp br0 "+rig.C2+":5000 "+ext+" 4")
}

// TestTablesFull: refused and counted; what lives goes on, and what ends makes room.
func TestTablesFull(t *testing.T) { family.Each(t, testTablesFull) }

func testTablesFull(t *testing.T, fam family.Family) {
	t.Run("Bindings", func(t *testing.T) {
		r := rig.New(t, rig.In(fam), rig.WithSmallTables())
		for i := range 4 {
			r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, 5000+i))
		}
		r.Inside(UDP(rig.C1+":6000", rig.Peer1+":1", "x")).Dropped("bindings_full")
		r.Out(UDP(rig.C1+":5000", rig.Peer2+":1", "x"), UDP(rig.External+":5000", rig.Peer2+":1", "x"))
		r.Consistent()
		r.Wait(301 * time.Second)
		r.Out(UDP(rig.C1+":6000", rig.Peer1+":1", "x"), UDP(rig.External+":6000", rig.Peer1+":1", "x"))
		r.Consistent()
	})
	t.Run("Sessions", func(t *testing.T) {
		r := rig.New(t, rig.In(fam), rig.WithSmallTables())
		for i := range 16 {
			remote := fmt.Sprintf("%s:%d", rig.Peer1, i+1)
			r.Out(UDP(rig.C1+":5000", remote, "x"), UDP(rig.External+":5000", remote, "x"))
		}
		r.Inside(UDP(rig.C1+":5000", rig.Peer1+":99", "x")).Dropped("sessions_full")
		r.Inside(UDP(rig.C1+":6000", rig.Peer1+":99", "x")).Dropped("sessions_full")
		r.Outside(UDP(rig.Peer1+":99", rig.External+":5000", "x")).Dropped("sessions_full")
		r.Out(UDP(rig.C1+":5000", rig.Peer1+":1", "x"), UDP(rig.External+":5000", rig.Peer1+":1", "x"))
		r.WantBindings("udp br0 " + rig.C1 + ":5000 " + rig.External + ":5000 16")
		r.Wait(301 * time.Second)
		r.Out(UDP(rig.C1+":6000", rig.Peer1+":99", "x"), UDP(rig.External+":6000", rig.Peer1+":99", "x"))
		r.Consistent()
	})
}

// TestQuota: sessions of one binding are bounded, so that spoofed remotes cannot fill the table.
func TestQuota(t *testing.T) { family.Each(t, testQuota) }

func testQuota(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent), rig.WithSettings(func(s *dataplane.Settings) { s.SessionsPerBinding = 3 }))
	for i := range 2 {
		r.Inside(UDP(rig.C1+":5000", fmt.Sprintf("%s:%d", rig.Peer1, i+1), "x"))
	}
	r.In(UDP(rig.Peer2+":1", rig.External+":5000", "x"), UDP(rig.Peer2+":1", rig.C1+":5000", "x"))
	r.Forget()
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":9", "x")).Dropped("quota")
	r.WantEvents("quota.exceeded udp br0 " + rig.C1 + ":5000 *")
	r.Outside(UDP(rig.Peer2+":2", rig.External+":5000", "x")).Dropped("quota")
	r.Out(UDP(rig.C1+":5001", rig.Peer1+":9", "x"), UDP(rig.External+":5001", rig.Peer1+":9", "x"))
	r.Wait(301 * time.Second)
	r.Wait(121 * time.Second) // the port waits: TestHold
	r.Out(UDP(rig.C1+":5000", rig.Peer1+":9", "x"), UDP(rig.External+":5000", rig.Peer1+":9", "x"))
	if got := r.Bindings(); !strings.HasSuffix(got[0], ":5000 1") {
		t.Errorf("bindings %q", got)
	}
}
