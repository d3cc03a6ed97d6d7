// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

const gateway = "172.17.0.1" // of br0, and the host's address there

// refusing gives br0 a router that tells its hosts of refusals.
func refusing(refusal dataplane.Refusal) rig.Option { return refusingOver(refusal, dataplane.Limits{}) }

func refusingOver(refusal dataplane.Refusal, limits dataplane.Limits) rig.Option {
	return rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name == "br0" {
			n.Address, n.Refusal, n.Limits = netip.MustParseAddr(gateway), refusal, limits
		}
	})
}

// TestRefusals: a packet from inside that gets no mapping or session is dropped, and its sender told, whatever is
// missing (RFC 5508 REQ-8, RFC 6888 REQ-11); on the direct path from the port and from the bridge, and at egress.
func TestRefusals(t *testing.T) { family.Each(t, testRefusals) }

func testRefusals(t *testing.T, fam family.Family) {
	s := UDP(rig.C1+":5000", rig.Peer1+":99", "x")
	for name, c := range map[string]struct {
		options []rig.Option
		fill    func(r *rig.Rig)
		reason  string
	}{
		"PortExhausted": {[]rig.Option{rig.WithPorts(5001, 5001)}, func(r *rig.Rig) { r.Opened("udp", rig.C2+":5001") }, "port_exhausted"},
		"BindingsFull":  {[]rig.Option{rig.WithSmallTables()}, func(r *rig.Rig) { openBindings(r, 4) }, "bindings_full"},
		"SessionsFull":  {[]rig.Option{rig.WithSmallTables()}, func(r *rig.Rig) { openSessions(r, rig.C1+":5000", 16) }, "sessions_full"},
		"Quota": {[]rig.Option{rig.WithSettings(func(s *dataplane.Settings) { s.SessionsPerBinding = 2 })},
			func(r *rig.Rig) { openSessions(r, rig.C1+":5000", 2) }, "quota"},
	} {
		for code, refusal := range map[uint8]dataplane.Refusal{1: dataplane.RefuseHostUnreachable, 13: dataplane.RefuseAdminProhibited} {
			t.Run(fmt.Sprintf("%s/%s", name, refusal), func(t *testing.T) {
				r := rig.New(t, append(c.options, rig.In(fam), refusing(refusal))...)
				c.fill(r)
				told := Told(gateway, 3, code, 0, s)
				r.Inside(s).Told(c.reason, told)
				r.From("br0", s).Told(c.reason, told)
				r.Egress("br0", s).Told(c.reason, told)
				r.Consistent()
			})
		}
		t.Run(name+"/silent", func(t *testing.T) {
			r := rig.New(t, append(c.options, rig.In(fam), refusing(dataplane.RefuseSilently))...)
			c.fill(r)
			r.Inside(s).Dropped(c.reason)
		})
		t.Run(name+"/no_gateway", func(t *testing.T) {
			r := rig.New(t, append(c.options, rig.In(fam), rig.WithNetworks(func(n *dataplane.Network) { n.Refusal = dataplane.RefuseHostUnreachable }))...)
			c.fill(r)
			r.Inside(s).Dropped(c.reason)
		})
	}
}

func openBindings(r *rig.Rig, n int) {
	for i := range n {
		r.Opened("udp", fmt.Sprintf("%s:%d", rig.C2, 5000+i))
	}
}

func openSessions(r *rig.Rig, internal string, n int) {
	for i := range n {
		r.Inside(UDP(internal, fmt.Sprintf("%s:%d", rig.Peer1, i+1), "x"))
	}
}

// full is a rig whose only external port another host has.
func full(t *testing.T, options ...rig.Option) *rig.Rig {
	r := rig.New(t, append(options, rig.WithPorts(5001, 5001), refusing(dataplane.RefuseHostUnreachable))...)
	for _, proto := range []string{"udp", "tcp"} {
		r.Opened(proto, rig.C2+":5001")
	}
	return r
}

// TestRefusalsByLimits: those of a host and of a network count as any.
func TestRefusalsByLimits(t *testing.T) { family.Each(t, testRefusalsByLimits) }

