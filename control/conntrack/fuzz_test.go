// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/dataplane"
)

// FuzzDecode: whatever the kernel lists is an entry or none, and an entry that is encoded again says the same.
func FuzzDecode(f *testing.F) {
	at := netip.MustParseAddrPort
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		var m message
		m.add(Flow{Protocol: p, TCPState: 3, SourceNAT: true,
			Original: Tuple{at("172.17.0.2:2000"), at("203.0.113.1:53")}, Reply: Tuple{at("203.0.113.1:53"), at("198.51.100.1:2000")}}, 1)
		f.Add(m.bytes[unix.SizeofNlMsghdr:])
		m = message{}
		m.add(Flow{Protocol: p, TCPState: 3, SourceNAT: true,
			Original: Tuple{at("[fd00::2]:2000"), at("[2001:db8::9]:53")}, Reply: Tuple{at("[2001:db8::9]:53"), at("[2001:db8::1]:2000")}}, 1)
		f.Add(m.bytes[unix.SizeofNlMsghdr:])
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		flow, ok := decode(entry)
		if !ok {
			return
		}
		flow.SourceNAT, flow.DestinationNAT = false, false // what is asked for is not what is listed then
		var m message
		m.add(flow, 1)
		again, ok := decode(m.bytes[unix.SizeofNlMsghdr:])
		if !ok || again.Original != flow.Original || again.Reply != flow.Reply || again.Protocol != flow.Protocol {
			t.Errorf("%+v became %+v", flow, again)
		}
	})
}
