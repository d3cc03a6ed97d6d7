// SPDX-License-Identifier: Apache-2.0

package prog

import (
	"fmt"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/family"
	. "github.com/conenat/conenat/tests/packets"
	"github.com/conenat/conenat/tests/rig"
)

// limited gives br0 limits.
func limited(l dataplane.Limits) rig.Option {
	return rig.WithNetworks(func(n *dataplane.Network) {
		if n.Name == "br0" {
			n.Limits = l
		}
	})
}

// setLimits changes them while it runs.
func setLimits(r *rig.Rig, l dataplane.Limits) {
	r.T.Helper()
	r.Must("change the limits", func() error {
		networks, err := r.DP.Networks()
		for _, n := range networks {
			if n.Name == "br0" && err == nil {
				n.Limits = l
				err = r.DP.PutNetwork(n)
			}
		}
		return err
	})
}

// used is what br0 and its hosts use, as "ports sessions" and the same by address.
func used(r *rig.Rig) (all string, hosts map[string]string) {
	r.T.Helper()
	hosts = map[string]string{}
	r.Must("read the usage", func() error {
		u, err := r.DP.NetworkUsages()
		all = fmt.Sprintf("%d %d", u["br0"].Ports, u["br0"].Sessions)
		for _, h := range u["br0"].Hosts {
			hosts[h.Address.String()] = fmt.Sprintf("%d %d", h.Ports, h.Sessions)
		}
		return err
	})
	return all, hosts
}

func wantUsed(r *rig.Rig, all string, hosts map[string]string) {
	r.T.Helper()
	got, gotHosts := used(r)
	want := map[string]string{}
	for host, use := range hosts {
		want[r.Family.Text(host)] = use
	}
	if diff := gocmp.Diff(want, gotHosts); got != all || diff != "" {
		r.T.Errorf("the network uses %q, want %q; its hosts (-want +got):\n%s", got, all, diff)
	}
	r.Consistent()
}

// TestLimitOfPorts: a host, or its network, gets as many as the limit says (RFC 6888 REQ-4), of all protocols together; then it
// is refused and told, what it has goes on, and what ends makes room.
func TestLimitOfPorts(t *testing.T) { family.Each(t, testLimitOfPorts) }

func testLimitOfPorts(t *testing.T, fam family.Family) {
	for name, c := range map[string]struct {
		limits dataplane.Limits
		reason string
		other  bool // another host gets one all the same
	}{
		"Host":    {dataplane.Limits{HostPorts: 3}, "host_ports", true},
		"Network": {dataplane.Limits{NetworkPorts: 3}, "network_ports", false},
		"Both":    {dataplane.Limits{HostPorts: 3, NetworkPorts: 3}, "network_ports", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam), limited(c.limits))
			for _, proto := range []string{"udp", "tcp", "icmp"} {
				r.Opened(proto, rig.C1+":5000")
			}
			wantUsed(r, "3 3", map[string]string{rig.C1: "3 3"})
			r.Forget()
			r.Inside(UDP(rig.C1+":5001", rig.Peer1+":3478", "x")).Dropped(c.reason)
			r.WantEvents("quota.exceeded udp br0 " + rig.C1 + ":5001 " + "0.0.0.0:0 " + rig.Peer1 + ":3478 x1 " + c.reason)
			r.Inside(TCP(rig.C1+":5001", rig.Peer1+":3478", "S", "")).Dropped(c.reason)
			r.Inside(Ping(rig.C1+":5001", rig.Peer1)).Dropped(c.reason)
			// Whoever has a port opens sessions with it, and answers come in.
			r.Out(UDP(rig.C1+":5000", rig.Peer2+":1", "x"), UDP(rig.External+":5000", rig.Peer2+":1", "x"))
			r.In(UDP(rig.Peer2+":1", rig.External+":5000", "x"), UDP(rig.Peer2+":1", rig.C1+":5000", "x"))
			res := r.Inside(UDP(rig.C2+":5001", rig.Peer1+":1", "x"))
			if got := res.Reason == "translated_outbound"; got != c.other {
				t.Errorf("another host's packet: %s", res.Reason)
			}
			r.From("q1", UDP(rig.Other+":5001", rig.Peer1+":1", "x")) // and another network's
			r.Consistent()
			r.Wait(301 * time.Second)
			r.Out(UDP(rig.C1+":5001", rig.Peer1+":3478", "x"), UDP(rig.External+":5001", rig.Peer1+":3478", "x"))
			r.Wait(7441 * time.Second)
			wantUsed(r, "0 0", map[string]string{})
		})
	}
}

// TestLimitOfSessions: the same for sessions (REQ-5), from whichever side they are opened. The host whose packet opens a session
// has it; a hairpin's is the sender's.
func TestLimitOfSessions(t *testing.T) { family.Each(t, testLimitOfSessions) }

