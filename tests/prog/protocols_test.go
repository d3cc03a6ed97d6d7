// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// portless are the protocols of which addresses alone are translated, with a packet of each.
var portless = []struct {
	name   string
	make   func(src, dst string) Spec
	hidden bool // it has ports, which another NAT may translate: its first packet goes the kernel's way
}{
	{"gre", func(src, dst string) Spec { return GRE(src, dst, tunnelled) }, false},
	{"esp", func(src, dst string) Spec { return ESP(src, dst, 0x1234, 40) }, false},
	{"ipip", func(src, dst string) Spec { return IPIP(src, dst, tunnelled) }, false},
	{"ipv6", func(src, dst string) Spec { return SixIn4(src, dst, tunnelled.In(family.V6)) }, false},
	{"sctp", func(src, dst string) Spec { return SCTP(src+":2000", dst+":9", 7, "payload") }, true},
	{"udplite", func(src, dst string) Spec { return UDPLite(src+":2000", dst+":9", "payload") }, true},
}

var tunnelled = UDP("10.1.1.1:7", "10.2.2.2:8", "an inner packet, which is nobody's business")

// eachPortless runs a test for each protocol in each family, and for both families whatever family.Tested says.
func eachPortless(t *testing.T, test func(r *rig.Rig, proto string, make func(src, dst string) Spec, hidden bool), options ...rig.Option) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) {
			for _, p := range portless {
				t.Run(p.name, func(t *testing.T) {
					r := rig.New(t, append(options, rig.In(fam))...)
					test(r, p.name, p.make, p.hidden)
					r.Consistent()
				})
			}
		})
	}
}

// opens sends the first packet of a host at a port, and checks that it leaves as want.
func opens(r *rig.Rig, dev string, s, want Spec, hidden bool) {
	r.T.Helper()
	if !hidden {
		r.From(dev, s).Translated("translated_outbound", want.Hop())
		return
	}
	r.From(dev, s).Passed("stack")
	r.Egress("br0", s).Translated("translated_stack", want)
}

// TestPortless: there and back, addresses alone and what covers them; nobody else comes in; five minutes.
func TestPortless(t *testing.T) {
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		opens(r, "p1", p(rig.C1, rig.Peer1), p(rig.External, rig.Peer1), hidden)
		r.Out(p(rig.C1, rig.Peer1), p(rig.External, rig.Peer1))
		r.In(p(rig.Peer1, rig.External), p(rig.Peer1, rig.C1))
		r.Outside(p(rig.Peer2, rig.External)).Passed("unbound")
		opens(r, "p1", p(rig.C1, rig.Peer2), p(rig.External, rig.Peer2), hidden)
		r.In(p(rig.Peer2, rig.External), p(rig.Peer2, rig.C1))
		line := proto + " br0 " + rig.C1 + ":0 " + rig.External + ":0 1"
		r.WantBindings(line, line)
		line = proto + " " + rig.C1 + ":0 " + rig.External + ":0 "
		r.WantSessions(line+rig.Peer1+":0 active", line+rig.Peer2+":0 active")
		r.Wait(299 * time.Second)
		r.In(p(rig.Peer1, rig.External), p(rig.Peer1, rig.C1))
		r.Wait(299 * time.Second)
		r.WantSessions(line + rig.Peer1 + ":0 active")
		r.Wait(2 * time.Second)
		r.Empty()
	})
}

// TestPortlessRemoteTaken: the first host to talk to a remote has it; another one is refused, counted and told, until the first is done.
// Other remotes and other protocols are free.
func TestPortlessRemoteTaken(t *testing.T) {
	refuse := rig.WithNetworks(func(n *dataplane.Network) {
		n.Refusal, n.Address = dataplane.RefuseAdminProhibited, netip.MustParseAddr("172.17.0.1")
	})
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		opens(r, "p1", p(rig.C1, rig.Peer1), p(rig.External, rig.Peer1), hidden)
		r.Events()
		if again := p(rig.C2, rig.Peer1); hidden {
			told(r, r.Egress("br0", again).Reason, nil, nil)
		} else {
			res := r.From("p2", again)
			told(r, res.Reason, r.Frame(rig.FromContainer(again).With(func(s *Spec) { s.SrcMAC = rig.C2MAC })), res.Frame())
		}
		r.WantEvents("port.exhausted " + proto + " *")
		opens(r, "p2", p(rig.C2, rig.Peer2), p(rig.External, rig.Peer2), hidden)
		r.Out(withPorts(rig.C2), withPorts(rig.External))
		r.In(p(rig.Peer1, rig.External), p(rig.Peer1, rig.C1))
		r.In(p(rig.Peer2, rig.External), p(rig.Peer2, rig.C2))
		r.Wait(301 * time.Second)
		opens(r, "p2", p(rig.C2, rig.Peer1), p(rig.External, rig.Peer1), hidden)
		r.In(p(rig.Peer1, rig.External), p(rig.Peer1, rig.C2))
	}, refuse)
}

