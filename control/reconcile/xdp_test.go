// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

// routerHost has what may be inside and outside, of each kind.
func routerHost() *fakeHost {
	h := dockerHost()
	add := func(index int, name, kind string, layer3 bool) {
		h.snapshot.Links = append(h.snapshot.Links, hostnet.Link{Index: index, Name: name, Kind: kind, Layer3: layer3, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)},
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(index), 0, 1}), 24)}})
	}
	add(10, "lan0", "device", false)
	add(11, "vlan0", "vlan", false)
	add(12, "veth9", "veth", false)
	add(13, "tap9", "tun", false)
	add(14, "tun9", "tun", true)
	add(15, "bond9", "bond", false)
	return h
}

// uses are what the fake has XDP for, by interface.
func (w *world) uses() map[string]string {
	out := map[string]string{}
	links, _ := w.dp.Links()
	for _, l := range links {
		if l.XDP != dataplane.XDPNone {
			out[l.Name] = l.XDP.String()
		}
	}
	return out
}

func TestXDPIsWhereItIsAskedFor(t *testing.T) {
	router := []string{"lan0", "vlan0", "veth9", "tap9", "tun9", "bond9", "docker0"}
	gateway := config.XDP{Mode: config.XDPGateway}
	for name, tt := range map[string]struct {
		cfg      config.Config
		want     map[string]string
		without  map[string]string // a part of the reason
		problems int
	}{
		"auto": {config.Config{Inside: router, XDP: config.XDP{Mode: config.XDPAuto}}, map[string]string{}, map[string]string{}, 0},
		"auto_for_unsolicited": {config.Config{Inside: router, XDP: config.XDP{Mode: config.XDPAuto}, DropUnsolicited: true},
			map[string]string{"eth0": "drop"}, map[string]string{}, 0},
		"off_in_spite_of_unsolicited": {config.Config{Inside: router, XDP: config.XDP{Mode: config.XDPOff, Containers: true}, DropUnsolicited: true},
			map[string]string{}, map[string]string{}, 0},
		"gateway": {config.Config{Inside: router, XDP: gateway}, map[string]string{"eth0": "translate", "lan0": "translate"},
			map[string]string{"vlan0": "VLAN", "veth9": "xdp.veth", "tap9": "half a checksum", "tun9": "Ethernet", "bond9": "bond", "docker0": "bridge"}, 5},
		"veth": {config.Config{Inside: []string{"veth9"}, XDP: config.XDP{Mode: config.XDPGateway, Veth: true}},
			map[string]string{"eth0": "translate", "veth9": "translate"}, map[string]string{}, 0},
		"containers": {config.Config{Inside: []string{"docker0"}, XDP: config.XDP{Mode: config.XDPGateway, Containers: true}},
			map[string]string{"eth0": "translate", "veth0": "translate"}, map[string]string{"docker0": "bridge"}, 0},
		"stack": {config.Config{Inside: []string{"lan0"}, Path: config.PathStack, XDP: gateway}, map[string]string{}, map[string]string{"eth0": "stack", "lan0": "stack"}, 2},
		"stack_with_unsolicited": {config.Config{Inside: []string{"lan0"}, Path: config.PathStack, XDP: gateway, DropUnsolicited: true},
			map[string]string{"eth0": "drop"}, map[string]string{"lan0": "stack"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := worldOf(tt.cfg, routerHost(), dataplanetest.New())
			w.start(t)
			if diff := cmp.Diff(tt.want, w.uses()); diff != "" {
				t.Error(diff)
			}
			without := 0
			for _, x := range w.View().XDP {
				part, refused := tt.without[x.Link.Name]
				if refused != (x.Reason != "") || !strings.Contains(x.Reason, part) {
					t.Errorf("%s: reason %q, want one with %q", x.Link.Name, x.Reason, part)
				}
				if refused {
					without++
				}
			}
			if without != len(tt.without) || len(w.View().XDP) != len(tt.want)+len(tt.without) {
				t.Errorf("%d without XDP of %+v", without, w.View().XDP)
			}
			if problems := w.View().Problems; len(problems) != tt.problems {
				t.Errorf("%d problems, want %d: %q", len(problems), tt.problems, problems)
			}
			before := len(w.dp.Log())
			if w.again(); len(w.dp.Log()) != before {
				t.Errorf("a second pass does %v", w.dp.Log()[before:])
			}
		})
	}
}

