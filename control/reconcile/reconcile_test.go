// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/exceptions"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

var compareIP = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

var (
	bridgeMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	external  = netip.MustParseAddrPort("198.51.100.1:8080")
	internal  = netip.MustParseAddrPort("172.17.0.2:80")

	gatewayAddr = netip.MustParseAddr("172.17.0.1") // of docker0: the host's own
)

// fakeHost is a host that a test changes.
type fakeHost struct {
	snapshot hostnet.Snapshot
	sockets  []hostnet.Socket
	err      error
	changes  chan struct{}
	hops     chan struct{}
}

func (h *fakeHost) Snapshot() (hostnet.Snapshot, error) {
	s := h.snapshot
	s.Links = slices.Clone(s.Links)
	return s, h.err
}
func (h *fakeHost) Sockets() ([]hostnet.Socket, error) { return h.sockets, nil }
func (h *fakeHost) Changes() <-chan struct{}           { return h.changes }
func (h *fakeHost) Hops() <-chan struct{}              { return h.hops }

func (h *fakeHost) edit(name string, change func(*hostnet.Link)) {
	for i := range h.snapshot.Links {
		if h.snapshot.Links[i].Name == name {
			change(&h.snapshot.Links[i])
		}
	}
}

func (h *fakeHost) drop(name string) {
	h.snapshot.Links = slices.DeleteFunc(h.snapshot.Links, func(l hostnet.Link) bool { return l.Name == name })
}

type fakeExceptions struct {
	pairs []exceptions.Pair
	err   error
}

func (e *fakeExceptions) Ensure(p []exceptions.Pair) error {
	if e.err == nil {
		e.pairs = p
	}
	return e.err
}

func dockerHost() *fakeHost {
	return &fakeHost{changes: make(chan struct{}, 1), hops: make(chan struct{}), snapshot: hostnet.Snapshot{
		IPForward: true,
		Default:   []int{2},
		Links: []hostnet.Link{
			{Index: 1, Name: "lo", Loopback: true},
			{Index: 2, Name: "eth0", Kind: "device", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("198.51.100.9/24")}},
			{Index: 3, Name: "docker0", Kind: "bridge", MAC: bridgeMAC, Addresses: []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16")}},
			{Index: 4, Name: "veth0", Kind: "veth", Master: 3, PeerNetns: true},
			{Index: 5, Name: "tap0", Kind: "tun", Master: 3},
			{Index: 6, Name: "wg0", Kind: "wireguard", Layer3: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}},
		},
	}}
}

type world struct {
	host *fakeHost
	dp   *dataplanetest.Dataplane
	exc  *fakeExceptions
	*Reconciler
}

func newWorld(t *testing.T, cfg config.Config) *world {
	t.Helper()
	return worldOf(cfg, dockerHost(), dataplanetest.New())
}

