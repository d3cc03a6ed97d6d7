// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/control/api"
	"github.com/conenat/conenat/tests/patience"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// TestInterfaceGoes: a card goes down, or away with its driver, under load, and comes back. The daemon says so, and streams that
// were there go on, from the same external endpoints.
func TestInterfaceGoes(t *testing.T) {
	for _, path := range []string{"direct", "stack"} {
		t.Run(path, func(t *testing.T) {
			l := newLab(t, labConfig{path: path, args: []string{"--outside", "uplink0"}})
			v := l.live()
			for _, step := range []struct {
				name string
				fn   func(*lab)
			}{
				{"UplinkDown", (*lab).uplinkDown}, {"UplinkUnbound", (*lab).uplinkUnbound},
				{"PortDown", (*lab).portDown}, {"PortUnbound", (*lab).portUnbound},
			} {
				t.Run(step.name, func(t *testing.T) {
					sub := l.under(t)
					step.fn(sub)
					v.goesOn(sub)
				})
			}
			v.finish()
		})
	}
}

// live is what uses the cards all the time.
type live struct {
	l      *lab
	server *probe.StreamServer
	tcp    *probe.TCPStream
	udp    *probe.UDPStream
}

func (l *lab) live() *live {
	l.t.Helper()
	v := &live{l: l}
	var err error
	if v.server, err = probe.ServeStreams(l.nsB, 0); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { v.server.Close() })
	to := at(topo.Peer1Addr, v.server.Port())
	if v.tcp, err = probe.DialStream(l.nsA, 0, to); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(v.tcp.Close)
	if v.udp, err = probe.StartDatagrams(l.nsA, 0, to); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(v.udp.Close)
	v.goesOn(l)
	return v
}

// goesOn waits until both streams do.
func (v *live) goesOn(l *lab) {
	l.t.Helper()
	received, answered := v.tcp.Received(), v.udp.Answered()
	l.eventually("the streams go on", func() bool { return v.tcp.Received() > received && v.udp.Answered() > answered })
}

// finish ends them: nothing of the connection is lost or changed, and the datagrams had one endpoint all the time.
func (v *live) finish() {
	v.l.t.Helper()
	if err := v.tcp.Finish(); err != nil {
		v.l.t.Error(err)
	}
	if seen := v.udp.Seen(); len(seen) != 1 || seen[0].Addr() != topo.HostAddr {
		v.l.t.Errorf("the datagrams were seen as %v", seen)
	}
	if err := v.server.Close(); err != nil {
		v.l.t.Error(err)
	}
}

func (l *lab) eventually(what string, cond func() bool) {
	l.t.Helper()
	err := topo.Poll(l.t.Context(), patience.For(20*time.Second), what, func() (bool, error) { return cond(), nil })
	if err != nil {
		l.t.Fatalf("%v; status: %s", err, l.Client("status"))
	}
}

// uplinkDown: the daemon has nothing to say, for what is down is there; its route is not.
func (l *lab) uplinkDown() {
	l.must(l.nsHost.Down(l.uplink0.name))
	l.must(l.nsHost.Up(l.uplink0.name))
	l.must(l.nsHost.AddRoute("default", topo.RouterAddr.String()))
}

func (l *lab) uplinkUnbound() {
	bind, err := l.uplink0.unbind()
	l.must(err)
	l.eventually("the daemon sees the uplink gone", func() bool { return l.outside() == "away" })
	l.must(bind())
	l.must(l.uplink0.enter(l.nsHost))
	l.must(l.nsHost.Up(l.uplink0.name))
	// The host itself refuses the connection's segments as soon as it has the address, unless the hooks are there before.
	l.eventually("the daemon has hooked the uplink", func() bool { return l.outside() == "no-address" })
	l.must(l.nsHost.AddAddr(l.uplink0.name, topo.HostAddr.String()+"/24"))
	l.must(l.nsHost.AddRoute("default", topo.RouterAddr.String()))
	l.eventually("the daemon has the uplink back", func() bool { return l.outside() == "active" })
	l.told("uplink0")
}

func (l *lab) portDown() {
	l.must(l.nsHost.Down(l.port0.name))
	l.must(l.nsHost.Up(l.port0.name))
}

func (l *lab) portUnbound() {
	bind, err := l.port0.unbind()
	l.must(err)
	l.eventually("the daemon sees the port gone", func() bool { return !l.hasPort() })
	l.must(bind())
	l.must(l.port0.enter(l.nsHost))
	l.must(l.nsHost.Enslave(l.port0.name, "docker0"))
	l.must(l.nsHost.Up(l.port0.name))
	l.eventually("the daemon has the port back", l.hasPort)
	l.told("port0")
}

// told waits until the daemon's log has the interface's hooks twice.
func (l *lab) told(name string) {
	l.t.Helper()
	l.eventually("the daemon tells that it attached hooks to "+name+" again", func() bool {
		attached := 0
		for line := range strings.Lines(l.Log()) {
			if strings.Contains(line, `msg="attach `) && strings.Contains(line, "interface "+name+" ") {
				attached++
			}
		}
		return attached >= 2
	})
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// outside is the uplink's state.
func (l *lab) outside() string {
	l.t.Helper()
	for _, o := range l.status().Outsides {
		if o.Name == l.uplink0.name {
			return o.State
		}
	}
	return "not there"
}

// hasPort says whether the bridge's port has its hook.
func (l *lab) hasPort() bool {
	l.t.Helper()
	return slices.Contains(asked[api.Network](l, "networks")[0].Ports, l.port0.name)
}
