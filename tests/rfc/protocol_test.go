// SPDX-License-Identifier: Apache-2.0

package rfc

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

var behaviors = []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressAndPortDependent}

// protocol is what requirements of UDP and of TCP, which are the same, say by.
type protocol struct {
	name    string
	of      dataplane.Protocol
	first   func(src, dst string) Spec // opens a session
	answer  func(src, dst string) Spec
	payload func(src, dst, text string) Spec
}

var udp = protocol{"udp", dataplane.UDP,
	func(src, dst string) Spec { return UDP(src, dst, "question") },
	func(src, dst string) Spec { return UDP(src, dst, "answer") },
	UDP,
}

var tcp = protocol{"tcp", dataplane.TCP,
	func(src, dst string) Spec { return TCP(src, dst, "S", "") },
	func(src, dst string) Spec { return TCP(src, dst, "SA", "") },
	func(src, dst, text string) Spec { return TCP(src, dst, "PA", text) },
}

// out is a packet from inside that is to leave as want.
func out(r *rig.Rig, in, want Spec) {
	r.T.Helper()
	r.Out(in, want)
}

// routeBy routes a prefix by a gateway outside.
func routeBy(r *rig.Rig, prefix, gateway string) error {
	_, dst, err := net.ParseCIDR(r.Family.Text(prefix))
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: r.Ports["eth0"], Gw: r.Address(gateway).AsSlice()})
}

func moveExternal(r *rig.Rig, address string) error {
	return r.DP.PutOutside(dataplane.Outside{Name: "eth0", IfIndex: r.Ports["eth0"], Addresses: []netip.Addr{r.Address(address)}})
}

// mapsIndependently: whatever the remote, one external endpoint; also where it is not the internal port.
func (p protocol) mapsIndependently(l *line) {
	r := l.rig()
	for _, host := range []string{l.c1, l.c2} { // the second one's port is taken
		internal := at(host, 20000)
		external := at(l.external, r.Opened(p.name, internal))
		for _, remote := range []string{at(l.peer1, 443), at(l.peer1, 80), at(l.peer2, 443), at(l.peer2, 40000)} {
			out(r, p.first(internal, remote), p.first(external, remote))
			r.In(p.answer(remote, external), p.answer(remote, internal))
		}
	}
	r.Consistent()
}

// neverOverloads: no two internal endpoints have one external endpoint, whatever the remotes, also when that leaves
// somebody without one.
func (p protocol) neverOverloads(l *line) {
	r := l.rig(rig.WithPorts(40000, 40009))
	owner := map[int]string{}
	refused := 0
	for host := range 15 {
		internal := at(l.host(host), 40000)
		remote := at(l.peer1, 1000+host) // each its own: ports could be overloaded
		if r.Inside(p.first(internal, remote)).Verdict == rig.Shot {
			refused++
			continue
		}
		port := int(Endpoint(r.ExternalOf(p.name, internal)).Port())
		if owner[port] != "" {
			l.Errorf("%s and %s both have port %d", owner[port], internal, port)
		}
		owner[port] = internal
	}
	if len(owner) != 10 || refused != 5 {
		l.Errorf("15 hosts, 10 ports: %d have one, %d were refused", len(owner), refused)
	}
}

func (p protocol) keepsPortClass(l *line) {
	r := l.rig()
	for _, port := range []int{1, 500, 1023, 1024, 20000, 65535} {
		for host := range 10 {
			got := r.Opened(p.name, at(l.host(host), port))
			if (got < 1024) != (port < 1024) {
				l.Errorf("port %d of host %d became %d", port, host, got)
			}
		}
	}
}

// filters: whom each behaviour admits, once something was sent to peer1:443.
func (p protocol) filters(l *line) {
	for _, c := range []struct {
		filtering            dataplane.Behavior
		otherPort, otherHost bool
	}{{dataplane.EndpointIndependent, true, true}, {dataplane.AddressDependent, true, false}, {dataplane.AddressAndPortDependent, false, false}} {
		l.part(c.filtering.String(), func(l *line) {
			r := l.rig(rig.WithFiltering(c.filtering))
			internal, external := at(l.c1, 20000), at(l.external, 20000)
			out(r, p.first(internal, at(l.peer1, 443)), p.first(external, at(l.peer1, 443)))
			r.In(p.answer(at(l.peer1, 443), external), p.answer(at(l.peer1, 443), internal))
			for remote, admitted := range map[string]bool{at(l.peer1, 9): c.otherPort, at(l.peer2, 443): c.otherHost} {
				if !admitted {
					r.Outside(p.first(remote, external)).Dropped("filtered")
					continue
				}
				r.In(p.first(remote, external), p.first(remote, internal))
			}
		})
	}
}

