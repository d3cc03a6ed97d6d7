// SPDX-License-Identifier: Apache-2.0

package judges

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v2"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/ice"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) {
	family.Tested = []family.Family{family.V4, family.V6}
	os.Exit(topo.Main(m))
}

// bound is on all that a test asks.
var bound = patience.For(2 * time.Minute)

// The STUN server's two addresses, and its port.
const (
	primaryAddr   = "203.0.113.1"
	alternateAddr = "203.0.113.2"
	stunPort      = 3478
)

// server is where the judges ask first.
var server = netip.MustParseAddrPort(fmt.Sprintf("%s:%d", primaryAddr, stunPort))

// world is one network with a STUN server, and NATs around it:
//
//	c1, c2 ── docker0 ─ nat-1 ─ eth0 ──┐
//	172.17.0.2, .3      203.0.113.11   ├── lan ─ outside 203.0.113.1, .2: turnserver
//	c1, c2 ── docker0 ─ nat-2 ─ eth0 ──┘
//	172.17.0.2, .3      203.0.113.12
type world struct {
	*topo.Topo
	t       *testing.T
	family  family.Family // that the judges ask in
	outside *topo.NS
	hosts   int // beside the server
}

// newWorld starts coturn's server, too.
func newWorld(fam family.Family, t *testing.T) *world {
	t.Helper()
	w := &world{Topo: topo.ForTest(t), t: t, family: fam}
	if fam == family.V6 {
		w.EnableIPv6()
	}
	require.Installed(t, "turnserver")
	// Compiled before anything is timed.
	for _, program := range []func() (string, error){harness.Binary, pionJudge, ice.Binary} {
		if _, err := program(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.outside, err = w.NewNS("outside"); err != nil {
		t.Fatal(err)
	}
	if err := w.outside.AddBridge("lan", primaryAddr+"/24"); err != nil {
		t.Fatal(err)
	}
	if err := w.outside.AddAddr("lan", alternateAddr+"/24"); err != nil {
		t.Fatal(err)
	}
	// Otherwise a bridge takes its lowest port's, and NATs that join would change it under those that are judged already.
	if err := w.outside.IP(t.Context(), "link set lan address 02:00:cb:00:71:01"); err != nil {
		t.Fatal(err)
	}
	if err := w.startServer(); err != nil {
		t.Fatal(err)
	}
	return w
}

// host is a namespace in the outside network, and its address there, in the family.
func (w *world) host(name string) (*topo.NS, netip.Addr) {
	w.t.Helper()
	w.hosts++
	addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + w.hosts)})
	ns, err := w.NewNS(name)
	if err == nil {
		err = w.Link(
			topo.End{NS: w.outside, Name: "lan-" + name, Master: "lan"},
			topo.End{NS: ns, Name: "eth0", Addr: addr.String() + "/24"}, 0)
	}
	if err == nil {
		err = ns.AddRoute("default", primaryAddr)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return ns, w.family.Addr(addr)
}

// startServer starts turnserver and waits until all four endpoints answer: it logs nothing when it is ready.
func (w *world) startServer() error {
	cmd := w.outside.Command(context.Background(), "turnserver", "-n", "--stun-only", "-L", w.family.Text(primaryAddr), "-L", w.family.Text(alternateAddr),
		"--listening-port", fmt.Sprint(stunPort), "--no-tls", "--no-dtls", "--no-cli", "--log-file", "stdout", "--simple-log",
		"--pidfile", filepath.Join(w.Dir(), "turnserver.pid"), "--userdb", filepath.Join(w.Dir(), "turndb"))
	if _, err := w.Start("turnserver", cmd); err != nil {
		return err
	}
	for _, addr := range []string{primaryAddr, alternateAddr} {
		for port := range 2 {
			endpoint := w.family.At(netip.MustParseAddr(addr), uint16(stunPort+port))
			answers := func() (bool, error) {
				err := w.ask(endpoint)
				return err == nil, err
			}
			if err := topo.Poll(w.t.Context(), 20*time.Second, "turnserver answers at "+endpoint.String(), answers); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) ask(endpoint netip.AddrPort) error {
	conn, err := w.outside.DialUDP(netip.AddrPort{}, endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	if _, err := conn.Write(request.Raw); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1500))
	return err
}

// behavior is a configuration: RFC 4787's mapping and filtering.
type behavior struct{ mapping, filtering string }

// The behaviours, in the words of the command line.
const (
	independent = "endpoint-independent"
	address     = "address-dependent"
	port        = "address-and-port-dependent"
)

var behaviors = []string{independent, address, port}

// String is Rescorla's short form, such as EIM:ADF.
func (b behavior) String() string {
	short := map[string]string{independent: "EI", address: "AD", port: "AP"}
	return short[b.mapping] + "M:" + short[b.filtering] + "F"
}

// small: nine NATs need no room for a million sessions.
const small = "capacity: {sessions: 1024, bindings: 1024}\n"

// quick are timeouts that a judge can wait for.
const quick = small + "timeouts: {udp: 5s, sweep: 100ms}\n"

// lifetime is quick's, for a UDP binding.
const lifetime = 5 * time.Second

// nat is a conenat with containers behind it. The first one has a second address, otherAddr.
type nat struct {
	behavior
	external   netip.Addr
	containers []*topo.NS
}

const (
	containerAddr = "172.17.0.2"
	otherAddr     = "172.17.1.2"
)

// nat builds a host with Docker's rules and starts conenat there; config is YAML.
func (w *world) nat(b behavior, config string) *nat {
	w.t.Helper()
	name := fmt.Sprintf("nat-%d", w.hosts+1)
	host, external := w.host(name)
	n := &nat{behavior: b, external: external}
	file := filepath.Join(w.Dir(), name+".yaml")
	for _, step := range []func() error{
		func() error { return host.AddBridge("docker0", "172.17.0.1/16") },
		host.Forward,
		func() error { return w.container(n, host, name+"-c1", containerAddr) },
		func() error { return w.container(n, host, name+"-c2", "172.17.0.3") },
		func() error { return n.containers[0].AddAddr("eth0", otherAddr+"/16") },
		func() error { return topo.DockerRules(w.t.Context(), host) },
		func() error { return os.WriteFile(file, []byte(config), 0o600) },
	} {
		if err := step(); err != nil {
			w.t.Fatal(err)
		}
	}
	c := harness.StartIn(w.family, w.t, w.Topo, host, "--config", file, "--inside", "docker0", "--mapping", b.mapping, "--filtering", b.filtering)
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("%v:\n%s", b, c.Client("status"))
		}
	})
	return n
}

// container adds a namespace on docker0.
func (w *world) container(n *nat, host *topo.NS, name, addr string) error {
	ns, err := w.NewNS(name)
	if err != nil {
		return err
	}
	n.containers = append(n.containers, ns)
	port := "veth" + name[strings.LastIndex(name, "-"):]
	err = w.Link(topo.End{NS: host, Name: port, Master: "docker0"}, topo.End{NS: ns, Name: "eth0", Addr: addr + "/16"}, 0)
	if err != nil {
		return err
	}
	return ns.AddRoute("default", "172.17.0.1")
}
