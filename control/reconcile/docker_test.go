// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/docker"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

// fakeEngine is a picture that a test changes.
type fakeEngine struct{ picture docker.Snapshot }

func (e *fakeEngine) Snapshot() docker.Snapshot { return e.picture }
func (e *fakeEngine) Changes() <-chan struct{}  { return nil }

// web is a container on docker0, behind veth0, that publishes ports.
func web() docker.Endpoint {
	return docker.Endpoint{ID: "00000000000000aa11", Container: "c1", Name: "web", Address: netip.MustParseAddr("172.17.0.2"), NetNSID: 7,
		Published: []docker.Published{
			{Protocol: dataplane.TCP, Host: netip.IPv4Unspecified(), HostPort: 8080, ContainerPort: 80},
			{Protocol: dataplane.UDP, Host: netip.MustParseAddr("127.0.0.1"), HostPort: 53, ContainerPort: 53},
			{Protocol: dataplane.UDP, Host: external.Addr(), HostPort: 54, ContainerPort: 53},
			{Protocol: dataplane.UDP, Host: netip.MustParseAddr("198.51.100.9"), HostPort: 55, ContainerPort: 53},
		}}
}

func picture(endpoints ...docker.Endpoint) docker.Snapshot {
	return docker.Snapshot{Connected: true, Engine: "20.10.24, API 1.41", Problems: []string{"container x: label conenat.enabel is none of conenat's"},
		Networks: []docker.Network{
			{ID: "b", Name: "bridge", Driver: "bridge", Interface: "docker0", ICC: true, Endpoints: endpoints},
			{ID: "g", Name: "gone", Driver: "bridge", Interface: "br-gone", ICC: true},
			{ID: "h", Name: "host", Driver: "host", LeftAlone: "driver host"},
		}}
}

// dockerWorld is a host whose docker0 is Docker's.
func dockerWorld(cfg config.Config, dp *dataplanetest.Dataplane, p docker.Snapshot) (*world, *fakeEngine) {
	cfg.Docker = true
	cfg.Inside = append([]string{}, cfg.Inside...)
	host := dockerHost()
	host.edit("veth0", func(l *hostnet.Link) { l.PeerNSID = 7 })
	w := worldOf(cfg, host, dp)
	engine := &fakeEngine{p}
	w.docker = engine
	return w, engine
}

func (w *world) forwardLines() (lines []string) {
	held, _ := w.dp.Held()
	for _, f := range held.Forwards {
		lines = append(lines, join(f.Protocol, f.Network, f.External, f.Internal, f.Published))
	}
	slices.Sort(lines)
	return lines
}

func (w *world) ownerLines() (lines []string) {
	owners, _ := w.dp.Owners()
	for _, o := range owners {
		lines = append(lines, join(o.Network, o.Address, o.ID, o.Port, o.Excluded))
	}
	slices.Sort(lines)
	return lines
}

func TestFollowsDocker(t *testing.T) {
	w, engine := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	networks, _ := w.dp.Networks()
	if len(networks) != 1 || networks[0].Name != "docker0" || networks[0].Label != "bridge" || networks[0].Isolated {
		t.Errorf("networks %+v", networks)
	}
	wantOwners := []string{"docker0 172.17.0.2 170 4 false"}
	wantForwards := []string{"tcp docker0 198.51.100.1:8080 172.17.0.2:80 true", "udp docker0 198.51.100.1:54 172.17.0.2:53 true"}
	if diff := cmp.Diff(wantOwners, w.ownerLines()) + cmp.Diff(wantForwards, w.forwardLines()); diff != "" {
		t.Error(diff)
	}
	left := []LeftAlone{{"gone", "br-gone", "bridge", "its bridge br-gone is not in this network namespace: rootless Docker, or a network that is being made"},
		{"host", "", "host", "driver host"}}
	if diff := cmp.Diff(left, w.View().LeftAlone) + cmp.Diff(picture().Problems, w.View().Problems); diff != "" {
		t.Error(diff)
	}
	before := len(w.dp.Log())
	w.again()
	if log := w.dp.Log(); len(log) != before {
		t.Errorf("a second pass does %v", log[before:])
	}
	engine.picture = picture()
	w.again()
	if len(w.ownerLines())+len(w.forwardLines()) != 0 {
		t.Errorf("without its container: %q, %q", w.ownerLines(), w.forwardLines())
	}
}

