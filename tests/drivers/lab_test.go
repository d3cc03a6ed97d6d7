// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

const megabyte = 1 << 20

var noAddr netip.AddrPort // any address and port

var (
	addrA = netip.MustParseAddr("172.17.0.2")
	addrC = netip.MustParseAddr("172.17.0.3")
)

// lab is the topology of this package's doc.go, with a running conenat.
type lab struct {
	*topo.Topo
	*harness.Conenat
	t                            *testing.T
	nsA, nsB, nsC, nsHost        *topo.NS // nsC: nil without a bridge
	a, b, c, host                probe.Host
	cardA, port0, uplink0, cardB *nic
}

type labConfig struct {
	path       string // direct or stack
	plain      bool   // port0 itself is the inside, without a bridge
	insideMTU  int    // of wire, bridge, and veth pair, in bytes; 0: 1500
	outsideMTU int    // of the other wire
	args       []string
}

func newLab(t *testing.T, cfg labConfig) *lab {
	t.Helper()
	cards := wires(t)
	l := &lab{Topo: topo.ForTest(t), t: t, cardA: cards[0], port0: cards[1], uplink0: cards[2], cardB: cards[3]}
	started := time.Now()
	for _, step := range []func() error{
		l.namespaces,
		func() error { return l.insideWire(cfg) },
		func() error { return l.outsideWire(cfg) },
		func() error { _, err := l.nsHost.Run(t.Context(), masquerade, "nft", "-f", "-"); return err },
	} {
		if err := step(); err != nil {
			t.Fatalf("build the topology: %v", err)
		}
	}
	inside := "docker0"
	if cfg.plain {
		inside = l.port0.name
	}
	l.Conenat = harness.Start(t, l.Topo, l.nsHost, append([]string{"--inside", inside, "--path", cfg.path}, cfg.args...)...)
	l.publish()
	t.Logf("%s and %s: ready after %v", l.port0.model, l.uplink0.model, time.Since(started).Round(time.Millisecond))
	return l
}

// The ports of the host that lead inside.
const (
	publishedA = 8080 // to port 80
	publishedC = 8081 // to port 81
)

func (l *lab) publish() {
	l.t.Helper()
	add := func(port uint16, to netip.AddrPort) {
		l.Client("forward", "add", at(topo.HostAddr, port).String(), to.String())
	}
	add(publishedA, at(addrA, 80))
	if l.nsC != nil {
		add(publishedC, at(addrC, 81))
	}
}

// masquerade is the NAT that conenat stands in for.
const masquerade = `
table ip nat {
	chain postrouting {
		type nat hook postrouting priority srcnat
		ip saddr 172.17.0.0/16 oifname "uplink0" masquerade
	}
}
`

func (l *lab) namespaces() (err error) {
	for name, ns := range map[string]**topo.NS{"a": &l.nsA, "b": &l.nsB, "host": &l.nsHost} {
		if *ns, err = l.NewNS(name); err != nil {
			return err
		}
	}
	l.a, l.b, l.host = probe.In(l.nsA), probe.In(l.nsB), probe.In(l.nsHost)
	return errors.Join(
		l.cardA.move(l.Topo, l.nsA), l.port0.move(l.Topo, l.nsHost),
		l.uplink0.move(l.Topo, l.nsHost), l.cardB.move(l.Topo, l.nsB),
		l.nsHost.Sysctl("net.ipv4.ip_forward=1"))
}

// insideWire is the first wire, and with a bridge a third host behind a veth pair.
func (l *lab) insideWire(cfg labConfig) error {
	if cfg.insideMTU != 0 {
		if err := errors.Join(l.nsA.SetMTU(l.cardA.name, cfg.insideMTU), l.nsHost.SetMTU(l.port0.name, cfg.insideMTU)); err != nil {
			return err
		}
	}
	gateway := topo.GatewayAddr.String() + "/16"
	if cfg.plain {
		if err := l.nsHost.AddAddr(l.port0.name, gateway); err != nil {
			return err
		}
	} else if err := l.bridge(gateway, cfg.insideMTU); err != nil {
		return err
	}
	return errors.Join(
		l.nsHost.Up(l.port0.name),
		l.nsA.AddAddr(l.cardA.name, addrA.String()+"/16"), l.nsA.Up(l.cardA.name), l.nsA.AddRoute("default", topo.GatewayAddr.String()))
}

func (l *lab) bridge(gateway string, mtu int) (err error) {
	if l.nsC, err = l.NewNS("c"); err != nil {
		return err
	}
	l.c = probe.In(l.nsC)
	if err := l.nsHost.AddBridge("docker0", gateway); err != nil {
		return err
	}
	if err := l.nsHost.Enslave(l.port0.name, "docker0"); err != nil {
		return err
	}
	err = l.Link(
		topo.End{NS: l.nsHost, Name: "veth-c", Master: "docker0"},
		topo.End{NS: l.nsC, Name: "eth0", Addr: addrC.String() + "/16"}, mtu)
	if err != nil {
		return err
	}
	return l.nsC.AddRoute("default", topo.GatewayAddr.String())
}

