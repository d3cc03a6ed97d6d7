// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/natcheck"
	"github.com/conenat/conenat/tests/topo"
)

// asCommand makes the test's binary conenat itself, for a test that needs a process in a namespace.
const asCommand = "CONENAT_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(topo.Main(m))
}

func TestCheckWrongUsage(t *testing.T) {
	const both = "stun-server --primary 127.0.0.1 --alternate 127.0.0.2"
	for args, want := range map[string]string{
		"check":                                   "no server: name one by --server ADDR[:PORT]",
		"check extra --server 127.0.0.1":          "unknown command",
		"check --server 127.0.0.1:0":              `--server "127.0.0.1:0": want ADDR or ADDR:PORT`,
		"check --server 127.0.0.1:http":           "want ADDR or ADDR:PORT",
		"check --server 127.0.0.1:99999":          "want ADDR or ADDR:PORT",
		"check --server stun://x":                 "want ADDR or ADDR:PORT",
		"check --server 127.0.0.1 --lifetime 5":   "missing unit",
		"check --server 127.0.0.1 --lifetime -5s": "--lifetime -5s: want at least 1s",
		"check --server 127.0.0.1 --timeout 0s":   "--timeout 0s: want at least 100ms",
		"check --server 127.0.0.1 -o yaml":        "want table or json",
		"stun-server":                             "no --primary: name an address of this host",
		"stun-server --primary 127.0.0.1":         "no --alternate: name an address of this host",
		"stun-server --primary host":              `--primary: "host" is no IP address`,
		both + " --alternate-port 3478":           "both 3478",
		both + " --primary-port 99999":            "invalid argument",
		both + " --alternate 127.0.0.1":           "both 127.0.0.1",
		both + " extra":                           "unknown command",
	} {
		code, stdout, stderr := newWorld(t).run(t.Context(), strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(stderr, want) || stdout != "" {
			t.Errorf("%s: exit code %d\nstdout %q\nstderr %q\nwant %q", args, code, stdout, stderr, want)
		}
	}
}

func TestParseServer(t *testing.T) {
	for text, want := range map[string]string{
		"203.0.113.1":          "203.0.113.1 3478",
		"203.0.113.1:9":        "203.0.113.1 9",
		"2001:db8::1":          "2001:db8::1 3478",
		"[2001:db8::1]":        "2001:db8::1 3478",
		"[2001:db8::1]:9":      "2001:db8::1 9",
		"stun.example.org":     "stun.example.org 3478",
		"stun.example.org:443": "stun.example.org 443",
		":3478":                "",
		"a b":                  "",
	} {
		host, port, err := parseServer(text)
		got := ""
		if err == nil {
			got = strings.Join([]string{host, jsonText(port)}, " ")
		}
		if got != want {
			t.Errorf("%q is %q, %v; want %q", text, got, err, want)
		}
	}
}

func jsonText(v any) string { b, _ := json.Marshal(v); return string(b) }

// TestCheckAsksStunServer runs both commands in a namespace without a NAT.
func TestCheckAsksStunServer(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { checkAsksStunServer(t, "127.0.0.1", "127.0.0.2") })
	t.Run("IPv6", func(t *testing.T) { checkAsksStunServer(t, "2001:db8::1", "2001:db8::2") })
}

func checkAsksStunServer(t *testing.T, one, other string) {
	top := topo.ForTest(t)
	top.EnableIPv6()
	ns, err := top.NewNS("stun")
	if err == nil {
		err = ns.IP(t.Context(), "addr add 2001:db8::1/128 dev lo nodad\naddr add 2001:db8::2/128 dev lo nodad\n")
	}
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(one), 5000).String()
	server := startStunServer(t, top, ns, "--primary", one, "--alternate", other, "--primary-port", "5000", "--alternate-port", "5001")
	code, stdout, stderr := runCommandIn(t, ns, "check", "--server", at, "-o", "json")
	var list []natcheck.Report
	if err := json.Unmarshal([]byte(stdout), &list); code != exitDone || err != nil || len(list) != 1 || stderr != "" {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if r := list[0]; r.RFC3489 != "open Internet" || r.Mapping != natcheck.None || r.TCP.Mapping != natcheck.None || r.OtherAddress != netip.AddrPortFrom(netip.MustParseAddr(other), 5001) {
		t.Errorf("%s", stdout)
	}
	for _, field := range []string{`"server": "` + at + `"`, `"hairpin": null`, `"problems": []`, `"lifetime": {`} {
		if !strings.Contains(stdout, field) {
			t.Errorf("no %s in\n%s", field, stdout)
		}
	}
	code, stdout, stderr = runCommandIn(t, ns, "check", "--server", at, "--lifetime", "1s")
	if code != exitDone || !strings.Contains(stdout, "at least 1s") || !strings.Contains(stderr, "1s at the most") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if err := errors.Join(server.Stop(10*time.Second), server.Wait(t.Context())); err != nil {
		t.Errorf("stun-server after SIGTERM: %v", err)
	}
	code, stdout, stderr = runCommandIn(t, ns, "check", "--server", at, "--timeout", "200ms")
	if code != exitFailed || !strings.Contains(stdout, "problem: nothing listens on UDP "+at) || !strings.Contains(stderr, "port unreachable") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if code, _, stderr := runCommandIn(t, ns, "stun-server", "--primary", "192.0.2.1", "--alternate", "192.0.2.2"); code != exitFailed || !strings.Contains(stderr, "192.0.2.1:3478") {
		t.Errorf("foreign addresses: exit code %d, %s", code, stderr)
	}
}