func testRefusalsByLimits(t *testing.T, fam family.Family) {
	s := UDP(rig.C1+":5000", rig.Peer1+":99", "x")
	for reason, c := range map[string]struct {
		limits dataplane.Limits
		fill   func(r *rig.Rig)
	}{
		"host_ports":       {dataplane.Limits{HostPorts: 1}, func(r *rig.Rig) { r.Opened("udp", rig.C1+":5001") }},
		"network_ports":    {dataplane.Limits{NetworkPorts: 1}, func(r *rig.Rig) { r.Opened("udp", rig.C2+":5001") }},
		"host_sessions":    {dataplane.Limits{HostSessions: 2}, func(r *rig.Rig) { openSessions(r, rig.C1+":5000", 2) }},
		"network_sessions": {dataplane.Limits{NetworkSessions: 2}, func(r *rig.Rig) { openSessions(r, rig.C2+":5000", 2) }},
	} {
		t.Run(reason, func(t *testing.T) {
			r := rig.New(t, rig.In(fam), refusingOver(dataplane.RefuseHostUnreachable, c.limits))
			c.fill(r)
			r.Inside(s).Told(reason, Told(gateway, 3, 1, 0, s))
			r.Egress("br0", s).Told(reason, Told(gateway, 3, 1, 0, s))
		})
	}
}

// TestRefusalsOfOutsiders: only inside hosts are told (RFC 5508 REQ-8 speaks of no others).
func TestRefusalsOfOutsiders(t *testing.T) { family.Each(t, testRefusalsOfOutsiders) }

func testRefusalsOfOutsiders(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), rig.WithSmallTables(), refusing(dataplane.RefuseHostUnreachable), rig.WithFiltering(dataplane.EndpointIndependent))
	openSessions(r, rig.C1+":5000", 16)
	r.Outside(UDP(rig.Peer2+":99", rig.External+":5000", "x")).Dropped("sessions_full")
	r.Egress("", UDP(rig.External+":5000", rig.Peer2+":99", "x")).Dropped("sessions_full") // of the host's own
}

// TestReplyQuote: the error quotes what 576 bytes have room for, or 1280 in IPv6, to the byte, with odd lengths, and IPv4 options or an
// extension header.
func TestReplyQuote(t *testing.T) { family.Each(t, testReplyQuote) }

func testReplyQuote(t *testing.T, fam family.Family) {
	r := full(t, rig.In(fam))
	room := map[family.Family]int{family.V4: 576 - 28 - 28, family.V6: 1280 - 48 - 48}[fam] // for UDP's data
	for _, size := range []int{0, 1, 2, 63, 64, room - 1, room, room + 1, 1400} {
		payload := strings.Repeat("y", size)
		for _, s := range []Spec{UDP(rig.C1+":5000", rig.Peer1+":99", payload), TCP(rig.C1+":5000", rig.Peer1+":99", "S", payload),
			UDP(rig.C1+":5000", rig.Peer1+":99", payload).With(dontCut)} {
			r.Wait(time.Second) // no more of them than is allowed
			r.Inside(s).Told("port_exhausted", Told(gateway, 3, 1, 0, s))
			longer := lengthened(fam, s)
			r.Egress("br0", longer).Told("port_exhausted", Told(gateway, 3, 1, 0, longer))
		}
	}
}

// lengthened is a packet with 8 bytes more between its first header and the transport's: options, or an extension header.
func lengthened(fam family.Family, s Spec) Spec {
	if fam == family.V6 {
		return s.In(fam).Behind(DestinationOptions(0))
	}
	return s.With(optioned)
}

// TestReplyLeavesPaddingOut: what stands behind the IP packet in its frame is not quoted.
func TestReplyLeavesPaddingOut(t *testing.T) { family.Each(t, testReplyLeavesPaddingOut) }

func testReplyLeavesPaddingOut(t *testing.T, fam family.Family) {
	r := full(t, rig.In(fam))
	s := rig.FromContainer(UDP(rig.C1+":5000", rig.Peer1+":99", "x"))
	r.Send(r.DP.Objects().NatInside, "p1", append(r.Frame(s), make([]byte, 17)...), nil).Told("port_exhausted", Told(gateway, 3, 1, 0, s))
}

