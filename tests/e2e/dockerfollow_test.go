// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/dockerfake"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// dockerHost is a lab with a real dockerd that conenat follows.
type dockerHost struct {
	*lab
	docker *docker.Daemon
}

// newDockerHost is newDockerHostIn with IPv4 alone.
func newDockerHost(t *testing.T, cfg docker.Config, args ...string) *dockerHost {
	t.Helper()
	return newDockerHostIn(family.V4, t, cfg, args...)
}

func newDockerHostIn(fam family.Family, t *testing.T, cfg docker.Config, args ...string) *dockerHost {
	t.Helper()
	h := placeDockerHost(fam, t, cfg, args...)
	h.Run()
	return h
}

// placeDockerHost is newDockerHostIn before conenat runs.
func placeDockerHost(fam family.Family, t *testing.T, cfg docker.Config, args ...string) *dockerHost {
	t.Helper()
	f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: fam == family.V6})
	cfg.Family = fam
	h := &dockerHost{docker: docker.StartForTest(t, f.Topo, f.Host, cfg), lab: bareLab(fam, t, f)}
	t.Setenv("DOCKER_HOST", "unix://"+h.docker.Socket)
	h.Conenat = harness.Place(t, f.Topo, f.Host, append([]string{"--docker"}, args...)...)
	h.Family = fam
	return h
}

func (h *dockerHost) at(t *testing.T) *dockerHost { return &dockerHost{h.lab.at(t), h.docker} }

func (h *dockerHost) run(spec docker.Spec) *docker.Container {
	h.t.Helper()
	return h.docker.RunForTest(h.t, spec)
}

func (h *dockerHost) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// static are the static bindings of the lab's family: "tcp 198.51.100.1:8080 = 172.17.0.2:80".
func (h *dockerHost) static() (list []string) {
	h.t.Helper()
	for _, b := range h.Bindings() {
		if b.Static && family.Of(netip.MustParseAddrPort(b.External).Addr()) == h.family {
			list = append(list, b.Protocol+" "+b.External+" = "+b.Internal)
		}
	}
	slices.Sort(list)
	return list
}

// publishes waits until the static bindings are just these.
func (h *dockerHost) publishes(when string, want ...string) {
	h.t.Helper()
	slices.Sort(want)
	var diff string
	err := topo.Poll(h.t.Context(), 10*time.Second, when, func() (bool, error) {
		diff = cmp.Diff(want, h.static())
		return diff == "", nil
	})
	if err != nil {
		h.t.Fatalf("%s: static bindings (-want +got):\n%s", when, diff)
	}
}

func binding(protocol string, external netip.AddrPort, internal netip.Addr, port uint16) string {
	return fmt.Sprintf("%s %s = %s", protocol, external, at(internal, port))
}

// heard sends a text that nobody has sent before, and returns whom the receiver hears it from.
func (h *dockerHost) heard(s probe.Socket, to netip.AddrPort, receiver probe.Socket) netip.AddrPort {
	h.t.Helper()
	text := fmt.Sprint("at ", time.Now().UnixNano())
	h.send(s, to, text)
	return h.receives(receiver, text)
}

type followed struct {
	Docker struct {
		Connected bool   `json:"connected"`
		Engine    string `json:"engine"`
		Problem   string `json:"problem"`
	} `json:"docker"`
	Outsides []struct {
		Name    string `json:"name"`
		Address string `json:"address"`
	} `json:"outsides"`
	Warnings []string `json:"warnings"`
}

func (h *dockerHost) followed() (f followed) {
	h.t.Helper()
	list := []followed{}
	if err := json.Unmarshal([]byte(h.Client("status", "-o", "json")), &list); err != nil || len(list) != 1 {
		h.t.Fatalf("status: %+v, %v", list, err)
	}
	return list[0]
}

// warns waits for a warning with all of these texts in it.
func (h *dockerHost) warns(texts ...string) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("a warning with %q", texts), func() bool {
		return slices.ContainsFunc(h.followed().Warnings, func(w string) bool { return containsAll(w, texts) })
	})
}

func containsAll(s string, texts []string) bool {
	return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(s, text) })
}

type listedNetwork struct {
	Name   string   `json:"name"`
	State  string   `json:"state"`
	Reason string   `json:"reason"`
	Ports  []string `json:"ports"`

	Mapping   behaviors `json:"mapping"`
	Filtering behaviors `json:"filtering"`
}

type behaviors struct {
	UDP string `json:"udp"`
	TCP string `json:"tcp"`
}

