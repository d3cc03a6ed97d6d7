// SPDX-License-Identifier: Apache-2.0

package exceptions

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

var inside = netip.MustParseAddr("172.17.0.2")

// Stand-ins for the programs at the outside interface. MARK is the inside address as it lies in memory.
const programs = `
table netdev programs {
	chain ingress {
		type filter hook ingress device eth0 priority 0
		ip daddr 198.51.100.1 meta mark set MARK
	}
	chain egress {
		type filter hook egress device eth0 priority 0
		ip saddr 172.17.0.2 ip saddr set 198.51.100.1
	}
}
`

// Docker 28's rule against what is addressed to containers directly, and what later hooks see.
const witnesses = `
table ip witness {
	chain raw {
		type filter hook prerouting priority -300
		ip daddr 172.17.0.2 iifname != "docker0" counter drop comment "direct"
	}
	chain prerouting {
		type filter hook prerouting priority -249
		ip daddr 172.17.0.2 meta mark 0 counter comment "clean"
		meta mark != 0 counter comment "marked"
	}
}
`

type bench struct {
	*topo.Figure3
	container *topo.NS
}

func newBench(t *testing.T) bench {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	b := bench{f, f.Containers[0]}
	must(t, topo.DockerRules(t.Context(), f.Host))
	b.run(t, "iptables", "-I", "DOCKER-USER", "-d", inside.String(), "-j", "ACCEPT") // as for a published port
	b.nft(t, witnesses)
	b.attach(t)
	b.ensure(t, netip.MustParsePrefix("172.17.0.0/16"))
	return b
}

// attach puts the stand-ins at the outside interface.
func (b bench) attach(t *testing.T) {
	t.Helper()
	b.nft(t, strings.ReplaceAll(programs, "MARK", fmt.Sprint(binary.NativeEndian.Uint32(inside.AsSlice()))))
}

func (b bench) nft(t *testing.T, rules string) {
	t.Helper()
	_, err := b.Host.Run(t.Context(), rules, "nft", "-f", "-")
	must(t, err)
}

func (b bench) run(t *testing.T, name string, args ...string) {
	t.Helper()
	_, err := b.Host.Run(t.Context(), "", name, args...)
	must(t, err)
}