// hairpins: two hosts of one network by their external endpoints, and a host with itself; each is seen as its external
// endpoint.
func (p protocol) hairpins(l *line) {
	r := l.rig(rig.WithFiltering(dataplane.EndpointIndependent))
	external := map[string]string{}
	for _, internal := range []string{at(l.c1, 20000), at(l.c2, 20000)} {
		external[internal] = at(l.external, r.Opened(p.name, internal))
	}
	one, two := at(l.c1, 20000), at(l.c2, 20000)
	r.Hairpin("p2", p.first(two, external[one]), p.first(external[two], one))
	r.Hairpin("p1", p.answer(one, external[two]), p.answer(external[one], two))
	r.Hairpin("p1", p.first(one, external[one]), p.first(external[one], one))
	r.Consistent()
}

// payloadStays: addresses and ports in the payload are nobody's business.
func (p protocol) payloadStays(l *line) {
	r := l.rig()
	for port, format := range map[int]string{
		5060: "INVITE sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/UDP %s\r\nContact: <sip:a@%[1]s>\r\n\r\n",
		21:   "PORT 172,17,0,2,78,32\r\n227 Entering Passive Mode (172,17,0,2,78,32) %s\r\n",
		1723: "%s", 69: "\x00\x01%s", 6667: "PRIVMSG x :\x01DCC SEND f 2886795266 20000\x01 %s",
	} {
		internal, external, remote := at(l.c1, 20000), at(l.external, 20000), at(l.peer1, port)
		out(r, p.first(internal, remote), p.first(external, remote))
		r.In(p.answer(remote, external), p.answer(remote, internal))
		out(r, p.payload(internal, remote, fmt.Sprintf(format, internal)), p.payload(external, remote, fmt.Sprintf(format, internal)))
		r.In(p.payload(remote, external, fmt.Sprintf(format, external)), p.payload(remote, internal, fmt.Sprintf(format, external)))
	}
}

// message is the type and the code of an ICMP error, by the family's own numbers.
type message struct{ kind, code uint8 }

func codes(kind, n uint8) (out []message) {
	for code := range n {
		out = append(out, message{kind, code})
	}
	return out
}

// unreachable are all codes of Destination Unreachable (IANA).
func (l *line) unreachable() []message {
	if l.family == family.V6 {
		return codes(1, 9)
	}
	return codes(3, 16)
}

// errorTypes is every type and code of an ICMP error (IANA) that a sender may hear of.
func (l *line) errorTypes() []message {
	if l.family == family.V6 {
		return slices.Concat(l.unreachable(), codes(2, 1), codes(3, 2), codes(4, 11))
	}
	return slices.Concat(l.unreachable(), codes(4, 1), codes(11, 2), codes(12, 3))
}

// icmpError is an ICMPError by the numbers of the line's family.
func (l *line) icmpError(src, dst string, m message, about Spec, embed int) Spec {
	if l.family == family.V6 {
		return ICMPv6Error(src, dst, m.kind, m.code, about, embed)
	}
	return ICMPError(src, dst, m.kind, m.code, about, embed)
}

// icmpEndsNothing: the mapping and the session go on, and end when they would have ended.
func (p protocol) icmpEndsNothing(l *line) {
	r := l.rig()
	internal, external, remote := at(l.c1, 20000), at(l.external, 20000), at(l.peer1, 443)
	out(r, p.first(internal, remote), p.first(external, remote))
	before := r.Sessions()
	r.Wait(time.Minute)
	for _, e := range l.errorTypes() {
		r.Outside(l.icmpError(l.peer1, l.external, e, p.first(external, remote), 28))
		r.Inside(l.icmpError(l.c1, l.peer1, e, p.answer(remote, internal), 28))
		r.Outside(l.icmpError(l.router, l.external, e, p.first(external, at(l.peer2, 9)), 28)) // of no session
	}
	r.WantSessions(before...)
	out(r, p.first(internal, remote), p.first(external, remote))
	r.In(p.answer(remote, external), p.answer(remote, internal))
}

// setMapping changes the mapping behaviour of the first network.
func setMapping(r *rig.Rig, mapping [3]dataplane.Behavior) {
	r.T.Helper()
	r.Must("put network", func() error {
		return r.DP.PutNetwork(dataplane.Network{Name: "br0", IfIndex: r.Ports["br0"], Gateway: rig.BridgeMAC,
			Prefixes: []netip.Prefix{r.Family.Prefix(netip.MustParsePrefix("172.17.0.0/16"))}, Mapping: mapping})
	})
}
