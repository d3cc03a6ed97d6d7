// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/topo"
)

// These tests follow a real dockerd.

// on is a dockerd on the host of figure 3, and a Source that follows it from there.
type on struct {
	*watched
	f *topo.Figure3
	d *docker.Daemon
}

func start(t *testing.T, flags ...string) *on {
	t.Helper()
	return startAs(t, docker.Config{Args: flags})
}

func startAs(t *testing.T, cfg docker.Config) *on {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: cfg.IPv6})
	d := docker.StartForTest(t, f.Topo, f.Host, cfg)
	t.Cleanup(func() { // before the topology is closed
		if t.Failed() {
			t.Logf("dockerd's log:\n%s", d.Log())
		}
	})
	return &on{source(t, f, d), f, d}
}

// source reads namespaces from the host's, as a daemon that runs there.
func source(t *testing.T, f *topo.Figure3, d *docker.Daemon) *watched {
	t.Helper()
	s, err := New(WithHost("unix://"+d.Socket), WithNamespaces(func(pid int) (n Namespace, err error) {
		doErr := f.Host.Do(func() error {
			n, err = ReadNamespace(pid)
			return nil
		})
		if doErr != nil {
			t.Error(doErr)
		}
		return n, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	return &watched{Source: s, t: t}
}

func (o *on) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// endpoint is that of a container on a network, or nil.
func endpoint(s Snapshot, network, container string) *Endpoint {
	for _, n := range s.Networks {
		for _, e := range n.Endpoints {
			if n.Name == network && e.Name == container {
				return &e
			}
		}
	}
	return nil
}

// ports are the bridge ports that carry a namespace's number, which is how the caller finds an endpoint's.
func (o *on) ports(bridge string, nsid int) (names []string) {
	o.t.Helper()
	index, err := o.f.Host.IfIndex(bridge)
	o.must(err)
	links, err := o.f.Host.Netlink().LinkList()
	o.must(err)
	for _, l := range links {
		if a := l.Attrs(); a.MasterIndex == index && a.NetNsID == nsid {
			names = append(names, a.Name)
		}
	}
	return names
}

func TestEngineContainers(t *testing.T) {
	o := start(t)
	o.must(o.d.NewNetwork(t.Context(), "back", "br-back", "172.18.0.0/16"))
	early := o.d.RunForTest(t, docker.Spec{Name: "early", Idle: true})
	o.watch()
	s := o.Snapshot()
	if !s.Connected || s.Engine != "20.10.24+dfsg1, API 1.41" || len(s.Problems) != 0 {
		t.Errorf("%+v", s)
	}
	e := endpoint(s, "bridge", "early")
	if e == nil || e.Address != early.Addr || e.Container != early.ID || len(o.ports("docker0", e.NetNSID)) != 1 {
		t.Fatalf("container that ran before: %+v", e)
	}
	back := o.network(s, "back")
	if back.Interface != "br-back" || back.LeftAlone != "" || !back.ICC || back.Subnets[0] != netip.MustParsePrefix("172.18.0.0/16") {
		t.Errorf("%+v", back)
	}
	o.must(early.Remove(t.Context()))
	o.until("removed", func(s Snapshot) bool { return endpoint(s, "bridge", "early") == nil })
	o.lifecycle()
	o.must(o.d.RemoveNetwork(t.Context(), "back"))
	o.until("network removed", func(s Snapshot) bool { return len(s.Networks) == 3 })
}

// lifecycle is a container with ports of every kind that is stopped, started, restarted and removed.
func (o *on) lifecycle() {
	t := o.t
	c := o.d.RunForTest(t, docker.Spec{Name: "web", Network: "back", Publish: map[string]string{
		"80/tcp": ":8080,127.0.0.1:8081", "53/udp": "198.51.100.1:53", "7000-7009/udp": ":9000-9009", "22/tcp": ":",
	}})
	check := func(when string) *Endpoint {
		t.Helper()
		s := o.until(when, func(s Snapshot) bool { return endpoint(s, "back", "web") != nil })
		e := endpoint(s, "back", "web")
		want := []Published{
			{dataplane.TCP, netip.IPv4Unspecified(), 8080, 80}, {dataplane.TCP, netip.MustParseAddr("127.0.0.1"), 8081, 80},
			{dataplane.UDP, netip.MustParseAddr("198.51.100.1"), 53, 53},
		}
		for i := range uint16(10) {
			want = append(want, Published{dataplane.UDP, netip.IPv4Unspecified(), 9000 + i, 7000 + i})
		}
		slices.SortFunc(want, comparePublished)
		random := func(p Published) bool { return p.ContainerPort == 22 && p.HostPort >= 32768 }
		rest := slices.DeleteFunc(slices.Clone(e.Published), random)
		if diff := cmp.Diff(want, rest, compare); diff != "" || len(rest) != len(e.Published)-1 {
			t.Errorf("%s: %d published ports\n%s", when, len(e.Published), diff)
		}
		if ports := o.ports("br-back", e.NetNSID); len(ports) != 1 {
			t.Errorf("%s: bridge ports of network namespace %d: %v", when, e.NetNSID, ports)
		}
		return e
	}
	check("started")
	o.must(c.Stop(t.Context()))
	o.until("stopped", func(s Snapshot) bool { return endpoint(s, "back", "web") == nil })
	o.must(c.Start(t.Context()))
	check("started again")
	before := endpoint(o.Snapshot(), "back", "web").ID
	o.must(c.Restart(t.Context()))
	o.until("restarted", func(s Snapshot) bool {
		e := endpoint(s, "back", "web")
		return e != nil && e.ID != before
	})
	check("restarted")
	o.must(c.Remove(t.Context()))
	o.until("removed", func(s Snapshot) bool { return endpoint(s, "back", "web") == nil })
}

// TestEngineIPv6: docker0 and a network with both families, and where their containers publish.
func TestEngineIPv6(t *testing.T) {
	o := startAs(t, docker.Config{IPv6: true})
	o.must(o.d.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "both", Subnet: "172.24.0.0/16", IPv6: "fd00:24::/64"}))
	o.must(o.d.CreateNetwork(t.Context(), docker.NetworkSpec{Name: "four", Subnet: "172.25.0.0/16"}))
	ports := map[string]string{"80/tcp": ":8080,127.0.0.1:8081"}
	web := o.d.RunForTest(t, docker.Spec{Name: "web", Publish: ports})
	o.d.RunForTest(t, docker.Spec{Name: "old", Network: "four", Idle: true, Publish: map[string]string{"80/tcp": ":8090"}})
	own := o.d.RunForTest(t, docker.Spec{Name: "own", Network: "both", Idle: true, Publish: map[string]string{"53/udp": ":5300"}})
	o.watch()
	s := o.until("all containers", func(s Snapshot) bool { return len(places(s)) == 3 })
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, tt := range []struct {
		network, container string
		address, address6  netip.Addr
		want               []Published
	}{
		{"bridge", "web", web.Addr, web.Addr6, []Published{
			{dataplane.TCP, any4, 8080, 80}, {dataplane.TCP, netip.MustParseAddr("127.0.0.1"), 8081, 80}, {dataplane.TCP, any6, 8080, 80}}},
		{"both", "own", own.Addr, own.Addr6, []Published{{dataplane.UDP, any4, 5300, 53}, {dataplane.UDP, any6, 5300, 53}}},
		{"four", "old", endpoint(s, "four", "old").Address, netip.Addr{}, []Published{{dataplane.TCP, any4, 8090, 80}}},
	} {
		e := endpoint(s, tt.network, tt.container)
		if e == nil || e.Address != tt.address || e.Address6 != tt.address6 {
			t.Fatalf("%s: %+v", tt.container, e)
		}
		if diff := cmp.Diff(tt.want, e.Published, compare); diff != "" {
			t.Errorf("%s: %s", tt.container, diff)
		}
	}
	six := func(name string) bool {
		return slices.ContainsFunc(o.network(s, name).Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	}
	if !web.Addr6.IsValid() || !six("bridge") || !six("both") || six("four") || len(s.Problems) != 0 {
		t.Errorf("%+v", s)
	}
}

// A container on two networks publishes where its default route leads, which is where Docker's rules lead.
func TestEngineMultiHomed(t *testing.T) {
	o := start(t, "--userland-proxy=false")
	o.watch()
	o.must(o.d.NewNetwork(t.Context(), "middle", "br-middle", "172.18.0.0/16"))
	o.must(o.d.NewNetwork(t.Context(), "after", "br-after", "172.19.0.0/16"))
	o.must(o.d.NewNetwork(t.Context(), "zlast", "br-zlast", "172.20.0.0/16"))
	c := o.d.RunForTest(t, docker.Spec{Name: "web", Network: "middle", Publish: map[string]string{"80/tcp": ":8080"}})
	o.publishes("middle")
	o.must(c.Connect(t.Context(), "zlast", ""))
	o.until("connected", func(s Snapshot) bool { return endpoint(s, "zlast", "web") != nil })
	o.publishes("middle")
	o.must(c.Connect(t.Context(), "after", "172.19.0.77"))
	o.until("connected", func(s Snapshot) bool {
		e := endpoint(s, "after", "web")
		return e != nil && e.Address == netip.MustParseAddr("172.19.0.77")
	})
	o.publishes("after")
	o.must(c.Disconnect(t.Context(), "after"))
	o.until("disconnected", func(s Snapshot) bool { return endpoint(s, "after", "web") == nil })
	o.publishes("middle")
	o.must(c.Disconnect(t.Context(), "middle"))
	o.until("disconnected", func(s Snapshot) bool { return endpoint(s, "middle", "web") == nil })
	o.publishes("zlast")
}

// publishes compares the snapshot's word with Docker's own rule.
func (o *on) publishes(network string) {
	o.t.Helper()
	s := o.until("published on "+network, func(s Snapshot) bool {
		e := endpoint(s, network, "web")
		return e != nil && len(e.Published) == 1
	})
	for _, n := range s.Networks {
		if e := endpoint(s, n.Name, "web"); e != nil && len(e.Published) > 0 && n.Name != network {
			o.t.Errorf("published on %s too", n.Name)
		}
	}
	rules, err := o.f.Host.Run(o.t.Context(), "", "iptables", "-t", "nat", "-S", "DOCKER")
	o.must(err)
	if want := fmt.Sprintf("--to-destination %s:80", endpoint(s, network, "web").Address); !strings.Contains(rules, want) {
		o.t.Errorf("the snapshot publishes on %s, and Docker does not (%s):\n%s", network, want, rules)
	}
}

func TestEngineNetworks(t *testing.T) {
	o := start(t, "--ip-masq=false", "--icc=false")
	o.must(o.f.Host.EnableIPv6())
	o.watch()
	bridge := func(key, value string) map[string]string {
		return map[string]string{"com.docker.network.bridge." + key: value}
	}
	for _, spec := range []docker.NetworkSpec{
		{Name: "plain", Subnet: "172.18.0.0/16"},
		{Name: "inner", Subnet: "172.19.0.0/16", Internal: true},
		{Name: "noicc", Subnet: "172.20.0.0/16", Options: bridge("enable_icc", "false")},
		{Name: "nomasq", Subnet: "172.21.0.0/16", Options: bridge("enable_ip_masquerade", "false")},
		{Name: "mac", Driver: "macvlan", Subnet: "198.51.100.0/24", Options: map[string]string{"parent": "eth0"}},
		{Name: "off", Subnet: "172.22.0.0/16", Labels: map[string]string{"conenat.enable": "false"}},
		{Name: "cone", Subnet: "172.23.0.0/16", Labels: map[string]string{"conenat.filtering": "udp=endpoint-independent", "conenat.external": "192.0.2.x"}},
		{Name: "six", Subnet: "172.24.0.0/16", IPv6: "fd00:24::/64"},
	} {
		o.must(o.d.CreateNetwork(t.Context(), spec))
	}
	s := o.until("all networks", func(s Snapshot) bool { return len(s.Networks) == 11 })
	got := map[string]string{}
	for _, n := range s.Networks {
		got[n.Name] = fmt.Sprintf("icc=%v %s", n.ICC, n.LeftAlone)
		if n.Driver == "bridge" {
			if _, err := o.f.Host.IfIndex(n.Interface); err != nil {
				t.Errorf("network %s: %v", n.Name, err)
			}
		}
	}
	const noMasquerade = "masquerade is off (com.docker.network.bridge.enable_ip_masquerade=false)"
	want := map[string]string{
		"bridge": "icc=false " + noMasquerade, "plain": "icc=true ", "noicc": "icc=false ", "nomasq": "icc=true " + noMasquerade,
		"inner": "icc=true internal: it has no way outside", "off": "icc=true label conenat.enable=false", "cone": "icc=true ", "six": "icc=true ",
		"mac":  "icc=true driver macvlan: its containers are on the uplink's own network",
		"host": "icc=true driver host: its containers use the host's own network", "none": "icc=true driver null: its containers have no network",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	problem := `network cone: ignore label conenat.external="192.0.2.x": "192.0.2.x" are no external addresses: want ADDR, ADDR/BITS or ADDR-ADDR, as 203.0.113.8-203.0.113.15`
	if diff := cmp.Diff([]string{problem}, s.Problems); diff != "" {
		t.Error(diff)
	}
	filtering := &[3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.AddressDependent, dataplane.AddressDependent}
	if diff := cmp.Diff(filtering, o.network(s, "cone").Filtering); diff != "" {
		t.Error(diff)
	}
	o.containersOnThem()
}

// containersOnThem have labels, or places without an address.
func (o *on) containersOnThem() {
	t := o.t
	o.d.RunForTest(t, docker.Spec{Name: "excluded", Network: "cone", Idle: true, Labels: map[string]string{
		"conenat.enable": "false", "conenat.filtering": "tcp=endpoint-independent", "conenat.filterin": "x",
	}})
	o.d.RunForTest(t, docker.Spec{Name: "onhost", Network: "host", Idle: true})
	o.d.RunForTest(t, docker.Spec{Name: "onmac", Network: "mac", Addr: "198.51.100.77", Idle: true})
	o.d.RunForTest(t, docker.Spec{Name: "onsix", Network: "six", Idle: true})
	o.d.RunForTest(t, docker.Spec{Name: "pod", Network: "container:excluded", Idle: true})
	s := o.until("all containers", func(s Snapshot) bool { return endpoint(s, "six", "onsix") != nil && len(s.Problems) == 2 })
	e := endpoint(s, "cone", "excluded")
	filtering := &[3]dataplane.Behavior{dataplane.EndpointIndependent, dataplane.EndpointIndependent, dataplane.AddressDependent}
	if !e.Excluded || !cmp.Equal(filtering, e.Filtering) || e.NetNSID < 0 {
		t.Errorf("%+v", e)
	}
	if !strings.HasPrefix(s.Problems[0], `container excluded: ignore label conenat.filterin="x": no such label`) {
		t.Errorf("%q", s.Problems)
	}
	got := places(s)
	want := []string{"cone/excluded 172.23.0.2", "mac/onmac 198.51.100.77", "six/onsix 172.24.0.2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// dockerd starts again under a Source that runs.
func TestEngineRestarted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
		end   func(*docker.Daemon) error
		alive bool // containers go on while dockerd is away
	}{
		{"stopped", nil, (*docker.Daemon).Stop, false},
		{"live_restore", []string{"--live-restore"}, (*docker.Daemon).Stop, true},
		{"killed_live_restore", []string{"--live-restore"}, (*docker.Daemon).Kill, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := start(t, tt.flags...)
			o.watch()
			always := o.d.RunForTest(t, docker.Spec{Name: "always", Idle: true, Restart: "always", Publish: map[string]string{"80/tcp": ":8080"}})
			o.d.RunForTest(t, docker.Spec{Name: "once", Idle: true})
			s := o.until("both", func(s Snapshot) bool { return len(places(s)) == 2 })
			before := endpoint(s, "bridge", "always")
			o.must(tt.end(o.d))
			s = o.until("away", func(s Snapshot) bool { return !s.Connected })
			if tt.alive && len(places(s)) != 2 { // else dockerd ends them, before or after it closes its API
				t.Errorf("while dockerd is away: %v", places(s))
			}
			o.must(o.d.StartAgain(t.Context()))
			s = o.until("back", func(s Snapshot) bool { return s.Connected && endpoint(s, "bridge", "always") != nil })
			if got := places(s); (len(got) == 2) != tt.alive {
				t.Errorf("after dockerd came back: %v", got)
			}
			e := endpoint(s, "bridge", "always")
			if len(e.Published) != 1 || len(o.ports("docker0", e.NetNSID)) != 1 || tt.alive != (e.ID == before.ID) || (tt.alive && e.NetNSID != before.NetNSID) {
				t.Errorf("after dockerd came back: %+v; before: %+v", e, before)
			}
			o.must(always.Inspect(t.Context()))
			if always.Addr != e.Address {
				t.Errorf("address %v, Docker says %v", e.Address, always.Addr)
			}
		})
	}
}

// How long pictures take, and that many containers do not change that.
func TestEnginePictureTime(t *testing.T) {
	const count = 15
	o := start(t)
	for i := range count {
		o.d.RunForTest(t, docker.Spec{Name: fmt.Sprintf("c%02d", i), Idle: true})
	}
	begin := time.Now()
	o.watch()
	first := time.Since(begin)
	if n := len(places(o.Snapshot())); n != count {
		t.Fatalf("%d containers when ready", n)
	}
	_, err := o.d.CLI(t.Context(), "stop", "c00")
	o.must(err)
	answered := time.Now()
	o.until("one less", func(s Snapshot) bool { return len(places(s)) == count-1 })
	stopped := time.Since(answered)
	o.d.RunForTest(t, docker.Spec{Name: "new", Idle: true})
	answered = time.Now()
	o.until("one more", func(s Snapshot) bool { return endpoint(s, "bridge", "new") != nil })
	started := time.Since(answered)
	t.Logf("first picture of %d containers: %v; after docker stop: %v, after docker run: %v", count, first, stopped, started)
	if second := patience.For(time.Second); first > 5*second || stopped > second || started > second {
		t.Errorf("first picture after %v, after docker stop %v, after docker run %v", first, stopped, started)
	}
}
