// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/topo"
)

func TestMain(m *testing.M) { os.Exit(topo.Main(m)) }

// A real dockerd's own rules never count, whatever it is told; what an operator puts beside them does.
func TestDocker(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{})
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{})
	for _, args := range [][]string{
		{"network", "create", "--opt", "com.docker.network.bridge.name=custom1", "--subnet", "172.20.0.0/16", "one"},
		{"network", "create", "--opt", "com.docker.network.bridge.enable_icc=false", "--subnet", "172.21.0.0/16", "two"},
		{"network", "create", "--internal", "--subnet", "172.22.0.0/16", "three"},
		{"network", "create", "--opt", "com.docker.network.bridge.enable_ip_masquerade=false", "--subnet", "172.23.0.0/16", "four"},
	} {
		if _, err := d.CLI(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	d.RunForTest(t, docker.Spec{Name: "one", Publish: map[string]string{"80/tcp": ":8080", "53/udp": topo.HostAddr.String() + ":5353"}})
	d.RunForTest(t, docker.Spec{Name: "two", Network: "one", Publish: map[string]string{"80/tcp": ":8081"}})
	traffic := Traffic{Inside: []string{"docker0", "custom1"}, Outside: []string{"eth0"},
		Prefixes: prefixes("172.17.0.0/16", "172.20.0.0/16")}

	report := inspectIn(t, f.Host, traffic)
	const where = "iptables nat PREROUTING -> DOCKER"
	want := Report{Diverted: []Diverted{
		dockers(diverted(dataplane.TCP, 8080, 8080, "", where)),
		dockers(diverted(dataplane.TCP, 8081, 8081, "", where)),
		dockers(diverted(dataplane.UDP, 5353, 5353, netip.PrefixFrom(topo.HostAddr, 32).String(), where)),
	}}
	if diff := cmp.Diff(want, report, compareIP); diff != "" {
		t.Errorf("Docker's own rules:\n%s", diff)
	}

	if _, err := f.Host.Run(t.Context(), "", "iptables", "-I", "DOCKER-USER", "-i", "eth0", "-p", "tcp", "--dport", "80", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	found := []Finding{{"iptables filter FORWARD -> DOCKER-USER", "-A DOCKER-USER -i eth0 -p tcp -m tcp --dport 80 -j DROP"}}
	if diff := cmp.Diff(found, inspectIn(t, f.Host, traffic).Bypassed); diff != "" {
		t.Errorf("with a rule in DOCKER-USER:\n%s", diff)
	}
	if _, err := f.Host.Run(t.Context(), "", "iptables", "-D", "DOCKER-USER", "1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, inspectIn(t, f.Host, traffic), compareIP); diff != "" {
		t.Errorf("after the rule went:\n%s", diff)
	}
}

// TestDockerWithIPv6: dockerd's rules of IPv6 are none of others; without --ip6tables there are none.
func TestDockerWithIPv6(t *testing.T) {
	for name, cfg := range map[string]docker.Config{
		"ip6tables": {IPv6: true},
		"routed":    {Args: []string{"--ipv6", "--fixed-cidr-v6", "fd00:17::/64"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: true})
			d := docker.StartForTest(t, f.Topo, f.Host, cfg)
			d.RunForTest(t, docker.Spec{Name: "one", Idle: true, Publish: map[string]string{"80/tcp": ":8080"}})
			const where = "ip6tables nat PREROUTING -> DOCKER"
			want := Report{Diverted: []Diverted{dockers(diverted(dataplane.TCP, 8080, 8080, "", "iptables nat PREROUTING -> DOCKER"))}}
			if cfg.IPv6 {
				want.Diverted = append(want.Diverted, dockers(diverted(dataplane.TCP, 8080, 8080, "::/0", where)))
			}
			traffic := Traffic{Inside: []string{"docker0"}, Outside: []string{"eth0"}, Prefixes: prefixes("172.17.0.0/16", "fd00:17::/64")}
			if diff := cmp.Diff(want, inspectIn(t, f.Host, traffic), compareIP); diff != "" {
				t.Error(diff)
			}
			var translated bool
			err := f.Host.Do(func() (err error) {
				translated, err = New().DockerIPv6()
				return err
			})
			if err != nil || translated != cfg.IPv6 {
				t.Errorf("NAT of IPv6: %v, %v", translated, err)
			}
		})
	}
}

func inspectIn(t *testing.T, ns *topo.NS, traffic Traffic) (report Report) {
	t.Helper()
	err := ns.Do(func() (err error) {
		report, err = New().Inspect(traffic)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}
