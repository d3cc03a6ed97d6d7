// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestForwardRefused: every reason, and nothing half done.
func TestForwardRefused(t *testing.T) { family.Each(t, testForwardRefused) }

func testForwardRefused(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x"))
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	r.HostListens(rig.External + ":53")
	r.Egress("", TCP(rig.External+":6000", rig.Peer1+":1", "S", ""))
	for name, c := range map[string]struct {
		why              error
		p                dataplane.Protocol
		network, ext, in string
	}{
		"Dynamic":         {dataplane.ErrPortTaken, dataplane.UDP, "br0", rig.External + ":5000", rig.C2 + ":5000"},
		"Static":          {dataplane.ErrPortTaken, dataplane.TCP, "br0", rig.External + ":80", rig.C2 + ":80"},
		"Itself":          {dataplane.ErrPortTaken, dataplane.TCP, "br0", rig.External + ":80", rig.C1 + ":80"},
		"HostSocketUDP":   {dataplane.ErrHostSocket, dataplane.UDP, "br0", rig.External + ":53", rig.C1 + ":53"},
		"HostSocketTCP":   {dataplane.ErrHostSocket, dataplane.TCP, "br0", rig.External + ":53", rig.C1 + ":53"},
		"HostFlow":        {dataplane.ErrPortTaken, dataplane.TCP, "br0", rig.External + ":6000", rig.C1 + ":6000"},
		"NotExternal":     {dataplane.ErrNotFound, dataplane.TCP, "br0", "198.51.100.2:80", rig.C1 + ":80"},
		"NoNetwork":       {dataplane.ErrNotFound, dataplane.TCP, "br9", rig.External + ":81", rig.C1 + ":80"},
		"OutsideNetwork":  {dataplane.ErrNotFound, dataplane.TCP, "br0", rig.External + ":81", rig.Other + ":80"},
		"InNoNetwork":     {dataplane.ErrNotFound, dataplane.TCP, "", rig.External + ":81", "10.0.0.1:80"},
		"ExternalPort0":   {nil, dataplane.TCP, "br0", rig.External + ":0", rig.C1 + ":80"},
		"InternalPort0":   {nil, dataplane.TCP, "br0", rig.External + ":81", rig.C1 + ":0"},
		"ICMP":            {nil, dataplane.ICMP, "br0", rig.External + ":81", rig.C1 + ":80"},
		"IPv6":            {nil, dataplane.TCP, "br0", "[2001:db8::1]:81", rig.C1 + ":80"},
		"UnknownProtocol": {nil, 132, "br0", rig.External + ":81", rig.C1 + ":80"},
	} {
		r.Subtest(name, func() { r.Refused(c.why, c.p, c.network, c.ext, c.in) })
	}
}

// TestForwardOverHostSocket: static bindings win where the operator says so.
func TestForwardOverHostSocket(t *testing.T) { family.Each(t, testForwardOverHostSocket) }

func testForwardOverHostSocket(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.HostListens("0.0.0.0:53")
	r.Must("forward", func() error {
		_, err := r.DP.AddForward(dataplane.Forward{Protocol: dataplane.UDP, External: r.Endpoint(rig.External + ":53"),
			Internal: r.Endpoint(rig.C1 + ":53"), OverHostSocket: true})
		return err
	})
	r.In(UDP(rig.Peer1+":1", rig.External+":53", "x"), UDP(rig.Peer1+":1", rig.C1+":53", "x"))
	r.WantBindings("udp br0 " + rig.C1 + ":53 " + rig.External + ":53 1 static")
}

// TestForwardFull: no room for one more binding.
func TestForwardFull(t *testing.T) { family.Each(t, testForwardFull) }

func testForwardFull(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithSmallTables())
	for _, port := range []string{":1", ":2", ":3", ":4"} {
		r.Opened("udp", rig.C1+port)
	}
	r.Refused(dataplane.ErrFull, dataplane.UDP, "br0", rig.External+":53", rig.C1+":53")
}

// TestRemoveForward: its sessions end with it, at once, and the port is free; others go on.
func TestRemoveForward(t *testing.T) { family.Each(t, testRemoveForward) }

func testRemoveForward(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	r.Forward("br0", dataplane.TCP, rig.External+":81", rig.C1+":81")
	for _, remote := range []string{rig.Peer1 + ":1", rig.Peer1 + ":2", rig.Peer2 + ":1"} {
		r.Outside(TCP(remote, rig.External+":80", "S", ""))
		r.Outside(TCP(remote, rig.External+":81", "S", ""))
	}
	r.From("p2", TCP(rig.C2+":2000", rig.External+":80", "S", ""))
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x"))
	if err := r.RemoveForward(dataplane.TCP, rig.External+":80"); err != nil {
		t.Fatal(err)
	}
	r.WantBindings("tcp br0 "+rig.C1+":81 "+rig.External+":81 3 static", "udp br0 "+rig.C1+":5000 "+rig.External+":5000 1")
	r.Outside(TCP(rig.Peer1+":1", rig.External+":80", "A", "")).Passed("unbound")
	for _, gone := range []string{rig.External + ":80", rig.External + ":5000", rig.External + ":9"} {
		if err := r.RemoveForward(dataplane.TCP, gone); !errors.Is(err, dataplane.ErrNotFound) {
			t.Errorf("remove forward %s: %v", gone, err)
		}
	}
	if err := r.RemoveForward(dataplane.UDP, rig.External+":5000"); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("remove a dynamic binding: %v", err)
	}
	r.Forward("br1", dataplane.TCP, rig.External+":80", rig.Other+":80")
	r.Outside(TCP(rig.Peer1+":1", rig.External+":80", "S", "")).Translated("translated_inbound", TCP(rig.Peer1+":1", rig.Other+":80", "S", "").Hop())
	r.Consistent()
}

