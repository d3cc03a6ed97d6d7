// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

var soon = patience.For(5 * time.Second)

var container = netip.MustParseAddr("172.17.0.2")

// conns are the two ends of a connection; a UDP one's are connected.
type conns struct{ inside, outside net.Conn }

// dialOut connects the container with the peer, who sees the given endpoint.
func dialOut(t *testing.T, f *topo.Figure3, p dataplane.Protocol, seen netip.AddrPort) (c conns) {
	t.Helper()
	to := netip.AddrPortFrom(topo.Peer1Addr, 5000)
	if p == dataplane.UDP {
		c.inside, c.outside = dialUDP(t, f, to, seen)
	} else {
		c.inside, c.outside = dialTCP(t, f.Containers[0], f.Peer1, to, to)
		if got := c.outside.RemoteAddr().(*net.TCPAddr).AddrPort(); got != seen && seen.Port() != 0 {
			t.Fatalf("peer sees %v, want %v", got, seen)
		}
	}
	t.Cleanup(func() { c.inside.Close(); c.outside.Close() })
	c.exchange(t, "inside", 100)
	return c
}

func dialUDP(t *testing.T, f *topo.Figure3, to, seen netip.AddrPort) (client, server net.Conn) {
	t.Helper()
	client, err := f.Containers[0].DialUDP(netip.AddrPortFrom(container, 6000), to)
	must(t, err)
	server, err = f.Peer1.DialUDP(to, seen)
	must(t, err)
	return client, server
}

// dialTCP connects by the address that the client knows; the server's own may be another one.
func dialTCP(t *testing.T, from, to *topo.NS, at, listen netip.AddrPort) (client, server net.Conn) {
	t.Helper()
	listener, err := to.ListenTCP(listen)
	must(t, err)
	defer listener.Close()
	must(t, from.Do(func() (err error) {
		client, err = (&net.Dialer{Timeout: soon}).Dial("tcp4", at.String())
		return err
	}))
	must(t, listener.SetDeadline(time.Now().Add(soon)))
	server, err = listener.Accept()
	must(t, err)
	return client, server
}

// exchange sends both ways, first from one end.
func (c conns) exchange(t *testing.T, first string, size int) {
	t.Helper()
	a, b := c.inside, c.outside
	if first == "outside" {
		a, b = b, a
	}
	transfer(t, a, b, size)
	transfer(t, b, a, size)
}

func transfer(t *testing.T, from, to net.Conn, size int) {
	t.Helper()
	data := bytes.Repeat([]byte("conenat "), size/8+1)[:size]
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(data)
		sent <- err
	}()
	got := make([]byte, size)
	must(t, to.SetReadDeadline(time.Now().Add(soon)))
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("from %v to %v: %v", from.LocalAddr(), to.LocalAddr(), err)
	}
	must(t, <-sent)
}

func sizeOf(p dataplane.Protocol) int {
	if p == dataplane.TCP {
		return 1_000_000
	}
	return 1000
}

func run(t *testing.T, ns *topo.NS, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := ns.Run(t.Context(), "", words[0], words[1:]...)
	must(t, err)
	return out
}

var policyDrops = regexp.MustCompile(`Chain FORWARD \(policy DROP (\d+) packets`)

// A connection that conenat carried past netfilter takes the stack from now on, and the next packet comes from outside:
// Docker's FORWARD chain drops it until the connection is seeded.
func TestConnectionOfTheDirectPathGoesOnInTheStack(t *testing.T) {
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		t.Run(p.String(), func(t *testing.T) {
			f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
			must(t, f.Router.AddRoute("172.17.0.0/16", topo.HostAddr.String())) // in place of the translation at the uplink
			c := dialOut(t, f, p, netip.AddrPortFrom(container, portOf(p)))
			must(t, topo.DockerRules(t.Context(), f.Host))

			_, err := c.outside.Write([]byte("dropped"))
			must(t, err)
			must(t, topo.Poll(t.Context(), 5*time.Second, "drop by FORWARD's policy", func() (bool, error) {
				m := policyDrops.FindStringSubmatch(run(t, f.Host, "iptables -nvxL FORWARD"))
				return m != nil && m[1] != "0", nil
			}))
			src, dst := addrPort(c.inside.LocalAddr()), addrPort(c.inside.RemoteAddr())
			must(t, f.Host.Do(func() error {
				return seed([]Flow{{Protocol: p, Original: Tuple{src, dst}, Reply: Tuple{dst, src}}})
			}))
			if p == dataplane.TCP { // which sends it again
				got := make([]byte, len("dropped"))
				must(t, c.inside.SetReadDeadline(time.Now().Add(soon)))
				if _, err := io.ReadFull(c.inside, got); err != nil {
					t.Fatal(err)
				}
			}
			c.exchange(t, "outside", sizeOf(p))
			if got := addrPort(c.outside.RemoteAddr()); got != src {
				t.Errorf("peer sees %v, want %v", got, src)
			}
			if flows := masqueraded(t, f.Host); len(flows) != 0 {
				t.Errorf("masqueraded: %+v", flows)
			}
		})
	}
}

