// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/dockerfake"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/require"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) {
	if host := os.Getenv("CONENAT_TEST_ASK"); host != "" {
		ask(host)
	}
	os.Exit(topo.Main(m))
}

// ask is another process, without root's rights: it prints why there is no connection.
func ask(host string) {
	s, err := New(WithHost(host))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	go func() { <-ready; cancel() }()
	_ = s.Watch(ctx, ready)
	fmt.Print(s.Snapshot().Problem)
	os.Exit(0)
}

// kernel is what the containers' processes look like from the host.
type kernel struct {
	mu    sync.Mutex
	found map[int]Namespace
	reads int
}

func (k *kernel) set(pid int, n Namespace) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found[pid] = n
}

func (k *kernel) read(pid int) (Namespace, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reads++
	n, ok := k.found[pid]
	if !ok {
		return Namespace{ID: -1}, fmt.Errorf("open /proc/%d/ns/net: %w", pid, os.ErrNotExist)
	}
	return n, nil
}

// watched is a Source that follows a fake Engine.
type watched struct {
	*Source
	t      *testing.T
	engine *dockerfake.Engine
	kernel *kernel
}

// prepare makes a Source that waits for nothing longer than a test can.
func prepare(t *testing.T, engine *dockerfake.Engine) *watched {
	t.Helper()
	topo.AssertClean(t)
	k := &kernel{found: map[int]Namespace{}}
	s, err := New(WithHost(engine.Host()), WithNamespaces(k.read))
	if err != nil {
		t.Fatal(err)
	}
	s.times.retry, s.times.maxBackoff = 20*time.Millisecond, 50*time.Millisecond
	return &watched{s, t, engine, k}
}

// watch starts to follow, and returns after the first attempt.
func (w *watched) watch() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.Watch(ctx, ready) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			w.t.Errorf("Watch: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(patience.For(20 * time.Second)):
		w.t.Fatal("not ready")
	}
}

// run starts a container with one place, whose process is as it should be.
func (w *watched) run(name, network, address string, pid int) string {
	w.kernel.set(pid, Namespace{ID: pid, Addresses: []netip.Addr{netip.MustParseAddr(address)}})
	return w.engine.Run(dockerfake.Container{Name: name, PID: pid, Places: []dockerfake.Place{{Network: network, Address: address}}})
}

// until waits for a snapshot that cond likes.
func (w *watched) until(what string, cond func(Snapshot) bool) Snapshot {
	w.t.Helper()
	late := time.After(patience.For(10 * time.Second))
	for {
		s := w.Snapshot()
		if cond(s) {
			return s
		}
		select {
		case <-w.Changes():
		case <-late:
			w.t.Fatalf("%s: not in time; the last snapshot is\n%+v", what, w.Snapshot())
		}
	}
}

// places are "network/container address" of all endpoints, in the snapshot's order.
func places(s Snapshot) (out []string) {
	for _, n := range s.Networks {
		for _, e := range n.Endpoints {
			out = append(out, fmt.Sprintf("%s/%s %s", n.Name, e.Name, e.Address))
		}
	}
	return out
}

func (w *watched) untilPlaces(want ...string) Snapshot {
	w.t.Helper()
	return w.until(fmt.Sprint(want), func(s Snapshot) bool { return cmp.Equal(want, places(s)) })
}