// TestReplyToGSO: one that stands for several segments becomes one ordinary packet.
func TestReplyToGSO(t *testing.T) { family.Each(t, testReplyToGSO) }

func testReplyToGSO(t *testing.T, fam family.Family) {
	r := full(t, rig.In(fam))
	s := rig.FromContainer(TCP(rig.C1+":5000", rig.Peer1+":99", "S", strings.Repeat("y", 1800)))
	r.Send(r.DP.Objects().NatInside, "p1", r.Frame(s), func(c *rig.SKB) { c.GSOSize, c.GSOSegs = 600, 3 }).
		Told("port_exhausted", Told(gateway, 3, 1, 0, s))
}

// TestReplyToUnfilled: the sender's kernel leaves the transport checksum to a device. Once that has filled it in, as it does
// from the transport header to the packet's end, the error's own checksum is right, too.
func TestReplyToUnfilled(t *testing.T) { family.Each(t, testReplyToUnfilled) }

func testReplyToUnfilled(t *testing.T, fam family.Family) {
	ip := map[family.Family]int{family.V4: 20, family.V6: 40}[fam]
	udp, tcp := UDP(rig.C1+":5000", rig.Peer1+":99", "odd"), TCP(rig.C1+":5000", rig.Peer1+":99", "S", "")
	for name, c := range map[string]struct {
		s        Spec
		protocol byte
		header   int // before the transport's, bytes
		check    int // offset of the checksum in the transport header
	}{"UDP": {udp, 17, ip, 6}, "TCP": {tcp, 6, ip, 16},
		"Cut":     {TCP(rig.C1+":5000", rig.Peer1+":99", "S", strings.Repeat("z", 1200)), 6, ip, 16},
		"Options": {lengthened(fam, UDP(rig.C1+":5000", rig.Peer1+":99", "x")), 17, ip + 8, 6}} {
		t.Run(name, func(t *testing.T) {
			r := full(t, rig.In(fam))
			frame := r.Frame(rig.FromContainer(c.s))
			transport := frame[rig.L3+c.header:]
			addresses := frame[rig.L3+ip-fam.Bits()/4 : rig.L3+ip]
			pseudo := append(bytes.Clone(addresses), 0, c.protocol, byte(len(transport)>>8), byte(len(transport)))
			binary.BigEndian.PutUint16(transport[c.check:], ^Checksum(pseudo))
			res := r.Send(r.DP.Objects().NatOutsideEgress, "eth0", frame, func(s *rig.SKB) { s.IngressIfindex = uint32(r.Ports["br0"]) })
			if res.Verdict != rig.Redirect {
				t.Fatalf("verdict %d for %s", res.Verdict, res.Reason)
			}
			out := res.Frame()
			covered := out[rig.L3+ip+8+c.header:]
			binary.BigEndian.PutUint16(covered[c.check:], Checksum(covered)) // as skb_checksum_help does
			if _, sum := Sums(out[rig.L3:]); sum != RightSum {
				t.Errorf("the ICMP checksum is wrong:\n%s", Dump(out))
			}
		})
	}
}

// TestNoReply: what no ICMP error may be sent about (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4).
func TestNoReply(t *testing.T) { family.Each(t, testNoReply) }

func testNoReply(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), refusing(dataplane.RefuseHostUnreachable))
	r.Inside(UDP(rig.C1+":2000", rig.Peer1+":53", "x"))
	expired := UDP(rig.Peer1+":53", rig.External+":2000", long).With(lastHop).With(func(s *Spec) { s.ID = 7 })
	o := r.DP.Objects()
	for _, to := range []net.HardwareAddr{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}} {
		s := expired
		s.DstMAC, s.SrcMAC = to, rig.RouterMAC
		r.Send(o.NatOutsideIngress, "eth0", r.Frame(s), nil).Dropped("ttl")
	}
	about := UDP(rig.External+":2000", rig.Peer1+":53", "x")
	r.Outside(ICMPError(rig.Peer1, rig.External, 3, 3, about, 0).With(lastHop)).Dropped("ttl")
	fragments := rig.FromOutside(expired).In(fam).Fragments(320)
	first, later := fragments[0], fragments[1]
	arrived := rig.FromOutside(expired.With(func(s *Spec) { s.TTL = 2 })).In(fam).Fragments(320)[0]
	r.Send(o.NatOutsideIngress, "eth0", arrived, nil)
	r.Send(o.NatOutsideIngress, "eth0", later, nil).Dropped("ttl")
	if res := r.Send(o.NatOutsideIngress, "eth0", first, nil); res.Verdict != rig.Redirect || !rig.IsReply(first, res.Frame()) {
		t.Errorf("a first fragment: verdict %d for %s", res.Verdict, res.Reason)
	}
}

