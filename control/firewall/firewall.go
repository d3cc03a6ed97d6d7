// SPDX-License-Identifier: Apache-2.0

package firewall

import (
	"net/netip"
	"slices"

	"github.com/conenat/conenat/dataplane"
)

// Traffic is what conenat would carry past the firewall.
type Traffic struct {
	Inside   []string       // inside interfaces: bridges (docker0, br-…)
	Outside  []string       // outside interfaces (eth0, bond0.7, wg0)
	Prefixes []netip.Prefix // of the inside networks, of both families
}

// Finding is one rule of others.
type Finding struct {
	// Where names the back end, table and chain, and the chains between it and the hook: "iptables filter
	// FORWARD -> ufw-user-forward", "iptables-legacy mangle FORWARD", "nft inet firewalld filter_FORWARD",
	// "xfrm policy out".
	Where string
	// Rule is what iptables-save, nft or ip would print, as far as it could be decoded, or else with the
	// handle to find it by.
	Rule string
}

// String is the finding in one line.
func (f Finding) String() string { return f.Where + ": " + f.Rule }

// Diverted is a range of destination ports that a nat rule translates in prerouting.
type Diverted struct {
	Protocol  dataplane.Protocol // TCP or UDP
	Low, High uint16             // the range, both included; 0-65535: every port, or the rule does not tell
	Address   netip.Addr         // of the destination; zero: not one single address
	Prefix    netip.Prefix       // of the destination; zero: any of IPv4
	Docker    bool               // a port that Docker itself publishes
	Where     string             // as a Finding's
}

// Covers says whether the rule takes packets to an endpoint.
func (d Diverted) Covers(protocol dataplane.Protocol, to netip.AddrPort) bool {
	there := d.Prefix.Contains(to.Addr()) || (!d.Prefix.IsValid() && to.Addr().Is4())
	return d.Protocol == protocol && d.Low <= to.Port() && to.Port() <= d.High && there
}

// Report is the answer for one Traffic. It is deterministic: rules in the order in which a packet would
// meet them, each once.
type Report struct {
	Bypassed []Finding // rules that traffic would meet in the stack and does not on the direct path
	// Translated are nat rules that change the destination of what containers send to others than the host:
	// a transparent proxy, a Kubernetes ClusterIP. The direct path does not do what they say.
	Translated []Finding
	Diverted   []Diverted // by family, protocol and port
}

// Firewall reads the network namespace of the thread that calls it.
type Firewall struct {
	changes chan struct{}
}

// New is a Firewall that nobody watches yet.
func New() *Firewall { return &Firewall{changes: make(chan struct{}, 1)} }

// Inspect reads all rules anew and answers. It fails if any of them cannot be read: without CAP_NET_ADMIN,
// without iptables-legacy-save where legacy tables exist, or while the rules change faster than they can be read.
func (f *Firewall) Inspect(t Traffic) (Report, error) {
	var report Report
	for _, one := range t.families() {
		rules, err := one.read()
		if err != nil {
			return Report{}, err
		}
		report.add(decide(rules, t))
	}
	return report, nil
}

// add puts what was found for another family behind what is known, without the rules that both meet.
func (r *Report) add(more Report) {
	news := func(have, more []Finding) []Finding {
		return append(have, slices.DeleteFunc(more, func(f Finding) bool { return slices.Contains(have, f) })...)
	}
	r.Bypassed, r.Translated = news(r.Bypassed, more.Bypassed), news(r.Translated, more.Translated)
	r.Diverted = append(r.Diverted, more.Diverted...)
}

// read takes the whole model from the kernel, as packets of the family meet it.
func (f *family) read() (ruleset, error) {
	rs := ruleset{family: f}
	var err error
	if rs.links, err = f.readLinks(); err != nil {
		return ruleset{}, err
	}
	nft, err := f.readNFT(rs.links)
	if err != nil {
		return ruleset{}, err
	}
	legacy, err := f.readLegacy()
	if err != nil {
		return ruleset{}, err
	}
	rs.tables = append(nft, legacy...)
	rs.policies, err = f.readPolicies()
	return rs, err
}