// told checks that a packet was refused and, if there is one, what became of it: an error to its sender.
func told(r *rig.Rig, reason string, sent, got []byte) {
	r.T.Helper()
	if reason != "dropped_remote_taken" || sent != nil && !rig.IsReply(sent, got) {
		r.T.Errorf("the second host's packet is %s, and became\n%s", reason, Dump(got))
	}
}

// withPorts is a packet of a protocol with ports from an address.
func withPorts(src string) Spec { return UDP(src+":5000", rig.Peer1+":53", "x") }

// TestPortlessPool: a second host towards the same remote leaves by another address, if it may use one, and keeps its own for all else.
func TestPortlessPool(t *testing.T) {
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		list := []netip.Addr{r.Address(rig.External), r.Address("198.51.100.7")}
		setPool(r, list...)
		used := map[string]bool{}
		for _, h := range []string{host(1), host(2), host(3)} {
			r.Inside(UDP(h+":5000", rig.Peer1+":53", "x"))
			pair := r.Endpoint(r.ExternalOf("udp", h+":5000")).Addr()
			res := r.Egress("br0", p(h, rig.Peer1))
			if h == host(3) {
				res.Dropped("remote_taken")
				break
			}
			ext := r.Endpoint(r.ExternalOf(proto, h+":0")).Addr()
			if used[ext.String()] || res.Reason != "translated_stack" || len(used) == 0 && ext != pair {
				r.T.Errorf("%s, whose address is %s, is %s by %s", h, pair, res.Reason, ext)
			}
			used[ext.String()] = true
			r.Inside(UDP(h+":5001", rig.Peer1+":53", "x"))
			if got := r.Endpoint(r.ExternalOf("udp", h+":5001")).Addr(); got != pair {
				r.T.Errorf("%s was at %s, is at %s", h, pair, got)
			}
		}
	})
}

// TestPortlessOwn: to a 1:1 address comes what its host's filtering lets in, from anybody or from whom the host talks to.
func TestPortlessOwn(t *testing.T) {
	for _, filtering := range []dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent} {
		t.Run(filtering.String(), func(t *testing.T) {
			eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
				setPool(r, r.Address(rig.External), r.Address(own))
				r.Owner(rig.C1, "p1", func(o *dataplane.Owner) {
					o.External, o.OneToOne = []netip.Addr{r.Address(own)}, true
					o.Filtering = &[3]dataplane.Behavior{filtering, filtering, filtering}
				})
				opens(r, "p1", p(rig.C1, rig.Peer1), p(own, rig.Peer1), hidden)
				r.In(p(rig.Peer1, own), p(rig.Peer1, rig.C1))
				if filtering != dataplane.EndpointIndependent {
					r.Outside(p(rig.Peer2, own)).Dropped("filtered")
					return
				}
				r.In(p(rig.Peer2, own), p(rig.Peer2, rig.C1))
				r.Out(p(rig.C1, rig.Peer2), p(own, rig.Peer2))
				r.From("p2", p(rig.C2, own)).Dropped("protocol") // no hairpins
				opens(r, "p2", p(rig.C2, rig.Peer1), p(rig.External, rig.Peer1), hidden)
			})
		})
	}
}

// TestPortlessFragments: each is translated as it comes, whichever comes first, with the ID that it has.
func TestPortlessFragments(t *testing.T) {
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		opens(r, "p1", p(rig.C1, rig.Peer1), p(rig.External, rig.Peer1), hidden)
		cut := func(s, macs Spec) [][]byte {
			s.DstMAC, s.SrcMAC, s.ID = macs.DstMAC, macs.SrcMAC, 0x1234
			return s.In(r.Family).Fragments(8)
		}
		check := func(h rig.Hook, in, want [][]byte, reason string) {
			for i := range in {
				i = len(in) - 1 - i
				res := r.Send(h.Program, h.Dev, in[i], h.Change)
				if res.Reason != reason || !bytes.Equal(res.Frame(), want[i]) {
					Same(r.T, res.Frame(), want[i])
					r.T.Errorf("fragment %d: %s", i, res.Reason)
				}
			}
		}
		out, in := rig.FromContainer(p(rig.C1, rig.Peer1)), rig.FromOutside(p(rig.Peer1, rig.External))
		check(r.Hooks()[0], cut(out, out), cut(p(rig.External, rig.Peer1).Hop(), out), "translated_outbound")
		check(r.Hooks()[1], cut(in, in), cut(p(rig.Peer1, rig.C1).Hop(), in), "translated_inbound")
		if n := remembered(r); n != 0 {
			r.T.Errorf("%d fragments are remembered", n)
		}
	})
}

// remembered is how many datagrams the rig knows fragments of.
func remembered(r *rig.Rig) int { return rig.MapLen(r.Maps().Fragments.Map()) }

