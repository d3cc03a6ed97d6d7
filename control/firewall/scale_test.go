// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/conenat/conenat/tests/patience"
)

// manyPorts is what Docker 20.10 writes for published ports of one container: three rules for each.
func manyPorts(count int) string {
	var filter, nat, masquerade strings.Builder
	for port := 10000; port < 10000+count; port++ {
		fmt.Fprintf(&filter, "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport %d -j ACCEPT\n", port)
		fmt.Fprintf(&nat, "-A DOCKER ! -i docker0 -p tcp -m tcp --dport %d -j DNAT --to-destination 172.17.0.2:%d\n", port, port)
		fmt.Fprintf(&masquerade, "-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport %d -j MASQUERADE\n", port)
	}
	return dockerUser(":DOCKER-FORWARD -\n-A FORWARD -j DOCKER-USER\n"+filter.String()) +
		inTable("nat", ":DOCKER -\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"+nat.String()+masquerade.String())
}

// An inspection of 10,000 published ports, 30,000 rules, takes well under a second: 0.3 s on two busy cores. The
// bound leaves room for the race detector.
func TestInspectManyPorts(t *testing.T) {
	const count = 10000
	for _, b := range []backend{iptables, iptablesLegacy} {
		t.Run(string(b), func(t *testing.T) {
			inNamespace(t)
			load(t, b, manyPorts(count))
			best := time.Hour
			for range 3 {
				start := time.Now()
				report := inspect(t)
				best = min(best, time.Since(start))
				if len(report.Bypassed) != 0 || len(report.Diverted) != count {
					t.Fatalf("%d rules bypassed, %d ports diverted", len(report.Bypassed), len(report.Diverted))
				}
			}
			t.Logf("%d ports inspected in %v", count, best)
			if best > patience.For(3*time.Second) {
				t.Errorf("the best of three inspections took %v", best)
			}
		})
	}
}

// The same for a cluster's 3,000 services: 9,000 chains.
func TestInspectManyServices(t *testing.T) {
	const count = 3000
	var chains, rules strings.Builder
	for i := range count {
		fmt.Fprintf(&chains, ":KUBE-SVC-%d -\n:KUBE-SEP-%d -\n:KUBE-EXT-%d -\n", i, i, i)
		fmt.Fprintf(&rules, "-A KUBE-NODEPORTS -p tcp -m tcp --dport %d -j KUBE-EXT-%d\n-A KUBE-EXT-%d -j KUBE-SVC-%d\n-A KUBE-SVC-%d -j KUBE-SEP-%d\n"+
			"-A KUBE-SEP-%d -p tcp -m tcp -j DNAT --to-destination 10.244.1.4:8080\n", 30000+i, i, i, i, i, i, i)
	}
	inNamespace(t)
	load(t, iptables, inTable("nat", ":KUBE-NODEPORTS -\n"+chains.String()+"-A PREROUTING -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n"+rules.String()))
	start := time.Now()
	report := inspect(t)
	took := time.Since(start)
	if len(report.Diverted) != count || len(report.Translated) != 0 {
		t.Fatalf("%d ports diverted, %d rules for containers", len(report.Diverted), len(report.Translated))
	}
	t.Logf("%d services inspected in %v", count, took)
	if took > patience.For(2*time.Second) {
		t.Errorf("the inspection took %v", took)
	}
}
