// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"errors"
	"testing"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

func (r *rig) imported(p dataplane.Protocol, state, in, ext, remote string) error {
	return r.do(func() error {
		return r.dp.ImportSession(dataplane.Session{Protocol: p, Network: "br0", State: state,
			Internal: Endpoint(in), External: Endpoint(ext), Remote: Endpoint(remote)})
	})
}

func (r *rig) mustImport(p dataplane.Protocol, state, in, ext, remote string) {
	r.t.Helper()
	if err := r.imported(p, state, in, ext, remote); err != nil {
		r.t.Fatal(err)
	}
}

// TestImport: a connection that lived in netfilter's NAT goes on in both directions with the same external endpoint,
// whichever side sends first, and what the endpoint opens anew has the same mapping.
func TestImport(t *testing.T) {
	r := newRig(t)
	r.mustImport(dataplane.TCP, "established", c1+":2000", external+":2000", peer1+":80")
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":3333", peer1+":53")
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":3333", peer1+":53") // again
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":3333", peer2+":53")
	r.in(TCP(peer1+":80", external+":2000", "A", "data"), TCP(peer1+":80", c1+":2000", "A", "data"))
	r.out(TCP(c1+":2000", peer1+":80", "A", ""), TCP(external+":2000", peer1+":80", "A", ""))
	r.out(UDP(c1+":2000", peer1+":53", "x"), UDP(external+":3333", peer1+":53", "x"))
	r.out(UDP(c1+":2000", peer2+":99", "x"), UDP(external+":3333", peer2+":99", "x"))
	r.in(UDP(peer2+":100", external+":3333", "x"), UDP(peer2+":100", c1+":2000", "x")) // the filter knows the remote
	r.wantBindings("tcp br0 "+c1+":2000 "+external+":2000 1", "udp br0 "+c1+":2000 "+external+":3333 4")
	r.wantSessions("tcp "+c1+":2000 "+external+":2000 "+peer1+":80 established",
		"udp "+c1+":2000 "+external+":3333 "+peer1+":53 active", "udp "+c1+":2000 "+external+":3333 "+peer2+":100 active",
		"udp "+c1+":2000 "+external+":3333 "+peer2+":53 active", "udp "+c1+":2000 "+external+":3333 "+peer2+":99 active")
}

// TestImportSymmetric: netfilter had given one endpoint two mappings: each session keeps its own until it ends, and the
// first one is the binding.
func TestImportSymmetric(t *testing.T) {
	r := newRig(t)
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":2000", peer1+":53")
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":1024", peer2+":53")
	r.out(UDP(c1+":2000", peer2+":53", "x"), UDP(external+":1024", peer2+":53", "x"))
	r.in(UDP(peer2+":53", external+":1024", "x"), UDP(peer2+":53", c1+":2000", "x"))
	r.out(UDP(c1+":2000", peer2+":54", "x"), UDP(external+":2000", peer2+":54", "x"))
	r.consistent()
	r.wait(301 * 1e9)
	r.wantBindings()
	if got := r.opened("udp", c2+":1024"); got != 1024 {
		t.Errorf("port 1024 became %d", got)
	}
}

// TestImportPublished: a client's connection to a published port, which is a static binding by now.
func TestImportPublished(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.TCP, external+":8080", c1+":80")
	r.mustImport(dataplane.TCP, "established", c1+":80", external+":8080", peer1+":999")
	r.in(TCP(peer1+":999", external+":8080", "A", "q"), TCP(peer1+":999", c1+":80", "A", "q"))
	r.out(TCP(c1+":80", peer1+":999", "A", "a"), TCP(external+":8080", peer1+":999", "A", "a"))
	r.wantBindings("tcp br0 " + c1 + ":80 " + external + ":8080 1 static")
}

