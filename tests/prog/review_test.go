// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	. "github.com/conenat/conenat/tests/packets"
)

// TestScannerDoesNotRefresh: under endpoint-independent filtering new remotes come in, and keep nothing alive
// (RFC 7857 section 7).
func TestScannerDoesNotRefresh(t *testing.T) {
	r := newRig(t, withFiltering(dataplane.EndpointIndependent))
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	r.wait(200 * time.Second)
	in := UDP(fmt.Sprintf("%s:%d", peer2, 4000), external+":2000", "scan")
	r.outside(in).translated("translated_inbound", UDP(peer2+":4000", c1+":2000", "scan").Hop())
	r.wait(110 * time.Second)
	r.wantBindings()
	r.inside(UDP(c1+":2000", peer1+":53", "x"))
	r.wait(200 * time.Second)
	r.outside(in)
	r.inside(UDP(c1+":2000", peer2+":4000", "answer"))
	r.wait(200 * time.Second)
	if got := r.externalOf("udp", c1+":2000"); got == "" {
		t.Error("a binding ended 200 s after a packet that left by it")
	}
}

// TestHairpinOpensBySYN: a SYN-ACK to an external endpoint is somebody else's answer.
func TestHairpinOpensBySYN(t *testing.T) {
	r := newRig(t)
	r.inside(TCP(c1+":50000", peer1+":80", "S", ""))
	answer := TCP(c2+":80", external+":50000", "SA", "")
	r.send(r.dp.Objects().NatInside, "p2", fromContainer(answer).Bytes(), nil).dropped("tcp_no_session")
	r.wantBindings("tcp br0 " + c1 + ":50000 " + external + ":50000 1")
}

// TestMartianFromOutside: nobody outside has an address of the inside, of the host, or of no network.
func TestMartianFromOutside(t *testing.T) {
	r := newRig(t)
	r.forward("br0", dataplane.UDP, external+":53", c1+":53")
	for _, source := range []string{c2 + ":9", external + ":9", "127.0.0.1:9", "224.0.0.1:9"} {
		r.outside(UDP(source, external+":53", "x")).dropped("spoofed")
	}
}

// TestExternalAddressLooksLikeEthertype: BPF_PROG_RUN takes bytes 12 and 13 of a request for one.
func TestExternalAddressLooksLikeEthertype(t *testing.T) {
	for _, address := range []string{"8.0.1.2", "134.221.1.2"} {
		t.Run(address, func(t *testing.T) {
			r := newRig(t)
			r.must("outside", func() error {
				return r.dp.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.ports["eth0"], Address: netip.MustParseAddr(address)})
			})
			r.forward("br0", dataplane.TCP, address+":80", c1+":80")
			r.must("reserve", func() error {
				return r.dp.ReserveHost(dataplane.TCP, netip.MustParseAddrPort(address+":81"))
			})
			r.must("remove", func() error {
				return r.dp.RemoveForward(dataplane.TCP, netip.MustParseAddrPort(address+":80"))
			})
			r.wantBindings()
		})
	}
}