// TestLabelledReplies: a network's labels come before the configuration.
func TestLabelledReplies(t *testing.T) {
	w, engine := dockerWorld(config.Config{Refusal: dataplane.RefuseHostUnreachable}, dataplanetest.New(), picture(web()))
	w.start(t)
	refusal, clamp := dataplane.RefuseAdminProhibited, true
	engine.picture.Networks[0].Refusal, engine.picture.Networks[0].MSSClamp = &refusal, &clamp
	w.again()
	if n, _ := w.dp.Networks(); n[0].Refusal != refusal || !n[0].MSSClamp {
		t.Errorf("%+v", n[0])
	}
	engine.picture.Networks[0].Refusal, engine.picture.Networks[0].MSSClamp = nil, nil
	w.again()
	if n, _ := w.dp.Networks(); n[0].Refusal != dataplane.RefuseHostUnreachable || n[0].MSSClamp {
		t.Errorf("without labels: %+v", n[0])
	}
}

// TestExcludedDestinations: the label's come before what the file says of the network, by either of its names, and that before
// what it says of all; the rules that keep the host's NAT off them follow.
func TestExcludedDestinations(t *testing.T) {
	prefixes := func(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }
	all, named, labelled := prefixes("10.0.0.0/8"), prefixes("192.0.2.0/24"), prefixes("198.18.0.0/15")
	w, engine := dockerWorld(config.Config{Exclude: all}, dataplanetest.New(), picture(web()))
	w.start(t)
	want := func(want []netip.Prefix) {
		t.Helper()
		n, _ := w.dp.Networks()
		if diff := cmp.Diff(want, n[0].Exclude, compareIP, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(want, w.exc.pairs[0].Exclude, compareIP, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("in the rules: %s", diff)
		}
	}
	want(all)
	for _, name := range []string{"docker0", "bridge"} {
		w.cfg.Networks = map[string]config.Network{name: {Exclude: named}}
		w.again()
		want(named)
	}
	engine.picture.Networks[0].Exclude = labelled
	w.again()
	want(labelled)
	engine.picture.Networks[0].Exclude = []netip.Prefix{}
	w.again()
	want(nil)
}

// TestLabelledMapping: the label's mapping is the network's, a warning says which RFCs it is against, and a label that comes or
// goes is followed.
func TestLabelledMapping(t *testing.T) {
	const ei, apd = dataplane.EndpointIndependent, dataplane.AddressAndPortDependent
	w, engine := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	engine.picture.Networks[0].Mapping = &[3]dataplane.Behavior{apd, ei, ei}
	w.again()
	warning := "network bridge: label conenat.mapping: address-and-port-dependent mapping of udp is not the endpoint-independent one that RFC 4787 REQ-1 demands"
	networks, _ := w.dp.Networks()
	if networks[0].Mapping != [3]dataplane.Behavior{apd, ei, ei} || !slices.Contains(w.View().Problems, warning) {
		t.Errorf("%+v %q", networks, w.View().Problems)
	}
	engine.picture.Networks[0].Mapping = nil
	w.again()
	networks, _ = w.dp.Networks()
	if networks[0].Mapping != [3]dataplane.Behavior{} || slices.Contains(w.View().Problems, warning) {
		t.Errorf("without the label: %+v %q", networks, w.View().Problems)
	}
}

// TestLabelledBlocks: a block that the range of ports has no room for would leave the network without any port: its label is ignored.
func TestLabelledBlocks(t *testing.T) {
	settings := dataplane.DefaultSettings()
	settings.PortLow, settings.PortHigh = 20000, 22000
	w, engine := dockerWorld(config.Config{Settings: settings}, dataplanetest.New(), picture(web()))
	w.start(t)
	problem := `network bridge: ignore label conenat.block-size="4096": no block of 4096 ports lies within the ports 20000-22000: a block begins at a multiple of its size`
	for size, want := range map[uint32]uint32{4096: 0, 512: 512} {
		engine.picture.Networks[0].BlockSize = &size
		w.again()
		n, _ := w.dp.Networks()
		if n[0].BlockSize != want || slices.Contains(w.View().Problems, problem) != (want == 0) {
			t.Errorf("%d: %+v %q", size, n, w.View().Problems)
		}
		if *engine.picture.Networks[0].BlockSize != size {
			t.Error("the picture, which is others', too, was changed")
		}
	}
}

// Docker is gone: what it had stays, but for containers whose port is gone, too.
func TestDockerGone(t *testing.T) {
	w, engine := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	engine.picture.Connected, engine.picture.Problem = false, "docker is gone"
	w.again()
	if len(w.ownerLines()) != 1 || len(w.forwardLines()) != 2 {
		t.Errorf("Docker is gone: %q, %q", w.ownerLines(), w.forwardLines())
	}
	w.host.drop("veth0")
	w.again()
	if len(w.ownerLines())+len(w.forwardLines()) != 0 {
		t.Errorf("Docker and its containers are gone: %q, %q", w.ownerLines(), w.forwardLines())
	}
}

// A container that was started anew has its address, and inherits nothing.
func TestContainerStartedAnew(t *testing.T) {
	w, engine := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	w.dp.OpenBinding(dataplane.Binding{Protocol: dataplane.UDP, Network: "bridge", Internal: netip.MustParseAddrPort("172.17.0.2:5000"),
		External: netip.MustParseAddrPort("198.51.100.1:5000")})
	anew := web()
	anew.ID = "00000000000000bb22"
	engine.picture = picture(anew)
	w.again()
	bindings, _ := w.dp.Bindings()
	for _, b := range bindings {
		if !b.Static {
			t.Errorf("%+v is left", b)
		}
	}
	if diff := cmp.Diff(2, len(w.forwardLines())) + cmp.Diff([]string{"docker0 172.17.0.2 187 4 false"}, w.ownerLines()); diff != "" {
		t.Error(diff)
	}
}

// While Docker has not answered, what an earlier daemon had of it stays; once it has, what is gone goes.
func TestAdoptsWithoutDocker(t *testing.T) {
	w, _ := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	if _, err := w.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: netip.MustParseAddrPort("198.51.100.1:9"),
		Internal: netip.MustParseAddrPort("172.17.0.2:9")}); err != nil {
		t.Fatal(err)
	}
	forwards, owners := w.forwardLines(), w.ownerLines()
	next, engine := dockerWorld(config.Config{}, w.dp.Reopen(), docker.Snapshot{Problem: "docker socket: no such file"})
	next.start(t)
	if diff := cmp.Diff(forwards, next.forwardLines()) + cmp.Diff(owners, next.ownerLines()); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(next.View().Problems, "docker socket: no such file") {
		t.Errorf("problems %q", next.View().Problems)
	}
	engine.picture = picture()
	next.again()
	if diff := cmp.Diff([]string{"tcp docker0 198.51.100.1:9 172.17.0.2:9 false"}, next.forwardLines()); diff != "" {
		t.Error(diff)
	}
}

