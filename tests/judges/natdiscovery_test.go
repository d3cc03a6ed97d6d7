// SPDX-License-Identifier: Apache-2.0

package judges

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/conenat/conenat/tests/family"
	"github.com/conenat/conenat/tests/topo"
)

// The ages at which turnutils_natdiscovery looks whether a binding lives: before quick's lifetime is over, and after it.
const (
	youngAge = "2"
	oldAge   = "7"
)

// natdiscovery runs coturn's judge with some of its options.
func natdiscovery(ctx context.Context, fam family.Family, ns *topo.NS, options ...string) (string, error) {
	return ns.Run(ctx, "", "turnutils_natdiscovery", fam.Texts(append(options, primaryAddr)...)...)
}

// coturn is what turnutils_natdiscovery found.
type coturn struct {
	Mapping, Filtering             string
	MappingPadded, FilteringPadded string // asked by requests that come in fragments
	Hairpin, HairpinPadded         bool
	AliveYoung, AliveOld           bool // a binding of that age
	Collides                       bool // two internal endpoints have one external endpoint
	Rewrites                       bool // MAPPED-ADDRESS is not XOR-MAPPED-ADDRESS: an application layer gateway
}

// askCoturn asks everything at the same time, each by a process and ports of its own; no answer waits for another one.
func askCoturn(ctx context.Context, fam family.Family, ns *topo.NS) (found coturn, err error) {
	questions := []struct {
		options string
		read    func(out string) error
	}{
		{"-m", decision(&found.Mapping, "Mapping")},
		{"-f", decision(&found.Filtering, "Filtering")},
		{"-m -P", decision(&found.MappingPadded, "Mapping")},
		{"-f -P", decision(&found.FilteringPadded, "Filtering")},
		{"-H", hairpin(&found.Hairpin)},
		{"-H -P", hairpin(&found.HairpinPadded)},
		{"-t -T " + youngAge, alive(&found.AliveYoung)},
		{"-t -T " + oldAge, alive(&found.AliveOld)},
		{"-c -L " + containerAddr + " -A " + otherAddr, collides(&found.Collides)},
	}
	outputs := make([]string, len(questions))
	err = together(len(questions), func(i int) (err error) {
		outputs[i], err = natdiscovery(ctx, fam, ns, strings.Fields(questions[i].options)...)
		return err
	})
	if err != nil {
		return found, err
	}
	for i, q := range questions {
		if err := q.read(outputs[i]); err != nil {
			return found, fmt.Errorf("natdiscovery %s: %w:\n%s", q.options, err, outputs[i])
		}
		found.Rewrites = found.Rewrites || strings.Contains(outputs[i], "ALG detected")
	}
	return found, nil
}

var behaviorWords = map[string]string{
	"Endpoint Independent":       independent,
	"Address Dependent":          address,
	"Address and Port Dependent": port,
}

var decided = regexp.MustCompile(`(?m)^NAT with (.+) (Mapping|Filtering)!$`)

// decision reads "NAT with Address Dependent Mapping!".
func decision(to *string, about string) func(string) error {
	return func(out string) error {
		lines := decided.FindAllStringSubmatch(out, -1)
		if len(lines) != 1 || lines[0][2] != about || behaviorWords[lines[0][1]] == "" {
			return fmt.Errorf("no decision, or several, about %s", about)
		}
		*to = behaviorWords[lines[0][1]]
		return nil
	}
}

const (
	timedOut  = "STUN receive timeout.."
	gotItself = "Received a request (maybe a successful hairpinning)"
)

// hairpin reads whether a request that was sent to the own external endpoint arrived.
func hairpin(to *bool) func(string) error {
	return func(out string) error {
		*to = strings.Contains(out, gotItself)
		if len(reflexive(out)) != 1 || *to == strings.Contains(out, timedOut) {
			return fmt.Errorf("neither arrived nor timed out")
		}
		return nil
	}
}

// alive reads whether the second answer came to the port that was silent for so long.
func alive(to *bool) func(string) error {
	return func(out string) error {
		answers := len(reflexive(out))
		*to = answers == 2
		if answers == 0 || *to == strings.Contains(out, timedOut) {
			return fmt.Errorf("want two answers, or one and a timeout")
		}
		return nil
	}
}

// collides compares the external endpoints of one port of two internal addresses.
func collides(to *bool) func(string) error {
	return func(out string) error {
		seen := reflexive(out)
		locals := endpoints(out, "Local addr: : ")
		if len(seen) != 2 || len(locals) != 2 || locals[0].Port() != locals[1].Port() || locals[0] == locals[1] {
			return fmt.Errorf("want two answers, to one port of two addresses")
		}
		*to = seen[0] == seen[1]
		return nil
	}
}

// reflexive are the external endpoints, in the order of the answers.
func reflexive(out string) []netip.AddrPort { return endpoints(out, "UDP reflexive addr: ") }

// endpoint reads ADDR:PORT, without brackets in IPv6, too.
func endpoint(text string) (netip.AddrPort, error) {
	colon := max(strings.LastIndexByte(text, ':'), 0)
	addr, err := netip.ParseAddr(text[:colon])
	if err != nil || addr.Is4() {
		return netip.ParseAddrPort(text)
	}
	return netip.ParseAddrPort("[" + text[:colon] + "]" + text[colon:])
}

func endpoints(out, before string) (list []netip.AddrPort) {
	for line := range strings.Lines(out) {
		if _, text, ok := strings.Cut(line, before); ok {
			if endpoint, err := endpoint(strings.TrimSpace(text)); err == nil {
				list = append(list, endpoint)
			}
		}
	}
	return list
}