// TestXDPRefusedByTheDriver: the daemon starts all the same, says so, and tries again.
func TestXDPRefusedByTheDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worldOf(config.Config{Inside: []string{"lan0"}, XDP: config.XDP{Mode: config.XDPGateway}}, routerHost(), dataplanetest.New())
		refused := errors.New("driver e1000e has no native XDP")
		w.dp.Fail = func(op string) error {
			if op == "attach XDP translate 2" {
				return refused
			}
			return nil
		}
		w.start(t)
		if diff := cmp.Diff(map[string]string{"lan0": "translate"}, w.uses()); diff != "" {
			t.Error(diff)
		}
		i := slices.IndexFunc(w.View().XDP, func(x XDP) bool { return x.Link.Name == "eth0" })
		if f := w.View().Failures; len(f) != 1 || i < 0 || f[0].Action != w.View().XDP[i].Action() || !errors.Is(f[0].Err, refused) {
			t.Errorf("failures %+v, XDP %+v", f, w.View().XDP)
		}
		w.dp.Fail = nil
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(retryFirst + time.Millisecond)
		synctest.Wait()
		cancel()
		<-done
		if diff := cmp.Diff(map[string]string{"eth0": "translate", "lan0": "translate"}, w.uses()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestXDPOfAnEarlierDaemon: it is taken over, or taken away where it is not asked for any more.
func TestXDPOfAnEarlierDaemon(t *testing.T) {
	cfg := config.Config{Inside: []string{"lan0"}, XDP: config.XDP{Mode: config.XDPGateway}}
	first := worldOf(cfg, routerHost(), dataplanetest.New())
	first.start(t)
	second := worldOf(cfg, routerHost(), first.dp.Reopen())
	second.start(t)
	for _, op := range []string{"attach XDP translate 2", "attach XDP translate 10"} {
		if !slices.Contains(second.dp.Log(), op) {
			t.Errorf("no %q in %q", op, second.dp.Log())
		}
	}
	cfg.XDP.Mode = config.XDPOff
	third := worldOf(cfg, routerHost(), second.dp.Reopen())
	third.start(t)
	if uses := third.uses(); len(uses) > 0 || len(third.View().XDP) > 0 {
		t.Errorf("left: %v, %+v", uses, third.View().XDP)
	}
}

// TestOutsideMAC: the packet path knows an outside by the MAC that it has now.
func TestOutsideMAC(t *testing.T) {
	w := newWorld(t, config.Config{})
	mac := func() string {
		links, _ := w.dp.Links()
		return links[0].MAC.String()
	}
	w.host.edit("eth0", func(l *hostnet.Link) { l.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 8} })
	w.start(t)
	if mac() != "02:00:00:00:00:08" {
		t.Errorf("MAC %s", mac())
	}
	w.host.edit("eth0", func(l *hostnet.Link) { l.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 9} })
	if w.again(); mac() != "02:00:00:00:00:09" {
		t.Errorf("MAC %s after a change", mac())
	}
}

func TestHopsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := dockerHost()
		host.hops = make(chan struct{}) // one of this bubble
		w := worldOf(config.Config{}, host, dataplanetest.New())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.FollowHops(ctx) }()
		w.dp.Fail = func(string) error { return errors.New("the table is busy") }
		host.hops <- struct{}{}
		synctest.Wait()
		w.dp.Fail = nil
		host.hops <- struct{}{}
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"forget hops"}, w.dp.Log()); diff != "" {
			t.Error(diff)
		}
	})
}