// What an operator forwards stays, and what Docker publishes cannot be removed by hand.
func TestPublishedAndForwarded(t *testing.T) {
	cfg := config.Config{Forwards: []dataplane.Forward{{Protocol: dataplane.TCP, External: external, Internal: netip.MustParseAddrPort("172.17.0.9:1")}}}
	w, _ := dockerWorld(cfg, dataplanetest.New(), picture(web()))
	w.start(t)
	if diff := cmp.Diff([]string{"tcp docker0 198.51.100.1:8080 172.17.0.9:1 false", "udp docker0 198.51.100.1:54 172.17.0.2:53 true"}, w.forwardLines()); diff != "" {
		t.Error(diff)
	}
	if p := strings.Join(w.View().Problems, "\n"); !strings.Contains(p, "container web publishes tcp/198.51.100.1:8080") {
		t.Errorf("problems %s", p)
	}
	published := netip.MustParseAddrPort("198.51.100.1:54")
	if err := w.RemoveForward(dataplane.UDP, published); err == nil || !strings.Contains(err.Error(), "Docker publishes it") {
		t.Errorf("removed by hand: %v", err)
	}
	if _, err := w.AddForward(dataplane.Forward{Protocol: dataplane.UDP, External: published, Internal: internal}); err == nil {
		t.Error("forwarded over a published port")
	}
}

// An excluded container is the host's NAT's: its packets, and its ports.
func TestExcludedContainer(t *testing.T) {
	e := web()
	e.Excluded = true
	w, _ := dockerWorld(config.Config{}, dataplanetest.New(), picture(e))
	w.start(t)
	if diff := cmp.Diff([]string(nil), w.forwardLines()) + cmp.Diff([]netip.Addr{e.Address, gatewayAddr}, w.exc.pairs[0].Except, compareIP); diff != "" {
		t.Error(diff)
	}
}

