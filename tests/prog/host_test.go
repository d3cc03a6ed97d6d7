// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// packetOf is a first packet of a protocol.
func packetOf(proto, src, remote string) Spec {
	switch proto {
	case "tcp":
		return TCP(src, remote, "S", "")
	case "icmp":
		return Ping(src, Endpoint(remote).Addr().String())
	}
	return UDP(src, remote, "x")
}

// TestHostTakesPort: what the host sends from is not given to a container, until it was silent for as long
// as a session of the protocol would have lived.
func TestHostTakesPort(t *testing.T) {
	for proto, lifetime := range map[string]time.Duration{"udp": 300 * time.Second, "tcp": established, "icmp": time.Minute} {
		t.Run(proto, func(t *testing.T) {
			r := newRig(t)
			host := packetOf(proto, external+":6000", peer1+":53")
			r.egress("", host).passed("host")
			r.wantBindings()
			r.wait(lifetime - time.Second)
			r.egress("", host).passed("host")
			r.wait(lifetime - time.Second)
			if got := r.opened(proto, c1+":6000"); got == 6000 {
				t.Errorf("the host's port was given to a container")
			}
			if proto != "icmp" {
				r.outside(packetOf(proto, peer1+":53", external+":6000")).passed("host")
			}
			r.wait(2 * time.Second)
			r.consistent()
			if got := r.opened(proto, c2+":6000"); got != 6000 {
				t.Errorf("port 6000 became %d, but the host has been silent for long", got)
			}
		})
	}
}

// TestHostClosesConnection: FIN or RST from the host shortens its claim; a new SYN undoes that.
func TestHostClosesConnection(t *testing.T) {
	for _, end := range []string{"FA", "R"} {
		t.Run(end, func(t *testing.T) {
			r := newRig(t)
			r.egress("", TCP(external+":6000", peer1+":80", "S", "")).passed("host")
			r.egress("", TCP(external+":6000", peer1+":80", end, "")).passed("host")
			r.egress("", TCP(external+":6000", peer1+":80", "S", "")).passed("host")
			r.wait(closing + time.Minute)
			if got := r.opened("tcp", c1+":6000"); got == 6000 {
				t.Errorf("the port of an open connection was given away")
			}
			r.egress("", TCP(external+":6000", peer1+":80", end, "")).passed("host")
			r.wait(closing + time.Second)
			if got := r.opened("tcp", c2+":6000"); got != 6000 {
				t.Errorf("port 6000 became %d, after %s and the closing timeout", got, end)
			}
			r.consistent()
		})
	}
}

// TestHostMeetsBinding: the host sends from a port that a container's binding holds: from another port, and
// its answers come back to the port that it knows.
func TestHostMeetsBinding(t *testing.T) {
	for _, proto := range []string{"udp", "tcp", "icmp"} {
		t.Run(proto, func(t *testing.T) {
			r := newRig(t)
			r.opened(proto, c1+":6000")
			res := r.egress("", packetOf(proto, external+":6000", peer2+":53"))
			ext := r.externalOf(proto, external+":6000")
			if ext == "" || ext == external+":6000" {
				t.Fatalf("the host's external endpoint is %q", ext)
			}
			res.translated("translated_host", packetOf(proto, ext, peer2+":53"))
			answer, known := UDP(peer2+":53", ext, "y"), UDP(peer2+":53", external+":6000", "y")
			switch proto {
			case "tcp":
				answer, known = TCP(peer2+":53", ext, "SA", ""), TCP(peer2+":53", external+":6000", "SA", "")
			case "icmp":
				answer, known = Pong(peer2, ext), Pong(peer2, external+":6000")
			}
			r.outside(answer).translated("translated_host", known)
			r.outside(answer.With(lastHop)).translated("translated_host", known.With(lastHop)) // it is for the host
			if got := strings.Join(r.bindings(), "\n"); !strings.Contains(got, proto+" host "+external+":6000 "+ext+" 1") {
				t.Errorf("bindings %s", got)
			}
			r.consistent()
			about, inside := packetOf(proto, ext, peer2+":53"), packetOf(proto, external+":6000", peer2+":53")
			r.outside(ICMPError(router, external, 3, 1, about, 0)).
				check(next, "translated_icmp_error", fromOutside(ICMPError(router, external, 3, 1, inside, 0)).Bytes())
			r.wait(established + time.Second)
			r.wantBindings()
		})
	}
}