func (b bench) ensure(t *testing.T, prefix netip.Prefix, except ...netip.Addr) {
	t.Helper()
	index, err := b.Host.IfIndex("eth0")
	must(t, err)
	must(t, b.Host.Do(func() error {
		return Table{}.Ensure([]Pair{{Inside: prefix, Outside: index, Name: "eth0", External: []netip.Addr{topo.HostAddr}, Except: except}})
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// counter is a witness's number of packets.
func (b bench) counter(t *testing.T, comment string) string {
	t.Helper()
	return b.counterIn(t, "ip", comment)
}

func (b bench) counterIn(t *testing.T, family, comment string) string {
	t.Helper()
	out, err := b.Host.Run(t.Context(), "", "nft", "list", "table", family, "witness")
	must(t, err)
	m := regexp.MustCompile(`counter packets (\d+) bytes \d+ (?:drop )?comment "` + comment + `"`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no counter %q in\n%s", comment, out)
	}
	return m[1]
}

func TestArrivingPacketsGetTheInsideAddress(t *testing.T) {
	b := newBench(t)
	kinds := []struct {
		name     string
		exchange func(t *testing.T, size int)
		size     int
	}{
		{"udp", func(t *testing.T, size int) { b.udp(t, size, false) }, 100},
		{"udp_without_checksum", func(t *testing.T, size int) { b.udp(t, size, true) }, 100},
		{"udp_fragments", func(t *testing.T, size int) { b.udp(t, size, false) }, 5000},
		{"udp_fragments_without_checksum", func(t *testing.T, size int) { b.udp(t, size, true) }, 5000},
		{"tcp", b.tcp, 500_000},
		{"icmp", b.ping, 100},
		{"icmp_fragments", b.ping, 5000},
	}
	for _, offload := range []bool{true, false} { // without it, receivers verify checksums
		must(t, b.Peer1.TransmitOffload("eth0", offload))
		must(t, b.container.TransmitOffload("eth0", offload))
		for _, k := range kinds {
			t.Run(fmt.Sprintf("%s/offload_%v", k.name, offload), func(t *testing.T) { k.exchange(t, k.size) })
		}
	}
	for comment, want := range map[string]string{"direct": "0", "marked": "0"} {
		if got := b.counter(t, comment); got != want {
			t.Errorf("counter %q is %s, want %s", comment, got, want)
		}
	}
	if b.counter(t, "clean") == "0" {
		t.Error("the witness has seen nothing")
	}
	b.checkFlows(t)
}

// checkFlows: connection tracking sees connections from the peer to the container, and no translation.
func (b bench) checkFlows(t *testing.T) {
	t.Helper()
	flows, err := b.Host.Conntrack()
	must(t, err)
	seen := map[uint8]bool{}
	for _, f := range flows {
		if f.Dst.Addr().IsMulticast() {
			continue // the bridge's IGMP
		}
		seen[f.Protocol] = true
		if f.Src.Addr() != topo.Peer1Addr || f.Dst.Addr() != inside || f.ReplySrc.Addr() != inside || f.ReplyDst != f.Src {
			t.Errorf("flow %+v, want one of the peer to the container", f)
		}
	}
	for _, protocol := range []uint8{unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		if !seen[protocol] {
			t.Errorf("no flow of protocol %d in %v", protocol, flows)
		}
	}
}

var answerIn = patience.For(2 * time.Second)

func payload(size int) []byte { return bytes.Repeat([]byte("conenat"), size/7+1)[:size] }

func (b bench) udp(t *testing.T, size int, noChecksum bool) {
	server, err := b.container.ListenUDP(netip.AddrPortFrom(inside, 5000))
	must(t, err)
	defer server.Close()
	client, err := b.Peer1.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(topo.HostAddr, 5000))
	must(t, err)
	defer client.Close()
	if noChecksum {
		must(t, setNoChecksum(client))
	}
	sent, got := payload(size), make([]byte, 2*size)
	_, err = client.Write(sent)
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(answerIn)))
	n, from, err := server.ReadFromUDPAddrPort(got)
	must(t, err)
	if from.Addr().Unmap() != topo.Peer1Addr || !bytes.Equal(got[:n], sent) {
		t.Fatalf("%d bytes from %v, want %d from %v", n, from, size, topo.Peer1Addr)
	}
	_, err = server.WriteToUDPAddrPort(sent, from)
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(answerIn)))
	if n, err := client.Read(got); err != nil || n != size {
		t.Fatalf("answer of %d bytes: %v", n, err)
	}
}

func setNoChecksum(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
	if err != nil {
		return err
	}
	return setErr
}

func (b bench) tcp(t *testing.T, size int) {
	listener, err := b.container.ListenTCP(netip.AddrPortFrom(inside, 5000))
	must(t, err)
	defer listener.Close()
	client, err := dial(b.Peer1, netip.AddrPortFrom(topo.HostAddr, 5000))
	must(t, err)
	defer client.Close()
	must(t, listener.SetDeadline(time.Now().Add(answerIn)))
	server, err := listener.AcceptTCP()
	must(t, err)
	defer server.Close()
	for _, way := range [][2]*net.TCPConn{{client, server}, {server, client}} {
		sent := make(chan error, 1)
		go func() {
			_, err := way[0].Write(payload(size))
			sent <- err
		}()
		got := make([]byte, size)
		must(t, way[1].SetReadDeadline(time.Now().Add(answerIn)))
		if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, payload(size)) {
			t.Errorf("from %v: %v", way[0].LocalAddr(), err)
		}
		must(t, <-sent)
	}
}