// TestNoReplyToNobody: nor about a packet whose source is no host.
func TestNoReplyToNobody(t *testing.T) { family.Each(t, testNoReplyToNobody) }

func testNoReplyToNobody(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), refusing(dataplane.RefuseHostUnreachable))
	sources := map[string]string{"Multicast": "224.0.0.1", "Zero": "0.0.0.0", "Loopback": "127.0.0.1"}
	if fam == family.V4 { // IPv6 has no such address
		sources["Broadcast"] = "255.255.255.255"
	}
	r.Forward("br0", dataplane.UDP, rig.External+":7000", rig.C1+":7000")
	for name, src := range sources {
		r.Subtest(name, func() { r.Outside(UDP(src+":53", rig.External+":7000", "x").With(lastHop)).Dropped("spoofed") })
	}
}

// TestNoReplyToBroadcast: nor to a source that is a network's broadcast address, or in IPv6 its routers' anycast address, or the
// host's own.
func TestNoReplyToBroadcast(t *testing.T) { family.Each(t, testNoReplyToBroadcast) }

func testNoReplyToBroadcast(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), refusing(dataplane.RefuseSilently))
	r.Forward("br0", dataplane.UDP, rig.External+":7000", rig.C1+":7000")
	from := func(src string) Spec { return UDP(src+":53", rig.External+":7000", "x").With(lastHop) }
	outside, inside := "198.51.100.255", "172.17.255.255"
	if fam == family.V6 {
		outside, inside = "198.51.100.0", "172.17.0.0"
	}
	r.Outside(from(outside)).Dropped("ttl")
	r.Outside(from("198.51.100.254")).Told("ttl", Told(rig.External, 11, 0, 0, from("198.51.100.254")))
	for _, src := range []string{inside, gateway} {
		r.Inside(from(src)).Dropped("ttl")
	}
	r.From("p2", from(rig.C2)).Told("ttl", Told(gateway, 11, 0, 0, from(rig.C2)))
}

// TestExpiredHairpin: the network's own router says so.
func TestExpiredHairpin(t *testing.T) { family.Each(t, testExpiredHairpin) }

func testExpiredHairpin(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), refusing(dataplane.RefuseSilently))
	r.Opened("udp", rig.C2+":2000")
	s := UDP(rig.C1+":3000", rig.External+":2000", "x").With(lastHop)
	r.Inside(s).Told("ttl", Told(gateway, 11, 0, 0, s))
}

// TestReplyRate: so many a tick on each CPU, for each side of its own; the rest is dropped in silence.
func TestReplyRate(t *testing.T) { family.Each(t, testReplyRate) }

func testReplyRate(t *testing.T, fam family.Family) {
	const most = 16
	r := full(t, rig.In(fam))
	r.Inside(UDP(rig.C2+":5001", rig.Peer1+":53", "x"))
	refused := UDP(rig.C1+":5000", rig.Peer1+":99", "x")
	expired := UDP(rig.Peer1+":53", rig.External+":5001", "x").With(lastHop)
	for range 2 {
		for range most {
			r.Inside(refused).Told("port_exhausted", Told(gateway, 3, 1, 0, refused))
		}
		r.Inside(refused).Dropped("port_exhausted")
		for range most {
			r.Outside(expired).Told("ttl", Told(rig.External, 11, 0, 0, expired))
		}
		r.Outside(expired).Dropped("ttl")
		r.Wait(20 * time.Millisecond)
	}
}
