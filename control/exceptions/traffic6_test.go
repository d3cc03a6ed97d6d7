// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

// The external address ends as the container's does.
var (
	inside6  = netip.MustParseAddr("fd00::2")
	outside6 = netip.MustParseAddr("2001:db8::2")
	peer6    = netip.MustParseAddr("2001:db8::9")
	prefix6  = netip.MustParsePrefix("fd00::/64")
)

// Stand-ins for the programs at the outside interface: the transport's checksum and the first bits of the destination are
// those of the inside address afterwards, whose last bits are in the mark, and zeros in the destination.
const programs6 = `
table netdev programs {
	chain translate {
		ip6 daddr set fd00::2 @nh,288,32 set 0x00000000 meta mark set MARK
	}
	chain ingress {
		type filter hook ingress device eth0 priority 0
		ip6 daddr 2001:db8::2 icmpv6 type echo-request goto translate
		ip6 daddr 2001:db8::2 meta l4proto { udp, tcp } goto translate
	}
	chain egress {
		type filter hook egress device eth0 priority 0
		ip6 saddr fd00::2 ip6 saddr set 2001:db8::2
	}
}
`

// Docker's MASQUERADE, its rule against what is addressed to containers directly, and what later hooks see.
const witnesses6 = `
table ip6 docker {
	chain postrouting {
		type nat hook postrouting priority 100
		ip6 saddr fd00::/64 oifname != "docker0" masquerade
	}
}
table ip6 witness {
	chain raw {
		type filter hook prerouting priority -300
		ip6 daddr fd00::2 iifname != "docker0" counter drop comment "direct"
	}
	chain prerouting {
		type filter hook prerouting priority -249
		ip6 daddr fd00::2 meta mark 0 counter comment "clean"
		meta mark != 0 counter comment "marked"
	}
}
`

// newBench6 is a container on docker0, a host and a peer on its uplink, all with IPv6 alone.
func newBench6(t *testing.T) bench {
	t.Helper()
	all := topo.ForTest(t)
	f := &topo.Figure3{Topo: all}
	container, err := all.NewNS("c1")
	must(t, err)
	f.Host, err = all.NewNS("host")
	must(t, err)
	f.Peer1, err = all.NewNS("peer1")
	must(t, err)
	for _, ns := range []*topo.NS{container, f.Host, f.Peer1} {
		must(t, ns.EnableIPv6())
		must(t, ns.Sysctl("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")) // link-local addresses ask for neighbours at once
	}
	must(t, f.Host.Sysctl("net.ipv6.conf.all.forwarding=1"))
	must(t, f.Host.AddBridge("docker0", ""))
	must(t, all.Link(topo.End{NS: f.Host, Name: "veth-c1", Master: "docker0"}, topo.End{NS: container, Name: "eth0"}, 0))
	must(t, all.Link(topo.End{NS: f.Host, Name: "eth0"}, topo.End{NS: f.Peer1, Name: "eth0"}, 0))
	must(t, f.Host.IP(t.Context(), "addr add fd00::1/64 dev docker0 nodad\naddr add 2001:db8::2/64 dev eth0 nodad\n"))
	must(t, container.IP(t.Context(), "addr add fd00::2/64 dev eth0 nodad\nroute add default via fd00::1\n"))
	must(t, f.Peer1.IP(t.Context(), "addr add 2001:db8::9/64 dev eth0 nodad\n"))
	b := bench{f, container}
	b.nft(t, witnesses6)
	b.attach6(t)
	b.ensure6(t, prefix6)
	return b
}

// attach6 puts the stand-ins at the outside interface.
func (b bench) attach6(t *testing.T) {
	t.Helper()
	low := inside6.As16()
	b.nft(t, strings.ReplaceAll(programs6, "MARK", fmt.Sprint(binary.NativeEndian.Uint32(low[12:]))))
}

func (b bench) ensure6(t *testing.T, prefix netip.Prefix, except ...netip.Addr) {
	t.Helper()
	index, err := b.Host.IfIndex("eth0")
	must(t, err)
	must(t, b.Host.Do(func() error {
		return Table{}.Ensure([]Pair{{Inside: prefix, Outside: index, Name: "eth0", External: []netip.Addr{outside6}, Except: except}})
	}))
}

func TestArrivingIPv6PacketsGetTheInsideAddress(t *testing.T) {
	tests := []struct {
		name   string
		prefix netip.Prefix
	}{
		{"prefix_without_bits_of_the_mark", prefix6},
		{"prefix_with_bits_of_the_mark", netip.MustParsePrefix("fd00::/120")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench6(t)
			b.ensure6(t, tt.prefix)
			for _, offload := range []bool{true, false} { // without it, receivers verify checksums
				must(t, b.Peer1.TransmitOffload("eth0", offload))
				must(t, b.container.TransmitOffload("eth0", offload))
				b.udp6(t, 100)
				b.udp6(t, 1400)
				b.tcp6(t, 200_000)
				b.ping6(t, 100)
			}
			for comment, want := range map[string]string{"direct": "0", "marked": "0"} {
				if got := b.counter6(t, comment); got != want {
					t.Errorf("counter %q is %s, want %s", comment, got, want)
				}
			}
			if b.counter6(t, "clean") == "0" {
				t.Error("the witness has seen nothing")
			}
		})
	}
}

