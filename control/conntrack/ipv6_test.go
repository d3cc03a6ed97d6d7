// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/topo"
)

// Entries of both families are listed, made, replaced and forgotten, and those of one are never the other's.
func TestBothFamilies(t *testing.T) {
	inNamespace(t)
	four := flow(dataplane.TCP, "172.17.0.2:1001", "203.0.113.1:80")
	plain := flow(dataplane.TCP, "[fd00::2]:1001", "[2001:db8::9]:80")
	masqueraded := plain
	masqueraded.SourceNAT, masqueraded.Reply.Dst = true, netip.MustParseAddrPort("[2001:db8::1]:40000")
	published := flow(dataplane.UDP, "[2001:db8::9]:1004", "[2001:db8::1]:53")
	published.DestinationNAT, published.Reply.Src = true, netip.MustParseAddrPort("[fd00::2]:5353")
	steps := []struct {
		name string
		do   func() error
		want []Flow
	}{
		{"made", func() error { return seed([]Flow{four, plain, published}) }, []Flow{four, published, plain}},
		{"replaced", func() error { return seed([]Flow{masqueraded}) }, []Flow{four, published, masqueraded}},
		{"replaced_again", func() error { return seed([]Flow{plain}) }, []Flow{four, published, plain}},
		{"forgotten", func() error { return Forget([]Flow{plain, published}) }, []Flow{four}},
		{"forgotten_twice", func() error { return Forget([]Flow{plain}) }, []Flow{four}},
	}
	for _, step := range steps {
		must(t, step.do())
		if diff := cmp.Diff(step.want, listed(t), compareIP); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
}

// TestIPv6ConnectionIsHandedToNetfilter: from the entry alone, netfilter translates with just that endpoint.
func TestIPv6ConnectionIsHandedToNetfilter(t *testing.T) {
	all := topo.ForTest(t)
	spaces := map[string]*topo.NS{}
	for _, name := range []string{"container", "host", "peer"} {
		ns, err := all.NewNS(name)
		must(t, err)
		must(t, ns.EnableIPv6())
		must(t, ns.Sysctl("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")) // link-local addresses ask for neighbours at once
		spaces[name] = ns
	}
	host, container, peer := spaces["host"], spaces["container"], spaces["peer"]
	must(t, all.Link(topo.End{NS: host, Name: "veth0"}, topo.End{NS: container, Name: "eth0"}, 0))
	must(t, all.Link(topo.End{NS: host, Name: "eth0"}, topo.End{NS: peer, Name: "eth0"}, 0))
	must(t, host.Sysctl("net.ipv6.conf.all.forwarding=1"))
	must(t, host.IP(t.Context(), "addr add fd00::1/64 dev veth0 nodad\naddr add 2001:db8::1/64 dev eth0 nodad\n"))
	must(t, container.IP(t.Context(), "addr add fd00::2/64 dev eth0 nodad\nroute add default via fd00::1\n"))
	must(t, peer.IP(t.Context(), "addr add 2001:db8::9/64 dev eth0 nodad\n"))
	_, err := host.Run(t.Context(), "table ip6 nat { chain postrouting { type nat hook postrouting priority 100; oifname \"eth0\" masquerade; }; }", "nft", "-f", "-")
	must(t, err)

	at, inside := netip.MustParseAddrPort("[2001:db8::9]:5000"), netip.MustParseAddrPort("[fd00::2]:6000")
	f := flow(dataplane.UDP, inside.String(), at.String())
	f.SourceNAT, f.Reply.Dst = true, netip.MustParseAddrPort("[2001:db8::1]:40000")
	must(t, host.Do(func() error { return seed([]Flow{f}) }))
	server, err := peer.ListenUDP(at)
	must(t, err)
	defer server.Close()
	client, err := container.DialUDP(inside, at)
	must(t, err)
	defer client.Close()
	_, err = client.Write([]byte("datagram"))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(soon)))
	_, from, err := server.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil || from != f.Reply.Dst {
		t.Fatalf("from %v, want %v: %v", from, f.Reply.Dst, err)
	}
	_, err = server.WriteToUDPAddrPort([]byte("answer"), from)
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(soon)))
	if _, err := client.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
}
