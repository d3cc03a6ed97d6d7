// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"cmp"
	"net/netip"
	"slices"
)

// decide answers for a model of the rules, and the traffic of its family. It is pure: the same input gives the same report.
func decide(rs ruleset, t Traffic) Report {
	w := newWalker(rs, t)
	var report Report
	for _, b := range w.baseChains() {
		if b.chain.kind == "nat" {
			continue // translation, not a filter; of the destination: below
		}
		w.walk(b.table, b.chain, w.everything())
	}
	w.policies(rs.policies)
	report.Bypassed = w.findings
	report.Translated, report.Diverted = w.diverted()
	return report
}

// walker follows the rules as a packet of the traffic would.
type walker struct {
	family    *family
	traffic   Traffic
	names     []string // the inside interfaces, then the outside ones
	links     []link
	elsewhere []netip.Prefix // networks of the host's other links, and what is no unicast address
	tables    []table
	docker    map[backend]dockerRules
	findings  []Finding
	found     map[*rule]bool
}

func newWalker(rs ruleset, t Traffic) *walker {
	w := &walker{family: rs.family, traffic: t.of(rs.family), links: rs.links, tables: rs.tables, docker: map[backend]dockerRules{},
		found: map[*rule]bool{}}
	w.names = append(slices.Clone(t.Inside), t.Outside...)
	w.elsewhere = slices.Clone(rs.family.own)
	for _, l := range rs.links {
		for _, a := range l.addresses {
			if !slices.Contains(w.names, l.name) {
				w.elsewhere = append(w.elsewhere, a.Masked())
			}
		}
	}
	for _, b := range []backend{rs.family.iptables, rs.family.legacy} {
		w.docker[b] = findDocker(rs.tables, b, t)
	}
	return w
}

type baseChain struct {
	table table
	chain *chain
}

// baseChains are those on hooks of the traffic, in the order in which a packet meets them.
func (w *walker) baseChains() (out []baseChain) {
	for _, t := range w.tables {
		if t.conenats() || (t.backend == nft && t.name == dockerTable) {
			continue
		}
		for _, c := range t.chains {
			local := c.hook == input || c.hook == output // a bridge's port to the host's stack and back
			if c.hook != noHook && (!local || t.family == "bridge") {
				out = append(out, baseChain{t, c})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b baseChain) int {
		return cmp.Or(cmp.Compare(a.chain.hook, b.chain.hook), cmp.Compare(a.chain.priority, b.chain.priority),
			cmp.Compare(a.table.label(), b.table.label()), cmp.Compare(a.chain.name, b.chain.name))
	})
	return out
}

// flow is what a packet that gets to a rule may be: its interfaces, and what was asked of its addresses on the way.
type flow struct {
	hook    hook
	bridge  bool   // in the bridge family, where interfaces are ports
	in, out []bool // by walker.names
	src     []addrs
	dst     []addrs
	where   string
	depth   int
}

func (w *walker) everything() flow {
	all := make([]bool, len(w.names))
	for i := range all {
		all[i] = true
	}
	return flow{in: all, out: all}
}

// The deepest jump that nftables allows is 16 (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// walk looks at a base chain, and whether its policy drops.
func (w *walker) walk(t table, c *chain, f flow) {
	f.hook, f.bridge, f.where = c.hook, t.family == "bridge", t.label()+" "+c.name
	ended := w.rules(t, c, f)
	dockers := t.name == "filter" && c.name == "FORWARD" && w.docker[t.backend].present
	if !c.drops || ended || dockers || !w.possible(f, none) {
		return
	}
	text := "policy drop"
	if t.backend != nft {
		text = "-P " + c.name + " DROP"
	}
	w.findings = append(w.findings, Finding{f.where, text})
}

// rules looks at a chain's rules until one takes every packet; ended: and lets none get to the base chain's policy.
func (w *walker) rules(t table, c *chain, f flow) (ended bool) {
	for i := range c.rules {
		r := &c.rules[i]
		if t.backend != nft && slices.Contains(dockerChains, r.target) {
			continue
		}
		if w.docker[t.backend].wrote(w.family, t, c, r) && f.depth == 0 {
			continue
		}
		if next := w.narrow(f, r); w.reaches(next, r) {
			w.meet(t, c, r, next)
		}
		if !r.conditional() && r.verdict != none && r.verdict != jumps && r.verdict != others {
			return r.verdict != returns && r.verdict != gotos
		}
	}
	return false
}

// meet is a rule that the traffic gets to.
func (w *walker) meet(t table, c *chain, r *rule, f flow) {
	jump := r.verdict == jumps || r.verdict == gotos
	if len(r.effects) > 0 || !(jump || r.verdict == none || r.verdict == returns) {
		w.find(t, c, r, f.where)
	}
	target := t.chain(r.target)
	if !jump || target == nil || f.depth == maxDepth {
		return
	}
	f.depth++
	f.where += " -> " + target.name
	w.rules(t, target, f)
}

func (w *walker) find(t table, c *chain, r *rule, where string) {
	if !w.found[r] {
		w.found[r] = true
		w.findings = append(w.findings, Finding{where, r.text(t.backend, c.name)})
	}
}

// narrow is the flow that matches the rule.
func (w *walker) narrow(f flow, r *rule) flow {
	if !f.bridge {
		f.in, f.out = w.keep(f.in, r.in), w.keep(f.out, r.out)
	}
	f.src, f.dst = also(f.src, r.src), also(f.dst, r.dst)
	return f
}

func also(have, more []addrs) []addrs {
	if len(more) == 0 {
		return have
	}
	return append(slices.Clip(have), more...)
}

// keep are those interfaces that every match allows.
func (w *walker) keep(have []bool, matches []names) []bool {
	if len(matches) == 0 {
		return have
	}
	out := slices.Clone(have)
	for i, name := range w.names {
		for _, m := range matches {
			out[i] = out[i] && m.match(name)
		}
	}
	return out
}

// reaches says whether a packet of the traffic may match a rule, f being narrowed by it.
func (w *walker) reaches(f flow, r *rule) bool {
	if r.never || !w.family.translates(r.protocols) || (f.bridge && !w.onBridge(r)) {
		return false
	}
	return w.possible(f, r.verdict)
}

// translated: conenat carries ICMP, TCP and UDP, and nothing else.
func (f *family) translates(matches []protocols) bool {
	return slices.ContainsFunc([]uint8{f.icmp, 6, 17}, func(protocol uint8) bool {
		return !slices.ContainsFunc(matches, func(m protocols) bool { return !m.match(protocol) })
	})
}

// possible says whether some packet between inside and outside, or between inside networks, is in the flow.
// Where a rule accepts, addresses are as routes have them; where it drops, a packet from outside may bear any.
func (w *walker) possible(f flow, v verdict) bool {
	n := len(w.traffic.Inside)
	if n == 0 {
		return false // nothing is carried
	}
	fromInside, fromOutside := slices.Contains(f.in[:n], true), slices.Contains(f.in[n:], true)
	toInside, toOutside := slices.Contains(f.out[:n], true), slices.Contains(f.out[n:], true)
	anySource := f.hook == postrouting // may be translated already
	fromInside = fromInside && (anySource || w.isInside(f.src))
	fromOutside = fromOutside && (anySource || v != accepts || w.isRemote(f.src))
	if f.hook == prerouting || f.bridge {
		return (fromInside || fromOutside) && w.isUnicast(f.dst)
	}
	return (toInside && w.isInside(f.dst) && (fromInside || fromOutside)) || (toOutside && fromInside && w.isRemote(f.dst))
}

// isInside says whether an address of an inside network passes the matches.
func (w *walker) isInside(matches []addrs) bool {
	return slices.ContainsFunc(w.traffic.Prefixes, func(inside netip.Prefix) bool {
		for _, m := range matches {
			if m.not && covers(m.prefixes, inside) || !m.not && !overlaps(m.prefixes, inside) {
				return false
			}
		}
		return true
	})
}

// isRemote says whether an address passes the matches that is neither inside nor in a network of another link.
func (w *walker) isRemote(matches []addrs) bool {
	for _, m := range matches {
		if !m.not && !slices.ContainsFunc(m.prefixes, func(p netip.Prefix) bool {
			return !covers(w.traffic.Prefixes, p) && !covers(w.elsewhere, p)
		}) {
			return false
		}
	}
	return true
}

// isUnicast says whether an address passes that packets on the wire have.
func (w *walker) isUnicast(matches []addrs) bool {
	for _, m := range matches {
		if !m.not && !slices.ContainsFunc(m.prefixes, func(p netip.Prefix) bool {
			return !covers(w.family.own, p)
		}) {
			return false
		}
	}
	return true
}

func overlaps(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, p.Overlaps)
}

// covers says whether one of the list holds all of p.
func covers(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(l netip.Prefix) bool { return l.Bits() <= p.Bits() && l.Contains(p.Addr()) })
}

// onBridge says whether a rule of the bridge family may be about ports of an inside bridge. A name that no
// link bears now may be the next container's.
func (w *walker) onBridge(r *rule) bool {
	for _, m := range slices.Concat(r.in, r.out) {
		if !m.not && !slices.ContainsFunc(m.patterns, w.insidePort) {
			return false
		}
	}
	return true
}

func (w *walker) insidePort(pattern string) bool {
	i := slices.IndexFunc(w.links, func(l link) bool { return l.name == pattern })
	return i < 0 || slices.Contains(w.traffic.Inside, w.links[i].name) || slices.Contains(w.traffic.Inside, w.links[i].master)
}

// policies adds the xfrm policies whose selector has an address of an inside network on either side.
func (w *walker) policies(list []policy) {
	for _, p := range list {
		if overlaps(w.traffic.Prefixes, p.src) || overlaps(w.traffic.Prefixes, p.dst) {
			w.findings = append(w.findings, Finding{"xfrm policy " + p.direction, p.text})
		}
	}
}
