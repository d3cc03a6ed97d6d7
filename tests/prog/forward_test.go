// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// refused checks that a forward is refused, for a reason or (nil) for any, and changes nothing.
func (r *rig) refused(why error, p dataplane.Protocol, network, ext, in string) {
	r.t.Helper()
	before := len(r.bindings())
	err := r.do(func() error {
		_, err := r.dp.AddForward(dataplane.Forward{Protocol: p, Network: network,
			External: netip.MustParseAddrPort(ext), Internal: netip.MustParseAddrPort(in)})
		return err
	})
	if err == nil || (why != nil && !errors.Is(err, why)) {
		r.t.Errorf("forward %s %s to %s %s: %v, want %v", p, ext, network, in, err, why)
	}
	if after := len(r.bindings()); after != before {
		r.t.Errorf("%d bindings, were %d", after, before)
	}
	r.consistent()
}

// TestForwardRefused: every reason, and nothing half done.
func TestForwardRefused(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":5000", peer1+":1", "x"))
	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	r.hostListens(external + ":53")
	r.egress("", TCP(external+":6000", peer1+":1", "S", ""))
	for name, c := range map[string]struct {
		why              error
		p                dataplane.Protocol
		network, ext, in string
	}{
		"Dynamic":         {dataplane.ErrPortTaken, dataplane.UDP, "br0", external + ":5000", c2 + ":5000"},
		"Static":          {dataplane.ErrPortTaken, dataplane.TCP, "br0", external + ":80", c2 + ":80"},
		"Itself":          {dataplane.ErrPortTaken, dataplane.TCP, "br0", external + ":80", c1 + ":80"},
		"HostSocketUDP":   {dataplane.ErrHostSocket, dataplane.UDP, "br0", external + ":53", c1 + ":53"},
		"HostSocketTCP":   {dataplane.ErrHostSocket, dataplane.TCP, "br0", external + ":53", c1 + ":53"},
		"HostFlow":        {dataplane.ErrPortTaken, dataplane.TCP, "br0", external + ":6000", c1 + ":6000"},
		"NotExternal":     {dataplane.ErrNotFound, dataplane.TCP, "br0", "198.51.100.2:80", c1 + ":80"},
		"NoNetwork":       {dataplane.ErrNotFound, dataplane.TCP, "br9", external + ":81", c1 + ":80"},
		"OutsideNetwork":  {dataplane.ErrNotFound, dataplane.TCP, "br0", external + ":81", other + ":80"},
		"InNoNetwork":     {dataplane.ErrNotFound, dataplane.TCP, "", external + ":81", "10.0.0.1:80"},
		"ExternalPort0":   {nil, dataplane.TCP, "br0", external + ":0", c1 + ":80"},
		"InternalPort0":   {nil, dataplane.TCP, "br0", external + ":81", c1 + ":0"},
		"ICMP":            {nil, dataplane.ICMP, "br0", external + ":81", c1 + ":80"},
		"IPv6":            {nil, dataplane.TCP, "br0", "[2001:db8::1]:81", c1 + ":80"},
		"UnknownProtocol": {nil, 132, "br0", external + ":81", c1 + ":80"},
	} {
		r.subtest(name, func() { r.refused(c.why, c.p, c.network, c.ext, c.in) })
	}
}

// TestForwardOverHostSocket: static bindings win where the operator says so.
func TestForwardOverHostSocket(t *testing.T) {
	r := newRig(t)
	r.hostListens("0.0.0.0:53")
	r.must("forward", func() error {
		_, err := r.dp.AddForward(dataplane.Forward{Protocol: dataplane.UDP, External: netip.MustParseAddrPort(external + ":53"),
			Internal: netip.MustParseAddrPort(c1 + ":53"), OverHostSocket: true})
		return err
	})
	r.in(UDP(peer1+":1", external+":53", "x"), UDP(peer1+":1", c1+":53", "x"))
	r.wantBindings("udp br0 " + c1 + ":53 " + external + ":53 1 static")
}

// TestForwardFull: no room for one more binding.
func TestForwardFull(t *testing.T) {
	r := newRig(t, withSmallTables())
	for _, port := range []string{":1", ":2", ":3", ":4"} {
		r.opened("udp", c1+port)
	}
	r.refused(dataplane.ErrFull, dataplane.UDP, "br0", external+":53", c1+":53")
}

func (r *rig) removeForward(p dataplane.Protocol, ext string) error {
	return r.do(func() error { return r.dp.RemoveForward(p, netip.MustParseAddrPort(ext)) })
}

// TestRemoveForward: its sessions end with it, at once, and the port is free; others go on.
func TestRemoveForward(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	r.forward("br0", dataplane.TCP, external+":81", c1+":81")
	for _, remote := range []string{peer1 + ":1", peer1 + ":2", peer2 + ":1"} {
		r.outside(TCP(remote, external+":80", "S", ""))
		r.outside(TCP(remote, external+":81", "S", ""))
	}
	r.from("p2", TCP(c2+":2000", external+":80", "S", ""))
	r.inside(UDP(c1+":5000", peer1+":1", "x"))
	if err := r.removeForward(dataplane.TCP, external+":80"); err != nil {
		t.Fatal(err)
	}
	r.wantBindings("tcp br0 "+c1+":81 "+external+":81 3 static", "udp br0 "+c1+":5000 "+external+":5000 1")
	r.outside(TCP(peer1+":1", external+":80", "A", "")).passed("unbound")
	for _, gone := range []string{external + ":80", external + ":5000", external + ":9"} {
		if err := r.removeForward(dataplane.TCP, gone); !errors.Is(err, dataplane.ErrNotFound) {
			t.Errorf("remove forward %s: %v", gone, err)
		}
	}
	if err := r.removeForward(dataplane.UDP, external+":5000"); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("remove a dynamic binding: %v", err)
	}
	r.forward("br1", dataplane.TCP, external+":80", other+":80")
	r.outside(TCP(peer1+":1", external+":80", "S", "")).translated("translated_inbound", TCP(peer1+":1", other+":80", "S", "").Hop())
	r.consistent()
}

