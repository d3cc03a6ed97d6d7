// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"encoding/json"
	"strings"
)

// statistics are the kernel's own of what it drops in a namespace: at a CPU's backlog (second column), in conntrack, by IP, at
// interfaces.
const statistics = `cd /proc/net; head -v -n 99 softnet_stat stat/nf_conntrack 2>/dev/null; grep -H Ip: snmp; cat dev; ip -s -s neigh`

// tellOfDrops logs where packets have gone, as far as the daemon and the host's kernel know.
func (c *Conenat) tellOfDrops() {
	if out, code := c.Try("status", "--socket", c.Socket, "-o", "json"); code == 0 {
		var list []struct {
			Counters []struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counters"`
		}
		if json.Unmarshal([]byte(out), &list) == nil && len(list) == 1 {
			for _, counter := range list[0].Counters {
				if counter.Packets > 0 {
					c.t.Logf("%s: %d", counter.Name, counter.Packets)
				}
			}
		}
	}
	if out, err := c.host.Run(context.Background(), "", "sh", "-c", statistics); err == nil {
		c.t.Logf("the host's statistics:\n%s", strings.TrimSpace(out))
	}
}
