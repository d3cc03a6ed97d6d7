// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"testing"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestImport: a connection that lived in netfilter's NAT goes on in both directions with the same external endpoint,
// whichever side sends first, and what the endpoint opens anew has the same mapping.
func TestImport(t *testing.T) { family.Each(t, testImport) }

func testImport(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.MustImport(dataplane.TCP, "established", rig.C1+":2000", rig.External+":2000", rig.Peer1+":80")
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":3333", rig.Peer1+":53")
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":3333", rig.Peer1+":53") // again
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":3333", rig.Peer2+":53")
	r.In(TCP(rig.Peer1+":80", rig.External+":2000", "A", "data"), TCP(rig.Peer1+":80", rig.C1+":2000", "A", "data"))
	r.Out(TCP(rig.C1+":2000", rig.Peer1+":80", "A", ""), TCP(rig.External+":2000", rig.Peer1+":80", "A", ""))
	r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":3333", rig.Peer1+":53", "x"))
	r.Out(UDP(rig.C1+":2000", rig.Peer2+":99", "x"), UDP(rig.External+":3333", rig.Peer2+":99", "x"))
	r.In(UDP(rig.Peer2+":100", rig.External+":3333", "x"), UDP(rig.Peer2+":100", rig.C1+":2000", "x")) // the filter knows the remote
	r.WantBindings("tcp br0 "+rig.C1+":2000 "+rig.External+":2000 1", "udp br0 "+rig.C1+":2000 "+rig.External+":3333 4")
	r.WantSessions("tcp "+rig.C1+":2000 "+rig.External+":2000 "+rig.Peer1+":80 established",
		"udp "+rig.C1+":2000 "+rig.External+":3333 "+rig.Peer1+":53 active", "udp "+rig.C1+":2000 "+rig.External+":3333 "+rig.Peer2+":100 active",
		"udp "+rig.C1+":2000 "+rig.External+":3333 "+rig.Peer2+":53 active", "udp "+rig.C1+":2000 "+rig.External+":3333 "+rig.Peer2+":99 active")
}

// TestImportSymmetric: netfilter had given one endpoint two mappings: each session keeps its own until it ends, and the
// first one is the binding.
func TestImportSymmetric(t *testing.T) { family.Each(t, testImportSymmetric) }

func testImportSymmetric(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":2000", rig.Peer1+":53")
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":1024", rig.Peer2+":53")
	r.Out(UDP(rig.C1+":2000", rig.Peer2+":53", "x"), UDP(rig.External+":1024", rig.Peer2+":53", "x"))
	r.In(UDP(rig.Peer2+":53", rig.External+":1024", "x"), UDP(rig.Peer2+":53", rig.C1+":2000", "x"))
	r.Out(UDP(rig.C1+":2000", rig.Peer2+":54", "x"), UDP(rig.External+":2000", rig.Peer2+":54", "x"))
	r.Consistent()
	r.Wait(301 * 1e9)
	r.WantBindings()
	if got := r.Opened("udp", rig.C2+":1024"); got != 1024 {
		t.Errorf("port 1024 became %d", got)
	}
}

// TestImportPublished: a client's connection to a published port, which is a static binding by now.
func TestImportPublished(t *testing.T) { family.Each(t, testImportPublished) }

func testImportPublished(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.TCP, rig.External+":8080", rig.C1+":80")
	r.MustImport(dataplane.TCP, "established", rig.C1+":80", rig.External+":8080", rig.Peer1+":999")
	r.In(TCP(rig.Peer1+":999", rig.External+":8080", "A", "q"), TCP(rig.Peer1+":999", rig.C1+":80", "A", "q"))
	r.Out(TCP(rig.C1+":80", rig.Peer1+":999", "A", "a"), TCP(rig.External+":8080", rig.Peer1+":999", "A", "a"))
	r.WantBindings("tcp br0 " + rig.C1 + ":80 " + rig.External + ":8080 1 static")
}

// TestImportRefused: nothing half done.
func TestImportRefused(t *testing.T) { family.Each(t, testImportRefused) }

