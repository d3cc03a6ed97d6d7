// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/probe"
	"github.com/conenat/conenat/tests/topo"
)

// dockerLab is a real dockerd with conenat in its NAT's place, and two containers.
func dockerLab(fam family.Family, t *testing.T, cfg topo.Figure3Config) *lab {
	t.Helper()
	cfg.IPv6 = fam == family.V6
	f := topo.Figure3ForTest(t, cfg)
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{Family: fam})
	l := bareLab(fam, t, f)
	l.containers = []probe.Host{
		d.RunForTest(t, docker.Spec{Name: "first"}),
		d.RunForTest(t, docker.Spec{Name: "second", Publish: map[string]string{"80/tcp": ":8080"}}),
	}
	before := rules(t, f)
	l.Conenat = harness.StartIn(fam, t, f.Topo, f.Host, "--inside", "docker0")
	if during := rules(t, f); during != before {
		t.Errorf("iptables-save changed from\n%s\nto\n%s", before, during)
	}
	return l
}

// TestDockerTraffic: a container's TCP, UDP and ping; the host's own; the neighbours'; a port that Docker
// publishes.
func TestDockerTraffic(t *testing.T) { family.Each(t, testDockerTraffic) }

func testDockerTraffic(t *testing.T, fam family.Family) {
	for name, mtu := range both(fam, map[string]int{"MTU1500": 1500, "MTU1400": 1400}, "MTU1400") {
		t.Run(name, func(t *testing.T) {
			l := dockerLab(fam, t, topo.Figure3Config{UplinkMTU: mtu})
			dockerTraffic(l)
			if n := l.Counter("translated_outbound"); n < 1000 {
				t.Errorf("conenat translated %d packets outbound", n)
			}
			if n := conntracked(l, 9000); n != 0 {
				t.Errorf("conntrack has %d entries of the download", n)
			}
		})
	}
}

func dockerTraffic(l *lab) {
	at := l.family.At
	l.serve(l.peer1, 9000)
	conn := l.dial(l.containers[0], at(topo.Peer1Addr, 9000))
	if _, err := conn.Download(100 * megabyte); err != nil {
		l.t.Errorf("download: %v", err)
	}
	if _, err := conn.Upload(100 * megabyte); err != nil {
		l.t.Errorf("upload: %v", err)
	}
	for who, h := range map[string]probe.Host{"container": l.containers[0], "host": l.host} {
		if r, err := probe.PingOnce(h, l.family.Addr(topo.Peer1Addr), 5); err != nil || r.Received != 5 {
			l.t.Errorf("ping from the %s: %+v, %v", who, r, err)
		}
	}
	l.serve(l.host, 8000)
	if err := l.dial(l.peer1, at(topo.HostAddr, 8000)).Echo("the host's service"); err != nil {
		l.t.Error(err)
	}
	if err := l.dial(l.host, at(topo.Peer1Addr, 9000)).Echo("the host's connection"); err != nil {
		l.t.Error(err)
	}
	l.samePort(23000, true)
	l.samePort(23002, false)
	l.neighbours()
	l.publishedByDocker()
}

// neighbours: container to container on the bridge, untranslated.
func (l *lab) neighbours() {
	l.serve(l.containers[1], 9001)
	second := l.containers[1].(*docker.Container)
	conn := l.dial(l.containers[0], netip.AddrPortFrom(second.Addr, 9001))
	from, err := conn.Seen()
	if first := l.containers[0].(*docker.Container); err != nil || from.Addr() != first.Addr {
		l.t.Errorf("a neighbour is seen as %s, %v", from, err)
	}
	if _, err := conn.Download(20 * megabyte); err != nil {
		l.t.Error(err)
	}
}

// publishedByDocker: `-p 8080:80` is still Docker's, and still works.
func (l *lab) publishedByDocker() {
	at := l.family.At
	l.serve(l.containers[1], 80)
	conn := l.dial(l.peer2, at(topo.HostAddr, 8080))
	if from, err := conn.Seen(); err != nil || from.Addr() != l.family.Addr(topo.Peer2Addr) {
		l.t.Errorf("the published service sees its client as %s, %v", from, err)
	}
	if _, err := conn.Download(20 * megabyte); err != nil {
		l.t.Errorf("download from the published port: %v", err)
	}
}
