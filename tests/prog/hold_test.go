// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// TestHold: nobody gets the port of a UDP binding for 120 s after its end, where anybody could send to it (RFC 6888 REQ-8);
// what the RFC exempts is free at once.
func TestHold(t *testing.T) { family.Each(t, testHold) }

func testHold(t *testing.T, fam family.Family) {
	for name, c := range map[string]struct {
		proto     string
		filtering dataplane.Behavior
		ends      time.Duration
		held      bool
	}{
		"UDP":              {"udp", dataplane.EndpointIndependent, 301 * time.Second, true},
		"AddressDependent": {"udp", dataplane.AddressDependent, 301 * time.Second, false},
		"PortDependent":    {"udp", dataplane.AddressAndPortDependent, 301 * time.Second, false},
		"TCP":              {"tcp", dataplane.EndpointIndependent, 241 * time.Second, false},
		"ICMP":             {"icmp", dataplane.EndpointIndependent, 61 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithFiltering(c.filtering))
			gets := func(host string, want bool) {
				t.Helper()
				if got := r.Opened(c.proto, host+":5000") == 5000; got != want {
					t.Errorf("%s: port preserved is %t, want %t", host, got, want)
				}
			}
			gets(rig.C1, true)
			r.Wait(c.ends)
			r.WantBindings()
			gets(rig.C1, !c.held) // nor its own host
			if !c.held {
				return
			}
			r.Wait(119 * time.Second)
			gets(rig.C2, false)
			r.Wait(2 * time.Second)
			gets("172.17.1.1", true)
			r.Consistent()
		})
	}
}

// TestHoldUsesTheRange: a port that waits is taken; when its time has come it is free, also where it was the last one.
func TestHoldUsesTheRange(t *testing.T) { family.Each(t, testHoldUsesTheRange) }

func testHoldUsesTheRange(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent), rig.WithPorts(40000, 40003))
	for i := range 4 {
		r.Opened("udp", fmt.Sprintf("172.17.1.%d:5000", i+1))
	}
	r.Wait(301 * time.Second)
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x")).Dropped("port_exhausted")
	r.Wait(119 * time.Second)
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x")).Dropped("port_exhausted")
	r.Wait(2 * time.Second)
	for i := range 4 {
		r.Opened("udp", fmt.Sprintf("172.17.2.%d:5000", i+1))
	}
	r.Consistent()
}

// TestHeldPortAndStaticBinding: static bindings are exempt, on the way in and on the way out.
func TestHeldPortAndStaticBinding(t *testing.T) { family.Each(t, testHeldPortAndStaticBinding) }

func testHeldPortAndStaticBinding(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Opened("udp", rig.C1+":5000")
	r.Wait(301 * time.Second)
	r.Forward("br0", dataplane.UDP, rig.External+":5000", rig.C2+":5000")
	r.Wait(121 * time.Second) // what waited does not free what is bound
	r.In(UDP(rig.Peer1+":1", rig.External+":5000", "x"), UDP(rig.Peer1+":1", rig.C2+":5000", "x"))
	r.Consistent()
	if err := r.RemoveForward(dataplane.UDP, rig.External+":5000"); err != nil {
		t.Fatal(err)
	}
	r.Wait(301 * time.Second)
	if got := r.Opened("udp", "172.17.1.1:5000"); got != 5000 {
		t.Errorf("the port of a static binding became %d", got)
	}
	r.Consistent()
}

// TestHeldPortAndHost: the host's packet passes, and has the port when its time has come.
func TestHeldPortAndHost(t *testing.T) { family.Each(t, testHeldPortAndHost) }

func testHeldPortAndHost(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Opened("udp", rig.C1+":5000")
	r.Wait(301 * time.Second)
	r.Egress("", UDP(rig.External+":5000", rig.Peer1+":1", "x")).Passed("host")
	r.Outside(UDP(rig.Peer1+":1", rig.External+":5000", "x")).Passed("unbound")
	r.Wait(121 * time.Second)
	r.Egress("", UDP(rig.External+":5000", rig.Peer1+":1", "x")).Passed("host")
	r.Outside(UDP(rig.Peer1+":1", rig.External+":5000", "x")).Passed("host")
	r.Consistent()
}

// TestHoldOfWhatNeverWas: a binding that no session came about with makes no port wait: who is at a limit cannot use up the range.
func TestHoldOfWhatNeverWas(t *testing.T) { family.Each(t, testHoldOfWhatNeverWas) }

func testHoldOfWhatNeverWas(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent), rig.WithPorts(40000, 40003), limited(dataplane.Limits{HostSessions: 1}))
	r.Opened("udp", rig.C1+":5000")
	for i := range 20 {
		r.Inside(UDP(rig.C1+":6000", fmt.Sprintf("%s:%d", rig.Peer1, i+1), "x")).Dropped("host_sessions")
	}
	for i := range 3 {
		r.Opened("udp", fmt.Sprintf("172.17.1.%d:5000", i+1))
	}
	r.Consistent()
}

// TestHoldAndExternalAddress: what waits of an address that has gone means nothing to the next one in its place.
func TestHoldAndExternalAddress(t *testing.T) { family.Each(t, testHoldAndExternalAddress) }

func testHoldAndExternalAddress(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Opened("udp", rig.C1+":5000")
	r.Wait(301 * time.Second)
	r.Must("change the address and back", func() error {
		o := dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"]}
		if err := r.DP.PutOutside(o); err != nil {
			return err
		}
		o.Addresses = []netip.Addr{r.Address(rig.External)}
		return r.DP.PutOutside(o)
	})
	if got := r.Opened("udp", rig.C2+":5000"); got != 5000 {
		t.Errorf("port 5000 of the new address became %d", got)
	}
	r.Wait(121 * time.Second) // the old entry's time
	r.In(UDP(rig.Peer1+":1", rig.External+":5000", "x"), UDP(rig.Peer1+":1", rig.C2+":5000", "x"))
	r.Inside(UDP(rig.C1+":5000", rig.Peer1+":1", "x"))
	r.Consistent()
}