func testImportRefused(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C2+":2000", rig.Peer1+":1", "x")) // holds external port 2000
	r.Egress("", UDP(rig.External+":3000", rig.Peer1+":53", "x"))
	for name, c := range map[string]struct {
		why                   error
		p                     dataplane.Protocol
		state, in, ext, other string
	}{
		"Taken":       {dataplane.ErrPortTaken, dataplane.UDP, "", rig.C1 + ":2000", rig.External + ":2000", rig.Peer1 + ":53"},
		"Hosts":       {dataplane.ErrPortTaken, dataplane.UDP, "", rig.C1 + ":3000", rig.External + ":3000", rig.Peer1 + ":53"},
		"NotExternal": {dataplane.ErrNotFound, dataplane.UDP, "", rig.C1 + ":2000", "198.51.100.9:2000", rig.Peer1 + ":53"},
		"NotInside":   {dataplane.ErrNotFound, dataplane.UDP, "", "10.0.0.1:2000", rig.External + ":2001", rig.Peer1 + ":53"},
		"NoPort":      {nil, dataplane.UDP, "", rig.C1 + ":2000", rig.External + ":2001", rig.Peer1 + ":0"},
		"ICMP":        {nil, dataplane.ICMP, "", rig.C1 + ":2000", rig.External + ":2001", rig.Peer1 + ":53"},
		"State":       {nil, dataplane.TCP, "odd", rig.C1 + ":2000", rig.External + ":2001", rig.Peer1 + ":53"},
	} {
		r.Subtest(name, func() {
			if err := r.Imported(c.p, c.state, c.in, c.ext, c.other); err == nil || (c.why != nil && !errors.Is(err, c.why)) {
				r.T.Errorf("error %v, want %v", err, c.why)
			}
			r.WantBindings("udp br0 " + rig.C2 + ":2000 " + rig.External + ":2000 1")
		})
	}
}

// TestPublishOverDynamic: a container has sent from a port before it was published: the binding becomes the static one.
func TestPublishOverDynamic(t *testing.T) { family.Each(t, testPublishOverDynamic) }

func testPublishOverDynamic(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":80", rig.Peer1+":53", "x"))
	ext := r.ExternalOf("udp", rig.C1+":80")
	r.Forget()
	r.Forward("br0", dataplane.UDP, ext, rig.C1+":80")
	r.WantEvents("binding.changed udp br0 " + rig.C1 + ":80 " + ext + " static")
	r.In(UDP(rig.Peer2+":9", ext, "x"), UDP(rig.Peer2+":9", rig.C1+":80", "x"))
	r.Wait(301 * 1e9)
	r.WantBindings("udp br0 " + rig.C1 + ":80 " + ext + " 0 static")
	if err := r.RemoveForward(dataplane.UDP, ext); err != nil {
		t.Fatal(err)
	}
	r.WantBindings()
}

// TestPublishOverHost: Docker's own NAT has answered from the port before conenat had it.
func TestPublishOverHost(t *testing.T) { family.Each(t, testPublishOverHost) }

func testPublishOverHost(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Egress("br0", UDP(rig.External+":80", rig.Peer1+":9", "x").With(routed)).Passed("host")
	r.Refused(dataplane.ErrPortTaken, dataplane.UDP, "br0", rig.External+":80", rig.C1+":80")
	r.Must("publish", func() error {
		_, err := r.DP.AddForward(dataplane.Forward{Protocol: dataplane.UDP, External: r.Endpoint(rig.External + ":80"),
			Internal: r.Endpoint(rig.C1 + ":80"), OverHostSocket: true, Published: true})
		return err
	})
	r.In(UDP(rig.Peer1+":9", rig.External+":80", "x"), UDP(rig.Peer1+":9", rig.C1+":80", "x"))
	r.Wait(301 * 1e9)
	r.WantBindings("udp br0 " + rig.C1 + ":80 " + rig.External + ":80 0 static")
}

// TestPublishedTakesTheIndex: what an endpoint opens after it was published leaves as what is published; what it had opened
// before goes on.
func TestPublishedTakesTheIndex(t *testing.T) { family.Each(t, testPublishedTakesTheIndex) }

func testPublishedTakesTheIndex(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(UDP(rig.C1+":80", rig.Peer1+":53", "x"))
	was := r.ExternalOf("udp", rig.C1+":80")
	r.Publish(dataplane.UDP, rig.External+":8080", rig.C1+":80")
	r.Out(UDP(rig.C1+":80", rig.Peer1+":53", "x"), UDP(was, rig.Peer1+":53", "x"))
	r.In(UDP(rig.Peer1+":53", was, "y"), UDP(rig.Peer1+":53", rig.C1+":80", "y"))
	r.Out(UDP(rig.C1+":80", rig.Peer1+":54", "x"), UDP(rig.External+":8080", rig.Peer1+":54", "x"))
	r.Consistent()
	r.Wait(301 * 1e9)
	r.Out(UDP(rig.C1+":80", rig.Peer1+":55", "x"), UDP(rig.External+":8080", rig.Peer1+":55", "x"))
	r.Consistent()
}

// TestForwardsIndexed: of two static bindings of one endpoint the first is what it sends by; when that goes, the other.
func TestForwardsIndexed(t *testing.T) { family.Each(t, testForwardsIndexed) }

