// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/google/go-cmp/cmp"
)

// FuzzLabels: whatever somebody writes into a label is either what it means or a problem that names it, and never both.
func FuzzLabels(f *testing.F) {
	for _, seed := range [][2]string{
		{"conenat.enable", "false"}, {"conenat.filtering", "endpoint-independent"}, {"conenat.mapping", "endpoint-independent"},
		{"conenat.filtering", "icmp=endpoint-independent, tcp=address-and-port-dependent"}, {"conenat.external", "198.51.100.1"},
		{"com.example.team", "conenat.enable=false"}, {"conenat.", ""}, {"conenat.mode", "nptv6"}, {"conenat.external-prefix", "2001:db8::/48"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		l, problems := parseLabels("container x", map[string]string{key: value})
		if len(problems) > 1 || len(problems) == 1 && !cmp.Equal(l, labels{}, cmp.AllowUnexported(labels{}), compare) {
			t.Errorf("%q=%q: %+v and %q", key, value, l, problems)
		}
		if l.filtering != nil {
			l.filtering.over(base)
		}
	})
}

// FuzzContainer: whatever an Engine says of a container, there is no panic.
func FuzzContainer(f *testing.F) {
	f.Add([]byte(`{"Id":"c1","Name":"/web","State":{"Running":true,"Pid":42},"Config":{"Labels":{"conenat.filtering":"udp=address-dependent"}},
		"NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],"53/udp":null,"9/sctp":[{"HostPort":"9"}]},
		"Networks":{"bridge":{"NetworkID":"n1","EndpointID":"e1","IPAddress":"172.17.0.2","Gateway":"172.17.0.1"},"gone":null}}}`))
	f.Fuzz(func(_ *testing.T, answer []byte) {
		var c container.InspectResponse
		if json.Unmarshal(answer, &c) != nil || !complete(c) {
			return
		}
		newContainerState(c)
	})
}

// FuzzNetwork: the same of a network.
func FuzzNetwork(f *testing.F) {
	f.Add([]byte(`{"Name":"bridge","Id":"0123456789abcdef","Driver":"bridge","IPAM":{"Config":[{"Subnet":"172.17.0.0/16"},{"Subnet":"fd00::/64"}]},
		"Options":{"com.docker.network.bridge.default_bridge":"true"},"Labels":{"conenat.enable":"false"}}`))
	f.Add([]byte(`{"Name":"b","Id":"01","Driver":"bridge"}`))
	f.Fuzz(func(_ *testing.T, answer []byte) {
		var n network.Summary
		if json.Unmarshal(answer, &n) == nil {
			newNetwork(n, base, base)
		}
	})
}