// TestPortlessErrors: ICMP errors about them come to who sent them, with the packet that he sent.
func TestPortlessErrors(t *testing.T) {
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		opens(r, "p1", p(rig.C1, rig.Peer1), p(rig.External, rig.Peer1), hidden)
		for _, embed := range []int{0, 28, 24} {
			for _, from := range []string{rig.Peer1, router} {
				r.Outside(ICMPError(from, rig.External, 3, 4, p(rig.External, rig.Peer1), embed)).
					Translated("translated_icmp_error", ICMPError(from, rig.C1, 3, 4, p(rig.C1, rig.Peer1), embed).Hop())
			}
		}
		r.Inside(ICMPError(rig.C1, rig.Peer1, 3, 2, p(rig.Peer1, rig.C1), 28)).
			Translated("translated_icmp_error", ICMPError(rig.External, rig.Peer1, 3, 2, p(rig.Peer1, rig.External), 28).Hop())
		r.Outside(ICMPError(rig.Peer2, rig.External, 3, 2, p(rig.External, rig.Peer2), 28)).Passed("unbound")
		r.Wait(301 * time.Second)
		r.Empty()
	})
}

// TestPortlessAndHost: what the host itself says to a remote it says as before, and nobody inside gets its answers; a host inside that
// was first gives way, but to another NAT on the host.
func TestPortlessAndHost(t *testing.T) {
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		ours := p(rig.External, rig.Peer1)
		r.Egress("", ours).Passed("host")
		r.Egress("", ours).Passed("host")
		r.Outside(p(rig.Peer1, rig.External)).Translated("translated_host", p(rig.Peer1, rig.External))
		r.Egress("br0", p(rig.C1, rig.Peer1)).Dropped("remote_taken")
		r.Egress("br0", p(rig.C1, rig.Peer2)).Translated("translated_stack", p(rig.External, rig.Peer2))
		r.Egress("br1", p(rig.External, rig.Peer2)).Dropped("remote_taken") // another NAT's
		r.In(p(rig.Peer2, rig.External), p(rig.Peer2, rig.C1))
		r.Egress("", p(rig.External, rig.Peer2)).Passed("host")
		r.Egress("br0", p(rig.C1, rig.Peer2)).Dropped("remote_taken")
		line := proto + " " + rig.External + ":0 " + rig.External + ":0 "
		r.WantSessions(line+rig.Peer1+":0 active", line+rig.Peer2+":0 active")
		r.Consistent()
		r.Wait(299 * time.Second)
		r.Egress("", ours).Passed("host") // by which it goes on
		r.Wait(2 * time.Second)
		r.WantSessions(line + rig.Peer1 + ":0 active")
	})
}

// TestPortlessExceptions: what the kernel has to see goes its way, and the host is reached.
func TestPortlessExceptions(t *testing.T) {
	eachPortless(t, func(r *rig.Rig, proto string, p func(src, dst string) Spec, hidden bool) {
		opens(r, "p1", p(rig.C1, rig.Peer1), p(rig.External, rig.Peer1), hidden)
		r.Inside(p(rig.C1, rig.Peer1).With(func(s *Spec) { s.TTL = 1 })).Passed("ttl")
		r.Inside(p(rig.C1, "172.17.0.1")).Passed("local")
		r.Inside(p(rig.C1, rig.External)).Passed("local")
		r.Inside(p(rig.C1, rig.Other)).Passed("not_outside")
		r.Inside(p("172.19.0.9", rig.Peer1)).Dropped("spoofed")
		frame := r.Frame(rig.FromContainer(p(rig.C1, rig.Peer1)))
		r.Send(r.DP.Objects().NatInside, "p1", frame, func(c *rig.SKB) { c.GSOSize, c.GSOSegs = 20, 2 }).Passed("stack")
		r.Egress("br0", p(rig.C1, rig.Peer1)).Translated("translated_stack", p(rig.External, rig.Peer1))
	})
}

// TestOtherProtocols: what is not translated does not leave with an inside address; to and from the host it passes.
func TestOtherProtocols(t *testing.T) {
	for _, fam := range []family.Family{family.V4, family.V6} {
		t.Run(fam.String(), func(t *testing.T) {
			r := rig.New(t, rig.In(fam), rig.WithNetworks(func(n *dataplane.Network) {
				n.Exclude = []netip.Prefix{netip.MustParsePrefix(rig.Peer2 + "/32")}
			}))
			ah := func(src, dst string) Spec { return AH(UDP(src+":1", dst+":2", "x"), 9) }
			dccp := func(src, dst string) Spec { return Raw(src, dst, 33, make([]byte, 24)) }
			later := func(src, dst string) Spec {
				return dccp(src, dst).With(func(s *Spec) { s.Offset = 64 })
			}
			for _, p := range []func(src, dst string) Spec{ah, dccp, later} {
				r.Inside(p(rig.C1, rig.Peer1)).Dropped("protocol")
				r.Egress("br0", p(rig.C1, rig.Peer1)).Dropped("protocol")
				r.Inside(p(rig.C1, rig.Peer2)).Passed("destination")
				r.Inside(p(rig.C1, "172.17.0.1")).Passed("local")
				r.Inside(p(rig.C1, rig.Other)).Passed("not_outside")
				r.Outside(p(rig.Peer1, rig.External)).Passed("protocol")
				r.Egress("", p(rig.External, rig.Peer1)).Passed("protocol")
				r.Egress("br0", p(rig.External, rig.Peer1)).Passed("protocol") // the host's own NAT has it
			}
			r.Empty()
		})
	}
}
