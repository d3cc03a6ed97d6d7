// SPDX-License-Identifier: Apache-2.0

package topo

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/conenat/conenat/tests/family"
)

// The rules that dockerd 20.10 writes for its default bridge, in the order it writes them.
// TestDockerRules (tests/docker) compares them with a real dockerd's.
const dockerRules = `*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`

// DockerRules gives a namespace with a docker0 the rules of Docker's bridge NAT, without a Docker; where the namespace has IPv6, those
// of a dockerd with --ipv6 and --ip6tables, too.
func DockerRules(ctx context.Context, host *NS) error {
	for _, f := range host.Families() {
		rules := dockerRules
		if f == family.V6 {
			rules = withoutDockerUser(rules)
		}
		if _, err := host.Run(ctx, f.Rules(rules), Tables(f)+"-restore"); err != nil {
			return err
		}
	}
	return nil
}

// withoutDockerUser: dockerd 20.10 makes no DOCKER-USER in IPv6.
func withoutDockerUser(rules string) string {
	var kept strings.Builder
	for line := range strings.Lines(rules) {
		if !strings.Contains(line, "DOCKER-USER") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// Tables is the family's iptables.
func Tables(f family.Family) string {
	if f == family.V6 {
		return "ip6tables"
	}
	return "iptables"
}

var savedCounters = regexp.MustCompile(`(?m) \[\d+:\d+\]$`)

// SaveRules is what iptables-save prints in a namespace for each of its families, without comments and counters, so that two
// of them can be compared.
func SaveRules(ctx context.Context, ns *NS) (string, error) {
	var lines []string
	for _, f := range ns.Families() {
		saved, err := ns.Run(ctx, "", Tables(f)+"-save")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(saved) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, savedCounters.ReplaceAllString(line, ""))
			}
		}
	}
	return strings.Join(lines, ""), nil
}

// Published is a port that Docker publishes on every address of the host.
type Published struct {
	Protocol      string // tcp or udp
	HostPort      uint16
	Container     netip.Addr
	ContainerPort uint16
}

// The rules that Docker 28.2 and later write for the default bridge (moby's integration/network/bridge/iptablesdoc,
// usernet-portmap.md), with places for what depends on containers.
const docker28Rules = `*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
%s
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-BRIDGE -
:DOCKER-CT -
:DOCKER-FORWARD -
:DOCKER-INTERNAL -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
%s
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
%s
COMMIT
`

// Docker28Rules gives a namespace with a docker0 the rules of a Docker 28's bridge NAT for the given containers,
// without a Docker, in each family of the namespace: what is addressed to a container itself and does not come by docker0 is dropped in the raw table.
func Docker28Rules(ctx context.Context, host *NS, containers []netip.Addr, published ...Published) error {
	var raw, filter, nat strings.Builder
	for _, c := range containers {
		fmt.Fprintf(&raw, "-A PREROUTING -d %s ! -i docker0 -j DROP\n", c)
	}
	for _, p := range published {
		fmt.Fprintf(&filter, "-A DOCKER -d %s ! -i docker0 -o docker0 -p %s --dport %d -j ACCEPT\n", p.Container, p.Protocol, p.ContainerPort)
		fmt.Fprintf(&nat, "-A DOCKER ! -i docker0 -p %s --dport %d -j DNAT --to-destination %s:%d\n", p.Protocol, p.HostPort, p.Container, p.ContainerPort)
	}
	rules := fmt.Sprintf(docker28Rules, raw.String(), filter.String(), nat.String())
	for _, f := range host.Families() {
		if _, err := host.Run(ctx, f.Rules(rules), Tables(f)+"-restore"); err != nil {
			return err
		}
	}
	return nil
}