func (b bench) counter6(t *testing.T, comment string) string {
	t.Helper()
	return b.counterIn(t, "ip6", comment)
}

// udp6 sends a datagram to the external address, and an answer.
func (b bench) udp6(t *testing.T, size int) {
	t.Helper()
	server, err := b.container.ListenUDP(netip.AddrPortFrom(inside6, 5000))
	must(t, err)
	defer server.Close()
	client, err := b.Peer1.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(outside6, 5000))
	must(t, err)
	defer client.Close()
	got := make([]byte, 2*size)
	_, err = client.Write(payload(size))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(answerIn)))
	n, from, err := server.ReadFromUDPAddrPort(got)
	must(t, err)
	if from.Addr() != peer6 || !bytes.Equal(got[:n], payload(size)) {
		t.Fatalf("%d bytes from %v, want %d from %v", n, from, size, peer6)
	}
	_, err = server.WriteToUDPAddrPort(payload(size), from)
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(answerIn)))
	if n, err := client.Read(got); err != nil || n != size {
		t.Fatalf("answer of %d bytes: %v", n, err)
	}
}

// tcp6 sends a stream to the external address.
func (b bench) tcp6(t *testing.T, size int) {
	t.Helper()
	listener, err := b.container.ListenTCP(netip.AddrPortFrom(inside6, 5000))
	must(t, err)
	defer listener.Close()
	client, err := dial(b.Peer1, netip.AddrPortFrom(outside6, 5000))
	must(t, err)
	defer client.Close()
	must(t, listener.SetDeadline(time.Now().Add(answerIn)))
	server, err := listener.AcceptTCP()
	must(t, err)
	defer server.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := client.Write(payload(size))
		sent <- err
	}()
	got := make([]byte, size)
	must(t, server.SetReadDeadline(time.Now().Add(answerIn)))
	if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, payload(size)) {
		t.Errorf("stream: %v", err)
	}
	must(t, <-sent)
}

// ping6 sends an echo request to the external address; the kernel of the container answers.
func (b bench) ping6(t *testing.T, size int) {
	t.Helper()
	var conn *net.IPConn
	must(t, b.Peer1.Do(func() (err error) {
		conn, err = net.DialIP("ip6:ipv6-icmp", nil, &net.IPAddr{IP: outside6.AsSlice()})
		return err
	}))
	defer conn.Close()
	request := append([]byte{128, 0, 0, 0, 0, 7, 0, 1}, payload(size)...) // the kernel sums it up (RFC 3542 section 3.1)
	_, err := conn.Write(request)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(answerIn)))
	for got := make([]byte, 2*size); ; {
		n, _, err := conn.ReadFromIP(got)
		must(t, err)
		if got[0] == 129 {
			if !bytes.Equal(got[4:n], request[4:]) {
				t.Errorf("answer of %d bytes", n)
			}
			return
		}
	}
}

// What the pairs do not cover stays the host's: it arrives as the program has left it, and its mark stays.
func TestIPv6MarksOfOthersStay(t *testing.T) {
	b := newBench6(t)
	b.ensure6(t, netip.MustParsePrefix("fd01::/64"))
	client, err := b.Peer1.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(outside6, 5000))
	must(t, err)
	defer client.Close()
	deadline := time.Now().Add(answerIn)
	for b.counter6(t, "marked") == "0" {
		if time.Now().After(deadline) {
			t.Fatal("no marked packet is seen")
		}
		_, err = client.Write([]byte("datagram"))
		must(t, err)
	}
	if got := b.counter6(t, "clean"); got != "0" {
		t.Errorf("%s packets got the inside address", got)
	}
}

// Packets of a pair leave as they are, for the program at the outside's egress; all others are Docker's MASQUERADE's.
func TestLeavingIPv6Packets(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, b bench)
		want   netip.Addr // as the peer sees them without the program
	}{
		{"pair", func(*testing.T, bench) {}, inside6},
		{"another_prefix", func(t *testing.T, b bench) { b.ensure6(t, netip.MustParsePrefix("fd01::/64")) }, outside6},
		{"another_address_excepted", func(t *testing.T, b bench) { b.ensure6(t, prefix6, netip.MustParseAddr("fd00::3")) }, inside6},
		{"excepted", func(t *testing.T, b bench) { b.ensure6(t, prefix6, netip.MustParseAddr("fd00::3"), inside6) }, outside6},
		{"removed", func(t *testing.T, b bench) {
			must(t, b.Host.Do(func() error { _, err := Table{}.Remove(); return err }))
		}, outside6},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench6(t)
			tt.change(t, b)
			b.run(t, "nft", "delete", "table", "netdev", "programs")
			if tt.want == inside6 { // for the answers of neighbour discovery alone
				must(t, b.Peer1.IP(t.Context(), "route add fd00::/64 via 2001:db8::2\n"))
			}
			if from := b.send(t, b.container, b.Peer1, peer6); from != tt.want {
				t.Errorf("peer saw %v, want %v", from, tt.want)
			}
		})
	}
}

