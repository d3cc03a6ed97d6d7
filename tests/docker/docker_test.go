// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

// machine is what dockerd might touch outside of its namespace.
func machine() map[string]bool {
	state := map[string]bool{}
	for _, path := range []string{"/etc/docker", "/run/docker", "/run/docker.sock", "/run/containerd", "/var/lib/docker", "/sys/fs/cgroup/systemd/docker"} {
		_, err := os.Lstat(path)
		state[path] = err == nil
	}
	return state
}

func TestContainers(t *testing.T) {
	before := machine()
	t.Cleanup(func() {
		if diff := cmp.Diff(before, machine()); diff != "" {
			t.Errorf("the machine changed (-before +after):\n%s", diff)
		}
	})
	f := topo.Figure3ForTest(t, topo.Figure3Config{})
	d := StartForTest(t, f.Topo, f.Host, Config{})
	t.Run("rules", func(t *testing.T) { testRules(t, f) })
	c1, c2 := d.RunForTest(t, Spec{Name: "one"}), d.RunForTest(t, Spec{Name: "two"})
	t.Cleanup(func() { // runs before the topology is closed
		if t.Failed() {
			t.Logf("dockerd's log:\n%s", d.Log())
		}
	})
	if c1.Addr != netip.MustParseAddr("172.17.0.2") || c2.Addr != netip.MustParseAddr("172.17.0.3") {
		t.Errorf("addresses %v and %v", c1.Addr, c2.Addr)
	}
	if report, err := probe.PingOnce(c1, c2.Addr, 3); err != nil || report.Received != 3 {
		t.Errorf("ping between containers: %+v, %v", report, err)
	}
	if report, err := probe.PingOnce(c1, topo.Peer1Addr, 3); err != nil || report.Received != 3 {
		t.Errorf("ping of a peer: %+v, %v", report, err)
	}
	testNAT(t, f, c1)
	if out, err := c1.NS.Run(t.Context(), "", "ip", "-br", "addr"); err != nil || !strings.Contains(out, "172.17.0.2/16") {
		t.Errorf("the container's namespace: %v\n%s", err, out)
	}
	if out, err := d.CLI(t.Context(), "ps", "--format", "{{.Names}}"); err != nil || out != "two\none\n" {
		t.Errorf("docker ps: %q, %v", out, err)
	}
	if err := c1.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c1.ListenUDP(0); err == nil {
		t.Error("the probe of a removed container answers")
	}
}

// testRules compares what the demo without Docker installs with the original.
func testRules(t *testing.T, f *topo.Figure3) {
	imitation, err := f.NewNS("imitation")
	if err != nil {
		t.Fatal(err)
	}
	if err := topo.DockerRules(t.Context(), imitation); err != nil {
		t.Fatal(err)
	}
	want, err := topo.SaveRules(t.Context(), f.Host)
	if err != nil {
		t.Fatal(err)
	}
	got, err := topo.SaveRules(t.Context(), imitation)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("topo.DockerRules is not what dockerd writes (-dockerd +topo):\n%s", diff)
	}
}

// TestIPv6: Docker's own NAT for IPv6 is as topo imitates it, and containers reach the peers by it.
func TestIPv6(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: true})
	d := StartForTest(t, f.Topo, f.Host, Config{IPv6: true})
	testRules(t, f)
	c := d.RunForTest(t, Spec{Name: "one"})
	if !netip.MustParsePrefix(family.V6.Text("172.17.0.0/16")).Contains(c.Addr6) {
		t.Errorf("address %v", c.Addr6)
	}
	stun, err := probe.ServeSTUN(f.Peer1, 3478)
	if err != nil {
		t.Fatal(err)
	}
	defer stun.Close()
	socket, err := c.In(family.V6).ListenUDP(20000)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := socket.Mapped(family.V6.Endpoint(netip.AddrPortFrom(topo.Peer1Addr, 3478)), probe.Timeout)
	if want := family.V6.Endpoint(netip.AddrPortFrom(topo.HostAddr, 20000)); err != nil || mapped != want {
		t.Errorf("mapped to %v, %v; want %v", mapped, err, want)
	}
}

// testNAT lets a container talk TCP and UDP to a peer through Docker's own NAT.
func testNAT(t *testing.T, f *topo.Figure3, c *Container) {
	stun, err := probe.ServeSTUN(f.Peer1, 3478)
	if err != nil {
		t.Fatal(err)
	}
	defer stun.Close()
	socket, err := c.ListenUDP(20000)
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := socket.Mapped(netip.AddrPortFrom(topo.Peer1Addr, 3478), probe.Timeout)
	if err != nil || mapped != netip.AddrPortFrom(topo.HostAddr, 20000) {
		t.Errorf("mapped to %v, %v", mapped, err)
	}
	server, err := probe.In(f.Peer2).ServeTCP(80)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := c.DialTCP(0, netip.AddrPortFrom(topo.Peer2Addr, 80))
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := conn.Seen(); err != nil || seen.Addr() != topo.HostAddr {
		t.Errorf("seen as %v, %v", seen, err)
	}
	if _, err := conn.Download(10_000_000); err != nil {
		t.Error(err)
	}
	if _, err := conn.Upload(10_000_000); err != nil {
		t.Error(err)
	}
}

// Published ports and networks of a user's own, as later tests need them.
func TestNetworksAndPorts(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{})
	d := StartForTest(t, f.Topo, f.Host, Config{Args: []string{"--userland-proxy=false"}})
	if err := d.NewNetwork(t.Context(), "backend", "br-backend", "172.18.0.0/16"); err != nil {
		t.Fatal(err)
	}
	c := d.RunForTest(t, Spec{Network: "backend", Addr: "172.18.0.7", Publish: map[string]string{"80/tcp": ":8080"}})
	if c.Addr != netip.MustParseAddr("172.18.0.7") {
		t.Errorf("address %v", c.Addr)
	}
	if _, err := c.ServeTCP(80); err != nil {
		t.Fatal(err)
	}
	conn, err := probe.In(f.Peer1).DialTCP(0, netip.AddrPortFrom(topo.HostAddr, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Echo("through the published port"); err != nil {
		t.Error(err)
	}
}

func TestStartFails(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{})
	_, err := Start(t.Context(), f.Topo, f.Host, Config{Args: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("error without dockerd's own words: %v", err)
	}
}
