// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
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
func TestHostTakesPort(t *testing.T) { family.Each(t, testHostTakesPort) }

func testHostTakesPort(t *testing.T, fam family.Family) {
	for proto, lifetime := range map[string]time.Duration{"udp": 300 * time.Second, "tcp": established, "icmp": time.Minute} {
		t.Run(proto, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			host := packetOf(proto, rig.External+":6000", rig.Peer1+":53")
			r.Egress("", host).Passed("host")
			r.WantBindings()
			r.Wait(lifetime - time.Second)
			r.Egress("", host).Passed("host")
			r.Wait(lifetime - time.Second)
			if got := r.Opened(proto, rig.C1+":6000"); got == 6000 {
				t.Errorf("the host's port was given to a container")
			}
			if proto != "icmp" {
				r.Outside(packetOf(proto, rig.Peer1+":53", rig.External+":6000")).Passed("host")
			}
			r.Wait(2 * time.Second)
			r.Consistent()
			if got := r.Opened(proto, rig.C2+":6000"); got != 6000 {
				t.Errorf("port 6000 became %d, but the host has been silent for long", got)
			}
		})
	}
}

// TestHostClosesConnection: FIN or RST from the host shortens its claim; a new SYN undoes that.
func TestHostClosesConnection(t *testing.T) { family.Each(t, testHostClosesConnection) }

func testHostClosesConnection(t *testing.T, fam family.Family) {
	for _, end := range []string{"FA", "R"} {
		t.Run(end, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Egress("", TCP(rig.External+":6000", rig.Peer1+":80", "S", "")).Passed("host")
			r.Egress("", TCP(rig.External+":6000", rig.Peer1+":80", end, "")).Passed("host")
			r.Egress("", TCP(rig.External+":6000", rig.Peer1+":80", "S", "")).Passed("host")
			r.Wait(closing + time.Minute)
			if got := r.Opened("tcp", rig.C1+":6000"); got == 6000 {
				t.Errorf("the port of an open connection was given away")
			}
			r.Egress("", TCP(rig.External+":6000", rig.Peer1+":80", end, "")).Passed("host")
			r.Wait(closing + time.Second)
			if got := r.Opened("tcp", rig.C2+":6000"); got != 6000 {
				t.Errorf("port 6000 became %d, after %s and the closing timeout", got, end)
			}
			r.Consistent()
		})
	}
}

// TestHostMeetsBinding: the host sends from a port that a container's binding holds: from another port, and
// its answers come back to the port that it knows.
func TestHostMeetsBinding(t *testing.T) { family.Each(t, testHostMeetsBinding) }

func testHostMeetsBinding(t *testing.T, fam family.Family) {
	for _, proto := range []string{"udp", "tcp", "icmp"} {
		t.Run(proto, func(t *testing.T) {
			r := rig.New(t, rig.In(fam))
			r.Opened(proto, rig.C1+":6000")
			res := r.Egress("", packetOf(proto, rig.External+":6000", rig.Peer2+":53"))
			ext := r.ExternalOf(proto, rig.External+":6000")
			if ext == "" || ext == fam.Text(rig.External+":6000") {
				t.Fatalf("the host's external endpoint is %q", ext)
			}
			res.Translated("translated_host", packetOf(proto, ext, rig.Peer2+":53"))
			answer, known := UDP(rig.Peer2+":53", ext, "y"), UDP(rig.Peer2+":53", rig.External+":6000", "y")
			switch proto {
			case "tcp":
				answer, known = TCP(rig.Peer2+":53", ext, "SA", ""), TCP(rig.Peer2+":53", rig.External+":6000", "SA", "")
			case "icmp":
				answer, known = Pong(rig.Peer2, ext), Pong(rig.Peer2, rig.External+":6000")
			}
			r.Outside(answer).Translated("translated_host", known)
			r.Outside(answer.With(lastHop)).Translated("translated_host", known.With(lastHop)) // it is for the host
			if got := strings.Join(r.Bindings(), "\n"); !strings.Contains(got, r.Protocol(proto)+fam.Text(" host "+rig.External+":6000 "+ext+" 1")) {
				t.Errorf("bindings %s", got)
			}
			r.Consistent()
			about, inside := packetOf(proto, ext, rig.Peer2+":53"), packetOf(proto, rig.External+":6000", rig.Peer2+":53")
			r.Outside(ICMPError(router, rig.External, 3, 1, about, 0)).
				Check(rig.Next, "translated_icmp_error", r.Frame(rig.FromOutside(ICMPError(router, rig.External, 3, 1, inside, 0))))
			r.Wait(established + time.Second)
			r.WantBindings()
		})
	}
}

