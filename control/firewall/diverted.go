// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/conenat/conenat/dataplane"
)

// diversion is a packet on its way through the nat chains of prerouting.
type diversion struct {
	flow
	protocols []protocols
	ports     []ports
	local     bool // to an address of the host
	docker    bool
}

// diverter collects where those ways end in a dnat or redirect.
type diverter struct {
	*walker
	host     []netip.Addr // the host's addresses
	findings []Finding
	diverted []Diverted
	found    map[*rule]bool
}

// diverted walks the nat chains of prerouting.
func (w *walker) diverted() ([]Finding, []Diverted) {
	d := diverter{walker: w, found: map[*rule]bool{}}
	for _, l := range w.links {
		for _, a := range l.addresses {
			d.host = append(d.host, a.Addr())
		}
	}
	for _, t := range w.tables {
		for _, c := range t.chains {
			if c.hook == prerouting && c.kind == "nat" && !t.conenats() && t.family != "bridge" {
				start := diversion{flow: w.everything(), docker: t.backend == nft && t.name == dockerTable}
				start.hook, start.where = prerouting, t.label()+" "+c.name
				d.walk(t, c, start)
			}
		}
	}
	slices.SortStableFunc(d.diverted, func(a, b Diverted) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Low, b.Low), cmp.Compare(a.High, b.High),
			a.Address.Compare(b.Address))
	})
	return d.findings, slices.Compact(d.diverted)
}

func (d *diverter) walk(t table, c *chain, way diversion) {
	for i := range c.rules {
		r := &c.rules[i]
		if next := d.step(way, r); d.alive(next, r) {
			switch r.verdict {
			case diverts:
				d.end(t, c, r, next)
			case jumps, gotos:
				d.jump(t, r, next)
			}
		}
		if !r.conditional() && r.verdict != none && r.verdict != jumps && r.verdict != others {
			return
		}
	}
}

func (d *diverter) jump(t table, r *rule, way diversion) {
	target := t.chain(r.target)
	if target == nil || way.depth == maxDepth {
		return
	}
	way.depth++
	way.where += " -> " + target.name
	way.docker = way.docker || (t.backend != nft && slices.Contains(dockerChains, target.name))
	d.walk(t, target, way)
}

func (d *diverter) step(way diversion, r *rule) diversion {
	way.flow = d.narrow(way.flow, r)
	way.protocols = append(slices.Clip(way.protocols), r.protocols...)
	way.ports = append(slices.Clip(way.ports), r.ports...)
	way.local = way.local || r.local
	return way
}

func (d *diverter) alive(way diversion, r *rule) bool {
	return !r.never && slices.Contains(way.in, true) && d.family.translates(way.protocols) && d.isUnicast(way.dst)
}

// end is the rule that translates the destination.
func (d *diverter) end(t table, c *chain, r *rule, way diversion) {
	inside := len(d.traffic.Inside)
	if slices.Contains(way.in[inside:], true) {
		d.outside(way)
	}
	if !way.docker && !way.local && slices.Contains(way.in[:inside], true) && d.isInside(way.src) &&
		d.isRemote(way.dst) && !d.toHost(way.dst) && !d.found[r] {
		d.found[r] = true
		d.findings = append(d.findings, Finding{way.where, r.text(t.backend, c.name)})
	}
}

// outside notes the ports of packets that come from outside.
func (d *diverter) outside(way diversion) {
	for _, protocol := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		if slices.ContainsFunc(way.protocols, func(p protocols) bool { return !p.match(uint8(protocol)) }) {
			continue
		}
		for _, ports := range allowed(way.ports) {
			for _, to := range d.destinations(way.dst) {
				out := Diverted{Protocol: protocol, Low: ports.low, High: ports.high, Prefix: to, Docker: way.docker, Where: way.where}
				if to.IsValid() && to.IsSingleIP() {
					out.Address = to.Addr()
				}
				d.diverted = append(d.diverted, out)
			}
		}
	}
}

// destinations are the prefixes that the narrowest match names, or for any the zero Prefix, in IPv6 all of it.
func (d *diverter) destinations(matches []addrs) []netip.Prefix {
	out := []netip.Prefix{{}}
	if d.family == ipv6 {
		out[0] = ipv6.every()
	}
	longest := -1
	for _, m := range matches {
		if m.not || len(m.prefixes) == 0 {
			continue
		}
		if bits := m.prefixes[0].Bits(); bits > longest {
			longest, out = bits, m.prefixes
		}
	}
	return out
}

// toHost says whether the matches leave addresses of the host alone.
func (d *diverter) toHost(matches []addrs) bool {
	return slices.ContainsFunc(matches, func(m addrs) bool {
		return !m.not && !slices.ContainsFunc(m.prefixes, func(p netip.Prefix) bool {
			return !p.IsSingleIP() || !slices.Contains(d.host, p.Addr())
		})
	})
}