// A connection that is mapped to itself does not leave so by an uplink that was made anew.
func TestUnclaimedIPv6PacketsAreDropped(t *testing.T) {
	b := newBench6(t)
	b.run(t, "nft", "delete", "table", "netdev", "programs")
	server, err := b.Peer1.ListenUDP(netip.AddrPortFrom(peer6, 5000))
	must(t, err)
	defer server.Close()
	client, err := b.container.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(peer6, 5000))
	must(t, err)
	defer client.Close()
	receive := func() netip.Addr {
		_, err := client.Write([]byte("datagram"))
		must(t, err)
		must(t, server.SetReadDeadline(time.Now().Add(answerIn/4)))
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil {
			return netip.Addr{}
		}
		return from.Addr()
	}
	if from := receive(); from != inside6 {
		t.Fatalf("before: from %v", from)
	}
	must(t, b.Host.Do(func() error { // as the table knows it when eth0 has another index
		return Table{}.Ensure([]Pair{{Inside: prefix6, Outside: 1 << 20, Name: "eth0", External: []netip.Addr{outside6}}})
	}))
	if from := receive(); from.IsValid() {
		t.Errorf("with another index: from %v", from)
	}
}

// TestTable6: the table of IPv6 is there while there are pairs of it, beside that of IPv4.
func TestTable6(t *testing.T) {
	require.Root(t)
	require.Program(t, "nft") // to read the rules with
	runtime.LockOSThread()    // and never unlocked: the namespace ends with the thread
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	four, six := pair("10.0.0.5/32", "lo", 1), pair("fd00::/120", "lo", 1)
	six.External, six.Except = []netip.Addr{outside6}, addrs("fd00::9", "fd00::8")
	must(t, Table{}.Ensure([]Pair{four, six, pair("fd01::/64", "lo", 1)}))
	const both = `table ip6 conenat {
	chain prerouting {
		type filter hook prerouting priority -250; policy accept;
		meta mark 0x00000000 return comment "nothing for conenat"
		ip6 daddr fd00::/96 meta mark & MASK == INSIDE iif "lo" @nh,288,32 0x0 @nh,288,32 set meta mark meta mark set 0x00000000 comment "PAIR"
	}

	chain postrouting {
		type nat hook postrouting priority 99; policy accept;
		oif "lo" ip6 saddr fd00::/120 ip6 saddr != { fd00::8, fd00::9 } meta l4proto { ipencap, tcp, udp, ipv6, gre, esp, ipv6-icmp, sctp, udplite } snat to ip6 saddr comment "PAIR"
		oif "lo" ip6 saddr fd01::/64 meta l4proto { ipencap, tcp, udp, ipv6, gre, esp, ipv6-icmp, sctp, udplite } snat to ip6 saddr comment "fd01::/64 by lo (1)"
	}

	chain unclaimed {
		type filter hook postrouting priority 101; policy accept;
		oifname "lo" oif != "lo" ip6 saddr fd00::/120 drop comment "PAIR"
		oifname "lo" oif != "lo" ip6 saddr fd01::/64 drop comment "fd01::/64 by lo (1)"
	}
}
`
	mark := func(bytes ...byte) string { return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(bytes)) }
	want := strings.NewReplacer("MASK", mark(255, 255, 255, 0), "INSIDE", mark(0, 0, 0, 0), "PAIR", normal([]Pair{six})[0].comment()).Replace(both)
	got := ruleset(t)
	if !strings.HasPrefix(got, "table ip conenat {") || !strings.HasSuffix(got, want) {
		t.Errorf("got\n%s\nwant at the end\n%s", got, want)
	}
	must(t, Table{}.Ensure([]Pair{four}))
	if got := ruleset(t); strings.Contains(got, "ip6") || !strings.Contains(got, "table ip conenat") {
		t.Errorf("without pairs of IPv6:\n%s", got)
	}
	must(t, Table{}.Ensure([]Pair{six}))
	if got := ruleset(t); strings.Contains(got, "table ip conenat") || !strings.Contains(got, "table ip6 conenat") {
		t.Errorf("without pairs of IPv4:\n%s", got)
	}
	for _, want := range []bool{true, false} {
		if was, err := (Table{}).Remove(); err != nil || was != want || ruleset(t) != "" {
			t.Errorf("remove: %v %v, want %v:\n%s", was, err, want, ruleset(t))
		}
	}
}