func testForwardsIndexed(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.UDP, rig.External+":8080", rig.C1+":80")
	r.Forward("br0", dataplane.UDP, rig.External+":8081", rig.C1+":80")
	r.Out(UDP(rig.C1+":80", rig.Peer1+":1", "x"), UDP(rig.External+":8080", rig.Peer1+":1", "x"))
	if err := r.RemoveForward(dataplane.UDP, rig.External+":8080"); err != nil {
		t.Fatal(err)
	}
	r.Must("index", r.DP.IndexForwards)
	r.Out(UDP(rig.C1+":80", rig.Peer1+":2", "x"), UDP(rig.External+":8081", rig.Peer1+":2", "x"))
	r.Consistent()
}

// TestPublishOverAnother: the port of another container's binding is published: new clients reach the service, what the
// other one has opened goes on from the same endpoint, and what it opens anew gets another.
func TestPublishOverAnother(t *testing.T) { family.Each(t, testPublishOverAnother) }

func testPublishOverAnother(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(TCP(rig.C1+":32770", rig.Peer1+":80", "S", ""))
	r.Forget()
	r.Publish(dataplane.TCP, rig.External+":32770", rig.C2+":80")
	r.WantEvents("binding.expired tcp br0 "+rig.C1+":32770 "+rig.External+":32770", "binding.created tcp br0 "+rig.C2+":80 "+rig.External+":32770 static")
	r.In(TCP(rig.Peer2+":9", rig.External+":32770", "S", ""), TCP(rig.Peer2+":9", rig.C2+":80", "S", ""))
	r.In(TCP(rig.Peer1+":80", rig.External+":32770", "SA", ""), TCP(rig.Peer1+":80", rig.C1+":32770", "SA", ""))
	r.Out(TCP(rig.C1+":32770", rig.Peer1+":80", "A", "x"), TCP(rig.External+":32770", rig.Peer1+":80", "A", "x"))
	r.Inside(TCP(rig.C1+":32770", rig.Peer2+":80", "S", ""))
	if got := r.ExternalOf("tcp", rig.C1+":32770"); got == "" {
		t.Errorf("no binding for what is opened anew: %q", r.Bindings())
	}
	r.Wait(7441 * 1e9)
	for _, e := range r.Events() {
		if line := rig.EventLine(e); line == fam.Text("binding.expired tcp br0 "+rig.C1+":32770 "+rig.External+":32770") {
			t.Errorf("told twice: %s", line)
		}
	}
	r.WantBindings("tcp br0 " + rig.C2 + ":80 " + rig.External + ":32770 0 static")
	if err := r.RemoveForward(dataplane.TCP, rig.External+":32770"); err != nil {
		t.Fatal(err)
	}
	r.Consistent()
	if got := r.Opened("tcp", rig.C1+":32770"); got != 32770 {
		t.Errorf("port 32770 became %d", got)
	}
}

// TestPublishIntoAFullTable: a port that cannot be published is nobody's but his who has it.
func TestPublishIntoAFullTable(t *testing.T) { family.Each(t, testPublishIntoAFullTable) }

func testPublishIntoAFullTable(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithTables(16, 2))
	r.Inside(TCP(rig.C1+":2000", rig.Peer1+":80", "S", ""))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.Egress("", TCP(rig.External+":3000", rig.Peer1+":80", "S", "")).Passed("host")
	r.Forget()
	for _, port := range []string{":2000", ":3000"} {
		err := r.Do(func() error {
			_, err := r.DP.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: r.Endpoint(rig.External + port),
				Internal: r.Endpoint(rig.C2 + ":80"), OverHostSocket: true, Published: true})
			return err
		})
		if !errors.Is(err, dataplane.ErrFull) {
			t.Errorf("publish %s: error %v", port, err)
		}
	}
	r.WantEvents()
	r.WantBindings("tcp br0 "+rig.C1+":2000 "+rig.External+":2000 1", "udp br0 "+rig.C1+":2000 "+rig.External+":2000 1")
	r.Outside(TCP(rig.Peer1+":80", rig.External+":3000", "SA", "")).Passed("host")
}

// TestForwardOfItsOwnInAFullTable: a binding towards one remote address becomes the static one, which is its host's towards every
// remote, also where there is no place for one more.
func TestForwardOfItsOwnInAFullTable(t *testing.T) { family.Each(t, testForwardOfItsOwnInAFullTable) }

func testForwardOfItsOwnInAFullTable(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithTables(16, 2), rig.WithMapping(dataplane.AddressDependent))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.Inside(UDP(rig.C1+":2001", rig.Peer1+":53", "x"))
	r.Forward("br0", dataplane.UDP, rig.External+":2000", rig.C1+":2000")
	r.Out(UDP(rig.C1+":2000", rig.Peer2+":53", "x"), UDP(rig.External+":2000", rig.Peer2+":53", "x"))
	r.Consistent()
}

