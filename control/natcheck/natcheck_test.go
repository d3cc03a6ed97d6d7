// SPDX-License-Identifier: Apache-2.0

package natcheck_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/control/natcheck"
	"github.com/conenat/conenat/control/stunserver"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

var alternate = netip.MustParseAddr("203.0.113.9")

// clean is for a test whose subtests run at the same time, of which none can tell its own leftovers from another's.
func clean(t *testing.T) {
	t.Helper()
	require.Root(t)
	topo.AssertClean(t)
}

// network is Figure 3 with an RFC 5780 server at peer 1.
func network(t *testing.T) *topo.Figure3 { return networkIn(t, family.V4) }

// networkIn is the same, asked in a family.
func networkIn(t *testing.T, fam family.Family) *topo.Figure3 {
	t.Helper()
	topology, err := topo.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := topology.Close(); err != nil {
			t.Error(err)
		}
	})
	f, err := topo.NewFigure3(topology, topo.Figure3Config{Containers: 1, IPv6: fam == family.V6})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		f.Peer1.AddAddr("eth0", alternate.String()+"/24"),
		f.Host.AddAddr("eth0", "198.51.100.2/24"),
		preferFirst(t, f.Host, fam),
		f.Router.AddRoute("172.17.0.0/16", topo.HostAddr.String()),
		// A hairpin by netfilter's rules is the host's to route; the bridge would drop what goes back into its port.
		f.Host.Sysctl("net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f.Peer1, fam)
	settle(t, f.Containers[0], fam)
	return f
}

// preferFirst: masquerade takes an interface's first address in IPv4, and in IPv6 one that is not deprecated.
func preferFirst(t *testing.T, host *topo.NS, fam family.Family) error {
	t.Helper()
	if fam == family.V4 {
		return nil
	}
	return host.IPIn(t.Context(), fam, "addr change 198.51.100.2/24 dev eth0 valid_lft forever preferred_lft 0\n")
}