// network fails the test if there is none of the name.
func (w *watched) network(s Snapshot, name string) Network {
	w.t.Helper()
	for _, n := range s.Networks {
		if n.Name == name {
			return n
		}
	}
	w.t.Fatalf("no network %s in %+v", name, s)
	return Network{}
}

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestFirstPicture(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	if s := w.Snapshot(); s.Connected || !strings.Contains(s.Problem, "not been asked") {
		t.Errorf("before Watch: %+v", s)
	}
	w.kernel.set(7, Namespace{ID: 3, Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2")}, Gateway: netip.MustParseAddr("172.17.0.1")})
	id := w.engine.Run(dockerfake.Container{
		Name: "web", PID: 7, Places: []dockerfake.Place{{Network: "bridge", Address: "172.17.0.2"}},
		Ports: []dockerfake.Port{
			{Container: "80/tcp", Host: "0.0.0.0", HostPort: 8080}, {Container: "80/tcp", Host: "::", HostPort: 8080},
			{Container: "53/udp", Host: "198.51.100.1", HostPort: 53}, {Container: "53/udp", Host: "127.0.0.1", HostPort: 54},
			{Container: "9/sctp", Host: "0.0.0.0", HostPort: 9},
		},
	})
	w.watch()
	s := w.Snapshot()
	want := Snapshot{
		Connected: true, Engine: "20.10.24, API 1.41",
		Networks: []Network{
			{
				ID: w.network(s, "bridge").ID, Name: "bridge", Driver: "bridge", Interface: "docker0", ICC: true,
				Subnets: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")},
				Endpoints: []Endpoint{{
					ID: w.network(s, "bridge").Endpoints[0].ID, Container: id, Name: "web", Address: netip.MustParseAddr("172.17.0.2"), NetNSID: 3,
					Published: []Published{
						{dataplane.TCP, netip.IPv4Unspecified(), 8080, 80},
						{dataplane.UDP, netip.MustParseAddr("127.0.0.1"), 54, 53},
						{dataplane.UDP, netip.MustParseAddr("198.51.100.1"), 53, 53},
					},
				}},
			},
			{ID: w.network(s, "host").ID, Name: "host", Driver: "host", ICC: true, LeftAlone: "driver host: its containers use the host's own network"},
			{ID: w.network(s, "none").ID, Name: "none", Driver: "null", ICC: true, LeftAlone: "driver null: its containers have no network"},
		},
		Problems: []string{"container web: 1 published sctp ports stay with Docker's own rules: conenat binds ports of tcp and udp"},
	}
	if diff := cmp.Diff(want, s, compare); diff != "" {
		t.Error(diff)
	}
}

func TestFollow(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.watch()
	w.run("a", "bridge", "172.17.0.2", 1)
	w.untilPlaces("bridge/a 172.17.0.2")
	w.engine.AddNetwork(dockerfake.Network{Name: "back", Subnet: "172.18.0.0/16", Gateway: "172.18.0.1"})
	w.run("b", "back", "172.18.0.2", 2)
	w.untilPlaces("back/b 172.18.0.2", "bridge/a 172.17.0.2")
	w.engine.Connect("a", dockerfake.Place{Network: "back", Address: "172.18.0.3"})
	w.untilPlaces("back/a 172.18.0.3", "back/b 172.18.0.2", "bridge/a 172.17.0.2")
	w.engine.Disconnect("a", "bridge")
	w.kernel.set(1, Namespace{ID: 1, Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.3")}})
	w.untilPlaces("back/a 172.18.0.3", "back/b 172.18.0.2")
	w.engine.Rename("a", "z")
	s := w.untilPlaces("back/b 172.18.0.2", "back/z 172.18.0.3")
	before := w.network(s, "back").Endpoints[1].ID
	w.engine.Stop("z")
	w.untilPlaces("back/b 172.18.0.2")
	w.kernel.set(9, Namespace{ID: 9, Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.3")}})
	w.engine.Start("z", 9)
	s = w.untilPlaces("back/b 172.18.0.2", "back/z 172.18.0.3")
	if e := w.network(s, "back").Endpoints[1]; e.NetNSID != 9 || e.ID == before || e.ID == "" {
		t.Errorf("network namespace %d of a restarted container, want 9; endpoint %q, before %q", e.NetNSID, e.ID, before)
	}
	w.engine.Remove("z")
	w.engine.Remove("b")
	w.engine.RemoveNetwork("back")
	w.until("network removed", func(s Snapshot) bool { return len(s.Networks) == 3 && len(places(s)) == 0 })
}

// One container's start asks for that container alone.
func TestOneStartInspectsOne(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	for i := range 200 {
		w.run(fmt.Sprintf("c%03d", i), "bridge", fmt.Sprintf("172.17.1.%d", i), 1000+i)
	}
	w.watch()
	if n := len(places(w.Snapshot())); n != 200 {
		t.Fatalf("%d containers when ready", n)
	}
	inspected, lists := w.engine.Requests("/containers/*"), w.engine.Requests("/containers/json")
	start := time.Now()
	id := w.run("new", "bridge", "172.17.2.1", 2000)
	w.until("the new one", func(s Snapshot) bool { return len(places(s)) == 201 })
	if took := time.Since(start); took > patience.For(time.Second) {
		t.Errorf("took %v", took)
	} else {
		t.Logf("picture of 201 containers after %v", took)
	}
	// connect and start make two events, at most one of them after the question.
	if asked, all := w.engine.Requests("/containers/"+id+"/json"), w.engine.Requests("/containers/*"); asked > 2 || all != inspected+asked {
		t.Errorf("%d requests about the new container, %d about containers in all", asked, all-inspected)
	}
	if n := w.engine.Requests("/containers/json"); n != lists {
		t.Errorf("%d lists of containers", n-lists)
	}
}

func TestBurst(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.watch()
	<-w.Changes()
	w.engine.AddNetwork(dockerfake.Network{Name: "back", Subnet: "172.18.0.0/16"})
	for i := range 100 {
		w.run(fmt.Sprintf("c%03d", i), "back", fmt.Sprintf("172.18.1.%d", i), 1000+i)
	}
	changes := 0
	w.until("all", func(s Snapshot) bool { changes++; return len(places(s)) == 100 })
	if changes > 50 {
		t.Errorf("%d pictures of a burst of 100 starts", changes)
	}
}

// Docker 20.10 answers a subscription before it takes it: what happens between must not be lost.
func TestNothingIsLostBeforeTheSubscription(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	release := w.engine.Hold("/events")
	defer release()
	w.watch()
	w.run("early", "bridge", "172.17.0.2", 1)
	release()
	w.untilPlaces("bridge/early 172.17.0.2")
}

func TestResyncFindsWhatEventsDidNotTell(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.times.resync = 50 * time.Millisecond
	w.run("gone", "bridge", "172.17.0.2", 1)
	w.run("again", "bridge", "172.17.0.3", 2)
	w.watch()
	w.untilPlaces("bridge/again 172.17.0.3", "bridge/gone 172.17.0.2")
	w.kernel.set(5, Namespace{ID: 5, Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.3")}})
	w.engine.Quietly(func() {
		w.engine.AddNetwork(dockerfake.Network{Name: "back", Subnet: "172.18.0.0/16"})
		w.engine.Remove("gone")
		w.engine.Stop("again")
		w.engine.Start("again", 5)
		w.run("new", "back", "172.18.0.2", 3)
	})
	w.until("the same", func(s Snapshot) bool {
		return cmp.Equal([]string{"back/new 172.18.0.2", "bridge/again 172.17.0.3"}, places(s)) && w.network(s, "bridge").Endpoints[0].NetNSID == 5
	})
}

// A container that is on a network of which no event told.
func TestUnknownNetworkIsListed(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.watch()
	w.engine.Quietly(func() { w.engine.AddNetwork(dockerfake.Network{Name: "back", Subnet: "172.18.0.0/16"}) })
	w.run("a", "back", "172.18.0.2", 1)
	w.untilPlaces("back/a 172.18.0.2")
}

func TestReconnect(t *testing.T) {
	for _, tt := range []struct {
		name    string
		away    func(*dockerfake.Engine) error
		problem string
	}{
		{"socket_removed", (*dockerfake.Engine).Close, "no such file or directory: is dockerd running?"},
		{"refused", (*dockerfake.Engine).Refuse, "connection refused: is dockerd running?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := prepare(t, dockerfake.ForTest(t))
			w.run("a", "bridge", "172.17.0.2", 1)
			w.run("b", "bridge", "172.17.0.3", 2)
			w.watch()
			if err := tt.away(w.engine); err != nil {
				t.Fatal(err)
			}
			s := w.until(tt.problem, func(s Snapshot) bool { return strings.Contains(s.Problem, tt.problem) })
			if s.Connected || len(places(s)) != 2 || !strings.HasPrefix(s.Problem, "docker socket "+w.engine.Socket+": ") {
				t.Errorf("while away: %+v", s)
			}
			w.engine.Remove("a")
			if err := w.engine.Restart(); err != nil {
				t.Fatal(err)
			}
			s = w.untilPlaces("bridge/b 172.17.0.3")
			if !s.Connected || s.Problem != "" {
				t.Errorf("after it came back: %+v", s)
			}
		})
	}
}

func TestAbsentAtFirst(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.run("a", "bridge", "172.17.0.2", 1)
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w.watch()
	if s := w.Snapshot(); s.Connected || !strings.Contains(s.Problem, "is dockerd running?") || len(s.Networks) != 0 {
		t.Errorf("%+v", s)
	}
	if err := w.engine.Restart(); err != nil {
		t.Fatal(err)
	}
	w.untilPlaces("bridge/a 172.17.0.2")
}

func TestVersions(t *testing.T) {
	for _, tt := range []struct{ name, oldest, newest, engine, problem string }{
		{"old", "1.12", "1.39", "", "dockerd speaks API 1.39, and conenat needs API 1.40 (Docker 19.03) or newer: update Docker"},
		{"very_old", "1.12", "", "", "dockerd names no version of its API, and conenat needs"},
		{"oldest", "1.12", "1.40", "20.10.24, API 1.40", ""},
		{"newer", "1.44", "1.60", "20.10.24, API 1.51", ""},
		{"too_new", "1.58", "1.60", "", "dockerd no longer speaks API 1.51, the newest that this conenat knows: update conenat"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := prepare(t, dockerfake.ForTest(t))
			w.engine.SetAPI(tt.oldest, tt.newest)
			w.watch()
			s := w.Snapshot()
			if s.Connected != (tt.problem == "") || s.Engine != tt.engine || !strings.Contains(s.Problem, tt.problem) {
				t.Errorf("%+v", s)
			}
			w.engine.SetAPI("1.12", "1.41") // another dockerd
			if err := w.engine.Restart(); err != nil {
				t.Fatal(err)
			}
			w.until("connected", func(s Snapshot) bool { return s.Engine == "20.10.24, API 1.41" })
		})
	}
}

// What fails while a picture is taken must not make half a picture.
func TestHalfFailedPicture(t *testing.T) {
	for _, path := range []string{"/networks", "/containers/json", "/version", "/events"} {
		t.Run(strings.ReplaceAll(path[1:], "/", "_"), func(t *testing.T) {
			w := prepare(t, dockerfake.ForTest(t))
			w.run("a", "bridge", "172.17.0.2", 1)
			w.watch()
			w.engine.Fail(path, http.StatusInternalServerError)
			w.engine.Quietly(func() { w.engine.Remove("a") })
			if err := w.engine.Restart(); err != nil {
				t.Fatal(err)
			}
			s := w.until("a failure", func(s Snapshot) bool { return strings.Contains(s.Problem, "told to fail") })
			if s.Connected || !cmp.Equal([]string{"bridge/a 172.17.0.2"}, places(s)) {
				t.Errorf("%+v", s)
			}
			w.engine.Fail(path, 0)
			w.until("the next picture", func(s Snapshot) bool { return s.Connected && len(places(s)) == 0 })
		})
	}
}

// One container for which the Engine fails keeps its place, and all others follow.
func TestFailedInspection(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	id := w.run("a", "bridge", "172.17.0.2", 1)
	other := w.run("x", "bridge", "172.17.0.9", 9)
	w.engine.Fail("/containers/"+other+"/json", http.StatusInternalServerError)
	w.watch()
	s := w.untilPlaces("bridge/a 172.17.0.2")
	if want := "container " + other[:12] + ": not known: inspect: Error response from daemon: fake: told to fail"; !cmp.Equal([]string{want}, s.Problems) {
		t.Errorf("%q", s.Problems)
	}
	w.engine.Fail("/containers/"+other+"/json", 0)
	w.until("all", func(s Snapshot) bool { return len(places(s)) == 2 && len(s.Problems) == 0 })

	w.engine.Fail("/containers/"+id+"/json", http.StatusInternalServerError)
	w.engine.Stop("a")
	w.run("b", "bridge", "172.17.0.3", 2)
	s = w.until("b", func(s Snapshot) bool { return len(places(s)) == 3 && len(s.Problems) == 1 })
	if want := "container a: as last seen: inspect: Error response from daemon: fake: told to fail"; s.Problems[0] != want {
		t.Errorf("%q", s.Problems)
	}
	w.engine.Fail("/containers/"+id+"/json", 0)
	s = w.untilPlaces("bridge/b 172.17.0.3", "bridge/x 172.17.0.9")
	if len(s.Problems) != 0 {
		t.Errorf("%q", s.Problems)
	}
}

// The Engine does not answer for a container that it cannot start or stop: the others must not wait for it.
func TestHungInspection(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.times.slow, w.times.first, w.times.settle = 10*time.Millisecond, 100*time.Millisecond, 10*time.Millisecond
	var releases []func()
	for i := range 2 * inspectors {
		id := w.run(fmt.Sprintf("h%02d", i), "bridge", fmt.Sprintf("172.17.1.%d", i), 100+i)
		releases = append(releases, w.engine.Hold("/containers/"+id+"/json"))
	}
	w.run("a", "bridge", "172.17.0.2", 1)
	w.watch()
	s := w.untilPlaces("bridge/a 172.17.0.2")
	if len(s.Problems) == 0 || !strings.HasSuffix(s.Problems[0], ": not known: dockerd does not answer for it yet") {
		t.Errorf("%q", s.Problems)
	}
	w.run("b", "bridge", "172.17.0.3", 2)
	w.untilPlaces("bridge/a 172.17.0.2", "bridge/b 172.17.0.3")
	for _, release := range releases {
		release()
	}
	w.until("all", func(s Snapshot) bool { return len(places(s)) == 2*inspectors+2 && len(s.Problems) == 0 })
}

// An event that comes while the question is on its way asks again.
func TestEventDuringInspection(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.watch()
	id := w.run("a", "bridge", "172.17.0.2", 1)
	w.untilPlaces("bridge/a 172.17.0.2")
	path := "/containers/" + id + "/json"
	release := w.engine.Delay(path)
	before := w.engine.Requests(path)
	w.engine.Rename("a", "b")
	err := topo.Poll(t.Context(), 5*time.Second, "question", func() (bool, error) { return w.engine.Requests(path) > before, nil })
	if err != nil {
		t.Fatal(err)
	}
	w.engine.Stop("b")
	w.run("c", "bridge", "172.17.0.3", 2) // heard after Stop, so that was heard too
	w.until("c", func(s Snapshot) bool { return endpoint(s, "bridge", "c") != nil })
	release()
	w.untilPlaces("bridge/c 172.17.0.3")
}

func TestHungEngine(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.run("a", "bridge", "172.17.0.2", 1)
	w.times.answer, w.times.resync = 100*time.Millisecond, 50*time.Millisecond
	w.watch()
	release := w.engine.Hold("/networks")
	s := w.until("a hung dockerd", func(s Snapshot) bool { return strings.Contains(s.Problem, "no answer in time: dockerd hangs") })
	if s.Connected || len(places(s)) != 1 {
		t.Errorf("%+v", s)
	}
	release()
	w.until("connected", func(s Snapshot) bool { return s.Connected })
}

func TestWrongProcess(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.run("ok", "bridge", "172.17.0.2", 1)
	w.run("other", "bridge", "172.17.0.3", 2)
	w.kernel.set(2, Namespace{ID: 8, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	w.engine.Run(dockerfake.Container{Name: "gone", PID: 3, Places: []dockerfake.Place{{Network: "bridge", Address: "172.17.0.4"}}})
	w.run("far", "bridge", "172.17.0.5", 4)
	w.kernel.set(4, Namespace{ID: -1, Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.5")}})
	w.watch()
	s := w.Snapshot()
	ids := map[string]int{}
	for _, e := range w.network(s, "bridge").Endpoints {
		ids[e.Name] = e.NetNSID
	}
	if diff := cmp.Diff(map[string]int{"ok": 1, "other": -1, "gone": -1, "far": -1}, ids); diff != "" {
		t.Error(diff)
	}
	want := []string{
		"container far: the network namespace of its process 4 has no number in this one: run conenat in the network namespace of dockerd",
		"container gone: read the network namespace of its process 3: open /proc/3/ns/net: file does not exist",
		"container other: process 2 has none of its addresses: run conenat in the PID namespace of dockerd",
	}
	if diff := cmp.Diff(want, s.Problems); diff != "" {
		t.Error(diff)
	}
	w.kernel.set(4, Namespace{ID: 6, Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.5")}}) // tried again without an event
	w.until("far", func(s Snapshot) bool { return len(s.Problems) == 2 })
}

func TestPublisher(t *testing.T) {
	two := []dockerfake.Place{{Network: "zz", Address: "172.19.0.2"}, {Network: "aa", Address: "172.18.0.2"}, {Network: "0internal", Address: "172.20.0.2"}}
	for _, tt := range []struct{ name, gateway, want string }{
		{"by_the_default_route", "172.19.0.1", "zz"},
		{"by_name", "", "aa"},
		{"route_leads_elsewhere", "10.8.0.1", "aa"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := prepare(t, dockerfake.ForTest(t))
			w.engine.AddNetwork(dockerfake.Network{Name: "zz", Subnet: "172.19.0.0/16", Gateway: "172.19.0.1"})
			w.engine.AddNetwork(dockerfake.Network{Name: "aa", Subnet: "172.18.0.0/16", Gateway: "172.18.0.1"})
			w.engine.AddNetwork(dockerfake.Network{Name: "0internal", Subnet: "172.20.0.0/16", Internal: true})
			w.kernel.set(1, Namespace{ID: 1, Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.2")}, Gateway: ipv4(tt.gateway)})
			w.engine.Run(dockerfake.Container{Name: "a", PID: 1, Places: two, Ports: dockerfake.Ports("tcp", 8080, 80, 2)})
			w.watch()
			for _, n := range w.Snapshot().Networks {
				for _, e := range n.Endpoints {
					if published := len(e.Published); (published == 2) != (n.Name == tt.want) || published == 1 {
						t.Errorf("network %s: %d published ports", n.Name, published)
					}
				}
			}
		})
	}
}

// TestPublisher6: Docker publishes on each family where the container's default route of that family leads.
func TestPublisher6(t *testing.T) {
	places := []dockerfake.Place{
		{Network: "four", Address: "172.18.0.2"}, {Network: "six", Address: "172.19.0.2", Address6: "fd00:6::2"},
		{Network: "other", Address: "172.20.0.2", Address6: "fd00:7::2"},
	}
	ports := []dockerfake.Port{{Container: "80/tcp", Host: "0.0.0.0", HostPort: 80}, {Container: "80/tcp", Host: "::", HostPort: 80}}
	for _, tt := range []struct{ name, gateway6, want string }{
		{"by_the_default_route", "fd00:6::1", "four 0.0.0.0, six ::"},
		{"route_leads_elsewhere", "fe80::1", "four 0.0.0.0, other ::"},
		{"no_route", "", "four 0.0.0.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := prepare(t, dockerfake.ForTest(t))
			w.engine.AddNetwork(dockerfake.Network{Name: "four", Subnet: "172.18.0.0/16", Gateway: "172.18.0.1"})
			w.engine.AddNetwork(dockerfake.Network{Name: "six", Subnet: "172.19.0.0/16", Gateway: "172.19.0.1", Subnet6: "fd00:6::/64", Gateway6: "fd00:6::1"})
			w.engine.AddNetwork(dockerfake.Network{Name: "other", Subnet: "172.20.0.0/16", Gateway: "172.20.0.1", Subnet6: "fd00:7::/64", Gateway6: "fd00:7::1"})
			w.kernel.set(1, Namespace{ID: 1, Addresses: []netip.Addr{netip.MustParseAddr("fd00:6::2")}, Gateway: netip.MustParseAddr("172.18.0.1"), Gateway6: ipv6(tt.gateway6)})
			w.engine.Run(dockerfake.Container{Name: "a", PID: 1, Places: places, Ports: ports})
			w.watch()
			var got []string
			for _, n := range w.Snapshot().Networks {
				for _, e := range n.Endpoints {
					for _, p := range e.Published {
						got = append(got, n.Name+" "+p.Host.String())
					}
					if want := (n.Name != "four"); e.Address6.IsValid() != want {
						t.Errorf("network %s: IPv6 address %v", n.Name, e.Address6)
					}
				}
			}
			if text := strings.Join(got, ", "); text != tt.want {
				t.Errorf("published: %s, want %s", text, tt.want)
			}
		})
	}
}

func TestManyPorts(t *testing.T) {
	w := prepare(t, dockerfake.ForTest(t))
	w.watch()
	w.kernel.set(1, Namespace{ID: 1, Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2")}})
	start := time.Now()
	w.engine.Run(dockerfake.Container{
		Name: "a", PID: 1, Places: []dockerfake.Place{{Network: "bridge", Address: "172.17.0.2"}}, Ports: dockerfake.Ports("udp", 20000, 30000, 10000),
	})
	s := w.untilPlaces("bridge/a 172.17.0.2")
	took := time.Since(start)
	published := w.network(s, "bridge").Endpoints[0].Published
	if len(published) != 10000 || published[9999] != (Published{dataplane.UDP, netip.IPv4Unspecified(), 29999, 39999}) {
		t.Errorf("%d ports", len(published))
	}
	if took > patience.For(time.Second) {
		t.Errorf("10,000 ports after %v", took)
	}
	t.Logf("10,000 ports after %v", took)
}

func TestDockerHost(t *testing.T) {
	for _, tt := range []struct{ host, want string }{
		{"", ""}, {"unix:///run/docker.sock", ""}, {"tcp://127.0.0.1:2375", ""},
		{"/run/docker.sock", "unable to parse docker host"}, {"ssh://host", `scheme "ssh"`}, {"unix://", "unable to parse"},
	} {
		t.Run(strings.NewReplacer("/", "_", ":", "_").Replace(tt.host), func(t *testing.T) {
			t.Setenv("DOCKER_HOST", tt.host)
			_, err := New()
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// A process without rights on the socket.
func TestPermissionDenied(t *testing.T) {
	require.Root(t) // to become another user
	engine := dockerfake.ForTest(t)
	if err := os.Chmod(engine.Socket, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CONENAT_TEST_ASK="+engine.Host())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	want := "docker socket " + engine.Socket + ": permission denied: run conenat as root, or as a member of the socket's group"
	if err != nil || string(out) != want {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTLS(t *testing.T) {
	t.Setenv("DOCKER_TLS_VERIFY", "1")
	t.Setenv("DOCKER_CERT_PATH", t.TempDir())
	if _, err := New(WithHost("tcp://127.0.0.1:2376")); err == nil || !strings.Contains(err.Error(), "DOCKER_CERT_PATH") {
		t.Errorf("without certificates: %v", err)
	}
}

// An Engine that wants TLS, and one whose certificate is nobody's that is known.
func TestTLSEngine(t *testing.T) {
	engine := dockerfake.ForTest(t)
	server := httptest.NewUnstartedServer(engine)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains about the client
	server.StartTLS()
	t.Cleanup(server.Close)
	problem := func() string {
		s, err := New(WithHost("tcp://" + server.Listener.Addr().String()))
		if err != nil {
			t.Fatal(err)
		}
		w := &watched{Source: s, t: t, engine: engine}
		w.watch()
		return w.Snapshot().Problem
	}
	if p := problem(); !strings.Contains(p, "TLS: ") || !strings.Contains(p, "see DOCKER_TLS_VERIFY") {
		t.Errorf("without TLS: %s", p)
	}
	t.Setenv("DOCKER_TLS_VERIFY", "1")
	t.Setenv("DOCKER_CERT_PATH", certificates(t))
	if p := problem(); !strings.Contains(p, "TLS: ") || !strings.Contains(p, "certificate signed by unknown authority") {
		t.Errorf("unknown authority: %s", p)
	}
}

// certificates makes a directory with an authority and a client's certificate that it did not sign.
func certificates(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: certificate}, "cert.pem": {Type: "CERTIFICATE", Bytes: certificate},
		"key.pem": {Type: "EC PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