// networks are by name.
func (h *dockerHost) networks() map[string]listedNetwork {
	h.t.Helper()
	list := []listedNetwork{}
	if err := json.Unmarshal([]byte(h.Client("networks", "-o", "json")), &list); err != nil {
		h.t.Fatal(err)
	}
	byName := map[string]listedNetwork{}
	for _, n := range list {
		byName[n.Name] = n
	}
	return byName
}

// reaches: a client outside gets to a TCP service, which sees who it is.
func (h *dockerHost) reaches(what string, to netip.AddrPort) {
	h.t.Helper()
	conn, err := h.peer2.DialTCP(0, to)
	if err != nil {
		h.t.Errorf("%s: %v", what, err)
		return
	}
	defer conn.Close()
	if from, err := conn.Seen(); err != nil || from.Addr() != h.family.Addr(topo.Peer2Addr) {
		h.t.Errorf("%s sees its client as %s, %v", what, from, err)
	}
}

// TestDockerLive: containers, networks and ports that come and go.
func TestDockerLive(t *testing.T) { family.Each(t, testDockerLive) }

func testDockerLive(t *testing.T, fam family.Family) {
	at := fam.At
	h := newDockerHostIn(fam, t, docker.Config{})
	h.publishes("nothing runs")
	web := h.run(docker.Spec{Name: "web", Publish: map[string]string{"80/tcp": ":8080", "53/udp": ":5353"}})
	ports := func() []string {
		return []string{binding("tcp", at(topo.HostAddr, 8080), web.Addr, 80), binding("udp", at(topo.HostAddr, 5353), web.Addr, 53)}
	}
	h.publishes("a container came", ports()...)
	h.serve(web, 80)
	h.reaches("a container that came", at(topo.HostAddr, 8080))

	h.must(h.docker.NewNetwork(t.Context(), "backend", "br-backend", "172.20.0.0/16"))
	h.eventually("the new network is translated", func() bool { return h.networks()["backend"].State == "active" })
	db := h.run(docker.Spec{Name: "db", Network: "backend", Publish: map[string]string{"5432/tcp": ":5432"}})
	database := binding("tcp", at(topo.HostAddr, 5432), db.Addr, 5432)
	h.publishes("a container came on the new network", append(ports(), database)...)
	h.serve(db, 5432)
	h.reaches("a container on a network that came", at(topo.HostAddr, 5432))
	peer, socket := h.udp(h.peer1, 3478), h.udp(db, 20000)
	if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != at(topo.HostAddr, 20000) {
		t.Errorf("a container on a network that came is seen as %s", from)
	}
	if n := conntracked(h.lab, 3478); n != 0 {
		t.Errorf("conntrack has %d entries of its flow", n)
	}

	h.must(web.Stop(t.Context()))
	h.publishes("a container stopped", database)
	h.cannotReach("the port of a container that stopped", at(topo.HostAddr, 8080))
	h.must(web.Start(t.Context()))
	h.publishes("it started again", append(ports(), database)...)
	h.serve(web, 80)
	h.reaches("a container that started again", at(topo.HostAddr, 8080))
	h.must(web.Restart(t.Context()))
	h.publishes("it restarted", append(ports(), database)...)
	h.serve(web, 80)
	h.reaches("a container that restarted", at(topo.HostAddr, 8080))

	h.must(web.Remove(t.Context()))
	h.must(db.Remove(t.Context()))
	h.publishes("both are removed")
	h.eventually("what they bound is gone", func() bool { return len(h.Bindings()) == 0 && len(h.Sessions()) == 0 })
	h.must(h.docker.RemoveNetwork(t.Context(), "backend"))
	h.eventually("the network is gone", func() bool { _, there := h.networks()["backend"]; return !there })
	checkReplay(h.lab)
	h.eventually("no warnings", func() bool { return len(h.followed().Warnings) == 0 }) // the last look may still have had the bridge
}

func (h *dockerHost) cannotReach(what string, to netip.AddrPort) {
	h.t.Helper()
	if conn, err := h.peer2.DialTCP(0, to); err == nil {
		conn.Close()
		h.t.Errorf("%s: connected", what)
	}
}