// TestHostMeetsStaticBinding: the forward wins, and the host still gets through.
func TestHostMeetsStaticBinding(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.UDP, external+":6000", c1+":6000")
	r.egress("", UDP(external+":6000", peer1+":53", "x"))
	ext := r.externalOf("udp", external+":6000")
	r.outside(UDP(peer1+":53", ext, "x")).translated("translated_host", UDP(peer1+":53", external+":6000", "x"))
	r.in(UDP(peer1+":53", external+":6000", "x"), UDP(peer1+":53", c1+":6000", "x"))
	r.consistent()
}

// TestHostClaimedFirst: a forward on what the host sends from is refused, and the tables agree.
func TestHostClaimedFirst(t *testing.T) {
	r := newRig(t)
	r.egress("", UDP(external+":6000", peer1+":53", "x")).passed("host")
	r.refused(dataplane.ErrPortTaken, dataplane.UDP, "br0", external+":6000", c1+":6000")
	r.outside(UDP(peer2+":1", external+":6000", "x")).passed("host")
	r.consistent()
}

// TestHostOwnMessages: what has no port of its own claims none.
func TestHostOwnMessages(t *testing.T) {
	r := newRig(t)
	r.opened("icmp", c1+":0")
	o := r.dp.Objects()
	for _, s := range []Spec{Pong(external, peer1+":0"), ICMPError(external, peer1, 3, 3, UDP(peer1+":1", external+":9", "x"), 0),
		Raw(external, peer1, 1, []byte{5, 0, 0, 0, 0, 0, 0, 0}), Raw(external, peer1, 1, []byte{17, 0, 0xee, 0xff, 0, 0, 0, 0})} {
		r.egress("", s).passed("host")
	}
	r.egress("", UDP("10.9.9.9:1", peer1+":1", "x")).passed("host") // not an external address
	r.send(o.NatOutsideEgress, "eth0", fromStack(UDP(external+":1", "198.51.100.255:1", "x")), nil).passed("host")
	r.consistent()
}

// TestHostConnectedSocket: a socket of the host that is connected to just that remote comes before a
// dynamic binding of the same port, and others do not get through to the host by it.
func TestHostConnectedSocket(t *testing.T) {
	r := newRig(t, withFiltering(dataplane.EndpointIndependent))
	r.inside(UDP(c1+":6000", peer1+":53", "x"))
	r.must("connect", func() error {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(external), Port: 6000}, &net.UDPAddr{IP: net.ParseIP(peer2), Port: 9})
		if err == nil {
			r.t.Cleanup(func() { c.Close() })
		}
		return err
	})
	r.outside(UDP(peer2+":9", external+":6000", "x")).passed("host")
	r.in(UDP(peer2+":10", external+":6000", "x"), UDP(peer2+":10", c1+":6000", "x"))
	r.in(UDP(peer1+":53", external+":6000", "x"), UDP(peer1+":53", c1+":6000", "x"))
	r.wantBindings("udp br0 " + c1 + ":6000 " + external + ":6000 2")
}

// TestReserveHost: what the daemon found at start; held already is no error.
func TestReserveHost(t *testing.T) {
	r := newRig(t)
	for range 2 {
		r.must("reserve", func() error { return r.dp.ReserveHost(dataplane.UDP, Endpoint(external+":6000")) })
	}
	if got := r.opened("udp", c1+":6000"); got == 6000 {
		t.Error("a reserved port was given away")
	}
	r.outside(UDP(peer2+":1", external+":6000", "x")).passed("host")
	r.wait(301 * time.Second)
	if got := r.opened("udp", c1+":6000"); got != 6000 {
		t.Errorf("port 6000 became %d, after the reservation", got)
	}
	r.consistent()
}