// TestImportRefused: nothing half done.
func TestImportRefused(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c2+":2000", peer1+":1", "x")) // holds external port 2000
	r.egress("", UDP(external+":3000", peer1+":53", "x"))
	for name, c := range map[string]struct {
		why                   error
		p                     dataplane.Protocol
		state, in, ext, other string
	}{
		"Taken":       {dataplane.ErrPortTaken, dataplane.UDP, "", c1 + ":2000", external + ":2000", peer1 + ":53"},
		"Hosts":       {dataplane.ErrPortTaken, dataplane.UDP, "", c1 + ":3000", external + ":3000", peer1 + ":53"},
		"NotExternal": {dataplane.ErrNotFound, dataplane.UDP, "", c1 + ":2000", "198.51.100.9:2000", peer1 + ":53"},
		"NotInside":   {dataplane.ErrNotFound, dataplane.UDP, "", "10.0.0.1:2000", external + ":2001", peer1 + ":53"},
		"NoPort":      {nil, dataplane.UDP, "", c1 + ":2000", external + ":2001", peer1 + ":0"},
		"ICMP":        {nil, dataplane.ICMP, "", c1 + ":2000", external + ":2001", peer1 + ":53"},
		"State":       {nil, dataplane.TCP, "odd", c1 + ":2000", external + ":2001", peer1 + ":53"},
	} {
		r.subtest(name, func() {
			if err := r.imported(c.p, c.state, c.in, c.ext, c.other); err == nil || (c.why != nil && !errors.Is(err, c.why)) {
				r.t.Errorf("error %v, want %v", err, c.why)
			}
			r.wantBindings("udp br0 " + c2 + ":2000 " + external + ":2000 1")
		})
	}
}

// TestPublishOverDynamic: a container has sent from a port before it was published: the binding becomes the static one.
func TestPublishOverDynamic(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":80", peer1+":53", "x"))
	ext := r.externalOf("udp", c1+":80")
	r.forget()
	r.forward("br0", dataplane.UDP, ext, c1+":80")
	r.wantEvents("binding.changed udp br0 " + c1 + ":80 " + ext + " static")
	r.in(UDP(peer2+":9", ext, "x"), UDP(peer2+":9", c1+":80", "x"))
	r.wait(301 * 1e9)
	r.wantBindings("udp br0 " + c1 + ":80 " + ext + " 0 static")
	if err := r.removeForward(dataplane.UDP, ext); err != nil {
		t.Fatal(err)
	}
	r.wantBindings()
}

// TestPublishOverHost: Docker's own NAT has answered from the port before conenat had it.
func TestPublishOverHost(t *testing.T) {
	r := newRig(t)
	r.egress("br0", UDP(external+":80", peer1+":9", "x").With(routed)).passed("host")
	r.refused(dataplane.ErrPortTaken, dataplane.UDP, "br0", external+":80", c1+":80")
	r.must("publish", func() error {
		_, err := r.dp.AddForward(dataplane.Forward{Protocol: dataplane.UDP, External: Endpoint(external + ":80"),
			Internal: Endpoint(c1 + ":80"), OverHostSocket: true, Published: true})
		return err
	})
	r.in(UDP(peer1+":9", external+":80", "x"), UDP(peer1+":9", c1+":80", "x"))
	r.wait(301 * 1e9)
	r.wantBindings("udp br0 " + c1 + ":80 " + external + ":80 0 static")
}

// TestPublishedTakesTheIndex: what an endpoint opens after it was published leaves as what is published; what it had opened
// before goes on.
func TestPublishedTakesTheIndex(t *testing.T) {
	r := newRig(t)
	r.inside(UDP(c1+":80", peer1+":53", "x"))
	was := r.externalOf("udp", c1+":80")
	r.publish(dataplane.UDP, external+":8080", c1+":80")
	r.out(UDP(c1+":80", peer1+":53", "x"), UDP(was, peer1+":53", "x"))
	r.in(UDP(peer1+":53", was, "y"), UDP(peer1+":53", c1+":80", "y"))
	r.out(UDP(c1+":80", peer1+":54", "x"), UDP(external+":8080", peer1+":54", "x"))
	r.consistent()
	r.wait(301 * 1e9)
	r.out(UDP(c1+":80", peer1+":55", "x"), UDP(external+":8080", peer1+":55", "x"))
	r.consistent()
}

// TestForwardsIndexed: of two static bindings of one endpoint the first is what it sends by; when that goes, the other.
func TestForwardsIndexed(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.UDP, external+":8080", c1+":80")
	r.forward("br0", dataplane.UDP, external+":8081", c1+":80")
	r.out(UDP(c1+":80", peer1+":1", "x"), UDP(external+":8080", peer1+":1", "x"))
	if err := r.removeForward(dataplane.UDP, external+":8080"); err != nil {
		t.Fatal(err)
	}
	r.must("index", r.dp.IndexForwards)
	r.out(UDP(c1+":80", peer1+":2", "x"), UDP(external+":8081", peer1+":2", "x"))
	r.consistent()
}

// publish is a forward as Docker's ports are.
func (r *rig) publish(p dataplane.Protocol, ext, in string) {
	r.t.Helper()
	r.must("publish", func() error {
		_, err := r.dp.AddForward(dataplane.Forward{Protocol: p, External: Endpoint(ext), Internal: Endpoint(in), OverHostSocket: true, Published: true})
		return err
	})
}

