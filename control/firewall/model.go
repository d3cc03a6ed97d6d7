// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"slices"
	"strings"
)

// ruleset is all that decide looks at.
type ruleset struct {
	family   *family
	tables   []table
	policies []policy
	links    []link
}

// link is an interface of the host.
type link struct {
	index     int
	name      string
	master    string         // the bridge or bond that it is a port of
	addresses []netip.Prefix // with the length of the network they are in
}

// backend is the interface that a table was read by, and is written with.
type backend string

const (
	nft            backend = "nft"
	iptables       backend = "iptables" // tables in nftables, as iptables-nft writes them
	iptablesLegacy backend = "iptables-legacy"

	ip6tables       backend = "ip6tables" // the same of IPv6
	ip6tablesLegacy backend = "ip6tables-legacy"
)

type table struct {
	backend backend
	family  string // ip, ip6, inet or bridge
	name    string
	chains  []*chain
	byName  map[string]*chain
}

// chain is nil if there is none of this name.
func (t table) chain(name string) *chain { return t.byName[name] }

func (t *table) add(c *chain) {
	if t.byName == nil {
		t.byName = map[string]*chain{}
	}
	t.chains = append(t.chains, c)
	t.byName[c.name] = c
}

// label is the beginning of a Finding's Where.
func (t table) label() string {
	if t.backend == nft {
		return "nft " + t.family + " " + t.name
	}
	return string(t.backend) + " " + t.name
}

type chain struct {
	name     string
	hook     hook   // noHook: reached by jumps alone
	kind     string // filter, nat, route
	priority int
	drops    bool // the policy
	rules    []rule
}

type hook int

const (
	noHook hook = iota
	prerouting
	input
	forward
	output
	postrouting
)

type verdict int

const (
	none    verdict = iota // falls through
	accepts                // ends this chain, and the base chain with it
	drops                  // drop
	rejects                // drop, and says so
	returns
	jumps
	gotos
	diverts // dnat, redirect
	others  // what the packet meets is neither of these: queue, mark, log, tproxy, …
)

// rule is a conjunction of matches, what it does on the way, and its verdict.
type rule struct {
	handle    uint64
	in, out   []names // each must match
	src, dst  []addrs
	protocols []protocols
	ports     []ports  // destination ports
	local     bool     // only packets to an address of the host
	never     bool     // no packet of the family
	extra     []string // matches that decide nothing here, as text
	effects   []string // statements beside the verdict, as text
	verdict   verdict
	target    string // the chain of a jump, what others do, or how a reject says so, as text
	partial   bool   // the texts are not the whole rule
	comment   string // as text
	raw       string // the rule as its tool printed it, if it did
}

// conditional says whether some packet might not match.
func (r *rule) conditional() bool {
	return len(r.in)+len(r.out)+len(r.src)+len(r.dst)+len(r.protocols)+len(r.ports)+len(r.extra) > 0 || r.local || r.never
}

// names is an interface's name being one of the patterns, or none of them. A pattern that ends in * is a prefix.
type names struct {
	not      bool
	patterns []string
}

func (n names) match(name string) bool {
	return n.not != slices.ContainsFunc(n.patterns, func(p string) bool {
		prefix, wild := strings.CutSuffix(p, "*")
		return p == name || (wild && strings.HasPrefix(name, prefix))
	})
}

// only is the one name that a list of matches allows, if it is that simple.
func only(list []names, not bool) (string, bool) {
	if len(list) != 1 || list[0].not != not || len(list[0].patterns) != 1 || strings.HasSuffix(list[0].patterns[0], "*") {
		return "", false
	}
	return list[0].patterns[0], true
}

// addrs is an address being in one of the prefixes, or in none of them.
type addrs struct {
	not      bool
	prefixes []netip.Prefix
}

// single is the one address that a list of matches allows, if it is that simple.
func single(list []addrs) (netip.Addr, bool) {
	if len(list) != 1 || list[0].not || len(list[0].prefixes) != 1 || !list[0].prefixes[0].IsSingleIP() {
		return netip.Addr{}, false
	}
	return list[0].prefixes[0].Addr(), true
}

type protocols struct {
	not    bool
	values []uint8
}

func (p protocols) match(protocol uint8) bool { return p.not != slices.Contains(p.values, protocol) }

type portRange struct{ low, high uint16 }

type ports struct {
	not    bool
	ranges []portRange
}

// allowed are the ranges that a list of matches leaves.
func allowed(list []ports) []portRange {
	out := []portRange{{0, 65535}}
	for _, p := range list {
		ranges := p.ranges
		if p.not {
			ranges = complement(ranges)
		}
		out = intersect(out, ranges)
	}
	return out
}

func complement(ranges []portRange) (out []portRange) {
	ranges = slices.SortedFunc(slices.Values(ranges), func(a, b portRange) int { return int(a.low) - int(b.low) })
	next := 0
	for _, r := range ranges {
		if int(r.low) > next {
			out = append(out, portRange{uint16(next), r.low - 1})
		}
		next = max(next, int(r.high)+1)
	}
	if next <= 65535 {
		out = append(out, portRange{uint16(next), 65535})
	}
	return out
}

func intersect(a, b []portRange) (out []portRange) {
	for _, x := range a {
		for _, y := range b {
			if low, high := max(x.low, y.low), min(x.high, y.high); low <= high {
				out = append(out, portRange{low, high})
			}
		}
	}
	return out
}

// policy is an xfrm policy that does something: it blocks, or transforms.
type policy struct {
	direction string // in, fwd, out
	src, dst  netip.Prefix
	text      string
}