func worldOf(cfg config.Config, host *fakeHost, dp *dataplanetest.Dataplane) *world {
	if cfg.Inside == nil {
		cfg.Inside = []string{"docker0"}
	}
	if cfg.Settings == (dataplane.Settings{}) {
		cfg.Settings = dataplane.DefaultSettings()
	}
	w := &world{host: host, dp: dp, exc: &fakeExceptions{}}
	w.Reconciler = New(cfg, World{Dataplane: dp, Host: host, Exceptions: w.exc, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	return w
}

func (w *world) start(t *testing.T) {
	t.Helper()
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
}

func (w *world) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reconcile(false)
}

func (w *world) links() (names []string) {
	links, _ := w.dp.Links()
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

func TestStartOnADockerHost(t *testing.T) {
	w := newWorld(t, config.Config{Mapping: [3]dataplane.Behavior{2, 0, 1}, Filtering: [3]dataplane.Behavior{0, 1, 2}})
	w.start(t)
	networks, _ := w.dp.Networks()
	outsides, _ := w.dp.Outsides()
	links, _ := w.dp.Links()
	wantNetworks := []dataplane.Network{{Name: "docker0", IfIndex: 3, Gateway: bridgeMAC,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")},
		Mapping:  [3]dataplane.Behavior{2, 0, 1}, Filtering: [3]dataplane.Behavior{0, 1, 2},
		Address: netip.MustParseAddr("172.17.0.1")}}
	wantOutsides := []dataplane.Outside{{Name: "eth0", IfIndex: 2, Addresses: []netip.Addr{external.Addr()}}}
	wantLinks := []dataplane.Link{
		{IfIndex: 2, Name: "eth0", Kind: dataplane.OutsideLink, Owner: "eth0", Mechanism: "tcx"},
		{IfIndex: 3, Name: "docker0", Kind: dataplane.InsideDevice, Owner: "docker0", Mechanism: "tcx"},
		{IfIndex: 4, Name: "veth0", Kind: dataplane.InsidePort, Owner: "docker0", Peer: true, Mechanism: "tcx"},
		{IfIndex: 5, Name: "tap0", Kind: dataplane.InsidePort, Owner: "docker0", Mechanism: "tcx"},
	}
	if diff := cmp.Diff(wantNetworks, networks, compareIP) + cmp.Diff(wantOutsides, outsides, compareIP) + cmp.Diff(wantLinks, links); diff != "" {
		t.Error(diff)
	}
	wantPairs := []exceptions.Pair{{Inside: netip.MustParsePrefix("172.17.0.0/16"), Outside: 2, Name: "eth0", External: []netip.Addr{external.Addr()},
		Except: []netip.Addr{gatewayAddr}}}
	if diff := cmp.Diff(wantPairs, w.exc.pairs, compareIP); diff != "" {
		t.Error(diff)
	}
	before := len(w.dp.Log())
	w.again()
	if log := w.dp.Log(); len(log) != before {
		t.Errorf("a second pass does %v", log[before:])
	}
}

func TestFollowsTheHost(t *testing.T) {
	tests := []struct {
		name     string
		cfg      config.Config
		change   func(h *fakeHost)
		links    []string // after the change
		outside  string   // name index address
		network  string   // name index
		problems []string
	}{
		{"port_joins", config.Config{}, func(h *fakeHost) {
			h.snapshot.Links = append(h.snapshot.Links, hostnet.Link{Index: 9, Name: "veth9", Kind: "veth", Master: 3})
		}, []string{"eth0", "docker0", "veth0", "tap0", "veth9"}, "eth0 2 198.51.100.1", "docker0 3", nil},
		{"port_leaves", config.Config{}, func(h *fakeHost) { h.drop("veth0") },
			[]string{"eth0", "docker0", "tap0"}, "eth0 2 198.51.100.1", "docker0 3", nil},
		{"address_moves", config.Config{}, func(h *fakeHost) {
			h.edit("eth0", func(l *hostnet.Link) { l.Addresses = l.Addresses[1:] })
		}, []string{"eth0", "docker0", "veth0", "tap0"}, "eth0 2 198.51.100.9", "docker0 3", nil},
		{"address_goes", config.Config{}, func(h *fakeHost) {
			h.edit("eth0", func(l *hostnet.Link) { l.Addresses = nil })
		}, []string{"eth0", "docker0", "veth0", "tap0"}, "eth0 2 198.51.100.1", "docker0 3", []string{"outside interface eth0 has no IPv4 address: waiting for one"}},
		{"external_address_goes", config.Config{External: ranges([]netip.Addr{external.Addr()})}, func(h *fakeHost) {
			h.edit("eth0", func(l *hostnet.Link) { l.Addresses = l.Addresses[1:] })
		}, []string{"eth0", "docker0", "veth0", "tap0"}, "eth0 2 198.51.100.1", "docker0 3", []string{"outside interface eth0 does not have the external address 198.51.100.1: waiting for it"}},
		{"outside_goes", config.Config{Outside: []string{"eth0"}}, func(h *fakeHost) { h.drop("eth0") },
			[]string{"docker0", "veth0", "tap0"}, "eth0 0 198.51.100.1", "docker0 3", []string{"outside interface eth0 is away: waiting for it"}},
		{"outside_comes_back", config.Config{Outside: []string{"eth0"}}, func(h *fakeHost) {
			h.edit("eth0", func(l *hostnet.Link) { l.Index = 20 })
		}, []string{"docker0", "veth0", "tap0", "eth0"}, "eth0 20 198.51.100.1", "docker0 3", nil},
		{"inside_goes", config.Config{}, func(h *fakeHost) { h.drop("docker0"); h.drop("veth0"); h.drop("tap0") },
			[]string{"eth0"}, "eth0 2 198.51.100.1", "docker0 3", []string{"inside interface docker0 is away: waiting for it"}},
		{"inside_comes_back", config.Config{}, func(h *fakeHost) {
			h.drop("tap0")
			h.edit("docker0", func(l *hostnet.Link) { l.Index = 30 })
			h.edit("veth0", func(l *hostnet.Link) { l.Index, l.Master = 31, 30 })
		}, []string{"eth0", "docker0", "veth0"}, "eth0 2 198.51.100.1", "docker0 30", nil},
		{"default_route_moves", config.Config{}, func(h *fakeHost) { h.snapshot.Default = []int{6} },
			[]string{"eth0", "docker0", "veth0", "tap0", "wg0"}, "eth0 2 198.51.100.1, wg0 6 10.9.0.1", "docker0 3", nil},
		{"default_route_goes", config.Config{}, func(h *fakeHost) { h.snapshot.Default = nil },
			[]string{"eth0", "docker0", "veth0", "tap0"}, "eth0 2 198.51.100.1", "docker0 3", []string{"no default route by an interface that can be outside: waiting for one"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.cfg)
			w.start(t)
			tt.change(w.host)
			w.again()
			if diff := cmp.Diff(tt.links, w.links()); diff != "" {
				t.Errorf("links: %s", diff)
			}
			outsides, _ := w.dp.Outsides()
			networks, _ := w.dp.Networks()
			var names []string
			for _, o := range outsides {
				names = append(names, join(o.Name, o.IfIndex, o.Address()))
			}
			got := []string{strings.Join(names, ", "), join(networks[0].Name, networks[0].IfIndex)}
			if diff := cmp.Diff([]string{tt.outside, tt.network}, got); diff != "" || len(networks) != 1 {
				t.Errorf("outside, network: %s", diff)
			}
			if diff := cmp.Diff(tt.problems, w.View().Problems); diff != "" {
				t.Errorf("problems: %s", diff)
			}
			before := len(w.dp.Log())
			w.again()
			if log := w.dp.Log(); len(log) != before {
				t.Errorf("another pass does %v", log[before:])
			}
		})
	}
}

func join(parts ...any) string {
	return strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(slogText(parts), ",", ""), "["), "]")
}

