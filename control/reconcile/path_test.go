// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/firewall"
	"github.com/conenat/conenat/control/hostnet"
	"github.com/conenat/conenat/dataplane"
	"github.com/conenat/conenat/dataplane/dataplanetest"
)

// fakeFirewall answers what a test says, and remembers what it was asked.
type fakeFirewall struct {
	report firewall.Report
	err    error
	asked  []firewall.Traffic
	nat6   bool
}

func (f *fakeFirewall) Inspect(t firewall.Traffic) (firewall.Report, error) {
	f.asked = append(f.asked, t)
	if f.err != nil {
		return firewall.Report{}, f.err
	}
	return f.report, nil
}
func (f *fakeFirewall) DockerIPv6() (bool, error) { return f.nat6, f.err }
func (f *fakeFirewall) Changes() <-chan struct{}  { return nil }

// fakeConntrack is empty, and remembers what was seeded, and after which of the dataplane's actions.
type fakeConntrack struct {
	dp     *dataplanetest.Dataplane
	seeded []conntrack.Flow
	after  []string // the last action before each Replace
}

func (c *fakeConntrack) List() ([]conntrack.Flow, error) { return nil, nil }
func (c *fakeConntrack) Forget([]conntrack.Flow) error   { return nil }

func (c *fakeConntrack) Replace(flows []conntrack.Flow) (int, error) {
	c.seeded = append(c.seeded, flows...)
	log := c.dp.Log()
	c.after = append(c.after, log[len(log)-1])
	return len(flows), nil
}

var (
	dropRule  = firewall.Finding{Where: "iptables filter FORWARD -> DOCKER-USER", Rule: "-A DOCKER-USER -j DROP"}
	proxyRule = firewall.Finding{Where: "iptables nat PREROUTING", Rule: "-A PREROUTING -p tcp --dport 80 -j REDIRECT"}
)

// pathWorld is a host with a firewall that can be read, and conntrack.
func pathWorld(path config.Path, dp *dataplanetest.Dataplane, report firewall.Report) (*world, *fakeFirewall, *fakeConntrack) {
	w := worldOf(config.Config{Path: path}, dockerHost(), dp)
	fw, ct := &fakeFirewall{report: report}, &fakeConntrack{dp: dp}
	w.firewall, w.conntrack = fw, ct
	return w, fw, ct
}

// rulesChange is what Run does when the firewall says so.
func (w *world) rulesChange() {
	w.guard.stale = true
	w.again()
}

func (w *world) stackLinks() (names []string) {
	links, _ := w.dp.Links()
	for _, l := range links {
		if l.Stack {
			names = append(names, l.Name)
		}
	}
	return names
}

func TestPathDecision(t *testing.T) {
	foreign := firewall.Report{Bypassed: []firewall.Finding{dropRule}, Translated: []firewall.Finding{proxyRule}}
	rules := []string{dropRule.String(), proxyRule.String()}
	tests := []struct {
		name     string
		path     config.Path
		report   firewall.Report
		err      error
		want     Path
		problems []string
	}{
		{"auto_nothing", config.PathAuto, firewall.Report{}, nil, Path{Reasons: []string{"no rule of others would be bypassed"}}, nil},
		{"auto_foreign", config.PathAuto, foreign, nil, Path{Stack: true, Reasons: rules}, nil},
		{"auto_unreadable", config.PathAuto, firewall.Report{}, errors.New("no permission"),
			Path{Stack: true, Reasons: []string{"the host's firewall rules cannot be read: no permission"}}, nil},
		{"direct_foreign", config.PathDirect, foreign, nil, Path{Reasons: []string{"path direct is configured"}, Bypass: rules},
			[]string{"path direct is configured, and bypasses " + rules[0], "path direct is configured, and bypasses " + rules[1]}},
		{"stack_nothing", config.PathStack, firewall.Report{}, nil, Path{Stack: true, Reasons: []string{"path stack is configured"}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, fw, _ := pathWorld(tt.path, dataplanetest.New(), tt.report)
			fw.err = tt.err
			w.start(t)
			var stack []string
			if tt.want.Stack {
				stack = w.links()
			}
			diff := cmp.Diff(tt.want, w.View().Path) + cmp.Diff(tt.problems, w.View().Problems) + cmp.Diff(stack, w.stackLinks())
			if diff != "" {
				t.Error(diff)
			}
			if failed := len(w.View().Failures) > 0; failed != (tt.err != nil) {
				t.Errorf("failures %+v", w.View().Failures)
			}
		})
	}
}