// TestPublishOverAnother: the port of another container's binding is published: new clients reach the service, what the
// other one has opened goes on from the same endpoint, and what it opens anew gets another.
func TestPublishOverAnother(t *testing.T) {
	r := newRig(t)
	r.inside(TCP(c1+":32770", peer1+":80", "S", ""))
	r.forget()
	r.publish(dataplane.TCP, external+":32770", c2+":80")
	r.wantEvents("binding.expired tcp br0 "+c1+":32770 "+external+":32770", "binding.created tcp br0 "+c2+":80 "+external+":32770 static")
	r.in(TCP(peer2+":9", external+":32770", "S", ""), TCP(peer2+":9", c2+":80", "S", ""))
	r.in(TCP(peer1+":80", external+":32770", "SA", ""), TCP(peer1+":80", c1+":32770", "SA", ""))
	r.out(TCP(c1+":32770", peer1+":80", "A", "x"), TCP(external+":32770", peer1+":80", "A", "x"))
	r.inside(TCP(c1+":32770", peer2+":80", "S", ""))
	if got := r.externalOf("tcp", c1+":32770"); got == "" {
		t.Errorf("no binding for what is opened anew: %q", r.bindings())
	}
	r.wait(7441 * 1e9)
	for _, e := range r.events() {
		if line := eventLine(e); line == "binding.expired tcp br0 "+c1+":32770 "+external+":32770" {
			t.Errorf("told twice: %s", line)
		}
	}
	r.wantBindings("tcp br0 " + c2 + ":80 " + external + ":32770 0 static")
	if err := r.removeForward(dataplane.TCP, external+":32770"); err != nil {
		t.Fatal(err)
	}
	r.consistent()
	if got := r.opened("tcp", c1+":32770"); got != 32770 {
		t.Errorf("port 32770 became %d", got)
	}
}

// TestImportAfterMasquerade: packets of the flow have passed the egress hook under masquerade before it was imported; a
// port of the host's own is not taken.
func TestImportAfterMasquerade(t *testing.T) {
	r := newRig(t)
	r.egress("br0", UDP(external+":2000", peer1+":53", "x").With(routed)).passed("host")
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":2000", peer1+":53")
	r.out(UDP(c1+":2000", peer1+":53", "x"), UDP(external+":2000", peer1+":53", "x"))
	r.egress("br0", UDP(external+":2001", peer1+":53", "x").With(routed)).passed("host")
	r.egress("", UDP(external+":2001", peer1+":53", "x")).passed("host")
	if err := r.imported(dataplane.UDP, "", c1+":2001", external+":2001", peer1+":53"); !errors.Is(err, dataplane.ErrPortTaken) {
		t.Errorf("imported over the host's port: %v", err)
	}
	r.consistent()
}

// TestPathStackBetweenNetworks: on the stack path the host's rules see what goes from one network to another.
func TestPathStackBetweenNetworks(t *testing.T) {
	r := newRig(t)
	r.takePath(true)
	r.publish(dataplane.UDP, external+":8080", c1+":80")
	r.from("q1", UDP(other+":9", external+":8080", "x")).passed("stack")
	r.forward("br0", dataplane.UDP, external+":8081", c1+":80")
	r.from("q1", UDP(other+":9", external+":8081", "x")).dropped("isolated")
}

// TestAlreadyTranslated: netfilter still translates a connection that was taken over, just as its session would.
func TestAlreadyTranslated(t *testing.T) {
	r := newRig(t)
	r.mustImport(dataplane.UDP, "", c1+":2000", external+":2000", peer1+":53")
	r.egress("br0", UDP(external+":2000", peer1+":53", "x").With(routed)).passed("translated")
	r.wantBindings("udp br0 " + c1 + ":2000 " + external + ":2000 1")
}

// TestHostConnectionBeforeBinding: a connection of the host's that was there before a binding got its port goes on.
func TestHostConnectionBeforeBinding(t *testing.T) {
	r := newRig(t)
	r.mustImport(dataplane.TCP, "established", c1+":2000", external+":2000", peer1+":80")
	r.egress("", TCP(external+":2000", peer2+":80", "A", "x")).passed("host")
	r.wantBindings("tcp br0 " + c1 + ":2000 " + external + ":2000 1")
}

// TestReservationRenewed: what the host still holds stays its.
func TestReservationRenewed(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.must("reserve", func() error { return r.dp.ReserveHost(dataplane.UDP, Endpoint(external+":6000")) })
		r.wait(200 * 1e9)
	}
	if got := r.opened("udp", c1+":6000"); got == 6000 {
		t.Error("a reserved port was given away")
	}
}
