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

// TestScannerDoesNotRefresh: under endpoint-independent filtering new remotes come in, and keep nothing alive
// (RFC 7857 section 7).
func TestScannerDoesNotRefresh(t *testing.T) { family.Each(t, testScannerDoesNotRefresh) }

func testScannerDoesNotRefresh(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithFiltering(dataplane.EndpointIndependent))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.Wait(200 * time.Second)
	in := UDP(fmt.Sprintf("%s:%d", rig.Peer2, 4000), rig.External+":2000", "scan")
	r.Outside(in).Translated("translated_inbound", UDP(rig.Peer2+":4000", rig.C1+":2000", "scan").Hop())
	r.Wait(110 * time.Second)
	r.WantBindings()
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	r.Wait(200 * time.Second)
	r.Outside(in)
	r.Inside(UDP(rig.C1+":2000", rig.Peer2+":4000", "answer"))
	r.Wait(200 * time.Second)
	if got := r.ExternalOf("udp", rig.C1+":2000"); got == "" {
		t.Error("a binding ended 200 s after a packet that left by it")
	}
}

// TestHairpinOpensBySYN: a SYN-ACK to an external endpoint is somebody else's answer.
func TestHairpinOpensBySYN(t *testing.T) { family.Each(t, testHairpinOpensBySYN) }

func testHairpinOpensBySYN(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Inside(TCP(rig.C1+":50000", rig.Peer1+":80", "S", ""))
	answer := TCP(rig.C2+":80", rig.External+":50000", "SA", "")
	r.Send(r.DP.Objects().NatInside, "p2", r.Frame(rig.FromContainer(answer)), nil).Dropped("tcp_no_session")
	r.WantBindings("tcp br0 " + rig.C1 + ":50000 " + rig.External + ":50000 1")
}

// TestMartianFromOutside: nobody outside has an address of the inside, of the host, or of no network.
func TestMartianFromOutside(t *testing.T) { family.Each(t, testMartianFromOutside) }

func testMartianFromOutside(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.Forward("br0", dataplane.UDP, rig.External+":53", rig.C1+":53")
	for _, source := range []string{rig.C2 + ":9", rig.External + ":9", "127.0.0.1:9", "224.0.0.1:9"} {
		r.Outside(UDP(source, rig.External+":53", "x")).Dropped("spoofed")
	}
}

// TestExternalAddressLooksLikeEthertype: BPF_PROG_RUN takes bytes 12 and 13 of a request for one.
func TestExternalAddressLooksLikeEthertype(t *testing.T) {
	for _, address := range []string{"8.0.1.2", "134.221.1.2"} {
		t.Run(address, func(t *testing.T) {
			r := rig.New(t)
			r.Must("outside", func() error {
				return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"], Addresses: []netip.Addr{netip.MustParseAddr(address)}})
			})
			r.Forward("br0", dataplane.TCP, address+":80", rig.C1+":80")
			r.Must("reserve", func() error {
				return r.DP.ReserveHost(dataplane.TCP, netip.MustParseAddrPort(address+":81"))
			})
			r.Must("remove", func() error {
				return r.DP.RemoveForward(dataplane.TCP, netip.MustParseAddrPort(address+":80"))
			})
			r.WantBindings()
		})
	}
}