// Two networks of one name (Docker allows it): the second one is called by its interface.
func TestEqualNames(t *testing.T) {
	p := picture()
	p.Networks = append(p.Networks, docker.Network{ID: "c", Name: "bridge", Driver: "bridge", Interface: "br-other", ICC: false})
	w, _ := dockerWorld(config.Config{}, dataplanetest.New(), p)
	w.host.snapshot.Links = append(w.host.snapshot.Links, hostnet.Link{Index: 40, Name: "br-other", Kind: "bridge",
		Addresses: []netip.Prefix{netip.MustParsePrefix("172.18.0.1/16")}})
	w.start(t)
	networks, _ := w.dp.Networks()
	if len(networks) != 2 || networks[0].Shown() != "br-other" || networks[1].Shown() != "bridge" || !networks[0].Isolated {
		t.Errorf("networks %+v", networks)
	}
}

// A network may be called by its interface or by Docker's name, and what is called so changes with --docker: forwards stay.
func TestForwardsByEitherName(t *testing.T) {
	forward := dataplane.Forward{Protocol: dataplane.TCP, Network: "docker0", External: netip.MustParseAddrPort("198.51.100.1:9"),
		Internal: netip.MustParseAddrPort("172.17.0.9:9")}
	plain := newWorld(t, config.Config{Forwards: []dataplane.Forward{forward}})
	plain.start(t)
	forward.Network, forward.External = "", netip.MustParseAddrPort("198.51.100.1:10")
	if _, err := plain.AddForward(forward); err != nil {
		t.Fatal(err)
	}
	want := plain.forwardLines()
	for _, calls := range []string{"docker0", "bridge"} {
		forward.Network, forward.External = calls, netip.MustParseAddrPort("198.51.100.1:9")
		w, _ := dockerWorld(config.Config{Forwards: []dataplane.Forward{forward}}, plain.dp.Reopen(), picture())
		w.start(t)
		before := len(w.dp.Log())
		w.again()
		if diff := cmp.Diff(want, w.forwardLines()); diff != "" || len(w.dp.Log()) != before {
			t.Errorf("called %s: %s, a second pass does %v", calls, diff, w.dp.Log()[before:])
		}
		if list, err := w.Forwards(); err != nil || len(list) != 2 || list[0].Network != "bridge" {
			t.Errorf("shown as %+v, %v", list, err)
		}
	}
	again := worldOf(config.Config{}, dockerHost(), plain.dp.Reopen()) // and back, where the label has gone
	again.start(t)
	if diff := cmp.Diff(want, again.forwardLines()); diff != "" {
		t.Error(diff)
	}
}

// Without --docker nobody says who the owners are: they are forgotten, and their containers keep what they have.
func TestOwnersForgotten(t *testing.T) {
	w, _ := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	w.dp.OpenBinding(dataplane.Binding{Protocol: dataplane.UDP, Network: "bridge", Internal: netip.MustParseAddrPort("172.17.0.2:5000"),
		External: netip.MustParseAddrPort("198.51.100.1:5000")})
	next := worldOf(config.Config{}, dockerHost(), w.dp.Reopen())
	next.start(t)
	held, _ := next.dp.Held()
	if len(next.ownerLines()) != 0 || len(held.Forwards) != 0 || held.Dynamic[external.Addr()] != 1 {
		t.Errorf("owners %q, held %+v", next.ownerLines(), held)
	}
}

// A container that Docker has not said anything of yet keeps what it has; what somebody else has by now, it does not.
func TestIncompletePicture(t *testing.T) {
	w, _ := dockerWorld(config.Config{}, dataplanetest.New(), picture(web()))
	w.start(t)
	owners, forwards := w.ownerLines(), w.forwardLines()
	incomplete := picture()
	incomplete.Incomplete = true
	next, engine := dockerWorld(config.Config{}, w.dp.Reopen(), incomplete)
	next.start(t)
	if diff := cmp.Diff(owners, next.ownerLines()) + cmp.Diff(forwards, next.forwardLines()); diff != "" {
		t.Error(diff)
	}
	other := web()
	other.ID, other.Published = "00000000000000bb22", nil
	engine.picture = picture(other)
	engine.picture.Incomplete = true
	next.again()
	if diff := cmp.Diff([]string{"docker0 172.17.0.2 187 4 false"}, next.ownerLines()); diff != "" || len(next.forwardLines()) != 0 {
		t.Errorf("%s; forwards %q", diff, next.forwardLines())
	}
}