// portOf is the inside port that dialOut uses; 0: any.
func portOf(p dataplane.Protocol) uint16 {
	if p == dataplane.UDP {
		return 6000
	}
	return 0
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func list(t *testing.T, ns *topo.NS) (flows []Flow) {
	t.Helper()
	must(t, ns.Do(func() (err error) {
		flows, err = List()
		return err
	}))
	return flows
}

func masqueraded(t *testing.T, ns *topo.NS) (out []Flow) {
	t.Helper()
	for _, f := range list(t, ns) {
		if f.SourceNAT || f.DestinationNAT {
			out = append(out, f)
		}
	}
	return out
}

// Connections that are translated with an endpoint that Docker's rules would not choose: netfilter translates them on
// from the seeded entry alone, whoever sends first.
func TestTranslatedConnectionIsHandedToNetfilter(t *testing.T) {
	external := netip.AddrPortFrom(topo.HostAddr, 40000)
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		for _, first := range []string{"inside", "outside"} {
			t.Run(fmt.Sprintf("%s/%s_first", p, first), func(t *testing.T) {
				f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
				must(t, topo.DockerRules(t.Context(), f.Host))
				rule := fmt.Sprintf("POSTROUTING -s %s -p %s -j SNAT --to-source %s", container, p, external)
				run(t, f.Host, "iptables -t nat -I "+rule)
				c := dialOut(t, f, p, external)
				run(t, f.Host, "iptables -t nat -D "+rule)
				before := handOver(t, f.Host)
				c.exchange(t, first, sizeOf(p))
				c.check(t, f.Host, before)
			})
		}
	}
}

// A published port's connection, without the rule that published it.
func TestPublishedConnectionIsHandedToNetfilter(t *testing.T) {
	for _, first := range []string{"inside", "outside"} {
		t.Run(first+"_first", func(t *testing.T) {
			f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
			must(t, topo.DockerRules(t.Context(), f.Host))
			dnat := "DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80"
			accept := "DOCKER -d 172.17.0.2 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT"
			run(t, f.Host, "iptables -t nat -A "+dnat)
			run(t, f.Host, "iptables -A "+accept)
			var c conns
			c.outside, c.inside = dialTCP(t, f.Peer1, f.Containers[0], netip.AddrPortFrom(topo.HostAddr, 8080), netip.AddrPortFrom(container, 80))
			defer c.inside.Close()
			defer c.outside.Close()
			c.exchange(t, first, 100)
			run(t, f.Host, "iptables -t nat -D "+dnat)
			run(t, f.Host, "iptables -D "+accept)
			before := handOver(t, f.Host)
			c.exchange(t, first, sizeOf(dataplane.TCP))
			c.check(t, f.Host, before)
		})
	}
}

// handOver empties connection tracking and makes entries of what was there.
func handOver(t *testing.T, host *topo.NS) Flow {
	t.Helper()
	before := masqueraded(t, host)
	if len(before) != 1 {
		t.Fatalf("translated flows %+v, want one", before)
	}
	must(t, host.Netlink().ConntrackTableFlush(netlink.ConntrackTable))
	if left := list(t, host); len(left) != 0 {
		t.Fatalf("after a flush: %+v", left)
	}
	must(t, host.Do(func() error { return seed(before) }))
	return before[0]
}

// check: the same translation as before, in one entry, and no end has heard of a reset.
func (c conns) check(t *testing.T, host *topo.NS, before Flow) {
	t.Helper()
	after := masqueraded(t, host)
	if len(after) != 1 || after[0].Original != before.Original || after[0].Reply != before.Reply {
		t.Errorf("translated flows %+v, want %+v", after, before)
	}
	for _, end := range []net.Conn{c.inside, c.outside} {
		must(t, end.SetReadDeadline(time.Now().Add(time.Millisecond)))
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v: %v", end.LocalAddr(), err)
		}
	}
}

// many are connections of a few containers with many peers.
func many(n int) []Flow {
	flows := make([]Flow, n)
	for i := range flows {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 17, 1, byte(i / 60000)}), uint16(1024+i%60000))
		f := flow(dataplane.TCP, src.String(), "203.0.113.1:443")
		f.SourceNAT, f.Reply.Dst = true, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i / 60000)}), src.Port())
		flows[i] = f
	}
	return flows
}

func TestManyFlows(t *testing.T) {
	inNamespace(t)
	const n = 3*batchSize + 1
	want := many(n)
	must(t, seed(want))
	must(t, seed(want)) // each is answered: no answer may be lost
	if got := listed(t); len(got) != n {
		t.Errorf("%d flows, want %d", len(got), n)
	}
}

func BenchmarkList100000(b *testing.B) {
	inNamespace(b)
	must(b, seed(many(100_000)))
	for b.Loop() {
		flows, err := List()
		must(b, err)
		if len(flows) != 100_000 {
			b.Fatalf("%d flows", len(flows))
		}
	}
}

func BenchmarkSeed1000(b *testing.B) {
	flows := many(1000)
	for b.Loop() {
		b.StopTimer()
		inNamespace(b)
		b.StartTimer()
		must(b, seed(flows))
	}
}