func slogText(parts []any) string { return slog.AnyValue(parts).String() }

func TestCheckRefusesWhatDoesNotFitTheHost(t *testing.T) {
	tests := []struct {
		name string
		cfg  config.Config
		edit func(h *fakeHost)
		want string // empty: it fits
	}{
		{"fits", config.Config{}, nil, ""},
		{"plain_interface_inside", config.Config{Inside: []string{"wg0"}}, nil, ""},
		{"unknown_inside", config.Config{Inside: []string{"docker9"}}, nil, "inside interface docker9 does not exist"},
		{"unknown_outside", config.Config{Outside: []string{"eth9"}}, nil, "outside interface eth9 does not exist"},
		{"no_default_route", config.Config{}, func(h *fakeHost) { h.snapshot.Default = nil }, "there is no default route"},
		{"default_route_is_inside", config.Config{Inside: []string{"eth0"}}, nil, "no outside interface"},
		{"external_is_another", config.Config{External: ranges([]netip.Addr{netip.MustParseAddr("192.0.2.1")})}, nil,
			"external address 192.0.2.1 is no address of the outside interface eth0: it has 198.51.100.1 (eth0), 198.51.100.9 (eth0)"},
		{"external_fits", config.Config{External: ranges([]netip.Addr{netip.MustParseAddr("198.51.100.9")})}, nil, ""},
		{"loopback", config.Config{Inside: []string{"lo"}}, nil, "loopback"},
		{"outside_is_port_of_inside", config.Config{Outside: []string{"tap0"}}, nil, "tap0 is a port of the inside interface docker0"},
		{"inside_is_port_of_inside", config.Config{Inside: []string{"docker0", "veth0"}}, nil, "veth0 is a port of the inside interface docker0"},
		{"no_address_yet", config.Config{}, func(h *fakeHost) { h.edit("eth0", func(l *hostnet.Link) { l.Addresses = nil }) }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := dockerHost()
			if tt.edit != nil {
				tt.edit(h)
			}
			if tt.cfg.Inside == nil {
				tt.cfg.Inside = []string{"docker0"}
			}
			err := Check(tt.cfg, h.snapshot)
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestAFailureStopsNothingElse(t *testing.T) {
	w := newWorld(t, config.Config{})
	broken := errors.New("broken")
	w.dp.Fail = func(op string) error {
		if op == "attach inside-port 4" {
			return broken
		}
		return nil
	}
	w.start(t) // a bridge port is not vital
	if diff := cmp.Diff([]string{"eth0", "docker0", "tap0"}, w.links()); diff != "" {
		t.Error(diff)
	}
	w.again()
	f := w.View().Failures
	if len(f) != 1 || !errors.Is(f[0].Err, broken) || f[0].Tries != 2 || !strings.Contains(f[0].Action, "veth0") {
		t.Errorf("failures: %+v", f)
	}
	w.dp.Fail = nil
	w.again()
	if len(w.View().Failures) != 0 || len(w.links()) != 4 {
		t.Errorf("after the repair: %+v, links %v", w.View().Failures, w.links())
	}
}

func TestStartFailsWithoutWhatIsVital(t *testing.T) {
	for _, op := range []string{"configure", "put outside eth0", "put network docker0", "attach outside 2", "attach inside-device 3"} {
		t.Run(strings.ReplaceAll(op, " ", "_"), func(t *testing.T) {
			w := newWorld(t, config.Config{})
			broken := errors.New("broken")
			w.dp.Fail = func(o string) error {
				if o == op {
					return broken
				}
				return nil
			}
			if err := w.Start(); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		})
	}
	w := newWorld(t, config.Config{})
	w.host.err = errors.New("netlink is broken")
	if err := w.Start(); !errors.Is(err, w.host.err) {
		t.Errorf("got %v", err)
	}
}

func TestAdoptionAttachesAgainAndKeepsForwards(t *testing.T) {
	first := newWorld(t, config.Config{})
	first.start(t)
	if _, err := first.AddForward(dataplane.Forward{Protocol: dataplane.TCP, External: external, Internal: internal}); err != nil {
		t.Fatal(err)
	}
	second := worldOf(config.Config{}, dockerHost(), first.dp.Reopen())
	second.start(t)
	want := []string{"configure", "attach outside 2", "attach inside-port 4", "attach inside-port 5", "attach inside-device 3"}
	if diff := cmp.Diff(want, second.dp.Log()); diff != "" {
		t.Error(diff)
	}
	if f, _ := second.Forwards(); len(f) != 1 || !f[0].Active || f[0].External != external {
		t.Errorf("forwards: %+v", f)
	}
	second.again()
	if len(second.dp.Log()) != len(want) {
		t.Errorf("again: %v", second.dp.Log())
	}
}

func TestAdoptionDropsWhatIsNotConfigured(t *testing.T) {
	first := newWorld(t, config.Config{Inside: []string{"docker0", "wg0"}})
	first.start(t)
	second := worldOf(config.Config{Inside: []string{"wg0"}}, dockerHost(), first.dp.Reopen())
	second.start(t)
	networks, _ := second.dp.Networks()
	if len(networks) != 1 || networks[0].Name != "wg0" || networks[0].Gateway != nil {
		t.Errorf("networks: %+v", networks)
	}
	if diff := cmp.Diff([]string{"eth0", "wg0"}, second.links()); diff != "" {
		t.Error(diff)
	}
}

func TestForwards(t *testing.T) {
	w := newWorld(t, config.Config{Forwards: []dataplane.Forward{
		{Protocol: dataplane.UDP, External: external, Internal: internal},
		{Protocol: dataplane.UDP, External: netip.MustParseAddrPort("192.0.2.9:1"), Internal: internal}, // of nobody
	}})
	w.start(t)
	f := dataplane.Forward{Protocol: dataplane.TCP, External: external, Internal: internal}
	if b, err := w.AddForward(f); err != nil || b.Network != "docker0" {
		t.Fatalf("%+v %v", b, err)
	}
	if _, err := w.AddForward(f); !errors.Is(err, dataplane.ErrPortTaken) {
		t.Errorf("a second time: %v", err)
	}
	all, _ := w.Forwards()
	if len(all) != 3 || !all[0].Active || !all[1].Active && !all[2].Active || all[1].Problem+all[2].Problem == "" {
		t.Errorf("forwards: %+v", all)
	}

	w.host.edit("eth0", func(l *hostnet.Link) { l.Addresses = []netip.Prefix{netip.MustParsePrefix("198.51.100.9/24")} })
	w.again()
	if b, _ := w.dp.Bindings(); len(b) != 0 {
		t.Errorf("bindings on an address that is gone: %+v", b)
	}
	if all, _ := w.Forwards(); all[0].Active || !strings.Contains(all[0].Problem, "not found") {
		t.Errorf("forwards do not say what they wait for: %+v", all)
	}
	w.host.edit("eth0", func(l *hostnet.Link) { l.Addresses = []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")} })
	w.again()
	if b, _ := w.dp.Bindings(); len(b) != 2 {
		t.Errorf("the address is back, forwards are not: %+v", b)
	}

	if err := w.RemoveForward(dataplane.TCP, external); err != nil {
		t.Error(err)
	}
	w.again()
	if err := w.RemoveForward(dataplane.TCP, external); !errors.Is(err, dataplane.ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	if err := w.RemoveForward(dataplane.UDP, netip.MustParseAddrPort("192.0.2.9:1")); err != nil {
		t.Errorf("one that waits: %v", err)
	}
	w.again()
	if len(w.View().Failures) != 0 {
		t.Errorf("failures: %+v", w.View().Failures)
	}
}

func TestHostSocketsAreReservedBeforeTheHooks(t *testing.T) {
	host := dockerHost()
	host.sockets = []hostnet.Socket{
		{Protocol: dataplane.TCP, Local: netip.MustParseAddrPort("198.51.100.1:22")},
		{Protocol: dataplane.TCP, Local: netip.MustParseAddrPort("172.17.0.1:22")},
	}
	w := worldOf(config.Config{}, host, dataplanetest.New())
	w.start(t)
	log := w.dp.Log()
	reserve, attach := slices.Index(log, "reserve tcp/198.51.100.1:22"), slices.Index(log, "attach outside 2")
	if reserve < 0 || attach < reserve || len(w.dp.Reserved()) != 1 {
		t.Errorf("log: %v", log)
	}
}

func TestExceptionsCoverOnlyWhatHasHooks(t *testing.T) {
	w := newWorld(t, config.Config{Outside: []string{"eth0"}})
	w.start(t)
	w.host.drop("eth0")
	w.again()
	away := []exceptions.Pair{{Inside: netip.MustParsePrefix("172.17.0.0/16"), Name: "eth0", Unhooked: true,
		Except: []netip.Addr{gatewayAddr}}}
	if diff := cmp.Diff(away, w.exc.pairs, compareIP); diff != "" {
		t.Error(diff)
	}
	w.exc.err = errors.New("no nftables")
	w.again()
	if f := w.View().Failures; len(f) != 1 || !errors.Is(f[0].Err, w.exc.err) {
		t.Errorf("failures: %+v", f)
	}
}

func TestRunFollowsChangesAndRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, config.Config{})
		w.start(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		fails := 3
		w.dp.Fail = func(op string) error {
			if op == "attach inside-port 9" && fails > 0 {
				fails--
				return errors.New("not yet")
			}
			return nil
		}
		w.host.snapshot.Links = append(w.host.snapshot.Links, hostnet.Link{Index: 9, Name: "veth9", Kind: "veth", Master: 3})
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		w.host.changes <- struct{}{}
		time.Sleep(retryFirst*(1+2+4) + time.Millisecond)
		synctest.Wait()
		if !slices.Contains(w.links(), "veth9") {
			t.Errorf("links %v, failures %+v", w.links(), w.View().Failures)
		}
		w.mu.Lock()
		w.host.drop("veth9") // and nobody says so
		w.mu.Unlock()
		time.Sleep(resyncPeriod)
		synctest.Wait()
		if slices.Contains(w.links(), "veth9") {
			t.Error("not resynchronised")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