// outsideWire is the second one. The far peer answers from its first address where a socket does not say which.
func (l *lab) outsideWire(cfg labConfig) error {
	if cfg.outsideMTU != 0 {
		if err := errors.Join(l.nsHost.SetMTU(l.uplink0.name, cfg.outsideMTU), l.nsB.SetMTU(l.cardB.name, cfg.outsideMTU)); err != nil {
			return err
		}
	}
	for _, err := range []error{
		l.nsHost.AddAddr(l.uplink0.name, topo.HostAddr.String()+"/24"), l.nsHost.Up(l.uplink0.name),
		l.nsHost.AddRoute("default", topo.RouterAddr.String()),
		l.nsB.AddAddr(l.cardB.name, topo.Peer1Addr.String()+"/24"), l.nsB.AddAddr(l.cardB.name, topo.Peer2Addr.String()+"/24"),
		l.nsB.AddAddr(l.cardB.name, topo.RouterAddr.String()+"/32"), l.nsB.Up(l.cardB.name),
		l.nsB.IP(l.t.Context(), "route add 198.51.100.0/24 dev "+l.cardB.name+" src "+topo.Peer1Addr.String()+"\n"),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// under is the lab for a subtest.
func (l *lab) under(t *testing.T) *lab {
	sub := *l
	sub.t = t
	return &sub
}

func (l *lab) status() api.Status {
	l.t.Helper()
	return asked[api.Status](l, "status")[0]
}

// asked is what a client command prints, one element at least.
func asked[T any](l *lab, command string) (list []T) {
	l.t.Helper()
	if err := json.Unmarshal([]byte(l.Client(command, "-o", "json")), &list); err != nil || len(list) == 0 {
		l.t.Fatalf("conenat %s: %d elements, %v", command, len(list), err)
	}
	return list
}

// counters are all of conenat's.
func (l *lab) counters() map[string]uint64 {
	l.t.Helper()
	counters := map[string]uint64{}
	for _, c := range l.status().Counters {
		counters[c.Name] = c.Packets
	}
	return counters
}

// nothingLost compares what conenat has dropped and what the kernels of peers and host found wrong before and after fn.
func (l *lab) nothingLost(fn func()) {
	l.t.Helper()
	dropped, wrong := l.counters(), l.checksumErrors()
	fn()
	for name, n := range l.counters() {
		if strings.HasPrefix(name, "dropped_") && n != dropped[name] {
			l.t.Errorf("%s: %d", name, n-dropped[name])
		}
	}
	for where, n := range l.checksumErrors() {
		if n != wrong[where] {
			l.t.Errorf("%s: %s after %s", where, n, wrong[where])
		}
	}
}

// checksumErrors are each namespace's InCsumErrors, by "namespace protocol".
func (l *lab) checksumErrors() map[string]string {
	l.t.Helper()
	found := map[string]string{}
	for name, ns := range map[string]*topo.NS{"a": l.nsA, "b": l.nsB, "c": l.nsC, "host": l.nsHost} {
		if ns == nil {
			continue
		}
		var text []byte
		err := ns.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/snmp")
			return err
		})
		if err != nil {
			l.t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		for i := 0; i+1 < len(lines); i += 2 { // names, then values
			values := strings.Fields(lines[i+1])
			for j, column := range strings.Fields(lines[i]) {
				if column == "InCsumErrors" {
					found[name+" "+values[0]+column] = values[j]
				}
			}
		}
	}
	if len(found) < 6 { // TCP, UDP and ICMP of two namespaces
		l.t.Fatalf("no counters of checksum errors: %v", found)
	}
	return found
}

// udp opens a socket; the test's end closes it.
func (l *lab) udp(h probe.Host, port uint16) probe.Socket {
	l.t.Helper()
	return probe.Tester{T: l.t}.UDP(h, port)
}

func (l *lab) dial(h probe.Host, server netip.AddrPort) probe.Conn {
	l.t.Helper()
	return probe.Tester{T: l.t}.Dial(h, server)
}

func (l *lab) send(s probe.Socket, to netip.AddrPort, text string) {
	l.t.Helper()
	probe.Tester{T: l.t}.Send(s, to, text)
}

// receives waits for a packet with just that text, and returns whom it is from.
func (l *lab) receives(s probe.Socket, text string) netip.AddrPort {
	l.t.Helper()
	return probe.Tester{T: l.t}.Receives(s, text)
}

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }
