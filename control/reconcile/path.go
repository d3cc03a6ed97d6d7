// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/conenat/conenat/control/config"
	"github.com/conenat/conenat/control/conntrack"
	"github.com/conenat/conenat/control/firewall"
	"github.com/conenat/conenat/control/plan"
	"github.com/conenat/conenat/dataplane"
)

// unreadable is how long rules that were read once may have no answer before they count as a firewall: they change
// faster than they can be read for a moment, while a firewall is loaded.
const unreadable = 2 * time.Second

// guard is what is known of the host's firewall, and the path that follows from it.
type guard struct {
	traffic   firewall.Traffic
	report    firewall.Report
	asked     bool // report is of traffic
	stale     bool // the rules may have changed
	inspected bool // report is newer than what was reserved
	failed    error
	since     time.Time // of the first failure in a row
	path      Path
}

// Path is the packets' path, and why.
type Path struct {
	Stack   bool
	Reasons []string // the rules of others that decided for the stack, or the operator's word
	Bypass  []string // the rules of others that the direct path does not meet, on the operator's word
}

// String is "direct" or "stack".
func (p Path) String() string {
	if p.Stack {
		return string(config.PathStack)
	}
	return string(config.PathDirect)
}

// choosePath asks the firewall where something has changed, and sets the path of every link.
func (r *Reconciler) choosePath(t *target) {
	traffic := trafficOf(t.State)
	if r.firewall != nil && (!r.guard.asked || r.guard.stale || !sameTraffic(traffic, r.guard.traffic)) {
		r.inspect(traffic)
	}
	was := r.guard.path
	r.guard.path = r.decide(t)
	if was.String() != r.guard.path.String() && r.guard.asked {
		r.log.Info("path: "+r.guard.path.String(), "because", r.guard.path.Reasons)
	}
	for i := range t.Links {
		t.Links[i].Stack = r.guard.path.Stack
	}
}

func (r *Reconciler) inspect(traffic firewall.Traffic) {
	report, err := r.firewall.Inspect(traffic)
	if err != nil && r.guard.failed == nil {
		r.guard.since = time.Now()
	}
	r.guard.failed = err
	if err != nil {
		r.fail("read the host's firewall rules", err, false)
		return
	}
	r.guard.traffic, r.guard.report, r.guard.asked, r.guard.stale = traffic, report, true, false
	r.guard.inspected = true
}

// decide: on auto, what cannot be read might be a firewall.
func (r *Reconciler) decide(t *target) Path {
	rules := findings(r.guard.report)
	switch {
	case r.cfg.Path == config.PathStack:
		return Path{Stack: true, Reasons: []string{"path stack is configured"}}
	case r.cfg.Path == config.PathDirect:
		for _, rule := range rules {
			t.problem("path direct is configured, and bypasses %s", rule)
		}
		return Path{Reasons: []string{"path direct is configured"}, Bypass: rules}
	case r.firewall == nil:
		return Path{}
	case !r.guard.asked || r.guard.unreadable():
		return Path{Stack: true, Reasons: []string{fmt.Sprintf("the host's firewall rules cannot be read: %v", r.guard.failed)}}
	case len(rules) > 0:
		return Path{Stack: true, Reasons: rules}
	}
	return Path{Reasons: []string{"no rule of others would be bypassed"}}
}

// unreadable: what is known of the rules is old.
func (g guard) unreadable() bool { return g.failed != nil && time.Since(g.since) > unreadable }

func findings(report firewall.Report) (rules []string) {
	for _, f := range slices.Concat(report.Bypassed, report.Translated) {
		rules = append(rules, f.String())
	}
	return rules
}

func trafficOf(s plan.State) (t firewall.Traffic) {
	for _, l := range s.Links {
		switch l.Kind {
		case dataplane.InsideDevice:
			t.Inside = append(t.Inside, l.Name)
		case dataplane.OutsideLink:
			t.Outside = append(t.Outside, l.Name)
		}
	}
	for _, n := range s.Networks {
		t.Prefixes = append(t.Prefixes, n.Prefixes...)
	}
	slices.Sort(t.Inside)
	slices.Sort(t.Outside)
	return t
}

func sameTraffic(a, b firewall.Traffic) bool {
	return slices.Equal(a.Inside, b.Inside) && slices.Equal(a.Outside, b.Outside) && slices.Equal(a.Prefixes, b.Prefixes)
}

// turnsToStack says whether links that went direct are to take the stack.
func turnsToStack(actions []plan.Action, actual plan.State) bool {
	for _, a := range actions {
		if a.Verb != plan.Attach || !a.Link.Stack {
			continue
		}
		if slices.ContainsFunc(actual.Links, func(l dataplane.Link) bool { return l.IfIndex == a.Link.IfIndex && !l.Stack }) {
			return true
		}
	}
	return false
}

// seed tells conntrack of the sessions that live, as connections between the container and its remote: their next
// packet may come from outside, and the host's rules would take it for a new connection's. It returns what conntrack
// knows then; what it was told before is left out.
func (r *Reconciler) seed(told []conntrack.Flow) []conntrack.Flow {
	const action = "tell conntrack of the sessions, for the stack path"
	if r.conntrack == nil {
		return nil
	}
	sessions, err := r.dp.Sessions()
	flows := without(flowsOf(sessions), told)
	if err == nil && len(flows) > 0 {
		_, err = r.conntrack.Replace(flows) // one that was taken over has an entry of its old NAT
	}
	if err != nil {
		r.fail(action, err, false)
	}
	return append(told, flows...)
}

// without leaves out flows whose endpoints are those of others.
func without(flows, others []conntrack.Flow) []conntrack.Flow {
	type key struct {
		protocol dataplane.Protocol
		original conntrack.Tuple
	}
	known := map[key]bool{}
	for _, f := range others {
		known[key{f.Protocol, f.Original}] = true
	}
	return slices.DeleteFunc(flows, func(f conntrack.Flow) bool { return known[key{f.Protocol, f.Original}] })
}

func flowsOf(sessions []dataplane.Session) (flows []conntrack.Flow) {
	for _, s := range sessions {
		if s.Hairpin || s.Network == dataplane.HostNetwork || (s.Protocol != dataplane.TCP && s.Protocol != dataplane.UDP) {
			continue
		}
		flows = append(flows, conntrack.Flow{Protocol: s.Protocol, SeenReply: true, Assured: true, Timeout: s.ExpiresIn,
			Original: conntrack.Tuple{Src: s.Internal, Dst: s.Remote}, Reply: conntrack.Tuple{Src: s.Remote, Dst: s.Internal}})
	}
	return flows
}