// TestForwardsOfOneEndpoint: two external endpoints for one internal: each answers from where it was asked.
func TestForwardsOfOneEndpoint(t *testing.T) {
	r := newRig(t)
	r.inside(TCP(c1+":80", peer2+":1", "S", "")) // it has a dynamic binding already
	r.forward("br0", dataplane.TCP, external+":8080", c1+":80")
	r.forward("br0", dataplane.TCP, external+":8081", c1+":80")
	for i, port := range []string{":8080", ":8081"} {
		remote := peer1 + []string{":1", ":2"}[i]
		r.in(TCP(remote, external+port, "S", ""), TCP(remote, c1+":80", "S", ""))
		r.out(TCP(c1+":80", remote, "SA", ""), TCP(external+port, remote, "SA", ""))
	}
	r.out(TCP(c1+":80", peer2+":3", "S", ""), TCP(external+":80", peer2+":3", "S", "")) // its mapping stays what it was
	for _, port := range []string{":8080", ":8081"} {
		if err := r.removeForward(dataplane.TCP, external+port); err != nil {
			t.Error(err)
		}
	}
	r.wantBindings("tcp br0 " + c1 + ":80 " + external + ":80 2")
}

// TestRemoveNetwork: not while an interface has its hooks; then with all that lives in it, and nothing else.
func TestRemoveNetwork(t *testing.T) {
	r := newRig(t)
	r.forward("br1", dataplane.UDP, external+":7001", other+":7001")
	r.forward("br0", dataplane.UDP, external+":5001", c1+":5001")
	r.from("q1", UDP(other+":7000", peer1+":1", "x"))
	r.from("q1", UDP(other+":7000", external+":5001", "x"))
	r.inside(UDP(c1+":5000", peer1+":1", "x"))
	if err := r.do(func() error { return r.dp.RemoveNetwork("br1") }); err == nil {
		t.Error("a network was removed whose interfaces have hooks")
	}
	for _, dev := range []string{"q1", "br1"} {
		r.must("detach", func() error { return r.dp.Detach(r.ports[dev]) })
	}
	r.must("remove network", func() error { return r.dp.RemoveNetwork("br1") })
	r.wantBindings("udp br0 "+c1+":5000 "+external+":5000 1", "udp br0 "+c1+":5001 "+external+":5001 0 static")
	r.outside(UDP(peer1+":1", external+":7000", "x")).passed("unbound")
	r.from("q1", UDP(other+":7000", peer1+":1", "x")).passed("no_link")
	if err := r.do(func() error { return r.dp.RemoveNetwork("br1") }); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("remove it again: %v", err)
	}
}

// TestAddressMoves: what lives on the old address ends; nothing is left of it, and it can come back.
func TestAddressMoves(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.TCP, external+":80", c1+":80")
	for i, remote := range []string{peer1 + ":1", peer2 + ":1"} {
		r.outside(TCP(remote, external+":80", "S", ""))
		r.inside(UDP(c1+":5000", remote, "x"))
		r.inside(Ping(c1+":9", []string{peer1, peer2}[i]))
	}
	r.egress("", UDP(external+":6000", peer1+":1", "x"))
	move := func(to string) {
		r.must("move", func() error {
			return r.dp.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.ports["eth0"], Address: netip.MustParseAddr(to)})
		})
	}
	move("198.51.100.7")
	r.empty()
	r.outside(UDP(peer1+":1", external+":5000", "x")).passed("unbound")
	r.out(UDP(c1+":5000", peer1+":1", "x"), UDP("198.51.100.7:5000", peer1+":1", "x"))
	r.in(UDP(peer1+":1", "198.51.100.7:5000", "x"), UDP(peer1+":1", c1+":5000", "x"))
	move(external)
	r.empty()
	r.out(UDP(c1+":6000", peer1+":1", "x"), UDP(external+":6000", peer1+":1", "x"))
	r.wantBindings("udp br0 " + c1 + ":6000 " + external + ":6000 1")
}

// empty checks that no table holds anything.
func (r *rig) empty() {
	r.t.Helper()
	r.wantBindings()
	r.wantSessions()
	o := r.dp.Objects()
	r.must("count", func() error {
		u, err := r.dp.Usage()
		if u.Sessions != 0 || u.Bindings != 0 {
			r.t.Errorf("usage %+v", u)
		}
		for name, n := range map[string]int{"sessions": mapLen(o.Sessions4), "claims": mapLen(o.Claims4),
			"internals": mapLen(o.Internals4), "permissions": mapLen(o.Permissions4), "port bits": portBits(o)} {
			if n != 0 {
				r.t.Errorf("%d %s are left", n, name)
			}
		}
		return err
	})
}
