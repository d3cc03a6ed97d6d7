// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/netip"
	"testing"
)

func TestWant(t *testing.T) {
	for want, w := range map[string]Want{
		"ip protocol udp ip saddr 198.51.100.1 ip daddr 203.0.113.1": {Protocol: "udp",
			Src: netip.AddrPortFrom(External, 0), Dst: netip.MustParseAddrPort("203.0.113.1:0")},
		"ip protocol tcp ip saddr 198.51.100.1 ip daddr 203.0.113.1 tcp sport 20000 tcp dport 80": {Protocol: "tcp",
			Src: netip.AddrPortFrom(External, 20000), Dst: netip.MustParseAddrPort("203.0.113.1:80")},
	} {
		if got := w.match(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestParseCount(t *testing.T) {
	text := "table netdev bench_sink {\n\tcounter arrived {\n\t\tpackets 1184 bytes 54464\n\t}\n}\n"
	if n, err := parseCount(text); n != 1184 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, text := range []string{"", "table netdev bench_sink {\n}\n", "packets many"} {
		if n, err := parseCount(text); err == nil {
			t.Errorf("%q: %d, and no error", text, n)
		}
	}
}