// The firewall is asked at the start, when its rules change, and when other traffic would be carried past it.
func TestPathAsksWhenSomethingChanged(t *testing.T) {
	w, fw, _ := pathWorld(config.PathAuto, dataplanetest.New(), firewall.Report{})
	w.start(t)
	w.again()
	want := firewall.Traffic{Inside: []string{"docker0"}, Outside: []string{"eth0"}, Prefixes: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16")}}
	if diff := cmp.Diff([]firewall.Traffic{want}, fw.asked, compareIP); diff != "" {
		t.Error(diff)
	}
	w.rulesChange()
	if len(fw.asked) != 2 {
		t.Errorf("asked %d times after the rules changed, want 2", len(fw.asked))
	}
	w.host.edit("docker0", func(l *hostnet.Link) { l.Addresses = append(l.Addresses, netip.MustParsePrefix("172.31.0.1/24")) })
	w.again()
	if n := len(fw.asked); n != 3 || len(fw.asked[n-1].Prefixes) != 2 {
		t.Errorf("asked after another prefix came: %+v", fw.asked)
	}
}

// Before links turn to the stack, conntrack hears of the sessions that it has not seen: those, and no others.
func TestPathSeedsBeforeItTurns(t *testing.T) {
	w, fw, ct := pathWorld(config.PathAuto, dataplanetest.New(), firewall.Report{})
	w.start(t)
	session := dataplane.Session{Protocol: dataplane.TCP, Network: "docker0", Internal: internal, External: external,
		Remote: netip.MustParseAddrPort("203.0.113.1:443"), ExpiresIn: time.Minute}
	hairpin, host, ping := session, session, session
	hairpin.Hairpin, hairpin.Remote = true, netip.MustParseAddrPort("203.0.113.1:444")
	host.Network, host.Remote = dataplane.HostNetwork, netip.MustParseAddrPort("203.0.113.1:445")
	ping.Protocol = dataplane.ICMP
	for _, s := range []dataplane.Session{session, hairpin, host, ping} {
		w.dp.OpenSession(s)
	}
	w.rulesChange()
	if len(ct.seeded) > 0 {
		t.Errorf("seeded on the direct path: %+v", ct.seeded)
	}
	before := w.dp.Log()[len(w.dp.Log())-1]
	fw.report = firewall.Report{Bypassed: []firewall.Finding{dropRule}}
	w.rulesChange()
	flow := conntrack.Flow{Protocol: dataplane.TCP, SeenReply: true, Assured: true, Timeout: time.Minute,
		Original: conntrack.Tuple{Src: internal, Dst: session.Remote}, Reply: conntrack.Tuple{Src: session.Remote, Dst: internal}}
	if !slices.Contains(ct.after, before) || !slices.Contains(ct.seeded, flow) {
		t.Errorf("seeded %+v after %q, want before any link turned", ct.seeded, ct.after)
	}
	for _, f := range ct.seeded {
		if diff := cmp.Diff(flow, f, compareIP); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff(w.links(), w.stackLinks()); diff != "" {
		t.Error(diff)
	}
	seeds := len(ct.after)
	w.rulesChange()
	fw.report = firewall.Report{}
	w.rulesChange()
	if len(ct.after) != seeds || len(w.stackLinks()) > 0 {
		t.Errorf("seeded again after %q; on the stack %v", ct.after[seeds:], w.stackLinks())
	}
}

// A session that begins while links turn is told to conntrack after that: once, like all others.
func TestPathSeedsWhatBeginsMeanwhile(t *testing.T) {
	w, fw, ct := pathWorld(config.PathAuto, dataplanetest.New(), firewall.Report{})
	w.start(t)
	open := func(port uint16) conntrack.Tuple {
		remote := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), port)
		w.dp.OpenSession(dataplane.Session{Protocol: dataplane.UDP, Network: "docker0", Internal: internal, External: external, Remote: remote})
		return conntrack.Tuple{Src: internal, Dst: remote}
	}
	want := []conntrack.Tuple{open(1)}
	w.dp.Fail = func(op string) error {
		if op == "attach inside-device 3" {
			want = append(want, open(2))
		}
		return nil
	}
	fw.report = firewall.Report{Bypassed: []firewall.Finding{dropRule}}
	w.rulesChange()
	var got []conntrack.Tuple
	for _, f := range ct.seeded {
		got = append(got, f.Original)
	}
	if diff := cmp.Diff(want, got, compareIP); diff != "" {
		t.Error(diff)
	}
}

// A daemon that adopts links of the direct path and finds somebody's rules turns them as its predecessor would have.
func TestPathAdoption(t *testing.T) {
	first, _, _ := pathWorld(config.PathAuto, dataplanetest.New(), firewall.Report{})
	first.start(t)
	first.dp.OpenSession(dataplane.Session{Protocol: dataplane.UDP, Network: "docker0", Internal: internal, External: external,
		Remote: netip.MustParseAddrPort("203.0.113.1:53")})
	second, _, ct := pathWorld(config.PathAuto, first.dp.Reopen(), firewall.Report{Bypassed: []firewall.Finding{dropRule}})
	second.start(t)
	if diff := cmp.Diff(second.links(), second.stackLinks()); diff != "" || len(ct.seeded) == 0 {
		t.Errorf("seeded %+v; %s", ct.seeded, diff)
	}
	third, _, _ := pathWorld(config.PathAuto, second.dp.Reopen(), firewall.Report{Bypassed: []firewall.Finding{dropRule}})
	var direct []string
	third.dp.Fail = func(op string) error {
		if strings.HasPrefix(op, "attach") && third.guard.path.String() == "direct" {
			direct = append(direct, op)
		}
		return nil
	}
	third.start(t)
	if len(direct) > 0 {
		t.Errorf("went direct in between: %q", direct)
	}
}

// While rules cannot be read, the path stays for a moment; then, what cannot be read might be a firewall.
func TestPathWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, fw, _ := pathWorld(config.PathAuto, dataplanetest.New(), firewall.Report{})
		w.start(t)
		fw.err = errors.New("the rules change faster than they can be read")
		w.rulesChange()
		if p := w.View().Path; p.Stack || len(w.View().Failures) != 1 {
			t.Errorf("at once: path %+v, failures %+v", p, w.View().Failures)
		}
		time.Sleep(unreadable + time.Millisecond)
		w.again()
		want := Path{Stack: true, Reasons: []string{"the host's firewall rules cannot be read: " + fw.err.Error()}}
		if diff := cmp.Diff(want, w.View().Path); diff != "" {
			t.Error(diff)
		}
		fw.err = nil
		w.again()
		if p := w.View().Path; p.Stack || len(w.View().Failures) > 0 {
			t.Errorf("read again: path %+v, failures %+v", p, w.View().Failures)
		}
	})
}
