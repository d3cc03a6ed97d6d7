// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/tests/docker"
	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/harness"
	"github.com/conenat/conenat/tests/topo"
)

const alternateAddr = "203.0.113.9" // peer 1's second address

// stunServer runs `conenat stun-server` at peer 1.
func stunServer(fam family.Family, t *testing.T, f *topo.Figure3) *topo.Process {
	t.Helper()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Peer1.AddAddr("eth0", alternateAddr+"/24"); err != nil {
		t.Fatal(err)
	}
	cmd := f.Peer1.Command(context.Background(), binary, "stun-server",
		"--primary", fam.Text(topo.Peer1Addr.String()), "--alternate", fam.Text(alternateAddr))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	process, err := f.Start("conenat stun-server", cmd)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stderr).ReadString('\n')
	endpoints := fam.Text("[203.0.113.1:3478 203.0.113.1:3479 203.0.113.9:3478 203.0.113.9:3479]")
	if err != nil || !strings.Contains(line, "msg=ready") || !strings.Contains(line, endpoints) {
		t.Fatalf("stun-server: %v: %s", err, line)
	}
	return process
}

// checked is what of `conenat check -o json` does not depend on ports; the contract's JSON.
type checked struct {
	NAT       *bool  `json:"nat"`
	Mapping   string `json:"mapping"`
	Filtering string `json:"filtering"`
	Preserved *bool  `json:"port_preserved"`
	Stable    *bool  `json:"stable"`
	After     string `json:"mapping_after_unsolicited"`
	Hairpin   *bool  `json:"hairpin"`
	Source    string `json:"hairpin_source"`
	RFC3489   string `json:"rfc3489"`
	TCP       struct {
		Mapping   string `json:"mapping"`
		Preserved *bool  `json:"port_preserved"`
	} `json:"tcp"`
	Lifetime struct {
		AtLeast *float64 `json:"at_least_s"`
		Below   *float64 `json:"below_s"`
	} `json:"lifetime"`
	Problems []string `json:"problems"`
}

// check runs `conenat check` in a namespace.
func check(fam family.Family, t *testing.T, ns *topo.NS, args ...string) checked {
	t.Helper()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"check", "--server", fam.Text(topo.Peer1Addr.String()), "-o", "json"}, args...)
	out, err := ns.Run(t.Context(), "", binary, args...)
	var list []checked
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil || len(list) != 1 {
		t.Fatalf("check: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("check said %s", out)
		}
	})
	return list[0]
}

// aNAT is what holds for Docker's NAT and for conenat: mapping over UDP and TCP, seen from fresh ports.
func aNAT(filtering, rfc3489 string, stable, hairpin bool) checked {
	yes := true
	c := checked{NAT: &yes, Mapping: "endpoint-independent", Filtering: filtering, Preserved: &yes, Stable: &stable,
		After: "endpoint-independent", Hairpin: &hairpin, RFC3489: rfc3489, Problems: []string{}}
	c.TCP.Mapping, c.TCP.Preserved = "endpoint-independent", &yes
	if hairpin {
		c.Source = "external"
	}
	if !stable {
		c.After = "address-and-port-dependent"
	}
	return c
}

// TestCheck: under a real Docker, check tells netfilter's NAT, which turns symmetric; with conenat in its place just what
// conenat was told to do; and netfilter's again afterwards.
func TestCheck(t *testing.T) { family.Each(t, testCheck) }

func testCheck(t *testing.T, fam family.Family) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{IPv6: fam == family.V6})
	d := docker.StartForTest(t, f.Topo, f.Host, docker.Config{IPv6: fam == family.V6})
	container := d.RunForTest(t, docker.Spec{Name: "agent"}).NS
	server := stunServer(fam, t, f)
	dockers := aNAT("address-and-port-dependent", "port-restricted cone", false, false)
	if diff := cmp.Diff(dockers, check(fam, t, container)); diff != "" {
		t.Errorf("Docker's NAT (-want +got):\n%s", diff)
	}
	for filtering, rfc3489 := range both(fam, map[string]string{
		"endpoint-independent":       "full cone",
		"address-dependent":          "restricted cone",
		"address-and-port-dependent": "port-restricted cone",
	}, "address-dependent") {
		t.Run(filtering, func(t *testing.T) {
			c := harness.Start(t, f.Topo, f.Host, "--inside", "docker0", "--filtering", filtering)
			if diff := cmp.Diff(aNAT(filtering, rfc3489, true, true), check(fam, t, container)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			c.Detach()
		})
	}
	if diff := cmp.Diff(dockers, check(fam, t, container)); diff != "" {
		t.Errorf("Docker's NAT after conenat (-want +got):\n%s", diff)
	}
	if err := server.Stop(10 * time.Second); err != nil {
		t.Error(err)
	}
	if err := server.Wait(t.Context()); err != nil {
		t.Errorf("stun-server after SIGTERM: %v", err)
	}
}

// TestCheckMapping: a mapping that depends on the remote is seen as such, over UDP and TCP, and stays what it is.
func TestCheckMapping(t *testing.T) { family.Each(t, testCheckMapping) }

func testCheckMapping(t *testing.T, fam family.Family) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1, IPv6: fam == family.V6})
	stunServer(fam, t, f)
	const filtering = "address-and-port-dependent"
	for _, mapping := range []string{"address-dependent", "address-and-port-dependent"} {
		t.Run(mapping, func(t *testing.T) {
			c := harness.Start(t, f.Topo, f.Host, "--inside", "docker0", "--mapping", mapping, "--filtering", filtering)
			want, no := aNAT(filtering, "symmetric", true, true), false
			want.Mapping, want.TCP.Mapping, want.After, want.Preserved = mapping, mapping, mapping, &no
			if diff := cmp.Diff(want, check(fam, t, f.Containers[0])); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !strings.Contains(c.Log(), "--mapping: "+mapping+" mapping of udp is not the endpoint-independent one that RFC 4787 REQ-1 demands") {
				t.Errorf("no warning: %s", c.Log())
			}
			c.Detach()
		})
	}
}

// TestCheckLifetime: the lifetime that check finds is the configured one, to its search's resolution and the
// sweeper's period.
func TestCheckLifetime(t *testing.T) { family.Each(t, testCheckLifetime) }

func testCheckLifetime(t *testing.T, fam family.Family) {
	l := newLabIn(fam, t, topo.Figure3Config{Containers: 1}, quick) // udp: 2s, sweep: 100ms
	stunServer(fam, t, l.Figure3)
	got := check(fam, t, l.Containers[0], "--lifetime", "6400ms", "--timeout", "1s").Lifetime
	if got.AtLeast == nil || got.Below == nil || *got.AtLeast < 1.5 || *got.Below > 3 || *got.AtLeast >= *got.Below {
		b, _ := json.Marshal(got)
		t.Errorf("configured 2 s, found %s", b)
	}
}

// TestCheckFails: exit code 1 with what to do, and the report for all that.
func TestCheckFails(t *testing.T) {
	f := topo.Figure3ForTest(t, topo.Figure3Config{Containers: 1})
	if err := topo.DockerRules(t.Context(), f.Host); err != nil {
		t.Fatal(err)
	}
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := f.Containers[0].Command(t.Context(), binary, "check", "--server", topo.Peer1Addr.String()+":3490", "--timeout", "500ms")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit code: %v", err)
	}
	for _, want := range []string{"RFC 3489 type", "nothing listens on UDP 203.0.113.1:3490", "conenat: no answer over UDP from STUN server 203.0.113.1:3490"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