// dial gives up sooner than the kernel does.
func dial(from *topo.NS, to netip.AddrPort) (conn *net.TCPConn, err error) {
	err = from.Do(func() error {
		c, err := (&net.Dialer{Timeout: answerIn}).Dial("tcp", to.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

// ping sends an echo request; the kernel of the container answers.
func (b bench) ping(t *testing.T, size int) {
	var conn *net.IPConn
	must(t, b.Peer1.Do(func() (err error) {
		conn, err = net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: topo.HostAddr.AsSlice()})
		return err
	}))
	defer conn.Close()
	request := append([]byte{8, 0, 0, 0, 0, 7, 0, 1}, payload(size)...)
	binary.BigEndian.PutUint16(request[2:], checksum(request))
	_, err := conn.Write(request)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(answerIn)))
	got := make([]byte, 2*size+100)
	n, _, err := conn.ReadFromIP(got) // which leaves the IP header out
	must(t, err)
	if n != len(request) || got[0] != 0 || !bytes.Equal(got[4:n], request[4:]) {
		t.Errorf("answer of %d bytes, type %d", n, got[0])
	}
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// What the pairs do not cover stays the host's: it arrives at the host, and its mark stays.
func TestMarksOfOthersStay(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, b bench)
	}{
		{"another_prefix", func(t *testing.T, b bench) { b.ensure(t, netip.MustParsePrefix("172.18.0.0/16")) }},
		{"uplink_made_anew", renew},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			tt.change(t, b)
			if from := b.send(t, b.Peer1, b.Host, topo.HostAddr); from != topo.Peer1Addr {
				t.Errorf("host saw %v", from)
			}
			if b.counter(t, "marked") == "0" {
				t.Error("the mark is gone")
			}
		})
	}
}

// renew takes the uplink away and makes it anew, programs and all, without a word to the table.
func renew(t *testing.T, b bench) {
	t.Helper()
	before, err := b.Host.IfIndex("eth0")
	must(t, err)
	must(t, b.Uplink().Delete())
	must(t, b.Uplink().Restore())
	b.run(t, "nft", "delete", "table", "netdev", "programs")
	b.attach(t)
	if after, err := b.Host.IfIndex("eth0"); err != nil || after == before {
		t.Fatalf("index %d after %d: %v", after, before, err)
	}
}

// Packets of a pair leave as they are, for the program at the outside's egress; all others are Docker's MASQUERADE's.
func TestLeavingPackets(t *testing.T) {
	prefix := netip.MustParsePrefix("172.17.0.0/16")
	tests := []struct {
		name   string
		change func(t *testing.T, b bench)
		want   netip.Addr // as the peer sees them without the program
	}{
		{"pair", func(*testing.T, bench) {}, inside},
		{"another_prefix", func(t *testing.T, b bench) { b.ensure(t, netip.MustParsePrefix("172.18.0.0/16")) }, topo.HostAddr},
		{"another_address_excepted", func(t *testing.T, b bench) { b.ensure(t, prefix, netip.MustParseAddr("172.17.0.3")) }, inside},
		{"excepted", func(t *testing.T, b bench) { b.ensure(t, prefix, netip.MustParseAddr("172.17.0.3"), inside) }, topo.HostAddr},
		{"uplink_made_anew", renew, topo.HostAddr},
		{"removed", func(t *testing.T, b bench) {
			must(t, b.Host.Do(func() error { _, err := Table{}.Remove(); return err }))
		}, topo.HostAddr},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			tt.change(t, b)
			b.run(t, "nft", "delete", "table", "netdev", "programs")
			if from := b.send(t, b.container, b.Peer1, topo.Peer1Addr); from != tt.want {
				t.Errorf("peer saw %v, want %v", from, tt.want)
			}
		})
	}
}

// send sends a datagram and says whom the receiver has it from.
func (b bench) send(t *testing.T, from, to *topo.NS, addr netip.Addr) netip.Addr {
	t.Helper()
	server, err := to.ListenUDP(netip.AddrPortFrom(addr, 5000))
	must(t, err)
	defer server.Close()
	client, err := from.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(addr, 5000))
	must(t, err)
	defer client.Close()
	_, err = client.Write([]byte("datagram"))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(answerIn)))
	_, source, err := server.ReadFromUDPAddrPort(make([]byte, 100))
	must(t, err)
	return source.Addr().Unmap()
}