// TestForwardsOfOneEndpoint: two external endpoints for one internal: each answers from where it was asked.
func TestForwardsOfOneEndpoint(t *testing.T) { family.Each(t, testForwardsOfOneEndpoint) }

func testForwardsOfOneEndpoint(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(TCP(rig.C1+":80", rig.Peer2+":1", "S", "")) // it has a dynamic binding already
	r.Forward("br0", dataplane.TCP, rig.External+":8080", rig.C1+":80")
	r.Forward("br0", dataplane.TCP, rig.External+":8081", rig.C1+":80")
	for i, port := range []string{":8080", ":8081"} {
		remote := rig.Peer1 + []string{":1", ":2"}[i]
		r.In(TCP(remote, rig.External+port, "S", ""), TCP(remote, rig.C1+":80", "S", ""))
		r.Out(TCP(rig.C1+":80", remote, "SA", ""), TCP(rig.External+port, remote, "SA", ""))
	}
	r.Out(TCP(rig.C1+":80", rig.Peer2+":3", "S", ""), TCP(rig.External+":80", rig.Peer2+":3", "S", "")) // its mapping stays what it was
	for _, port := range []string{":8080", ":8081"} {
		if err := r.RemoveForward(dataplane.TCP, rig.External+port); err != nil {
			t.Error(err)
		}
	}
	r.WantBindings("tcp br0 " + rig.C1 + ":80 " + rig.External + ":80 2")
}

// TestRemoveNetwork: not while an interface has its hooks; then with all that lives in it, and nothing else.
func TestRemoveNetwork(t *testing.T) { family.Each(t, testRemoveNetwork) }

func testRemoveNetwork(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br1", dataplane.UDP, rig.External+":7001", rig.Other+":7001")
	r.Forward("br0", dataplane.UDP, rig.External+":5001", rig.C1+":5001")
	r.From("q1", UDP(rig.Other+":7000", rig.Peer1+":1", "x"))
	r.From("q1", UDP(rig.Other+":7000", rig.External+":5001", "x"))
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x"))
	if err := r.Do(func() error { return r.DP.RemoveNetwork("br1") }); err == nil {
		t.Error("a network was removed whose interfaces have hooks")
	}
	for _, dev := range []string{"q1", "br1"} {
		r.Must("detach", func() error { return r.DP.Detach(r.Ports[dev]) })
	}
	r.Must("remove network", func() error { return r.DP.RemoveNetwork("br1") })
	r.WantBindings("udp br0 "+rig.C1+":5000 "+rig.External+":5000 1", "udp br0 "+rig.C1+":5001 "+rig.External+":5001 0 static")
	r.Outside(UDP(rig.Peer1+":1", rig.External+":7000", "x")).Passed("unbound")
	r.From("q1", UDP(rig.Other+":7000", rig.Peer1+":1", "x")).Passed("no_link")
	if err := r.Do(func() error { return r.DP.RemoveNetwork("br1") }); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("remove it again: %v", err)
	}
}

// TestAddressMoves: what lives on the old address ends; nothing is left of it, and it can come back.
func TestAddressMoves(t *testing.T) { family.Each(t, testAddressMoves) }

func testAddressMoves(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
	for i, remote := range []string{rig.Peer1 + ":1", rig.Peer2 + ":1"} {
		r.Outside(TCP(remote, rig.External+":80", "S", ""))
		r.Inside(UDP(rig.C1+":5000", remote, "x"))
		r.Inside(Ping(rig.C1+":9", []string{rig.Peer1, rig.Peer2}[i]))
	}
	r.Egress("", UDP(rig.External+":6000", rig.Peer1+":1", "x"))
	move := func(to string) {
		r.Must("move", func() error {
			return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"], Addresses: []netip.Addr{r.Address(to)}})
		})
	}
	move("198.51.100.7")
	r.Empty()
	r.Outside(UDP(rig.Peer1+":1", rig.External+":5000", "x")).Passed("unbound")
	r.Out(UDP(rig.C1+":5000", rig.Peer1+":1", "x"), UDP("198.51.100.7:5000", rig.Peer1+":1", "x"))
	r.In(UDP(rig.Peer1+":1", "198.51.100.7:5000", "x"), UDP(rig.Peer1+":1", rig.C1+":5000", "x"))
	move(rig.External)
	r.Empty()
	r.Out(UDP(rig.C1+":6000", rig.Peer1+":1", "x"), UDP(rig.External+":6000", rig.Peer1+":1", "x"))
	r.WantBindings("udp br0 " + rig.C1 + ":6000 " + rig.External + ":6000 1")
}