// TestHostMeetsStaticBinding: the forward wins, and the host still gets through.
func TestHostMeetsStaticBinding(t *testing.T) { family.Each(t, testHostMeetsStaticBinding) }

func testHostMeetsStaticBinding(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.UDP, rig.External+":6000", rig.C1+":6000")
	r.Egress("", UDP(rig.External+":6000", rig.Peer1+":53", "x"))
	ext := r.ExternalOf("udp", rig.External+":6000")
	r.Outside(UDP(rig.Peer1+":53", ext, "x")).Translated("translated_host", UDP(rig.Peer1+":53", rig.External+":6000", "x"))
	r.In(UDP(rig.Peer1+":53", rig.External+":6000", "x"), UDP(rig.Peer1+":53", rig.C1+":6000", "x"))
	r.Consistent()
}

// TestHostClaimedFirst: a forward on what the host sends from is refused, and the tables agree.
func TestHostClaimedFirst(t *testing.T) { family.Each(t, testHostClaimedFirst) }

func testHostClaimedFirst(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Egress("", UDP(rig.External+":6000", rig.Peer1+":53", "x")).Passed("host")
	r.Refused(dataplane.ErrPortTaken, dataplane.UDP, "br0", rig.External+":6000", rig.C1+":6000")
	r.Outside(UDP(rig.Peer2+":1", rig.External+":6000", "x")).Passed("host")
	r.Consistent()
}

// TestHostOwnMessages: what has no port of its own claims none.
func TestHostOwnMessages(t *testing.T) {
	r := rig.New(t)
	r.Opened("icmp", rig.C1+":0")
	o := r.DP.Objects()
	for _, s := range []Spec{Pong(rig.External, rig.Peer1+":0"), ICMPError(rig.External, rig.Peer1, 3, 3, UDP(rig.Peer1+":1", rig.External+":9", "x"), 0),
		Raw(rig.External, rig.Peer1, 1, []byte{5, 0, 0, 0, 0, 0, 0, 0}), Raw(rig.External, rig.Peer1, 1, []byte{17, 0, 0xee, 0xff, 0, 0, 0, 0})} {
		r.Egress("", s).Passed("host")
	}
	r.Egress("", UDP("10.9.9.9:1", rig.Peer1+":1", "x")).Passed("host") // not an external address
	r.Send(o.NatOutsideEgress, "eth0", fromStack(UDP(rig.External+":1", "198.51.100.255:1", "x")), nil).Passed("host")
	r.Consistent()
}

// TestHostConnectedSocket: a socket of the host that is connected to just that remote comes before a
// dynamic binding of the same port, and others do not get through to the host by it.
func TestHostConnectedSocket(t *testing.T) { family.Each(t, testHostConnectedSocket) }

func testHostConnectedSocket(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Inside(UDP(rig.C1+":6000", rig.Peer1+":53", "x"))
	r.Must("connect", func() error {
		c, err := net.DialUDP(fam.Network("udp"), &net.UDPAddr{IP: r.Address(rig.External).AsSlice(), Port: 6000}, &net.UDPAddr{IP: r.Address(rig.Peer2).AsSlice(), Port: 9})
		if err == nil {
			r.T.Cleanup(func() { c.Close() })
		}
		return err
	})
	r.Outside(UDP(rig.Peer2+":9", rig.External+":6000", "x")).Passed("host")
	r.In(UDP(rig.Peer2+":10", rig.External+":6000", "x"), UDP(rig.Peer2+":10", rig.C1+":6000", "x"))
	r.In(UDP(rig.Peer1+":53", rig.External+":6000", "x"), UDP(rig.Peer1+":53", rig.C1+":6000", "x"))
	r.WantBindings("udp br0 " + rig.C1 + ":6000 " + rig.External + ":6000 2")
}

// TestReserveHost: what the daemon found at start; held already is no error.
func TestReserveHost(t *testing.T) { family.Each(t, testReserveHost) }

func testReserveHost(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for range 2 {
		r.Must("reserve", func() error { return r.DP.ReserveHost(dataplane.UDP, r.Endpoint(rig.External+":6000")) })
	}
	if got := r.Opened("udp", rig.C1+":6000"); got == 6000 {
		t.Error("a reserved port was given away")
	}
	r.Outside(UDP(rig.Peer2+":1", rig.External+":6000", "x")).Passed("host")
	r.Wait(301 * time.Second)
	if got := r.Opened("udp", rig.C1+":6000"); got != 6000 {
		t.Errorf("port 6000 became %d, after the reservation", got)
	}
	r.Consistent()
}
