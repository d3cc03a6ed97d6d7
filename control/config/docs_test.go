// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/conenat/conenat/dataplane"
)

// documented are the rows of the page that lists the keys, by the key's last part; those of `forwards` come last.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(page)) {
		if key, _, row := strings.Cut(strings.TrimPrefix(line, "| `"), "` |"); row && strings.HasPrefix(line, "| `") {
			rows[key] = append(rows[key], line)
		}
	}
	return rows
}

// TestEveryKeyIsDocumented: the page has a row for each key of the file, and no other.
func TestEveryKeyIsDocumented(t *testing.T) {
	rows := documented(t)
	var walk func(of reflect.Type)
	walk = func(of reflect.Type) {
		for i := range of.NumField() {
			key, kind := of.Field(i).Tag.Get("yaml"), of.Field(i).Type
			group := kind == reflect.TypeFor[Timeouts]() || kind == reflect.TypeFor[Capacity]() || kind == reflect.TypeFor[Limits]()
			switch {
			case group:
				walk(kind)
			case kind == reflect.TypeFor[[]Forward](), kind == reflect.TypeFor[[]NetworkValues]():
				walk(kind.Elem())
			case len(rows[key]) == 0:
				t.Errorf("docs/configuration.md has no row for %s of %s", key, of.Name())
			default:
				rows[key] = rows[key][1:]
				if kind == reflect.TypeFor[XDPValues]() { // a value, or keys
					walk(kind)
				}
			}
		}
	}
	walk(reflect.TypeFor[Layer]())
	for key, left := range rows {
		if len(left) > 0 {
			t.Errorf("docs/configuration.md: there is no key %s as in %q", key, left)
		}
	}
}

// TestDocumentedDefaults: what the page calls a default is what holds where nothing is said.
func TestDocumentedDefaults(t *testing.T) {
	c, err := Build(Layer{Docker: Flag("docker", "true")})
	if err != nil {
		t.Fatal(err)
	}
	s, rows := c.Settings, documented(t)
	for key, want := range map[string]any{
		"mapping": c.Mapping[0], "filtering": c.Filtering[0], "path": c.Path, "veth": c.XDP.Veth, "containers": c.XDP.Containers, "unsolicited": map[bool]string{true: "drop", false: "pass"}[c.DropUnsolicited], "ports": fmt.Sprintf("%d-%d", s.PortLow, s.PortHigh),
		"block_size": c.BlockSize, "refusal": c.Refusal, "mss": map[bool]string{true: "clamp", false: "keep"}[c.MSSClamp],
		"socket": c.Socket, "state_dir": c.StateDir, "ports_per_host": c.Limits.HostPorts, "ports_per_network": c.Limits.NetworkPorts,
		"sessions_per_network": c.Limits.NetworkSessions, "udp": s.UDPTimeout, "tcp_established": s.TCPEstablishedTimeout,
		"tcp_partial_open": s.TCPPartialOpenTimeout, "tcp_closing": s.TCPClosingTimeout, "icmp": s.ICMPTimeout, "sweep": s.SweepPeriod,
		"sessions": dataplane.DefaultCapacity.Sessions, "bindings": dataplane.DefaultCapacity.Bindings, "sessions_per_binding": s.SessionsPerBinding,
	} {
		if len(rows[key]) == 0 || !strings.Contains(rows[key][0], fmt.Sprintf(" `%v`", want)) {
			t.Errorf("%s is %v by default: docs/configuration.md has %q", key, want, rows[key])
		}
	}
}