// TestDockerNetworksLeftAlone: each is listed with the reason, and has no hook.
func TestDockerNetworksLeftAlone(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	off := map[string]string{"com.docker.network.bridge.enable_ip_masquerade": "false"}
	for _, spec := range []docker.NetworkSpec{
		{Name: "secret", Bridge: "br-secret", Internal: true},
		{Name: "plain", Bridge: "br-plain", Options: off},
		{Name: "labelled", Bridge: "br-labelled", Labels: map[string]string{"conenat.enable": "false"}},
		{Name: "lan", Driver: "macvlan", Subnet: "198.51.100.0/24", Options: map[string]string{"parent": "eth0"}},
		{Name: "user", Bridge: "br-user"},
	} {
		if err := h.docker.CreateNetwork(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
	}
	plain := h.run(docker.Spec{Network: "plain"})
	want := map[string]string{
		"bridge": "", "user": "", "secret": "internal: it has no way outside",
		"plain":    "masquerade is off (com.docker.network.bridge.enable_ip_masquerade=false)",
		"labelled": "label conenat.enable=false",
		"lan":      "driver macvlan: its containers are on the uplink's own network",
		"host":     "driver host: its containers use the host's own network",
		"none":     "driver null: its containers have no network",
	}
	h.eventually("all networks are listed", func() bool { return len(h.networks()) == len(want) })
	h.eventually("the translated ones have hooks", func() bool { n := h.networks(); return n["user"].State == "active" && n["bridge"].State == "active" })
	got := map[string]string{}
	for name, n := range h.networks() {
		got[name] = n.Reason
		if (n.Reason != "") != (n.State == "left-alone") || (n.Reason != "" && len(n.Ports) > 0) {
			t.Errorf("%+v", n)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
	if table := h.Client("networks"); !strings.Contains(table, want["secret"]) {
		t.Errorf("the table gives no reason:\n%s", table)
	}
	peer, socket := h.udp(h.peer1, 3478), h.udp(plain, 20000)
	if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != at(plain.Addr, 20000) {
		t.Errorf("a container without masquerade is seen as %s", from)
	}
	if b := h.Bindings(); len(b) != 0 {
		t.Errorf("bindings: %+v", b)
	}
}

// TestDockerMultiHomed: a container on two networks is translated, and published, where Docker has its default route,
// and that may move.
func TestDockerMultiHomed(t *testing.T) { family.Each(t, testDockerMultiHomed) }

func testDockerMultiHomed(t *testing.T, fam family.Family) {
	at := fam.At
	h := newDockerHostIn(fam, t, docker.Config{})
	h.must(h.docker.NewNetwork(t.Context(), "front", "br-front", "172.20.0.0/16"))
	h.must(h.docker.NewNetwork(t.Context(), "back", "br-back", "172.21.0.0/16"))
	neighbour := h.run(docker.Spec{Name: "neighbour", Network: "back", Addr: "172.21.0.9"})
	c := h.run(docker.Spec{Name: "homes", Network: "front", Addr: "172.20.0.5", Publish: map[string]string{"80/tcp": ":8080"}})
	h.serve(c, 80)
	h.serve(neighbour, 9000)
	peer, socket := h.udp(h.peer1, 3478), h.udp(c, 20000)
	lives := func(when string) {
		t.Helper()
		internal := h.dockersDNAT(8080)
		h.publishes(when, binding("tcp", at(topo.HostAddr, 8080), internal.Addr(), 80))
		h.reaches(when, at(topo.HostAddr, 8080))
		mapped := h.heard(socket, at(topo.Peer1Addr, 3478), peer)
		if b, there := h.bindingOf("udp", at(internal.Addr(), 20000).String()); !there || b.External != mapped.String() {
			t.Errorf("%s: seen as %s; bindings %+v, want one of %s", when, mapped, h.Bindings(), internal.Addr())
		}
		if from := h.heard(peer, mapped, socket); from != at(topo.Peer1Addr, 3478) {
			t.Errorf("%s: the answer is seen from %s", when, from)
		}
		if n := conntracked(h.lab, 3478); n != 0 {
			t.Errorf("%s: conntrack has %d entries of its flow", when, n)
		}
	}
	lives("on one network")
	h.must(c.Connect(t.Context(), "back", "172.21.0.5"))
	lives("on two networks")
	for what, to := range map[string]netip.AddrPort{"its neighbour on the second network": at(neighbour.Addr, 9000)} {
		if err := h.dial(c, to).Echo(what); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	h.must(c.Disconnect(t.Context(), "back"))
	lives("on one network again")
	h.must(c.Disconnect(t.Context(), "front"))
	h.publishes("on no network")
	h.eventually("its bindings are gone", func() bool { return len(h.Bindings()) == 0 })
}

// dockersDNAT is where Docker's own rule takes a published port of TCP.
func (h *dockerHost) dockersDNAT(port int) netip.AddrPort {
	h.t.Helper()
	out, err := h.Host.Run(h.t.Context(), "", topo.Tables(h.family), "-t", "nat", "-S", "DOCKER")
	h.must(err)
	for line := range strings.Lines(out) {
		if before, to, found := strings.Cut(strings.TrimSpace(line), "--to-destination "); found && strings.Contains(before, fmt.Sprintf("--dport %d ", port)) {
			return netip.MustParseAddrPort(to)
		}
	}
	h.t.Fatalf("Docker publishes no port %d:\n%s", port, out)
	return netip.AddrPort{}
}

// TestDockerExternalAddressChanges: the host gets another address, and everything moves there, with events.
func TestDockerExternalAddressChanges(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	other := netip.MustParseAddr("198.51.100.7")
	c := h.run(docker.Spec{Name: "web", Publish: map[string]string{"80/tcp": ":8080", "53/udp": ":5353"}})
	h.serve(c, 80)
	ports := func(external netip.Addr) []string {
		return []string{binding("tcp", at(external, 8080), c.Addr, 80), binding("udp", at(external, 5353), c.Addr, 53)}
	}
	h.publishes("at the first address", ports(topo.HostAddr)...)
	peer, socket := h.udp(h.peer1, 3478), h.udp(c, 20000)
	if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != at(topo.HostAddr, 20000) {
		t.Errorf("seen as %s", from)
	}

	h.must(h.Host.IP(t.Context(), "addr del "+topo.HostAddr.String()+"/24 dev eth0\naddr add "+other.String()+"/24 dev eth0\n"+
		"route replace default via "+topo.RouterAddr.String()))
	h.publishes("at the second address", ports(other)...)
	h.reaches("the published port at the second address", at(other, 8080))
	if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != at(other, 20000) {
		t.Errorf("after the change seen as %s", from)
	}
	if n := conntracked(h.lab, 3478); n != 0 {
		t.Errorf("conntrack has %d entries of the flow", n)
	}
	seen := map[string]bool{}
	for _, e := range h.Events() {
		seen[e.Type+" "+e.Protocol+" "+e.External] = true
	}
	for _, external := range []string{"tcp 198.51.100.1:8080", "udp 198.51.100.1:5353", "udp 198.51.100.1:20000"} {
		if !seen["binding.expired "+external] {
			t.Errorf("no event binding.expired of %s", external)
		}
	}
	for _, external := range []string{"tcp 198.51.100.7:8080", "udp 198.51.100.7:5353", "udp 198.51.100.7:20000"} {
		if !seen["binding.created "+external] {
			t.Errorf("no event binding.created of %s", external)
		}
	}
	checkReplay(h.lab)
}

// TestDockerAddressInheritsNothing: whoever gets the address of a container that is gone inherits nothing of it, also where
// conenat hears of the change late.
func TestDockerAddressInheritsNothing(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	h.must(h.docker.NewNetwork(t.Context(), "user", "br-user", "172.20.0.0/16"))
	spec := docker.Spec{Network: "user", Addr: "172.20.0.5"}
	for _, tt := range []struct {
		name    string
		unknown bool // the container is gone before conenat hears of it
		late    bool // conenat hears that it is gone when another one has the address
	}{
		{name: "InTime"}, {name: "Late", late: true}, {name: "Unknown", unknown: true, late: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := h.at(t)
			if tt.unknown {
				h.must(syscall.Kill(h.PID(), syscall.SIGSTOP))
			}
			known := strings.Count(h.Log(), "put container")
			old := h.run(spec)
			peer, stranger, socket := h.udp(h.peer1, 3478), h.udp(h.peer2, 3478), h.udp(old, 20000)
			mapped, began := h.heard(socket, at(topo.Peer1Addr, 3478), peer), time.Now()
			h.heard(peer, mapped, socket)
			if !tt.unknown {
				h.eventually("conenat knows the container", func() bool { return strings.Count(h.Log(), "put container") > known })
			}
			if tt.late {
				h.must(syscall.Kill(h.PID(), syscall.SIGSTOP))
			}
			h.must(old.Remove(t.Context()))
			if tt.unknown { // bindings have whole seconds: one of the same second may be the heir's
				h.must(topo.Poll(t.Context(), 10*time.Second, "time passes", func() (bool, error) { return time.Since(began) > 1200*time.Millisecond, nil }))
			}
			heir := h.run(spec)
			if tt.late {
				h.must(syscall.Kill(h.PID(), syscall.SIGCONT))
			}
			h.eventually("nothing is left", func() bool { return len(h.Bindings()) == 0 && len(h.Sessions()) == 0 })
			inherited := h.udp(heir, 20000)
			h.send(peer, mapped, "for the one before")
			h.heard(inherited, at(topo.Peer2Addr, 3478), stranger)
			before := h.Counter("dropped_filtered")
			h.send(peer, mapped, "for the one before, again")
			h.eventually("its remote is filtered", func() bool { return h.Counter("dropped_filtered") > before })
			h.receivesNothing(inherited, 50*time.Millisecond)
			h.must(heir.Remove(t.Context()))
			h.eventually("nothing is left of the heir", func() bool { return len(h.Bindings()) == 0 })
		})
	}
}

// TestDockerdGone: without dockerd, traffic and bindings go on; status says so; dockerd comes back and is followed.
func TestDockerdGone(t *testing.T) {
	for name, restores := range map[string]bool{"LiveRestore": true, "RestartPolicy": false} {
		t.Run(name, func(t *testing.T) {
			cfg := docker.Config{}
			if restores {
				cfg.Args = []string{"--live-restore"}
			}
			h := newDockerHost(t, cfg)
			h.dockerdGone(restores)
		})
	}
}

func (h *dockerHost) dockerdGone(restores bool) {
	c := h.run(docker.Spec{Name: "web", Idle: true, Restart: "always", Publish: map[string]string{"80/tcp": ":8080"}})
	inside := probe.In(c.NS)
	static := binding("tcp", at(topo.HostAddr, 8080), c.Addr, 80)
	h.publishes("dockerd lives", static)
	h.serve(inside, 80)
	conn := h.dial(h.peer2, at(topo.HostAddr, 8080))
	peer, socket := h.udp(h.peer1, 3478), h.udp(inside, 20000)
	mapped := h.heard(socket, at(topo.Peer1Addr, 3478), peer)

	h.must(h.docker.Kill())
	h.eventually("status says that dockerd is gone", func() bool { return !h.followed().Docker.Connected })
	h.warns("connection refused", "is dockerd running?")
	if err := conn.Echo("dockerd is gone"); err != nil {
		h.t.Errorf("a client's connection: %v", err)
	}
	h.reaches("the published port without dockerd", at(topo.HostAddr, 8080))
	if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != mapped {
		h.t.Errorf("without dockerd, seen as %s, before as %s", from, mapped)
	}
	h.heard(peer, mapped, socket)
	h.publishes("dockerd is gone", static)

	h.must(h.docker.StartAgain(h.t.Context()))
	h.eventually("status says that dockerd is back", func() bool { return h.followed().Docker.Connected })
	if restores {
		if err := conn.Echo("dockerd is back"); err != nil {
			h.t.Errorf("a client's connection: %v", err)
		}
		if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != mapped {
			h.t.Errorf("dockerd is back: seen as %s, before as %s", from, mapped)
		}
	} else {
		h.must(c.NS.DeleteLink("eth0")) // goes with its namespace, but this test still holds that
		h.eventually("the container runs again", func() bool { return c.Inspect(h.t.Context()) == nil })
		h.serve(probe.In(c.NS), 80)
	}
	h.publishes("dockerd is back", binding("tcp", at(topo.HostAddr, 8080), c.Addr, 80))
	h.reaches("the published port with dockerd back", at(topo.HostAddr, 8080))
	later := h.run(docker.Spec{Name: "later", Idle: true, Publish: map[string]string{"81/tcp": ":8081"}})
	h.publishes("dockerd is followed again", binding("tcp", at(topo.HostAddr, 8080), c.Addr, 80), binding("tcp", at(topo.HostAddr, 8081), later.Addr, 81))
	h.eventually("no warning speaks of dockerd", func() bool { return !strings.Contains(strings.Join(h.followed().Warnings, "\n"), "dockerd") })
}

// TestDockerdStops: containers that dockerd takes along when it ends leave nothing, although nobody says that they went.
func TestDockerdStops(t *testing.T) {
	h := newDockerHost(t, docker.Config{})
	c := h.run(docker.Spec{Name: "web", Publish: map[string]string{"80/tcp": ":8080"}})
	h.publishes("dockerd lives", binding("tcp", at(topo.HostAddr, 8080), c.Addr, 80))
	peer, socket := h.udp(h.peer1, 3478), h.udp(c, 20000)
	h.heard(socket, at(topo.Peer1Addr, 3478), peer)
	h.must(h.docker.Stop())
	h.publishes("dockerd has ended")
	h.eventually("no binding is left", func() bool { return len(h.Bindings()) == 0 })
	h.warns("no such file or directory", "is dockerd running?")
}

// TestDockerdComesLater: conenat waits for dockerd, and says so; meanwhile it serves the bridge that it was told of.
func TestDockerdComesLater(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Net2Containers: 1})
	h := &dockerHost{lab: bareLab(family.V4, t, f)}
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(f.Dir(), "early.sock"))
	h.Conenat = harness.Start(t, f.Topo, f.Host, "--docker", "--inside", "net2")
	h.warns(filepath.Join(f.Dir(), "early.sock"), "no such file or directory", "start it, or name its socket by DOCKER_HOST")
	peer, socket := h.udp(h.peer1, 3478), h.udp(probe.In(f.Net2[0]), 20000)
	mapped := h.heard(socket, at(topo.Peer1Addr, 3478), peer)
	if mapped != at(topo.HostAddr, 20000) {
		t.Errorf("seen as %s", mapped)
	}
	h.docker = docker.StartForTest(t, f.Topo, f.Host, docker.Config{})
	h.must(os.Symlink(h.docker.Socket, filepath.Join(f.Dir(), "early.sock")))
	h.eventually("dockerd is followed", func() bool { return h.followed().Docker.Connected })
	c := h.run(docker.Spec{Name: "web", Publish: map[string]string{"80/tcp": ":8080"}})
	h.publishes("a container came", binding("tcp", at(topo.HostAddr, 8080), c.Addr, 80))
	h.serve(c, 80)
	h.reaches("a container of a dockerd that came later", at(topo.HostAddr, 8080))
	if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != mapped {
		t.Errorf("the bridge beside Docker: seen as %s, before as %s", from, mapped)
	}
}