// TestImportAfterMasquerade: packets of the flow have passed the egress hook under masquerade before it was imported; a
// port of the host's own is not taken.
func TestImportAfterMasquerade(t *testing.T) { family.Each(t, testImportAfterMasquerade) }

func testImportAfterMasquerade(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Egress("br0", UDP(rig.External+":2000", rig.Peer1+":53", "x").With(routed)).Passed("host")
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":2000", rig.Peer1+":53")
	r.Out(UDP(rig.C1+":2000", rig.Peer1+":53", "x"), UDP(rig.External+":2000", rig.Peer1+":53", "x"))
	r.Egress("br0", UDP(rig.External+":2001", rig.Peer1+":53", "x").With(routed)).Passed("host")
	r.Egress("", UDP(rig.External+":2001", rig.Peer1+":53", "x")).Passed("host")
	if err := r.Imported(dataplane.UDP, "", rig.C1+":2001", rig.External+":2001", rig.Peer1+":53"); !errors.Is(err, dataplane.ErrPortTaken) {
		t.Errorf("imported over the host's port: %v", err)
	}
	r.Consistent()
}

// TestPathStackBetweenNetworks: on the stack path the host's rules see what goes from one network to another.
func TestPathStackBetweenNetworks(t *testing.T) { family.Each(t, testPathStackBetweenNetworks) }

func testPathStackBetweenNetworks(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.TakePath(true)
	r.Publish(dataplane.UDP, rig.External+":8080", rig.C1+":80")
	r.From("q1", UDP(rig.Other+":9", rig.External+":8080", "x")).Passed("stack")
	r.Forward("br0", dataplane.UDP, rig.External+":8081", rig.C1+":80")
	r.From("q1", UDP(rig.Other+":9", rig.External+":8081", "x")).Dropped("isolated")
}

// TestAlreadyTranslated: netfilter still translates a connection that was taken over, just as its session would.
func TestAlreadyTranslated(t *testing.T) { family.Each(t, testAlreadyTranslated) }

func testAlreadyTranslated(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.MustImport(dataplane.UDP, "", rig.C1+":2000", rig.External+":2000", rig.Peer1+":53")
	r.Egress("br0", UDP(rig.External+":2000", rig.Peer1+":53", "x").With(routed)).Passed("translated")
	r.WantBindings("udp br0 " + rig.C1 + ":2000 " + rig.External + ":2000 1")
}

// TestHostConnectionBeforeBinding: a connection of the host's that was there before a binding got its port goes on.
func TestHostConnectionBeforeBinding(t *testing.T) { family.Each(t, testHostConnectionBeforeBinding) }

func testHostConnectionBeforeBinding(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.MustImport(dataplane.TCP, "established", rig.C1+":2000", rig.External+":2000", rig.Peer1+":80")
	r.Egress("", TCP(rig.External+":2000", rig.Peer2+":80", "A", "x")).Passed("host")
	r.WantBindings("tcp br0 " + rig.C1 + ":2000 " + rig.External + ":2000 1")
}

// TestReservationRenewed: what the host still holds stays its.
func TestReservationRenewed(t *testing.T) { family.Each(t, testReservationRenewed) }

func testReservationRenewed(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for range 3 {
		r.Must("reserve", func() error { return r.DP.ReserveHost(dataplane.UDP, r.Endpoint(rig.External+":6000")) })
		r.Wait(200 * 1e9)
	}
	if got := r.Opened("udp", rig.C1+":6000"); got == 6000 {
		t.Error("a reserved port was given away")
	}
}

// TestImportOverReservation: what was reserved for a connection of another NAT's is its own again when the connection
// turns out to be a container's, whose network the daemon did not know at the time. What a socket of the host holds is not.
func TestImportOverReservation(t *testing.T) { family.Each(t, testImportOverReservation) }

func testImportOverReservation(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	other, socket := r.Endpoint(rig.External+":6000"), r.Endpoint(rig.External+":6001")
	r.Must("reserve", func() error {
		return errors.Join(r.DP.ReserveForwarded(dataplane.UDP, other), r.DP.ReserveHost(dataplane.UDP, socket),
			r.DP.ReserveForwarded(dataplane.UDP, socket))
	})
	if got := r.Opened("udp", rig.C2+":6000"); got == 6000 {
		t.Error("a port of another NAT's connection was given away")
	}
	r.MustImport(dataplane.UDP, "active", rig.C1+":6000", rig.External+":6000", rig.Peer1+":80")
	if err := r.Imported(dataplane.UDP, "active", rig.C1+":6001", rig.External+":6001", rig.Peer1+":80"); err == nil {
		t.Error("a port of the host's socket was taken over")
	}
	r.Consistent()
}