// settle waits until packets pass: new links on a busy machine may drop them for a second, which is as long as a test
// here waits for an answer.
func settle(t *testing.T, ns *topo.NS, fam family.Family) {
	t.Helper()
	socket, err := probe.InFamily(fam, ns).ListenUDP(0)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if _, err := socket.Mapped(netip.AddrPortFrom(fam.Addr(topo.Peer1Addr), 3478), 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, ns *topo.NS, fam family.Family) {
	t.Helper()
	var server *stunserver.Server
	err := ns.Do(func() (err error) {
		server, err = stunserver.Listen(stunserver.Config{Primary: fam.Addr(topo.Peer1Addr), Alternate: fam.Addr(alternate), PrimaryPort: 3478, AlternatePort: 3479})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func nft(t *testing.T, ns *topo.NS, rules string) {
	t.Helper()
	if _, err := ns.Run(t.Context(), rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, ns *topo.NS, port uint16, lifetime time.Duration) (natcheck.Report, error) {
	t.Helper()
	return runIn(t, ns, family.V4, port, lifetime)
}

func runIn(t *testing.T, ns *topo.NS, fam family.Family, port uint16, lifetime time.Duration) (natcheck.Report, error) {
	t.Helper()
	return natcheck.Run(t.Context(), natcheck.Options{Server: netip.AddrPortFrom(fam.Addr(topo.Peer1Addr), port), Open: ns.Do,
		RTO: 200 * time.Millisecond, Timeout: time.Second, Lifetime: lifetime})
}

func told(b bool) *bool { return &b }

// found is what does not depend on ports.
type found struct {
	NAT, Preserved, Stable, Hairpin *bool
	HairpinSource                   string
	Mapping, Filtering, TCP         natcheck.Behavior
	RFC3489                         string
}

func summary(r natcheck.Report) found {
	return found{r.NAT, r.PortPreserved, r.Stable, r.Hairpin, r.HairpinSource, r.Mapping, r.Filtering, r.TCP.Mapping, r.RFC3489}
}

const (
	ei  = natcheck.EndpointIndependent
	ad  = natcheck.AddressDependent
	apd = natcheck.AddressAndPortDependent
)

const (
	masquerade = `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }
`
	inputDrop = `table ip filter { chain in { type filter hook input priority filter; policy drop; }; }
`
	firewall = `table ip filter { chain forward { type filter hook forward priority filter; policy drop
		ct state established,related accept
		iifname "docker0" accept
	}; }
`
	fullyRandom = `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade fully-random; }; }
`
	perAddress = `table ip nat { chain post { type nat hook postrouting priority srcnat
		oifname "eth0" ip daddr 203.0.113.1 snat to 198.51.100.1
		oifname "eth0" ip daddr 203.0.113.9 snat to 198.51.100.2
	}; }
`
	fullCone = masquerade + `table ip nat { chain pre { type nat hook prerouting priority dstnat
		iifname "eth0" udp dport 1024-65535 dnat to 172.17.0.2
	}; }
`
	restrictedCone = masquerade + inputDrop + `table ip nat {
		set contacted { type inet_service . ipv4_addr; flags dynamic; size 65535; }
		chain note { type filter hook prerouting priority mangle
			iifname "docker0" ip protocol udp add @contacted { udp sport . ip daddr }
		}
		chain pre { type nat hook prerouting priority dstnat
			iifname "eth0" udp dport . ip saddr @contacted dnat to 172.17.0.2
		}
	}
`
	hairpinDNAT = masquerade + `table ip nat { chain pre { type nat hook prerouting priority dstnat
		ip daddr 198.51.100.1 udp dport 1024-65535 dnat to 172.17.0.2
	}; }
`
	hairpinRight = hairpinDNAT + `table ip nat { chain post { ip saddr 172.17.0.2 oifname "docker0" snat to 198.51.100.1; }; }
`
	hairpinMoved = hairpinDNAT + `table ip nat { chain post { ip saddr 172.17.0.2 oifname "docker0" snat to 198.51.100.1 fully-random; }; }
`
	hairpinWrong = hairpinDNAT + `table ip nat { chain post { ip saddr 172.17.0.2 oifname "docker0" snat to 172.17.0.1; }; }
`
)

// Every kind of NAT that this kernel can be made to do, by its own rules.
func TestNATs(t *testing.T) {
	clean(t)
	yes, no := told(true), told(false)
	for name, tc := range map[string]struct {
		rules string
		want  found
	}{
		"None":     {"", found{no, nil, yes, nil, "", natcheck.None, ei, natcheck.None, "open Internet"}},
		"Firewall": {firewall, found{no, nil, yes, nil, "", natcheck.None, apd, natcheck.None, "symmetric UDP firewall"}},
		// Figure 3's trap: the host lets the unsolicited packets in, and netfilter remembers them.
		"Masquerade":          {masquerade, found{yes, yes, no, no, "", ei, apd, ei, "port-restricted cone"}},
		"MasqueradeInputDrop": {masquerade + inputDrop, found{yes, yes, yes, no, "", ei, apd, ei, "port-restricted cone"}},
		"FullyRandom":         {fullyRandom, found{yes, no, yes, no, "", apd, apd, apd, "symmetric"}},
		"PerAddress":          {perAddress + inputDrop, found{yes, yes, yes, no, "", ad, apd, ad, "symmetric"}},
		"FullCone":            {fullCone, found{yes, yes, yes, no, "", ei, ei, ei, "full cone"}},
		"RestrictedCone":      {restrictedCone, found{yes, yes, yes, no, "", ei, ad, ei, "restricted cone"}},
		"Hairpin":             {hairpinRight, found{yes, yes, yes, yes, "external", ei, ei, ei, "full cone"}},
		"HairpinOtherPort":    {hairpinMoved, found{yes, yes, yes, yes, "external", ei, ei, ei, "full cone"}},
		"HairpinInternal":     {hairpinWrong, found{yes, yes, yes, yes, "internal", ei, ei, ei, "full cone"}},
	} {
		for _, fam := range []family.Family{family.V4, family.V6} {
			t.Run(name+"/"+fam.String(), func(t *testing.T) {
				t.Parallel()
				f := networkIn(t, fam)
				nft(t, f.Host, in(fam, tc.rules))
				began := time.Now()
				r, err := runIn(t, f.Containers[0], fam, 3478, 0)
				if err != nil {
					t.Fatalf("%v: %+v", err, r)
				}
				if diff := cmp.Diff(tc.want, summary(r)); diff != "" {
					t.Errorf("(-want +got)\n%s%s", diff, text(r))
				}
				if took := time.Since(began); took > patience.For(20*time.Second) {
					t.Errorf("took %v, and must take seconds", took)
				}
				complete(t, fam, r)
			})
		}
	}
}

// in are a NAT's rules in a family; in IPv6 neighbour discovery comes by the input chain.
func in(fam family.Family, rules string) string {
	if fam == family.V4 {
		return rules
	}
	words := strings.NewReplacer("ipv4_addr", "ipv6_addr", "ip protocol udp", "meta l4proto udp",
		"hook input priority filter; policy drop; }", "hook input priority filter; policy drop; meta l4proto ipv6-icmp accept; }")
	return fam.Rules(words.Replace(rules))
}

// complete: every endpoint is there and none is of a stranger.
func complete(t *testing.T, fam family.Family, r natcheck.Report) {
	t.Helper()
	count := map[string]int{}
	for _, m := range r.Mapped {
		key := m.Protocol
		if m.AfterUnsolicited {
			key += " after"
		}
		count[key]++
		if !m.Internal.IsValid() || !m.External.IsValid() || !m.Remote.IsValid() {
			t.Errorf("incomplete: %+v", m)
		}
	}
	if diff := cmp.Diff(map[string]int{"udp": 4, "udp after": 4, "tcp": 4}, count); diff != "" {
		t.Error(diff)
	}
	if r.OtherAddress != netip.AddrPortFrom(fam.Addr(alternate), 3479) || r.Internal.Addr().String() != fam.Text("172.17.0.2") {
		t.Errorf("%+v", r)
	}
}

func text(r natcheck.Report) string {
	b, _ := json.MarshalIndent(r, "", "  ")
	return string(b)
}

// The lifetime of a binding is netfilter's timeout, and no longer than the search is told to look.
func TestLifetime(t *testing.T) {
	clean(t)
	for name, tc := range map[string]struct {
		timeout         string
		upTo            time.Duration
		atLeast, atMost float64 // seconds that Lifetime.AtLeast is within
		below, notAbove float64 // and Lifetime.Below
		belowIsNotThere bool
	}{
		"Short": {timeout: "2", upTo: 16 * time.Second, atLeast: 0.5, atMost: 2.5, below: 1.5, notAbove: 4.5},
		"Long":  {timeout: "30", upTo: time.Second, atLeast: 1, atMost: 1, belowIsNotThere: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := network(t)
			nft(t, f.Host, masquerade)
			if err := f.Host.Sysctl("net.netfilter.nf_conntrack_udp_timeout="+tc.timeout, "net.netfilter.nf_conntrack_udp_timeout_stream="+tc.timeout); err != nil {
				t.Fatal(err)
			}
			r, err := run(t, f.Containers[0], 3478, tc.upTo)
			if err != nil {
				t.Fatal(err)
			}
			l := r.Lifetime
			if !l.Asked || l.AtLeast == nil || *l.AtLeast < tc.atLeast || *l.AtLeast > tc.atMost {
				t.Errorf("at least: %s", text(r))
			}
			if tc.belowIsNotThere != (l.Below == nil) || l.Below != nil && (*l.Below < tc.below || *l.Below > tc.notAbove) {
				t.Errorf("below: %s", text(r))
			}
		})
	}
}

// Where an answer does not come, the report says what can be told, and the error why the rest cannot.
func TestUnanswered(t *testing.T) {
	clean(t)
	const udpDrop = `table ip filter { chain forward { type filter hook forward priority filter; meta l4proto udp drop; }; }`
	const allDrop = `table ip filter { chain forward { type filter hook forward priority filter; policy drop; }; }`
	const outDrop = `table ip filter { chain out { type filter hook output priority filter; meta l4proto udp drop; }; }`
	for name, tc := range map[string]struct {
		host, container string
		port            uint16
		rfc3489         string
		problem         string
	}{
		"UDPBlocked":    {udpDrop, "", 3478, "UDP blocked", "it answers over TCP, so UDP is blocked on the way"},
		"NothingPasses": {allDrop, "", 3478, "UDP blocked", "nor does it over TCP"},
		"OwnFirewall":   {"", outDrop, 3478, "UDP blocked", "this host's own firewall refuses it"},
		"NoServer":      {masquerade, "", 3490, "unknown", "nothing listens on UDP 203.0.113.1:3490"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := network(t)
			nft(t, f.Host, tc.host)
			nft(t, f.Containers[0], tc.container)
			r, err := run(t, f.Containers[0], tc.port, 0)
			if !errors.Is(err, natcheck.ErrNoAnswer) || r.RFC3489 != tc.rfc3489 || !strings.Contains(strings.Join(r.Problems, "\n"), tc.problem) {
				t.Errorf("%v: %s", err, text(r))
			}
		})
	}
}

// A server that is no RFC 5780 server is good for the external endpoint, port preservation and hairpinning.
func TestServerWithoutOtherAddress(t *testing.T) {
	clean(t)
	f := network(t)
	nft(t, f.Host, masquerade)
	server, err := probe.ServeSTUN(f.Peer1, 3490)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r, err := run(t, f.Containers[0], 3490, time.Second)
	if !errors.Is(err, natcheck.ErrIncomplete) || !strings.Contains(strings.Join(r.Problems, "\n"), "has no OTHER-ADDRESS") {
		t.Errorf("%v: %s", err, text(r))
	}
	want := found{told(true), told(true), nil, told(false), "", natcheck.Unknown, natcheck.Unknown, natcheck.Unknown, "unknown"}
	if diff := cmp.Diff(want, summary(r)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if r.External.Addr() != topo.HostAddr || r.Lifetime.AtLeast != nil || !strings.Contains(strings.Join(r.Problems, "\n"), "does not do RESPONSE-PORT") {
		t.Error(text(r))
	}
	if !strings.Contains(strings.Join(r.Notes, "\n"), "TCP mapping cannot be told") {
		t.Errorf("a server without TCP: %q", r.Notes)
	}
}

// An interrupted check ends at once.
func TestCancel(t *testing.T) {
	clean(t)
	f := network(t)
	nft(t, f.Host, masquerade)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := natcheck.Run(ctx, natcheck.Options{Server: netip.AddrPortFrom(topo.Peer1Addr, 3478), Open: f.Containers[0].Do, Lifetime: time.Hour, Timeout: time.Hour})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > patience.For(5*time.Second) {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// A socket that cannot be opened is an error, and no finding.
func TestNoSockets(t *testing.T) {
	broken := &net.OpError{Op: "socket", Err: os.ErrPermission}
	r, err := natcheck.Run(t.Context(), natcheck.Options{Server: netip.AddrPortFrom(topo.Peer1Addr, 3478), Open: func(func() error) error { return broken }})
	if !cmp.Equal(os.ErrPermission, err, cmpopts.EquateErrors()) || r.NAT != nil || r.RFC3489 != "unknown" {
		t.Errorf("%v: %s", err, text(r))
	}
}