// TestDockerSocketTrouble: each kind of an Engine that cannot be used is named, and what does not need it goes on.
func TestDockerSocketTrouble(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	h := &dockerHost{lab: bareLab(family.V4, t, f)}
	e := dockerfake.ForTest(t)
	h.must(e.Close())
	t.Setenv("DOCKER_HOST", e.Host())
	h.Conenat = harness.Start(t, f.Topo, f.Host, "--docker", "--inside", "docker0")
	peer, socket := h.udp(h.peer1, 3478), h.udp(probe.In(f.Containers[0]), 20000)
	for _, tt := range []struct {
		name string
		make func() error
		says []string
	}{
		{"missing", func() error { return nil }, []string{"docker socket " + e.Socket, "no such file or directory: is dockerd running? start it"}},
		{"refused", e.Refuse, []string{"docker socket " + e.Socket, "connection refused: is dockerd running? start it"}},
		{"too old", func() error { e.SetAPI("1.12", "1.39"); return e.Restart() },
			[]string{"docker socket " + e.Socket, "dockerd speaks API 1.39, and conenat needs API 1.40 (Docker 19.03) or newer: update Docker"}},
		{"too new", func() error { e.SetAPI("9.0", "9.9"); return e.Restart() }, []string{"docker socket " + e.Socket, "update conenat"}},
		{"broken", func() error { e.SetAPI("1.12", "1.41"); e.Fail("/networks", 500); return e.Restart() },
			[]string{"docker socket " + e.Socket, "told to fail", "see dockerd's log"}},
	} {
		h.must(tt.make())
		h.warns(tt.says...)
		if s := h.followed(); s.Docker.Connected || !containsAll(s.Docker.Problem, tt.says) {
			t.Errorf("%s: status says %+v", tt.name, s.Docker)
		}
		h.eventually("the log says it", func() bool { return containsAll(h.Log(), tt.says) })
		if from := h.heard(socket, at(topo.Peer1Addr, 3478), peer); from != at(topo.HostAddr, 20000) {
			t.Errorf("%s: seen as %s", tt.name, from)
		}
	}
	e.Fail("/networks", 0)
	h.eventually("the Engine is followed", func() bool { return h.followed().Docker.Connected })
	h.eventually("no warning is left", func() bool { return len(h.followed().Warnings) == 0 })
	if _, there := h.bindingOf("udp", "172.17.0.2:20000"); !there {
		t.Errorf("bindings %+v", h.Bindings())
	}
}
