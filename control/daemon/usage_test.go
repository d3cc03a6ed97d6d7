// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"testing"

	"github.com/conenat/conenat/dataplane"
)

// TestBusiest: who is nearest to a limit, whichever it is, is the one to warn of.
func TestBusiest(t *testing.T) {
	host := func(last byte, ports, sessions uint32) dataplane.HostUsage {
		return dataplane.HostUsage{Address: netip.AddrFrom4([4]byte{172, 17, 0, last}), Ports: ports, Sessions: sessions}
	}
	limits := dataplane.Limits{HostPorts: 100, HostSessions: 1000}
	for name, tt := range map[string]struct {
		hosts  []dataplane.HostUsage
		limits dataplane.Limits
		want   byte
	}{
		"by_ports":       {[]dataplane.HostUsage{host(2, 10, 500), host(3, 60, 60)}, limits, 3},
		"by_sessions":    {[]dataplane.HostUsage{host(2, 10, 100), host(3, 1, 1000)}, limits, 3},
		"without_limits": {[]dataplane.HostUsage{host(2, 10, 100), host(3, 1, 1000)}, dataplane.Limits{}, 2},
		"one_limit":      {[]dataplane.HostUsage{host(2, 10, 100), host(3, 1, 900)}, dataplane.Limits{HostSessions: 1000}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			if got := busiest(tt.hosts, tt.limits).Address.As4()[3]; got != tt.want {
				t.Errorf("host %d, want %d", got, tt.want)
			}
		})
	}
}