func testLimitOfSessions(t *testing.T, fam family.Family) {
	for name, c := range map[string]struct {
		limits dataplane.Limits
		reason string
	}{
		"Host":    {dataplane.Limits{HostSessions: 3}, "host_sessions"},
		"Network": {dataplane.Limits{NetworkSessions: 3}, "network_sessions"},
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, rig.In(fam), limited(c.limits), rig.WithFiltering(dataplane.EndpointIndependent))
			r.Opened("udp", rig.C1+":5000")
			r.In(UDP(rig.Peer2+":1", rig.External+":5000", "x"), UDP(rig.Peer2+":1", rig.C1+":5000", "x"))
			r.Opened("tcp", rig.C1+":5000")
			wantUsed(r, "2 3", map[string]string{rig.C1: "2 3"})
			r.Forget()
			r.Inside(UDP(rig.C1+":5000", rig.Peer2+":9", "x")).Dropped(c.reason)
			r.WantEvents("quota.exceeded udp br0 " + rig.C1 + ":5000 " + rig.External + ":5000 " + rig.Peer2 + ":9 x1 " + c.reason)
			r.Outside(UDP(rig.Peer2+":2", rig.External+":5000", "x")).Dropped(c.reason)
			r.Forget()
			r.Inside(UDP(rig.C1+":6000", rig.Peer2+":9", "x")).Dropped(c.reason) // and makes no binding, nor its events
			r.WantEvents()
			wantUsed(r, "2 3", map[string]string{rig.C1: "2 3"})
			r.In(UDP(rig.Peer2+":1", rig.External+":5000", "x"), UDP(rig.Peer2+":1", rig.C1+":5000", "x"))
			r.Wait(301 * time.Second)
			r.Out(UDP(rig.C1+":6000", rig.Peer2+":9", "x"), UDP(rig.External+":6000", rig.Peer2+":9", "x"))
			wantUsed(r, "1 1", map[string]string{rig.C1: "1 1"})
		})
	}
}

// TestUsage: what counts for whom.
func TestUsage(t *testing.T) { family.Each(t, testUsage) }

func testUsage(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam), limited(dataplane.Limits{HostPorts: 2}))
	r.Opened("udp", rig.C1+":5000")
	r.Opened("udp", rig.C2+":5000")
	r.Subtest("Hairpin", func() {
		ext := r.ExternalOf("udp", rig.C2+":5000")
		r.Inside(UDP(rig.C1+":5000", ext, "x"))
		wantUsed(r, "2 3", map[string]string{rig.C1: "1 2", rig.C2: "1 1"})
	})
	r.Subtest("Static", func() { // it takes nobody's port, and its sessions are its host's
		r.Forward("br0", dataplane.TCP, rig.External+":80", rig.C1+":80")
		r.Outside(TCP(rig.Peer1+":99", rig.External+":80", "S", ""))
		wantUsed(r, "2 4", map[string]string{rig.C1: "1 3", rig.C2: "1 1"})
	})
	r.Subtest("BecomesStatic", func() { // counted as long as it lives
		r.Forward("br0", dataplane.UDP, rig.External+":5000", rig.C1+":5000")
		wantUsed(r, "2 4", map[string]string{rig.C1: "1 3", rig.C2: "1 1"})
	})
	r.Subtest("Imported", func() { // whatever the limit: another NAT has it already
		setLimits(r, dataplane.Limits{HostPorts: 1, HostSessions: 1})
		r.MustImport(dataplane.TCP, "established", rig.C2+":7000", rig.External+":7000", rig.Peer1+":443")
		wantUsed(r, "3 5", map[string]string{rig.C1: "1 3", rig.C2: "2 2"})
		r.Inside(UDP(rig.C2+":7001", rig.Peer1+":1", "x")).Dropped("host_ports")
	})
	r.Subtest("Host", func() { // the host itself is in no network
		r.Egress("", UDP(rig.External+":5000", rig.Peer2+":1", "x"))
		wantUsed(r, "3 5", map[string]string{rig.C1: "1 3", rig.C2: "2 2"})
	})
	r.Subtest("Ended", func() {
		for _, ext := range []string{":80", ":5000"} {
			p := dataplane.UDP
			if ext == ":80" {
				p = dataplane.TCP
			}
			if err := r.RemoveForward(p, rig.External+ext); err != nil {
				t.Error(err)
			}
		}
		r.Wait(7441 * time.Second)
		wantUsed(r, "0 0", map[string]string{})
		r.Empty()
	})
}

// TestLimitsChange: live, up and down: who has more than a lower limit keeps it, and gets none.
func TestLimitsChange(t *testing.T) { family.Each(t, testLimitsChange) }

func testLimitsChange(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	for i := range 4 {
		r.Opened("udp", fmt.Sprintf("%s:%d", rig.C1, 5000+i))
	}
	setLimits(r, dataplane.Limits{HostPorts: 2})
	r.Inside(UDP(rig.C1+":6000", rig.Peer1+":1", "x")).Dropped("host_ports")
	r.Out(UDP(rig.C1+":5003", rig.Peer2+":1", "x"), UDP(rig.External+":5003", rig.Peer2+":1", "x"))
	setLimits(r, dataplane.Limits{HostPorts: 5})
	r.Opened("udp", rig.C1+":6000")
	r.Inside(UDP(rig.C1+":6001", rig.Peer1+":1", "x")).Dropped("host_ports")
	setLimits(r, dataplane.Limits{})
	r.Opened("udp", rig.C1+":6001")
	wantUsed(r, "6 7", map[string]string{rig.C1: "6 7"})
}

// TestRemovedNetworkUsesNothing: nor does the one that gets its place in the tables.
func TestRemovedNetworkUsesNothing(t *testing.T) { family.Each(t, testRemovedNetworkUsesNothing) }

func testRemovedNetworkUsesNothing(t *testing.T, fam family.Family) {
	r := rig.New(t, rig.In(fam))
	r.From("q1", UDP(rig.Other+":5000", rig.Peer1+":1", "x"))
	r.Must("remove br1", func() error {
		for _, dev := range []string{"q1", "br1"} {
			if err := r.DP.Detach(r.Ports[dev]); err != nil {
				return err
			}
		}
		return r.DP.RemoveNetwork("br1")
	})
	r.Empty()
}