// command is conenat in a namespace.
func command(t *testing.T, ns *topo.NS, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command(context.Background(), self, args...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	return cmd
}

func runCommandIn(t *testing.T, ns *topo.NS, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(t, ns, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// startStunServer waits for the line that says it is ready.
func startStunServer(t *testing.T, top *topo.Topo, ns *topo.NS, args ...string) *topo.Process {
	t.Helper()
	cmd := command(t, ns, append([]string{"stun-server"}, args...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	process, err := top.Start("stun-server", cmd)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil || !strings.Contains(line, "msg=ready") {
		t.Fatalf("%v: %s", err, line)
	}
	return process
}

func TestCheckTable(t *testing.T) {
	yes, no := true, false
	at := netip.MustParseAddrPort
	atLeast, below := 118.0, 121.96
	unstable := natcheck.Report{Server: at("203.0.113.1:3478"), OtherAddress: at("203.0.113.9:3479"), Internal: at("172.17.0.2:5000"),
		External: at("198.51.100.1:5000"), NAT: &yes, Mapping: natcheck.EndpointIndependent, Filtering: natcheck.AddressAndPortDependent,
		PortPreserved: &yes, Stable: &no, AfterUnsolicited: natcheck.AddressAndPortDependent, Hairpin: &no, RFC3489: "port-restricted cone",
		Lifetime: natcheck.Lifetime{Asked: true, AtLeast: &atLeast, Below: &below}, TCP: natcheck.TCP{Mapping: natcheck.EndpointIndependent, PortPreserved: &no},
		Mapped: []natcheck.Mapped{
			{Protocol: "udp", Remote: at("203.0.113.1:3478"), Internal: at("172.17.0.2:5001"), External: at("198.51.100.1:5001")},
			{Protocol: "udp", Remote: at("203.0.113.9:3479"), Internal: at("172.17.0.2:5000"), External: at("198.51.100.1:1024"), AfterUnsolicited: true},
			{Protocol: "tcp", Remote: at("203.0.113.1:3478")},
		}}
	unknown := natcheck.Report{Server: at("203.0.113.1:3478"), Mapping: natcheck.Unknown, Filtering: natcheck.Unknown, RFC3489: "UDP blocked",
		TCP: natcheck.TCP{Mapping: natcheck.Unknown}, Problems: []string{"no answer"}, Notes: []string{"no TCP"}}
	for _, tt := range []struct {
		report natcheck.Report
		want   string
	}{
		{unstable, `server             203.0.113.1:3478, other address 203.0.113.9:3479
internal endpoint  172.17.0.2:5000
external endpoint  198.51.100.1:5000
NAT                yes, port preserved
mapping            endpoint-independent
filtering          address-and-port-dependent
stable             no: after unsolicited packets, mapping is address-and-port-dependent
hairpin            no
lifetime           1m58s to 2m2s
TCP mapping        endpoint-independent, port not preserved
RFC 3489 type      port-restricted cone, and symmetric after unsolicited packets

REMOTE            INTERNAL         EXTERNAL           UNSOLICITED PACKETS BEFORE
203.0.113.1:3478  172.17.0.2:5001  198.51.100.1:5001  no
203.0.113.9:3479  172.17.0.2:5000  198.51.100.1:1024  yes
`},
		{unknown, `server             203.0.113.1:3478, other address -
internal endpoint  -
external endpoint  -
NAT                unknown
mapping            unknown
filtering          unknown
stable             unknown
hairpin            unknown
lifetime           not asked (--lifetime)
TCP mapping        unknown
RFC 3489 type      UDP blocked

problem: no answer

note: no TCP
`},
	} {
		var out strings.Builder
		w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		checkTable(w, tt.report)
		w.Flush()
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestCheckTexts(t *testing.T) {
	yes := true
	for got, want := range map[string]string{
		hairpinText(natcheck.Report{Hairpin: &yes, HairpinSource: "internal"}):                    "yes, but from the internal address",
		hairpinText(natcheck.Report{Hairpin: &yes, HairpinSource: "external"}):                    "yes",
		hairpinText(natcheck.Report{Mapping: natcheck.None}):                                      "-",
		lifetimeText(natcheck.Lifetime{Asked: true}):                                              "unknown",
		lifetimeText(natcheck.Lifetime{Asked: true, AtLeast: new(float64)}):                       "at least 0s",
		lifetimeText(natcheck.Lifetime{Asked: true, Below: new(float64)}):                         "below 0s",
		stableText(natcheck.Report{Stable: &yes, AfterUnsolicited: natcheck.EndpointIndependent}): "yes",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
